"""What a merge writes: weight files, tensor by tensor, one or one per task; and the card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves
from symerge_jax.merge import METHODS, stored_bytes
from symerge_jax.merge_plan import Leaf, Plan, is_variance


class Writers:
    """The weight files of all output folders; a context manager."""

    def __init__(self, plan: Plan, folders: Sequence[Path]) -> None:
        infos = export.output_tensors(plan.pretrained, names_of(plan.pretrained))
        self._names = {source: new for source, (new, _) in infos.items()}
        for folder in folders:
            folder.mkdir(exist_ok=True)
        self._files = [
            export.SafetensorsWriter(
                folder / export.weights_name(plan.layout), dict(infos.values()), {"format": "pt"}
            )
            for folder in folders
        ]

    def __enter__(self) -> Writers:
        with contextlib.ExitStack() as stack:
            for file in self._files:
                stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def write_all(self, source: str, value: np.ndarray) -> None:
        """Writes one tensor, by its name in the pre-trained file, to every folder."""
        for file in self._files:
            file.write(self._names[source], value)

    def write_each(self, source: str, values: Sequence[np.ndarray]) -> None:
        """Writes one tensor with a value per folder, or one value for all of them."""
        values = values if len(values) == len(self._files) else list(values) * len(self._files)
        for file, value in zip(self._files, values, strict=True):
            file.write(self._names[source], value)

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)


def averaged(plan: Plan) -> Iterator[tuple[str, np.ndarray]]:
    """Yields θ₀'s name of each buffer that takes the experts' mean, and that mean.

    Raises:
        BadInput: NaN or infinity.
    """
    for leaf in plan.averaged:
        total = np.zeros(leaf.info.shape, np.float64)
        for expert, name in zip(plan.experts, leaf.experts, strict=True):
            value = expert.read(name).astype(np.float64)
            if not np.isfinite(value).all():
                raise BadInput(
                    f"{expert.path}: tensor {name} holds NaN or infinity; load that model again, "
                    "or take --buffers pretrained"
                )
            total += value
        yield leaf.source, (total / len(plan.experts)).astype(leaf.info.dtype)


def allowed(leaf: Leaf, values: list[np.ndarray]) -> list[np.ndarray]:
    """Returns merged values as they may be: a running variance is never below 0."""
    if not is_variance(leaf):
        return values
    return [np.maximum(value, np.zeros((), value.dtype)) for value in values]


def card_of(
    plan: Plan,
    name: str,
    settings: Mapping[str, Any],
    *,
    statistics: Sequence[Checkpoint],
    hashes: Mapping[Path, Any],
    changed: int,
    copied: int,
) -> dict[str, Any]:
    """Returns what `merge_card.json` says of all output folders alike."""
    inputs: dict[str, Any] = {
        "pretrained": export.origin(plan.pretrained, hashes),
        "experts": [export.origin(one, hashes) for one in plan.experts],
    }
    if statistics:
        inputs["moments"] = [export.origin(one, hashes) for one in statistics]
    buffers = {} if plan.buffers == "as_params" else {"buffers": plan.buffers}
    return {
        "method": name,
        "kind": METHODS[name].kind,
        "settings": {**settings, **buffers},
        "layout": plan.layout,
        "tasks": list(plan.names),
        "inputs": inputs,
        "tensors": {"merged": changed, "copied": copied},
        "scores": {},
    }


def smallest_form(plan: Plan, name: str, options: Mapping[str, Any]) -> int:
    """Returns the bytes in which a per-task method could serve all tasks, by masks or factors."""
    method = METHODS[name]
    shapes = {
        leaf.name: jax.ShapeDtypeStruct((len(plan.experts), *leaf.info.shape), leaf.info.dtype)
        for leaf in plan.leaves
    }
    more = dict(options)
    if "leaves" in method.needs:
        sizes = {leaf.name: leaf.info.shape for leaf in plan.leaves}
        more["leaves"] = named_leaves(sizes, plan.layout)
    return stored_bytes(method, shapes, **more)
