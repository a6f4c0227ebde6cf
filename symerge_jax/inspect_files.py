"""What checkpoints hold, and how they are related; for `symerge inspect`.

Relations need one pass over the tensors that all files share: with G_ij = ⟨θ_i − θ_0, θ_j − θ_0⟩
per block, every norm and cosine of task vectors follows, whichever file is the pre-trained one. It
is the file with the smallest sum of distances to the others: experts differ from it by τ_i, and
from each other by nearly √(τ_i² + τ_j²).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.checkpoints.layout import Names, is_text, names_of
from symerge_jax.checkpoints.open import load_sizes
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput

# ‖τ‖ / ‖θ₀‖ above which two models do not come from one start: fine-tuning gives a few percent, and
# two models trained from scratch differ by about √2.
FAR = 0.5


class Content(NamedTuple):
    """One checkpoint.

    Attributes:
        path: as given.
        container: kind of file.
        layout: naming of the tensors.
        architecture: sizes, in one line; None where they cannot be told.
        activation: of the MLPs, None where unknown.
        class_name: of a pickled module.
        dtypes: dtype → number of tensors.
        tensors: how many.
        numbers: how many parameters they hold.
        not_finite: tensors with NaN or infinity.
        dead: tensors that are zero everywhere, or left over from a text tower without its blocks.
        aside: buffers that are no parameters.
        left_out: tensors that a merged model does not have, such as a text model's classifier.
    """

    path: str
    container: str
    layout: str
    architecture: str | None
    activation: str | None
    class_name: str | None
    dtypes: dict[str, int]
    tensors: int
    numbers: int
    not_finite: list[str]
    dead: list[str]
    aside: list[str]
    left_out: list[str]


class Relation(NamedTuple):
    """How files with the same tensors are related; indices are positions in the list of files.

    Attributes:
        pretrained: the file that the others descend from.
        blocks: names of the groups of tensors, 'all' first.
        norms: ‖τ‖ / ‖θ₀‖, [block, file]; 0 for the pre-trained file.
        cosines: of task vectors, [block, file, file]; NaN for the pre-trained file.
        same_start: whether each file descends from the pre-trained one: τ is small.
        dead_identical: whether a file's left-overs and buffers equal those of the pre-trained one.
        unchanged: tensors that equal those of the pre-trained one, per file.
        left_out: tensors that not all files have in the same shape, or that are not finite.
    """

    pretrained: int
    blocks: list[str]
    norms: np.ndarray
    cosines: np.ndarray
    same_start: list[bool]
    dead_identical: list[bool | None]
    unchanged: list[int]
    left_out: list[str]


def describe(checkpoint: Checkpoint) -> Content:
    """Reads every tensor once and says what a checkpoint holds."""
    names = names_of(checkpoint)
    not_finite, dead = [], []
    dtypes: dict[str, int] = {}
    for name, info in checkpoint.tensors.items():
        dtypes[str(info.dtype)] = dtypes.get(str(info.dtype), 0) + 1
        value = checkpoint.read(name)
        if not np.issubdtype(value.dtype, np.number):
            value = value.astype(np.float32)  # bfloat16, bool
        if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
            not_finite.append(name)
        if not value.any():
            dead.append(name)
    dead += _left_overs(names)
    architecture, activation = _network(checkpoint, names)
    return Content(
        str(checkpoint.path),
        checkpoint.container,
        names.layout,
        architecture,
        activation,
        None if checkpoint.module is None else checkpoint.module.class_name,
        dtypes,
        len(checkpoint.where),
        sum(int(np.prod(info.shape)) for info in checkpoint.tensors.values()),
        not_finite,
        dead,
        list(names.aside),
        list(names.left_out),
    )


def _network(checkpoint: Checkpoint, names: Names) -> tuple[str | None, str | None]:
    """Returns the sizes in one line and the activation; None where they cannot be told."""
    if names.layout == "roberta":
        from symerge_jax.checkpoints.roberta import load_roberta

        try:
            loaded = load_roberta(checkpoint)
        except BadInput:
            return None, None
        return _text_architecture(loaded.config, loaded.head), loaded.config.activation
    if names.layout == "resnet":
        from symerge_jax.checkpoints.resnet import load_resnet

        try:
            return _trunk_architecture(load_resnet(checkpoint)), "relu"
        except BadInput:
            return None, None
    sizes = load_sizes(checkpoint)
    return (None, None) if sizes is None else (_architecture(sizes), sizes.activation)


def _text_architecture(sizes: Any, head: Any) -> str:
    outputs = "no head" if head is None else f"head of {len(head['out_proj']['bias'])} outputs"
    return (
        f"RoBERTa encoder: width {sizes.width}, {sizes.depth} blocks, {sizes.heads} heads, "
        f"{sizes.vocabulary} token ids, texts up to {sizes.length} tokens, {outputs}"
    )


def _trunk_architecture(loaded: Any) -> str:
    sizes, heads = loaded.config, [f"decoder of {name}" for name in loaded.decoders]
    if loaded.classifier is not None:
        heads = [f"classifier of {len(loaded.classifier['bias'])} outputs", *heads]
    return (
        f"ResNet trunk: {'-'.join(map(str, sizes.blocks))} blocks, {sizes.features} features, "
        f"output stride {sizes.output_stride}, {', '.join(heads) or 'no head'}"
    )


def _left_overs(names: Names) -> list[str]:
    """Text tensors of an open_clip image encoder, whose text blocks were cut out."""
    if names.layout != "open_clip" or any(n.startswith("transformer.") for n in names.source):
        return []
    return [source for common, source in names.source.items() if is_text(common, names.layout)]


def _architecture(sizes: Any) -> str:
    projection = "no projection" if sizes.projection is None else f"features {sizes.projection}"
    return (
        f"CLIP image tower: width {sizes.width}, {sizes.depth} blocks, {sizes.heads} heads, "
        f"patches of {sizes.patch_size} in {sizes.image_size} pixels, {projection}, "
        f"{'one' if sizes.fused_qkv else 'separate'} query/key/value"
    )


def relate(checkpoints: Sequence[Checkpoint]) -> Relation:
    """Compares at least two checkpoints with one layout; holds one tensor of each at a time.

    Raises:
        BadInput: layouts differ, or no tensor is shared.
    """
    named = [names_of(one) for one in checkpoints]
    if len({names.layout for names in named}) > 1:
        found = ", ".join(
            f"{one.path} ({names.layout})" for one, names in zip(checkpoints, named, strict=True)
        )
        raise BadInput(f"cannot compare layouts: {found}; convert them to one first")
    shared, left_out = _shared(checkpoints, named)
    if not shared:
        raise BadInput("the files share no tensor of the same name and shape; nothing to compare")
    count = len(checkpoints)
    gram: dict[str, np.ndarray] = {}
    sizes: dict[str, np.ndarray] = {}
    equal = np.zeros((count, count), int)
    for common in shared:
        values = [one.read(names.source[common]) for one, names in
                  zip(checkpoints, named, strict=True)]  # fmt: skip
        flat = np.stack([value.reshape(-1).astype(np.float64) for value in values])
        if not np.isfinite(flat).all():
            left_out.append(common)
            continue
        differences = flat - flat[0]
        block = _block(common)
        gram[block] = gram.get(block, 0.0) + differences @ differences.T
        sizes[block] = sizes.get(block, 0.0) + np.einsum("kn,kn->k", flat, flat)
        equal += [[int(np.array_equal(a, b)) for b in values] for a in values]
    if not gram:
        raise BadInput("every tensor that the files share holds NaN or infinity in one of them")
    blocks = ["all", *gram]
    whole = np.stack([sum(gram.values()), *gram.values()])
    theta = np.stack([sum(sizes.values()), *sizes.values()])
    reference = _medoid(whole[0])
    shifted = (
        whole
        - whole[:, :, reference, None]
        - whole[:, None, reference, :]
        + whole[:, reference, reference, None, None]
    )
    squares = np.maximum(np.einsum("bkk->bk", shifted), 0)
    norms = np.sqrt(squares) / np.maximum(np.sqrt(theta[:, reference, None]), 1e-300)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(squares[:, :, None] * squares[:, None, :])
        cosines = np.where(scale > 0, shifted / scale, np.nan)
    return Relation(
        reference,
        blocks,
        norms,
        cosines,
        [bool(norm <= FAR) for norm in norms[0]],
        [_dead_identical(checkpoints, named, reference, k) for k in range(count)],
        [int(n) for n in equal[reference]],
        left_out,
    )


def _shared(
    checkpoints: Sequence[Checkpoint], named: Sequence[Names]
) -> tuple[list[str], list[str]]:
    """Common names of floating tensors that all files have in one shape; and the others."""
    everything = dict.fromkeys(name for names in named for name in names.source)
    shared, left_out = [], []
    for common in everything:
        infos = [
            one.tensors[names.source[common]]
            for one, names in zip(checkpoints, named, strict=True)
            if common in names.source
        ]
        alike = len(infos) == len(checkpoints) and len({info.shape for info in infos}) == 1
        floating = all(info.dtype.kind in "fV" for info in infos)
        if alike and floating and not is_text(common, named[0].layout):
            shared.append(common)
        elif not alike:
            left_out.append(common)
    return shared, left_out


def _block(common: str) -> str:
    """Returns the group of a tensor: its block, or what stands before and after the blocks."""
    if stage := re.match(r"layer\d\.\d+(?=\.)", common):  # of a ResNet
        return stage[0]
    hit = re.search(r"(?:layers?|resblocks)\.(\d+)\.", common)
    if hit:
        return f"block {int(hit[1])}"
    after = ("post_layernorm", "visual_projection", "ln_post", "visual.proj", "layer4", "pooler")
    return "output" if any(part in common for part in after) else "input"


def _medoid(gram: np.ndarray) -> int:
    """Returns the file with the smallest sum of distances; of two files, the first."""
    own = np.diag(gram)
    squares = own[:, None] + own[None] - 2 * gram
    sums = np.sqrt(np.maximum(squares, 0)).sum(axis=1)
    best = sums.min()
    return int(np.flatnonzero(sums <= best * (1 + 1e-9) + 1e-30)[0])


def _dead_identical(
    checkpoints: Sequence[Checkpoint], named: Sequence[Names], reference: int, k: int
) -> bool | None:
    """Whether left-overs that training never touches are equal; None where there are none."""
    there, here = named[reference], named[k]
    dead = [
        common for common in there.source if is_text(common, there.layout) and common in here.source
    ]
    if not dead:
        return None
    return all(
        np.array_equal(
            checkpoints[reference].read(there.source[common]),
            checkpoints[k].read(here.source[common]),
        )
        for common in dead
    )


def as_json(contents: Sequence[Content], relation: Relation | None) -> Mapping[str, Any]:
    """Returns everything as plain values; NaN becomes None."""

    def plain(array: Any) -> Any:  # an array or one of its numbers
        if array.ndim == 0:
            return None if np.isnan(array) else float(array)
        return [plain(row) for row in array]

    found: dict[str, Any] = {"format": 1, "files": [content._asdict() for content in contents]}
    if relation is not None:
        found["relation"] = {
            **relation._asdict(),
            "norms": plain(relation.norms),
            "cosines": plain(relation.cosines),
        }
    return found
