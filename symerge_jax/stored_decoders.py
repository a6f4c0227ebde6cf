"""Decoders of dense prediction as a person's heads: where they lie, and what kind their maps are.

A task called segmentation, depth, normal or normals, also within a longer name (`nyuv2-depth`), is
of that kind. With any other name the number of its decoder's maps tells: one is a depth, three
without class names are normals, all else is segmentation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from symerge_jax.checkpoints.decoders import Decoder, decoder_of, read_decoder, read_decoders
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.resnet_names import parts_of
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput

_KINDS = {
    "segmentation": "segmentation",
    "depth": "depth",
    "normal": "normal",
    "normals": "normal",
}
# How many maps a decoder of each kind gives; classes of pixels are kept in 8 bits.
_MAPS = {"segmentation": range(2, 128), "depth": range(1, 2), "normal": range(3, 4)}


class StoredDecoder(NamedTuple):
    """A decoder that was read, in float32, and where it was found."""

    decoder: Decoder
    path: Path

    @property
    def head(self) -> dict[str, Any]:
        """Its variables, {'params', 'batch_stats'}."""
        return self.decoder.variables

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of its maps, where it has some."""
        return self.decoder.classes


def read_stored_decoder(path: str | Path) -> StoredDecoder:
    """Reads a decoder's file.

    Raises:
        BadInput: as `read_decoder`.
    """
    return _stored(read_decoder(path), path)


def read_stored_decoders(folder: str | Path) -> dict[str, StoredDecoder]:
    """Reads every decoder in the `heads/` of a model's folder, task → decoder."""
    place = Path(folder) / "heads"
    return {
        name: _stored(one, place / f"{name}.safetensors")
        for name, one in read_decoders(folder).items()
    }


def decoders_of(model: Checkpoint) -> dict[str, StoredDecoder]:
    """Reads the decoders in a model's weights, and those in `heads/` beside them, which win."""
    found = {
        name: _stored(decoder_of(model.read, own, f"{model.path}, decoder {name}"), model.path)
        for name, own in _within(model).items()
    }
    return found | read_stored_decoders(model.parts[0].path.parent)


def own_decoder(model: Checkpoint, name: str) -> StoredDecoder:
    """Reads the decoder of an expert's task.

    It is the one of that name in the expert's weights, or the only one there, or
    `heads/<name>.safetensors` beside them.

    Raises:
        BadInput: there is none, or several and none of that name.
    """
    within = _within(model)
    key = name if name in within or len(within) != 1 else next(iter(within))
    if key in within:
        return _stored(
            decoder_of(model.read, within[key], f"{model.path}, decoder {key}"), model.path
        )
    beside = model.parts[0].path.parent / "heads" / f"{name}.safetensors"
    if beside.is_file():
        return read_stored_decoder(beside)
    if within:
        raise BadInput(
            f"{model.path}: holds decoders of {', '.join(within)}, and none is called like its "
            f"task, {name}; rename the task, or give the decoder as a file"
        )
    raise BadInput(
        f"{model.path}: no decoder in the weights and no heads/{name}.safetensors beside them; "
        "give the head as a file"
    )


def kind_of(name: str, head: StoredDecoder) -> str:
    """Returns "segmentation", "depth" or "normal"; see the module.

    Args:
        name: of the task.
        head: its decoder.

    Raises:
        BadInput: the decoder gives another number of maps than the task's name says.
    """
    maps = head.decoder.outputs
    words = re.split(r"[^a-z]+", name.casefold())
    kind = next((_KINDS[word] for word in words if word in _KINDS), None)
    if kind is None:
        vectors = maps == 3 and head.classes is None
        kind = "depth" if maps == 1 else "normal" if vectors else "segmentation"
    if maps not in _MAPS[kind]:
        known = _MAPS[kind]
        wanted = f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
        raise BadInput(
            f"{head.path}: the decoder of task {name} gives {maps} maps, but {kind} has {wanted}; "
            "give the task's own decoder, or another name"
        )
    return kind


def check_alike(heads: Sequence[StoredDecoder]) -> None:
    """Looks whether decoders differ in no more than the number of their maps.

    Raises:
        BadInput: two have another width or other dilations.
    """
    first, *others = heads
    for one in others:
        a, b = first.decoder.config, one.decoder.config
        if a != b:
            raise BadInput(
                f"{one.path}: the decoder has width {b.width} and dilations {b.rates}, that of "
                f"{first.path} has width {a.width} and {a.rates}; only decoders of one kind can be "
                "adapted together"
            )


def _within(model: Checkpoint) -> dict[str, dict[str, str]]:
    return parts_of(model.where, names_of(model).prefix).decoders


def _stored(decoder: Decoder, path: str | Path) -> StoredDecoder:
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), decoder.variables)
    return StoredDecoder(decoder._replace(variables=wide), Path(path))
