"""Makes the statistics of a person's expert: a checkpoint and unlabelled images in, a file out.

The job of `symerge moments`. The methods that merge with such files are LOT and RegMean (Gram
matrices) and Fisher merging (Fisher diagonals); `merge_statistics` reads them there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.checkpoints.heads import StoredHead, read_head
from symerge_jax.checkpoints.layout import check_same_layout
from symerge_jax.checkpoints.open import Loaded, load_clip
from symerge_jax.data.images import draw_images
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.inputs import find_inputs
from symerge_jax.merge_plan import check_same_description
from symerge_jax.models.clip import VisionTower
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.notation import Params
from symerge_jax.score import computable
from symerge_jax.second_moments import fisher_diagonal, gram_matrices, save_moments

Kind = Literal["gram", "fisher"]
# Images per expert: of LOT's paper, and of the experiments of Fisher merging.
IMAGES: dict[Kind, int] = {"gram": 64, "fisher": 256}
BATCH = 32
AT_ONCE = 8  # images whose gradients are held at the same time


def make_moments(
    expert: str | Path,
    inputs: str | Path,
    output: str | Path,
    *,
    kind: Kind = "gram",
    head: str | Path | None = None,
    pretrained: str | Path | None = None,
    limit: int | None = None,
    report: Callable[[str], object] = print,
) -> Path:
    """Runs an expert on unlabelled images and writes what a merge will take of it.

    Args:
        expert: any checkpoint that `load_clip` reads.
        inputs: a pack or a folder of images; of a task's folder, its train split, else test.
        output: the file.
        kind: 'gram' for LOT and RegMean, 'fisher' for Fisher merging.
        head: file of the expert's own head; 'fisher' needs it.
        pretrained: the model whose parts the expert leaves out, such as its projection.
        limit: images to draw, with seed 0; those of `IMAGES` otherwise.
        report: receives a line per step.

    Raises:
        BadInput: unreadable input, a head for other features, or statistics that are not finite.
    """
    stored = None if head is None else read_head(head)
    loaded = load_clip(expert)
    own, sizes = loaded.params["vision"], loaded.vision
    for note in loaded.notes:
        report(f"{expert}: {note}")
    params = computable(own)
    if pretrained is not None:
        start = load_clip(pretrained)
        params, sizes = _completed(params, loaded, start), start.vision
    if stored is not None:
        _check_width(stored, sizes, str(expert))
    place = find_inputs(Path(inputs), splits=("train", "test"))
    images = draw_images(place, limit or IMAGES[kind], size=sizes.image_size)
    report(f"{expert}: {len(images)} images of {place}")
    try:
        found = tower_moments(
            sizes, params, images, kind=kind, head=None if stored is None else stored.head
        )
    except BadInput as error:
        raise BadInput(f"{expert}: {error}") from None
    # Of what is the expert's own: the file belongs to its weights, whatever they are merged with.
    return save_moments(output, {name: found[name] for name in own}, own)


def _completed(params: Params, expert: Loaded, start: Loaded) -> Params:
    """Returns the expert's tower, with the pre-trained projection if it has none of its own."""
    everyone = (start, expert)
    layout = check_same_layout((str(one.source.path), one.names) for one in everyone)
    check_same_description([one.source for one in everyone], layout)
    tower = computable(start.params["vision"])
    whole = {**{name: tower[name] for name in tower if name == "projection"}, **params}
    names = [str(one.source.path) for one in everyone]
    trees.check_same(whole, tower, name=names[1], reference_name=names[0])
    return whole


def _check_width(head: StoredHead, sizes: VisionConfig, expert: str) -> None:
    width, found = sizes.projection or sizes.width, head.head["weight"].shape[1]
    if found != width:
        raise BadInput(
            f"{head.path}: the head takes features of width {found}, but {expert} gives {width}; "
            "the head belongs to another model, or the expert lacks its projection: name the "
            "model it was fine-tuned from with --pretrained"
        )


def tower_moments(
    config: VisionConfig,
    params: Params,
    images: np.ndarray,
    *,
    kind: Kind,
    head: Head | None = None,
    seed: int = 0,
) -> Any:
    """Returns the statistics of one image tower on images.

    Args:
        config: sizes of the tower.
        params: its weights.
        images: uint8 [n, height, width, 3].
        kind: 'gram' for `gram_matrices`, 'fisher' for `fisher_diagonal` with one label per image
            drawn from the expert's answer.
        head: the expert's own; for 'fisher'.
        seed: of the labels that are drawn.

    Raises:
        BadInput: activations or gradients that are not finite.
    """
    batches = (normalise(images[begin : begin + BATCH]) for begin in range(0, len(images), BATCH))
    params = jax.tree.map(jnp.asarray, params)
    apply = _every_token(config)
    if kind == "gram":
        return gram_matrices(apply, params, batches, patches=("patch_embedding/kernel",))
    assert head is not None, "the answers, whose gradients are taken, are those of a head"
    rows: Head = {name: jnp.asarray(value) for name, value in head.items()}
    return fisher_diagonal(
        apply,
        params,
        batches,
        lambda features: normalised_head(rows, features),
        key=jax.random.key(seed),
        at_once=AT_ONCE,
    )


@cache
def _every_token(config: VisionConfig) -> Any:
    """Returns (θ, normalised images) → features, with every token worked out in the last block."""
    tower = VisionTower(config, every_token=True)

    def apply(params: Any, images: Any) -> Any:
        return tower.apply({"params": params}, images)

    return apply
