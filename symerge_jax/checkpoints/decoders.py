"""Decoders of dense prediction in files of their own, beside the linear heads.

A safetensors file with the tensors of one decoder as FusionBench names them below
`decoders.<task>.` (`0.convs.0.0.weight` … `4.bias`, running statistics and counters included). Its
metadata hold the dilations of the branches as a JSON list under `rates`, and class names under
`classes` where there are some.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from symerge_jax.checkpoints.heads import class_names
from symerge_jax.checkpoints.open import open_part
from symerge_jax.checkpoints.resnet_layout import decoder_rules
from symerge_jax.checkpoints.resnet_names import COUNTER
from symerge_jax.checkpoints.resnet_tensors import (
    Read,
    check_shapes,
    counters_of,
    read_leaves,
    written,
)
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models.dense_heads import decoder_shapes
from symerge_jax.models.resnet_config import DecoderConfig

Tree = dict[str, Any]
RATES = DecoderConfig().rates  # where nothing says otherwise


class Decoder(NamedTuple):
    """A decoder.

    Attributes:
        variables: {'params', 'batch_stats'} of `models.dense_heads`.
        config: its sizes.
        classes: names of its maps, None where they have none.
        counts: name in a file → how many batches a running statistic has seen, where the source
            says it; None writes 0 everywhere.
    """

    variables: Tree
    config: DecoderConfig
    classes: tuple[str, ...] | None = None
    counts: Mapping[str, np.ndarray] | None = None

    @property
    def outputs(self) -> int:
        """Number of maps."""
        return len(self.variables["params"]["out"]["bias"])


def is_decoder(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a decoder's file."""
    return {"0.project.0.weight", "4.weight"} <= set(names)


def read_decoder(path: str | Path) -> Decoder:
    """Reads a decoder, in the precision of the file.

    Raises:
        BadInput: the file is no decoder, a tensor is missing, unread or of another shape, or holds
            NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; expected a decoder of dense prediction")
    part = open_part(path)
    if not is_decoder(part.tensors):
        raise BadInput(
            f"{path}: expected a decoder with tensors such as 0.project.0.weight and 4.weight, "
            f"found {', '.join(list(part.tensors)[:4])}"
        )
    names = {name: name for name in part.tensors}
    rates = _stated_rates(path, part.metadata)
    found = decoder_of(part.read, names, str(path), rates=rates)
    return found._replace(classes=class_names(path, part.metadata, found.outputs))


def read_decoders(folder: str | Path) -> dict[str, Decoder]:
    """Reads every decoder of a model's folder, task → decoder, sorted by name."""
    return {
        path.stem: read_decoder(path)
        for path in sorted((Path(folder) / "heads").glob("*.safetensors"))
    }


def write_decoder(folder: str | Path, name: str, decoder: Decoder) -> Path:
    """Writes `heads/<name>.safetensors` in a model's folder; returns the file.

    Raises:
        BadInput: the tree is no decoder, or holds NaN or infinity.
    """
    tensors = decoder_tensors(decoder)
    _check_finite(f"decoder {name}", tensors)
    metadata = {"rates": json.dumps(list(decoder.config.rates))}
    if decoder.classes is not None:
        if len(decoder.classes) != decoder.outputs:
            raise BadInput(
                f"decoder {name}: {len(decoder.classes)} class names for {decoder.outputs} maps; "
                "expected one per map"
            )
        metadata["classes"] = json.dumps(list(decoder.classes))
    path = Path(folder) / "heads" / f"{name}.safetensors"
    write_atomically(path, safetensors.numpy.save(tensors, metadata=metadata))
    return path


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Returns the tensors of a decoder under the names of its file, in the order of a state dict.

    Raises:
        BadInput: the tree is no decoder.
    """
    flat: Tree = flatten_dict(decoder.variables, sep="/")
    return written(flat, decoder_rules(len(decoder.config.rates)), decoder.counts)


def decoder_of(
    read: Read,
    names: Mapping[str, str],
    source: str,
    *,
    rates: Sequence[int] = RATES,
) -> Decoder:
    """Reads one decoder.

    Args:
        read: name in the file → array.
        names: name within the decoder → name in the file.
        source: what to call the file in errors.
        rates: dilations of the branches, which no shape shows.

    Raises:
        BadInput: a tensor is missing, unread, of another shape, or not finite.
    """
    rules = decoder_rules(len(rates))
    flat: Tree = read_leaves(read, names, rules, source)
    features, width = flat["params/point/conv/kernel"].shape[2:]
    config = DecoderConfig(features=features, width=width, rates=tuple(rates))
    expected = decoder_shapes(config, flat["params/out/bias"].size)
    check_shapes(flat, flatten_dict(expected, sep="/"), rules, names, source)
    _check_finite(source, {names[rule.source]: flat[rule.path] for rule in rules})
    counts = {name: read(names[name]) for name in counters_of(rules) if name in names}
    return Decoder(unflatten_dict(flat, sep="/"), config, None, counts)


def _check_finite(source: str, tensors: Mapping[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        if name.endswith(COUNTER):
            continue
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise BadInput(f"{source}: tensor {name} holds NaN or infinity; make it again")


def _stated_rates(path: Path, metadata: Mapping[str, str]) -> tuple[int, ...]:
    text = metadata.get("rates")
    if text is None:
        return RATES
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path}: the rates in its metadata are not JSON ({error})") from error
    if not isinstance(found, list) or any(type(one) is not int or one < 1 for one in found):
        raise BadInput(f"{path}: rates in its metadata are {text}, expected a list of dilations")
    return tuple(found)
