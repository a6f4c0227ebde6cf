"""The generated rooms: geometry that fits together, every class, the same each time."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures_dense import contact_sheet
from experiments.tasks import rooms as tasks
from experiments.tiny import rooms
from experiments.tiny.rooms_furniture import PIECES
from experiments.tiny.rooms_render import SIDES, Box, Camera, cast, ray_directions
from symerge_jax.dense_metrics import angle_sums, normal_scores
from symerge_jax.errors import BadInput

AHEAD = Camera((2.0, 1.0, 1.5), 0.0, 0.0, 0.0)
ROOM = (4.0, 5.0, 3.0)


@pytest.fixture(scope="module")
def scenes():
    return rooms.scenes("train", 60)


def inside_planes(labels, depths, normals):
    """Pixels whose neighbours on all sides lie on one plane: same class and normal."""
    alike = (depths > 0) & (np.abs(normals).sum(-1) > 0)
    for axis in (1, 2):
        for step in (-1, 1):
            alike &= np.roll(labels, step, axis) == labels
            alike &= (np.roll(normals, step, axis) * normals).sum(-1) > 1 - 1e-5
            # A parallel plane in front, such as a door, is as steep as this one and further off.
            there = np.roll(depths, step, axis), np.roll(depths, -step, axis)
            alike &= np.abs(there[0] + there[1] - 2 * depths) < 0.01 * depths
    alike[:, [0, -1]] = False
    alike[:, :, [0, -1]] = False
    return alike


def test_normals_are_those_of_the_depths(scenes):
    rays = np.moveaxis(ray_directions(rooms.HEIGHT, rooms.WIDTH), 0, -1)
    points = scenes.depths[..., None] * rays
    right = np.roll(points, -1, 2) - np.roll(points, 1, 2)
    down = np.roll(points, -1, 1) - np.roll(points, 1, 1)
    normals = np.cross(down, right)  # towards the camera
    inside = inside_planes(scenes.labels, scenes.depths, scenes.normals)
    assert inside.mean() > 0.5
    truth = np.where(inside[..., None], scenes.normals, 0)
    sums = angle_sums(jnp.asarray(normals), jnp.asarray(truth))
    assert normal_scores(sums)["normal_mean_angle"] < 0.2


def test_normals_have_length_one_and_point_to_the_camera(scenes):
    known = scenes.depths > 0
    np.testing.assert_array_equal(known, (scenes.normals != 0).any(-1))
    np.testing.assert_allclose(np.linalg.norm(scenes.normals[known], axis=-1), 1, atol=1e-5)
    rays = np.moveaxis(ray_directions(rooms.HEIGHT, rooms.WIDTH), 0, -1)
    assert (np.einsum("nhwc,hwc->nhw", scenes.normals, rays)[known] < 0).all()


def test_floors_look_up_and_ceilings_down(scenes):
    up = scenes.normals[..., 2]
    assert (up[scenes.labels == rooms.CLASSES.index("floor")] > 0.8).all()
    assert (up[scenes.labels == rooms.CLASSES.index("ceiling")] < -0.8).all()


def test_windows_alone_have_no_depth(scenes):
    glass = scenes.labels == rooms.CLASSES.index("window")
    np.testing.assert_array_equal(scenes.depths == 0, glass)
    known = scenes.depths[~glass]
    assert 0.2 < known.min() < known.max() < 8


def test_every_class_is_in_many_scenes_and_every_pixel_has_one(scenes):
    assert scenes.labels.min() >= 0
    present = [(scenes.labels == i).any(axis=(1, 2)).mean() for i in range(len(rooms.CLASSES))]
    assert dict(zip(rooms.CLASSES, present, strict=True)) == {
        name: pytest.approx(0.6, abs=0.45) for name in rooms.CLASSES
    }


def test_images_are_neither_dark_nor_flat(scenes):
    each = scenes.images.reshape(len(scenes.images), -1)
    assert scenes.images.dtype == np.uint8
    assert 90 < each.mean() < 170
    assert each.std(axis=1).min() > 10


def test_a_scene_depends_on_split_seed_and_place_alone():
    few, more = rooms.scenes("test", 2), rooms.scenes("test", 3)
    for a, b in zip(few, more, strict=True):
        np.testing.assert_array_equal(a, b[:2])
    for other in (rooms.scenes("train", 2), rooms.scenes("test", 2, seed=1)):
        assert (other.images != few.images).mean() > 0.5


def test_a_room_by_hand():
    seen = cast(ROOM, [], AHEAD, 3, 5)
    depth = seen.depth.reshape(3, 5)
    assert depth[1, 2] == 4  # the far wall, straight ahead
    assert SIDES[seen.box.reshape(3, 5)[1, 2]] == "far"
    wide = ray_directions(3, 5)
    # The rightmost ray of the middle row reaches the right wall, 2 m aside, first.
    assert SIDES[seen.box.reshape(3, 5)[1, 4]] == "far"
    assert depth[1, 4] * wide[0, 1, 4] < 2
    turned = cast(ROOM, [], AHEAD._replace(yaw=np.pi / 2), 3, 5)
    assert SIDES[turned.box.reshape(3, 5)[1, 2]] == "left"
    assert turned.depth.reshape(3, 5)[1, 2] == pytest.approx(2, rel=1e-5)
    up = cast(ROOM, [], AHEAD._replace(pitch=np.pi / 2), 3, 5)
    assert SIDES[up.box.reshape(3, 5)[1, 2]] == "ceiling"


@pytest.mark.parametrize(("yaw", "distance"), [(0.0, 1.5), (np.pi / 4, 2 - np.sqrt(0.5))])
def test_a_box_by_hand(yaw, distance):
    box = Box((2.0, 3.0, 1.5), (0.5, 0.5, 0.5), yaw, label=6, paint=6)
    seen = cast(ROOM, [box], AHEAD, 73, 97)
    middle = (73 // 2) * 97 + 97 // 2
    assert seen.box[middle] == len(SIDES)
    assert seen.depth[middle] == pytest.approx(distance, abs=1e-4)
    # It covers as many columns as its width makes at that distance.
    columns = (seen.box.reshape(73, 97)[73 // 2] == len(SIDES)).sum()
    wide, away = (1.0, 1.5) if yaw == 0 else (np.sqrt(2), 2.0)
    assert columns == pytest.approx(wide / away * 97 * 518 / 640, abs=1.5)


def test_a_box_behind_the_camera_is_not_seen():
    box = Box((2.0, 0.4, 1.5), (0.3, 0.3, 0.3), 0.3, label=6, paint=6)
    assert (cast(ROOM, [box], AHEAD, 9, 12).box < len(SIDES)).all()


def test_pretraining_shows_every_kind_of_furniture_in_turn():
    images, labels = rooms.pretraining_images(34)
    assert images.shape == (34, 48, 48, 3)
    assert len(rooms.PRETRAINING_CLASSES) == len(PIECES) - 1
    np.testing.assert_array_equal(labels, np.arange(34) % len(rooms.PRETRAINING_CLASSES))
    again, _ = rooms.pretraining_images(3)
    np.testing.assert_array_equal(images[:3], again)
    assert images.reshape(34, -1).std(axis=1).min() > 8


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split of train, test; got 'val'"):
        rooms.scenes("val", 1)
    with pytest.raises(ValueError, match="at least 0; got count -1"):
        rooms.scenes("train", -1)
    with pytest.raises(ValueError, match="seed -2"):
        rooms.pretraining_images(1, seed=-2)


# --- tasks --------------------------------------------------------------------------------------


def test_tasks_share_images_and_differ_in_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "TRAIN", 20)
    monkeypatch.setattr(rooms, "TEST", 4)
    made = tasks.generated(limit=3, cache=tmp_path)
    again = tasks.generated(["depth"], limit=3, cache=tmp_path)[0]
    assert [(t.name, t.metric) for t in made] == [
        ("segmentation", "miou"), ("depth", "depth_abs_error"), ("normal", "normal_mean_angle"),
    ]  # fmt: skip
    assert [len(t.classes) for t in made] == [13, 1, 3]
    for task in made:
        assert len(task.train.labels) == len(task.train.inputs) == 18
        assert len(task.validation.labels) == 2
        assert len(task.test.labels) == 3
        assert task.train.inputs is made[0].train.inputs
    np.testing.assert_array_equal(again.test.labels, made[1].test.labels)
    whole = rooms.scenes("train", 20)
    found = np.concatenate([made[1].train.labels, made[1].validation.labels])
    assert {x.tobytes() for x in found} == {x.tobytes() for x in whole.depths}


def test_tasks_of_a_folder(tmp_path):
    for split, count in (("train", 10), ("val", 3)):
        for i, scene in enumerate(
            zip(*rooms.scenes("test", count, height=12, width=16), strict=True)
        ):
            for kind, array in zip(("image", "label", "depth", "normal"), scene, strict=True):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / split / kind / f"{i}.npy", array)
    made = tasks.from_folder(tmp_path, ["normal", "segmentation"], size=(24, 32))
    assert [t.name for t in made] == ["normal", "segmentation"]
    assert made[0].train.labels.shape == (9, 24, 32, 3)
    assert made[1].test.inputs.shape == (3, 24, 32, 3)
    with pytest.raises(BadInput, match="unknown task 'depths'"):
        tasks.from_folder(tmp_path, ["depths"])


def test_a_contact_sheet_is_drawn(tmp_path):
    path = contact_sheet(
        rooms.scenes("test", 3, height=12, width=16), rooms.CLASSES, tmp_path / "x.png"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
