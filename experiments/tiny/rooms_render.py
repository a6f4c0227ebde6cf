"""Ray casting of rooms furnished with boxes: what each pixel of a camera sees, and how far away.

A room is the inside of a box on the floor plane z = 0; everything in it is a box that may be turned
about the vertical. Room axes: x to the right, y into the room, z up, in metres. Camera axes are of
the same kind: x to the right, y straight ahead, z up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FOCAL = 518 / 640  # of NYUv2's camera, in widths of the image
_NEAR = 0.05  # metres; what is closer to the camera than this is not projected
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)

Floats: TypeAlias = NDArray[np.floating]  # float32 in all that follows


class Box(NamedTuple):
    """A box, turned about the vertical through its centre.

    Attributes:
        centre: x, y, z.
        half: half its edges.
        yaw: radians, anticlockwise seen from above.
        label: its class.
        paint: index of its surface.
        shades: whether it throws a shadow.
    """

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    label: int
    paint: int
    shades: bool = True


class Camera(NamedTuple):
    """Where the camera is and where it looks: yaw to the left, pitch up, roll, in radians."""

    place: tuple[float, float, float]
    yaw: float
    pitch: float
    roll: float

    def axes(self) -> Floats:
        """The camera's axes (columns) in those of the room: right, ahead, up."""
        (sy, cy), (sp, cp), (sr, cr) = (
            (np.sin(a), np.cos(a)) for a in (self.yaw, self.pitch, self.roll)
        )
        turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        lean = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
        return (turn @ tilt @ lean).astype(np.float32)


class Seen(NamedTuple):
    """What the pixels see, in row order.

    Attributes:
        depth: [n], metres straight ahead (not along the ray).
        box: int [n], the index of the box, after the six sides of the room (see `SIDES`).
        axis: int [n], which axis of the box the surface is across.
        point: [3, n], in the room.
        local: [3, n], from the box's centre (the room's corner) along the box's axes, in metres.
        normal: [3, n], in the room, length 1, towards the camera.
    """

    depth: Floats
    box: NDArray[np.intp]
    axis: NDArray[np.intp]
    point: Floats
    local: Floats
    normal: Floats


SIDES = ("left", "right", "near", "far", "floor", "ceiling")  # of a room: two per axis


@functools.cache
def ray_directions(height: int, width: int) -> Floats:
    """Directions of the pixels' rays in camera axes, [3, height, width]; all are 1 ahead.

    A point is `depth * direction`. The array is kept: leave it as it is.
    """
    v, u = np.mgrid[:height, :width].astype(np.float32)
    focal = np.float32(FOCAL * width)
    right, down = (u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal
    return np.stack([right, np.ones_like(right), -down])


def cast(
    room: tuple[float, float, float],
    boxes: Sequence[Box],
    camera: Camera,
    height: int,
    width: int,
) -> Seen:
    """Finds the nearest surface along each pixel's ray.

    Args:
        room: its width, length and height.
        boxes: what stands in it; none holds the camera.
        camera: inside the room.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """
    origin, axes = np.array(camera.place, np.float32), camera.axes()
    rays = np.tensordot(axes, ray_directions(height, width), axes=1)  # [3, height, width]
    depth, axis, index = _room_hits(np.array(room, np.float32), origin, rays)
    windows = _windows(boxes, origin, axes, height, width).T.tolist()
    for i, (box, (top, bottom, left, right)) in enumerate(
        zip(boxes, windows, strict=True), start=len(SIDES)
    ):
        if top < bottom and left < right:
            here = np.s_[top:bottom, left:right]
            _box_hits(box, i, origin, rays[:, *here], depth[here], axis[here], index[here])
    flat, index, axis = rays.reshape(3, -1), index.ravel(), axis.ravel()
    point = origin[:, None] + depth.ravel() * flat
    return _surfaces(boxes, point, flat, depth.ravel(), index, axis)


def shadowed(
    boxes: Sequence[Box], light: Floats, points: Floats, own: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which points no ray from the light reaches.

    Args:
        boxes: those that throw shadows do so, except onto themselves.
        light: [3].
        points: [3, n].
        own: int [n], the box of each point, counted as in `Seen`.

    Returns:
        bool [n].
    """
    dark = np.zeros(points.shape[1], bool)
    reach = points - light[:, None]
    for i, box in enumerate(boxes, start=len(SIDES)):
        if not box.shades:
            continue
        start, step = _to_box(box, light, reach)
        enter, leave, _ = _slabs(box, start, step)
        dark |= (enter < leave) & (enter > 0) & (enter < 0.995) & (own != i)
    return dark


def _room_hits(
    room: Floats, origin: Floats, rays: Floats
) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    ahead = rays > 0
    far = np.where(ahead, room[:, None, None], np.float32(0)) - origin[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(rays != 0, far / rays, np.float32(np.inf))
    axis = t.argmin(axis=0)
    pick = axis[None]
    depth = np.take_along_axis(t, pick, axis=0)[0]
    return depth, axis, 2 * axis + np.take_along_axis(ahead, pick, axis=0)[0]


def _windows(
    boxes: Sequence[Box], origin: Floats, axes: Floats, height: int, width: int
) -> NDArray[np.intp]:
    """The rectangle of pixels that each box can cover: first and last row, first and last column.

    Returns:
        [4, box]; ends are exclusive, and not above the beginnings where nothing is covered.
    """
    if not boxes:
        return np.zeros((4, 0), np.intp)
    centres = np.array([box.centre for box in boxes], np.float32) - origin
    halves = np.array([box.half for box in boxes], np.float32)
    yaws = np.array([box.yaw for box in boxes], np.float32)[:, None]
    x, y, z = np.moveaxis(_CORNERS * halves[:, None], -1, 0)  # [box, corner] each
    s, c = np.sin(yaws), np.cos(yaws)
    corners = np.stack([c * x - s * y, s * x + c * y, z], axis=-1) + centres[:, None]
    right, ahead, up = np.moveaxis(corners @ axes, -1, 0)
    near = np.maximum(ahead, _NEAR)
    focal = FOCAL * width
    bounds = []
    for size, place in (
        (height, (height - 1) / 2 - focal * up / near),
        (width, (width - 1) / 2 + focal * right / near),
    ):
        begin, end = np.floor(place.min(axis=1)), np.ceil(place.max(axis=1)) + 1
        beside = ahead.min(axis=1) < _NEAR  # partly behind the camera: anywhere in the picture
        begin, end = np.where(beside, 0, begin), np.where(beside, size, end)
        bounds += [np.clip(begin, 0, size), np.clip(end, 0, size)]
    windows = np.stack(bounds).astype(np.intp)
    windows[1, ahead.max(axis=1) < _NEAR] = 0
    return windows


def _to_box(box: Box, origin: Floats, rays: Floats) -> tuple[Floats, Floats]:
    """A ray's start [3] and steps [3, ...] along the box's axes, from its centre."""
    start = origin - np.array(box.centre, np.float32)
    if not box.yaw:
        return start, rays
    s, c = np.float32(np.sin(box.yaw)), np.float32(np.cos(box.yaw))
    start = np.array([c * start[0] + s * start[1], c * start[1] - s * start[0], start[2]])
    return start, np.stack([c * rays[0] + s * rays[1], c * rays[1] - s * rays[0], rays[2]])


def _slabs(box: Box, start: Floats, rays: Floats) -> tuple[Floats, Floats, Floats]:
    """Where rays enter and leave the box, and where they enter each pair of its planes."""
    ones = (1,) * (rays.ndim - 1)
    half, start = np.array(box.half, np.float32).reshape(3, *ones), start.reshape(3, *ones)
    inverse = 1 / (rays + np.float32(1e-20))  # only a step of 0 is changed by so little
    middle, radius = -start * inverse, half * np.abs(inverse)
    enters = middle - radius
    return enters.max(axis=0), (middle + radius).min(axis=0), enters


def _box_hits(
    box: Box,
    i: int,
    origin: Floats,
    rays: Floats,
    depth: Floats,
    axis: NDArray[np.intp],
    index: NDArray[np.intp],
) -> None:
    """Updates what the pixels of a window see, in place."""
    start, steps = _to_box(box, origin, rays)
    enter, leave, enters = _slabs(box, start, steps)
    hit = (enter < leave) & (enter > _NEAR) & (enter < depth)
    if not hit.any():
        return
    depth[hit] = enter[hit]
    axis[hit] = enters[:, hit].argmax(axis=0)
    index[hit] = i


def _surfaces(
    boxes: Sequence[Box],
    point: Floats,
    rays: Floats,
    depth: Floats,
    index: NDArray[np.intp],
    axis: NDArray[np.intp],
) -> Seen:
    """Places, local coordinates and normals of the surfaces that were hit."""
    sides = len(SIDES)
    centres = np.zeros((3, sides + len(boxes)), np.float32)
    yaws = np.zeros(sides + len(boxes), np.float32)
    if boxes:
        centres[:, sides:] = np.array([box.centre for box in boxes], np.float32).T
        yaws[sides:] = [box.yaw for box in boxes]
    s, c = np.sin(yaws)[index], np.cos(yaws)[index]
    x, y, z = point - centres[:, index]
    local = np.stack([c * x + s * y, c * y - s * x, z])
    along = np.stack([c * rays[0] + s * rays[1], c * rays[1] - s * rays[0], rays[2]])
    step = np.take_along_axis(along, axis[None], axis=0)[0]
    sign = np.where(step > 0, np.float32(-1), np.float32(1))
    across = [np.where(axis == k, sign, np.float32(0)) for k in range(3)]
    normal = np.stack([c * across[0] - s * across[1], s * across[0] + c * across[1], across[2]])
    return Seen(depth, index, axis, point, local, normal)
