"""Finds a ResNet and its experts for dense prediction below one folder.

    pre-trained  resnet50/, or torchvision's resnet50-19c8e357.pth (or .safetensors, …), or
                 pretrained/, as experiments.finetune writes it beside its experts
    experts      segmentation/, depth/, normal/ as experiments.finetune writes them, also as
                 resnet50_depth/, …; or depth.ckpt, … of FusionBench's training program

An expert's decoder is heads/<task>.safetensors beside its weights, or the one in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.dense_experts import dense_model, stacked
from experiments.experts import Experts, Model, Stored, differences
from experiments.tasks.rooms import TASKS
from experiments.tasks.task import Task
from symerge_jax.adapt.dense import Network
from symerge_jax.cache import digest
from symerge_jax.checkpoints.decoders import Decoder, read_decoder
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.resnet import LoadedResNet, load_resnet
from symerge_jax.checkpoints.resnet_layout import stated_stride
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.cli.progress import say
from symerge_jax.dense import network
from symerge_jax.errors import BadInput
from symerge_jax.merge_plan import check_same_description
from symerge_jax.models.resnet_config import DecoderConfig
from symerge_jax.notation import Params
from symerge_jax.score import computable
from symerge_jax.task_vectors import check_finite

MODEL = "resnet50"
BASES = (MODEL, "pretrained")
FILES = (".pth", ".pt", ".safetensors", ".ckpt")


class Folder(NamedTuple):
    """Where the pre-trained trunk and one expert per task are."""

    pretrained: Path
    experts: tuple[Path, ...]


class Read(NamedTuple):
    """The real benchmark's models.

    Attributes:
        model: the trunk that experts start from; its head is a decoder.
        source: its checkpoint.
        network: its functions.
        experts: whose heads are decoders, {'params', 'batch_stats'}.
        decoders: sizes of these.
    """

    model: Model
    source: LoadedResNet
    network: Network
    experts: Experts
    decoders: DecoderConfig


def find(folder: Path, names: Sequence[str]) -> Folder:
    """Finds the pre-trained trunk and one expert per task.

    Raises:
        BadInput: something is not there, or there twice; it is named, with where it belongs.
    """
    if not folder.is_dir():
        raise BadInput(f"--checkpoints {folder}: there is no such folder")
    base = find_base(folder)
    if base is None:
        raise BadInput(
            f"--checkpoints {folder}: expected the pre-trained trunk in {MODEL}/, or torchvision's "
            f"file {MODEL}-19c8e357.pth; `python -m experiments.prepare dense --checkpoints "
            f"{folder}` fetches it or says where it belongs"
        )
    experts = []
    for name in names:
        expert = find_expert(folder, name)
        if expert is None:
            raise BadInput(
                f"{folder / name}: the expert is expected there or in {name}.ckpt, and was not "
                f"found; `python -m experiments.finetune --model {MODEL} --task {name} --out "
                f"OUT` trains it, and OUT/experts/{MODEL} can then be the folder"
            )
        experts.append(expert)
    return Folder(base, tuple(experts))


def find_base(folder: Path) -> Path | None:
    """Finds the pre-trained trunk; None if there is none.

    Raises:
        BadInput: several files may be it.
    """
    if (folder / MODEL).is_dir():
        return folder / MODEL
    experts = {f"{MODEL}_{task}" for task in TASKS}
    files = [path for path in _files(folder, f"{MODEL}*") if path.stem not in experts]
    if len(files) > 1:
        raise BadInput(
            f"{folder}: expected one pre-trained trunk, found "
            f"{', '.join(path.name for path in files)}; leave the one that experts start from"
        )
    own = folder / BASES[1]
    return files[0] if files else own if own.is_dir() else None


def find_expert(folder: Path, name: str) -> Path | None:
    """Finds the expert of one task; None if there is none.

    Raises:
        BadInput: several files or folders may be it.
    """
    found = []
    for stem in (name, f"{MODEL}_{name}"):
        found += [folder / stem] if (folder / stem).is_dir() else []
        found += _files(folder, f"{stem}.*")
    if len(found) > 1:
        raise BadInput(
            f"{folder}: expected one expert of {name}, found "
            f"{', '.join(path.name for path in found)}; leave the one that is meant"
        )
    return found[0] if found else None


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.suffix in FILES and p.is_file())


def read(found: Folder, tasks: Sequence[Task], size: tuple[int, int], dtype: str) -> Read:
    """Reads the pre-trained trunk, the decoders and all task vectors.

    Running statistics have task vectors too.

    Args:
        found: where they are.
        tasks: in the order of `found.experts`.
        size: height and width of the maps, those of the images.
        dtype: of the computation, "float32" or "bfloat16".

    Raises:
        BadInput: unreadable files, or models that do not belong together.
    """
    base = open_checkpoint(found.pretrained)
    sources = [open_checkpoint(path) for path in found.experts]
    check_same_description([base, *sources], "resnet")
    stated = (stated_stride(one.config) for one in (base, *sources))
    load = partial(load_resnet, output_stride=next(filter(None, stated), None))
    loaded = load(base)
    for note in loaded.notes:
        say(f"{found.pretrained}: {note}")
    start = computable(loaded.variables)
    decoders = [_decoder(source, task) for source, task in zip(sources, tasks, strict=True)]
    config = _one_config(decoders, sources)
    heads = [computable(one.variables) for one in decoders]
    experts = Stored(sources, partial(_trunk, start=start))
    tau = differences(experts, start, lambda k: say(f"{tasks[k].name}: expert {found.experts[k]}"))
    check_finite(tau, [task.name for task in tasks])
    whole, classes = stacked(heads)
    own = network(loaded.config, config, size, dtype)
    name = f"{loaded.config} {config} {size} {digest(start)} {dtype}"
    model = dense_model(own, start, name)
    return Read(model, loaded, own, Experts(experts, heads, heads, tau, whole, classes), config)


def _trunk(source: Checkpoint, start: Params) -> Params:
    own = computable(load_resnet(source).variables)
    ours, theirs = (dict(jax.tree.leaves_with_path(tree)) for tree in (own, start))
    for path in [*theirs, *ours]:
        here, there = (tree[path].shape if path in tree else None for tree in (ours, theirs))
        if here != there:
            raise BadInput(
                f"{source.path}: {jax.tree_util.keystr(path)} has shape {here}, but that of the "
                f"pre-trained trunk {there}; it is no expert made from it"
            )
    return own


def _decoder(source: Checkpoint, task: Task) -> Decoder:
    """Returns the decoder stored beside an expert's weights, or the one in them."""
    stored = source.path / "heads" / f"{task.name}.safetensors"
    decoders = {} if stored.is_file() else load_resnet(source).decoders
    if stored.is_file():
        found = read_decoder(stored)
    elif task.name in decoders or len(decoders) == 1:
        found = decoders.get(task.name) or next(iter(decoders.values()))
    else:
        raise BadInput(
            f"{source.path}: no heads/{task.name}.safetensors beside the weights and no decoder "
            f"of {task.name} in them (found {', '.join(decoders) or 'none'}); an expert comes with "
            "the decoder it was trained with"
        )
    if found.outputs != len(task.classes):
        raise BadInput(
            f"{source.path}: its decoder gives {found.outputs} maps, but {task.name} has "
            f"{len(task.classes)}; it is the expert of another task"
        )
    return found


def _one_config(decoders: Sequence[Decoder], sources: Sequence[Checkpoint]) -> DecoderConfig:
    """Returns the sizes of all decoders: one network computes them."""
    for one, source in zip(decoders, sources, strict=True):
        if one.config != decoders[0].config:
            raise BadInput(
                f"{source.path}: its decoder has {one.config}, but that of {sources[0].path} "
                f"{decoders[0].config}; experts that are merged have decoders of one kind"
            )
    return decoders[0].config
