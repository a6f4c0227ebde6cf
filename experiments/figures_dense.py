"""Figures of scenes: images beside their segmentation, depth and surface normals.

Style is that of `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from experiments.figures import _INK, _figure, _save
from symerge_jax.data.dense import Scenes

# Neighbours in a room differ most in brightness: walls light, floors brown, furniture dark.
_CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#F0F0E8", "#CC79A7", "#A98B6B", "#5B4B9A", "#D55E00", "#009E73",
    "#7A2E00", "#F0E442", "#111111", "#C9D3DC", "#56B4E9",
)  # fmt: skip
_IGNORED = (0.5, 0.5, 0.5)
_DEPTHS = colormaps["viridis_r"].with_extremes(bad=_IGNORED)
_TITLES = ("image", "segmentation", "depth (m)", "normals")


def contact_sheet(
    scenes: Scenes, classes: Sequence[str], path: str | Path, *, columns: int = 2
) -> Path:
    """Draws each scene's image, segmentation, depth and normals side by side.

    Pixels that do not count are grey. Normals have red for right, green for ahead, blue for up.

    Args:
        scenes: to draw, all of them.
        classes: names of the labels.
        path: of the PNG.
        columns: scenes per row.

    Returns:
        The path.
    """
    count, height, width = scenes.labels.shape
    rows = -(-count // columns)
    cell = 1.5
    figure = _figure(4 * columns * cell, rows * cell * height / width + 0.9)
    panels = figure.subplots(rows, 4 * columns, squeeze=False)
    far = max(1.0, float(np.percentile(scenes.depths, 99.5)))
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        four = panels[row, 4 * column : 4 * column + 4]
        for axes, title in zip(four, _TITLES, strict=True):
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=8, color=_INK)
        if place < count:
            four[0].imshow(scenes.images[place])
            four[1].imshow(label_colours(scenes.labels[place]))
            depth = np.ma.masked_equal(scenes.depths[place], 0)
            four[2].imshow(depth, cmap=_DEPTHS, vmin=0, vmax=far)
            four[3].imshow((scenes.normals[place] + 1) / 2)
    handles = [
        Patch(facecolor=colour, edgecolor=_INK, linewidth=0.4, label=name)
        for name, colour in zip(classes, _CLASS_COLOURS, strict=False)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=7,
        title=f"depth from 0 (light) to {far:.1f} m (dark)", title_fontsize=7,
    )  # fmt: skip
    return _save(figure, path)


def label_colours(labels: np.ndarray) -> np.ndarray:
    """Labels [height, width] → colours, float [height, width, 3]; grey where ignored."""
    table = np.array([*(to_rgb(colour) for colour in _CLASS_COLOURS), _IGNORED])
    return table[labels]
