"""Writes a ResNet as a folder that `load_resnet` and the commands read, and torchvision loads.

The trunk is in `model.safetensors` under torchvision's names, each task's decoder in `heads/`; what
no tensor shows, the output stride, is in `config.json`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.decoders import (
    Decoder,
    decoder_of,
    decoder_tensors,
    read_decoder,
    write_decoder,
)
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.resnet import load_resnet, to_torchvision
from symerge_jax.checkpoints.resnet_layout import OUTPUT_STRIDE, config_json, stated_stride
from symerge_jax.checkpoints.resnet_names import COUNTER, parts_of
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput
from symerge_jax.models.resnet_config import ResNetConfig


def save_resnet(
    folder: str | Path,
    variables: Mapping[str, Any],
    config: ResNetConfig,
    *,
    decoders: Mapping[str, Decoder] | None = None,
    classifier: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    like: Checkpoint | None = None,
) -> Path:
    """Writes `model.safetensors`, `config.json` and `heads/<task>.safetensors`.

    Args:
        folder: made if it is not there.
        variables: {'params', 'batch_stats'} of the trunk.
        config: its sizes.
        decoders: task → decoder.
        classifier: {'weight', 'bias'}, written as `fc.…` with the trunk.
        counts: of `LoadedResNet`; None writes counters of 0.
        like: the checkpoint it comes from, of whose config other keys are kept.

    Returns:
        The folder.

    Raises:
        BadInput: the tree is no trunk, or a tensor is not finite.
    """
    folder = Path(folder)
    head = None if classifier is None else dict(classifier)
    tensors = to_torchvision(dict(variables), classifier=head, counts=counts)
    path = folder / export.weights_name("resnet")
    with export.new_file(path) as temporary:
        export.write_tensors(temporary, tensors, name=str(path))
    before = None if like is None else like.config
    export.write_json(folder / "config.json", config_json(config.output_stride, config, before))
    for name, decoder in (decoders or {}).items():
        write_decoder(folder, name, decoder)
    return folder


def write_trunk_config(source: Checkpoint, folder: Path, others: Iterable[Checkpoint] = ()) -> None:
    """Writes the config.json of a trunk: θ₀'s, with the output stride that it or another states.

    Args:
        source: θ₀.
        folder: of the new model.
        others: models of the same network, such as the experts.
    """
    stated = (stated_stride(one.config) for one in (source, *others))
    stride = next((one for one in stated if one is not None), OUTPUT_STRIDE)
    config = None
    with contextlib.suppress(BadInput):  # the weights are written all the same
        config = load_resnet(source).config
    export.write_json(folder / "config.json", config_json(stride, config, source.config))


def write_own_decoders(names: Sequence[str], models: Sequence[Checkpoint], folder: Path) -> None:
    """Writes the decoder in each model's weights as `heads/<name>.safetensors`.

    A model may hold decoders of several tasks, of which one is its own: the one of its name.

    Args:
        names: of the tasks, one per model.
        models: ResNets; those without a decoder are passed over.
        folder: of the new model.

    Raises:
        BadInput: several decoders and none of that name, or another head of that name is there
            already.
    """
    for name, model in zip(names, models, strict=True):
        found = _own(model, name)
        if found is None:
            continue
        path = folder / "heads" / f"{name}.safetensors"
        if path.exists():
            _check_same(found, path, model)
        else:
            write_decoder(folder, name, found)


def check_own_decoders(names: Sequence[str], models: Sequence[Checkpoint]) -> None:
    """Raises the errors of `write_own_decoders` that show without reading numbers."""
    for name, model in zip(names, models, strict=True):
        _own_names(model, name)


def _own(model: Checkpoint, name: str) -> Decoder | None:
    key, tensors = _own_names(model, name)
    return decoder_of(model.read, tensors, f"{model.path}, decoder {key}") if tensors else None


def _own_names(model: Checkpoint, name: str) -> tuple[str, dict[str, str]]:
    """Returns the key of a model's own decoder, and its tensors: none where it has no decoder."""
    decoders = parts_of(model.where, names_of(model).prefix).decoders
    key = name if name in decoders else next(iter(decoders), name)
    if key != name and len(decoders) > 1:
        raise BadInput(
            f"{model.path}: holds decoders of {', '.join(decoders)}, and none is called like its "
            f"task, {name}; name the tasks with --names"
        )
    return key, decoders.get(key, {})


def _check_same(decoder: Decoder, path: Path, model: Checkpoint) -> None:
    there = decoder_tensors(read_decoder(path))
    for key, value in decoder_tensors(decoder).items():
        if not key.endswith(COUNTER) and not np.array_equal(value, there.get(key, np.nan)):
            raise BadInput(
                f"{model.path}: the decoder in its weights is another than heads/{path.name} "
                "beside them or beside another model; rename or remove that file"
            )
