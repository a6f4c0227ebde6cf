"""Which tensors a merge of checkpoints will read, and how much memory it will need.

Checkpoints are opened and compared here, tensor by tensor, before any number is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from symerge_jax.checkpoints.clip_layouts import hugging_face_sizes, naming, open_clip_sizes
from symerge_jax.checkpoints.layout import LayoutName, check_same_layout, names_of
from symerge_jax.checkpoints.open import is_hub_name, open_checkpoint
from symerge_jax.checkpoints.resnet_layout import stated_stride
from symerge_jax.checkpoints.roberta_layout import stated_facts
from symerge_jax.checkpoints.source import Checkpoint, TensorInfo
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves
from symerge_jax.merge import Method
from symerge_jax.merge.isotropic import split_rank
from symerge_jax.merge.side_by_side import at_a_time
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.trees import wide

RUNTIME_BYTES = 450 << 20  # Python, NumPy, JAX and its compiler, before any tensor

Buffers = Literal["as_params", "mean", "pretrained"]
_BUFFERS = ("running_mean", "running_var")  # of batch normalisation, in PyTorch's names


class Leaf(NamedTuple):
    """One tensor of the model: its common name, and what it is called in each file."""

    name: str
    info: TensorInfo
    source: str
    experts: tuple[str, ...]


class Plan(NamedTuple):
    """What a merge will read.

    Attributes:
        pretrained: θ₀'s checkpoint.
        experts: θ_k's, in the order of `names`.
        names: of the tasks.
        layout: which all share.
        leaves: floating tensors that every expert has, in θ₀'s order.
        rest: θ₀'s other tensors, by their name in its file; copied.
        averaged: running statistics that take the experts' mean whatever the method does.
        buffers: what was asked for them; see `plan`.
    """

    pretrained: Checkpoint
    experts: tuple[Checkpoint, ...]
    names: tuple[str, ...]
    layout: LayoutName
    leaves: tuple[Leaf, ...]
    rest: tuple[str, ...]
    averaged: tuple[Leaf, ...] = ()
    buffers: Buffers = "as_params"


def plan(
    pretrained: str | Path | Checkpoint,
    experts: Sequence[str | Path | Checkpoint],
    names: Sequence[str] | None = None,
    *,
    buffers: Buffers = "as_params",
) -> Plan:
    """Opens the checkpoints and compares their tensors, without reading numbers.

    Args:
        pretrained: θ₀: a file, a folder, a name on the hub, or one of them opened.
        experts: θ_k, at least two.
        names: of the tasks; None takes the experts' file or folder names.
        buffers: what becomes of the running statistics of batch normalisation: merged like
            parameters, the experts' mean, or θ₀'s.

    Raises:
        BadInput: unreadable input, or checkpoints that do not belong together (the first tensor
            that differs is named).
    """
    if len(experts) < 2:
        raise BadInput(f"--experts: merging needs at least two experts, got {len(experts)}")
    paths = [e.path if isinstance(e, Checkpoint) else e for e in experts]
    names = tuple(names) if names else default_names(paths)
    if any("/" in name or name in ("", ".", "..") for name in names):
        raise BadInput(f"--names: expected names of files, without /, got {', '.join(names)}")
    if len(names) != len(experts) or len(set(names)) != len(names):
        raise BadInput(
            f"--names: expected {len(experts)} different names, one per expert, "
            f"got {', '.join(names)}"
        )
    start, *opened = (
        one if isinstance(one, Checkpoint) else open_checkpoint(one)
        for one in (pretrained, *experts)
    )
    named = names_of(start)
    theirs = [names_of(one) for one in opened]
    everyone = [start, *opened]
    layout = check_same_layout(
        zip((str(one.path) for one in everyone), [named, *theirs], strict=True)
    )
    check_same_description(everyone, layout)
    leaves, rest = [], []
    for name, source in named.source.items():
        info = start.tensors[source]
        having = [one for one in theirs if name in one.source]
        if not _is_float(info.dtype) or not having:
            rest.append(source)
            continue
        for one, them in zip(opened, theirs, strict=True):
            if name not in them.source:
                raise BadInput(f"{one.path}: lacks tensor {source}, which another expert has; all "
                               "experts must come from one architecture")  # fmt: skip
            _check_tensor(one, them.source[name], start, source)
        leaves.append(Leaf(name, info, source, tuple(them.source[name] for them in theirs)))
    for one, them in zip(opened, theirs, strict=True):
        for name, source in them.source.items():
            if name not in named.source:
                raise BadInput(
                    f"{one.path}: has tensor {source}, which {start.path} lacks; expected experts "
                    "fine-tuned from this pre-trained model"
                )
    if not leaves:
        raise BadInput(f"{start.path}: shares no floating tensor with the experts")
    averaged: list[Leaf] = []
    if buffers != "as_params":
        held = [leaf for leaf in leaves if is_buffer(leaf)]
        leaves = [leaf for leaf in leaves if not is_buffer(leaf)]
        averaged = held if buffers == "mean" else []
        rest += [leaf.source for leaf in held if buffers == "pretrained"]
    return Plan(
        start,
        tuple(opened),
        names,
        layout,
        tuple(leaves),
        (*rest, *named.aside),
        tuple(averaged),
        buffers,
    )


def is_buffer(leaf: Leaf) -> bool:
    """Whether a tensor holds running statistics, which no gradient changes."""
    return leaf.name.rpartition(".")[2] in _BUFFERS


def is_variance(leaf: Leaf) -> bool:
    """Whether a tensor must not fall below 0, as sums of task vectors may."""
    return leaf.name.rpartition(".")[2] == _BUFFERS[1]


def check_ranks(plan: Plan, name: str, options: Mapping[str, Any]) -> None:
    """Looks whether a method that shares out directions has any for each task.

    Raises:
        BadInput: none in any matrix.
    """
    tasks = len(plan.experts)
    facts = named_leaves({leaf.name: leaf.info.shape for leaf in plan.leaves}, plan.layout)
    ranks = [
        min(leaf.info.shape)
        for leaf in plan.leaves
        if len(leaf.info.shape) == 2 and facts[leaf.name].matrix is not None
    ]
    if not ranks:
        return
    if name in ("tsv_m", "tsv_c") and max(ranks) < tasks:
        raise BadInput(
            f"{name}: {tasks} experts share the {max(ranks)} directions of the largest matrix, "
            "which leaves none for each; merge fewer experts, or take another method"
        )
    fraction = options.get("common_fraction", 0.8)
    shared_out = name == "iso_cts" and 0 < fraction < 1
    if shared_out and not any(split_rank(rank, tasks, fraction)[1] for rank in ranks):
        raise BadInput(
            f"iso_cts: --common-fraction {fraction:g} of at most {max(ranks)} directions leaves "
            f"none for each of {tasks} tasks; lower it, or take iso_c"
        )


def default_names(experts: Sequence[str | Path]) -> tuple[str, ...]:
    """Names tasks after the experts' files or folders: the part of the path that tells them apart.

    `A/eurosat/model.safetensors` and `A/dtd/model.safetensors` give eurosat and dtd.
    """
    split = [Path(expert).parts for expert in map(_without_revision, experts)]
    for back in range(1, min(len(parts) for parts in split) + 1):
        found = tuple(Path(parts[-back]).stem or parts[-back] for parts in split)
        if len(set(found)) == len(found):
            return found
    return tuple(f"task{k}" for k in range(len(experts)))


def _without_revision(expert: str | Path) -> str:
    name = str(expert)
    from_hub = is_hub_name(name) and not Path(name).exists()
    return name.partition("@")[0] if from_hub else name


def check_same_description(checkpoints: Sequence[Checkpoint], layout: LayoutName) -> None:
    """Compares sizes that shapes do not show: activation, attention heads, epsilons, image size.

    Raises:
        BadInput: two checkpoints differ.
    """
    found = [(one, described(one, layout)) for one in checkpoints]
    first: dict[str, tuple[Checkpoint, Any]] = {}
    for one, facts in found:
        for key, value in facts.items():
            there, expected = first.setdefault(key, (one, value))
            if value != expected:
                raise BadInput(
                    f"{one.path}: has {key.replace('_', ' ')} {value}, but {there.path} has "
                    f"{expected}; models that compute different functions cannot be merged"
                )


def described(checkpoint: Checkpoint, layout: LayoutName) -> dict[str, Any]:
    """Returns what config files and pickled classes say of the image tower, encoder or trunk."""
    facts: dict[str, Any] = {}
    if checkpoint.config is not None and layout == "roberta":
        with naming(checkpoint.path):
            return stated_facts(checkpoint.config)
    if layout == "resnet":
        with naming(checkpoint.path):
            stride = stated_stride(checkpoint.config)
        return {} if stride is None else {"output_stride": stride}
    if checkpoint.config is not None and layout != "plain":
        read = (
            partial(hugging_face_sizes, projection=False)
            if layout == "hugging_face"
            else open_clip_sizes
        )
        with naming(checkpoint.path):
            sizes = read(checkpoint.config)
        vision = sizes if isinstance(sizes, VisionConfig) else sizes.vision
        facts |= asdict(vision)
        for key in ("projection", "fused_qkv"):
            facts.pop(key)
        facts["mlp_width"] = vision.hidden
    if checkpoint.module is not None and checkpoint.module.activation is not None:
        facts["activation"] = checkpoint.module.activation
    return facts


def _check_tensor(one: Checkpoint, name: str, start: Checkpoint, source: str) -> None:
    here, there = one.tensors[name], start.tensors[source]
    if here.shape != there.shape:
        raise BadInput(
            f"{one.path}: tensor {name} has shape {here.shape}, in {start.path} it has "
            f"{there.shape}; expected one architecture, image size and vocabulary"
        )
    if here.dtype != there.dtype:
        raise BadInput(
            f"{one.path}: tensor {name} is {here.dtype}, in {start.path} it is {there.dtype}; the "
            "difference would be rounding: use the pre-trained weights the expert started from"
        )


def _is_float(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def takes_one_leaf(method: Method, options: Mapping[str, Any]) -> bool:
    """Whether one leaf of all experts is held at a time, or all of them."""
    alone = method.streams or method.plan is not None or method.norms is not None
    # Query, key and value as one matrix are three leaves.
    return alone and not options.get("fuse_qkv")


def compiles_itself(method: Method) -> bool:
    """Whether to call a method outside `jax.jit`: it has programs of its own, and may warn.

    Merging files it takes a few leaves at a time.
    """
    return "leaves" in method.needs and "moments" not in method.needs and method.plan is None


def forecast(plan: Plan, method: Method, options: Mapping[str, Any] | None = None) -> int:
    """Returns the peak memory of a merge in bytes, as far as the tensors decide it."""
    widths = [
        int(np.prod(leaf.info.shape, dtype=np.int64)) * np.dtype(wide(leaf.info.dtype)).itemsize
        for leaf in plan.leaves
    ]
    models = len(plan.experts) + 2
    if takes_one_leaf(method, options or {}):
        if not compiles_itself(method):
            return RUNTIME_BYTES + 4 * models * max(widths)
        # Of each leaf that is worked on: as read, task vectors, scratch. Another two are read.
        largest = sorted(widths, reverse=True)
        held = 3 * sum(largest[: at_a_time()]) + sum(largest[:2])
        return RUNTIME_BYTES + models * held
    return RUNTIME_BYTES + int(sum(widths) * len(plan.experts) * method.working_set)
