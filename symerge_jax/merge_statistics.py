"""Statistics in files, as a merge of checkpoints takes them: by tensor name, one at a time.

A file of `symerge moments` holds the statistics of one expert under the paths of our image tower or
encoder. Here they get the names and the layout of the checkpoints that are merged: a Gram matrix
[in, in] is the same in any layout, a Fisher diagonal has the axes of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from symerge_jax.checkpoints.clip_layouts import Rule
from symerge_jax.checkpoints.source import Checkpoint, joined, open_safetensors
from symerge_jax.errors import BadInput
from symerge_jax.merge import METHODS
from symerge_jax.merge_plan import Leaf, Plan
from symerge_jax.networks import load_network, tensor_rules
from symerge_jax.second_moments import Moment, check_format, check_model


def check_files(plan: Plan, name: str, files: Sequence[Checkpoint]) -> None:
    """Checks number and kind of opened files, from their headers.

    Raises:
        BadInput: not one per expert, or of a kind that the method `name` does not take.
    """
    if not files:
        raise absent(name)
    for file in files:
        check_format(file.path, file.metadata)
    if len(files) != len(plan.experts):
        raise BadInput(
            f"--moments: expected {len(plan.experts)} files, one per expert and in the order of "
            f"--experts, got {len(files)}"
        )
    wanted = kind_of(name)
    for file in files:
        parts = {entry.rpartition(":")[2] for entry in file.where}
        found = "fisher" if parts == {"diagonal"} else "gram" if parts == {"mean", "rows"} else None
        if found != wanted:
            raise BadInput(
                f"{file.path}: holds statistics of {f'kind {found}' if found else 'no known kind'},"
                f" but {name} takes those of kind {wanted}; make them with `symerge moments "
                f"--kind {wanted}`"
            )


def kind_of(name: str) -> str:
    """Returns which statistics a method takes: 'gram' or 'fisher'."""
    return "gram" if METHODS[name].norms is None else "fisher"


def absent(name: str) -> BadInput:
    """Returns what to raise where a method that takes statistics was given none."""
    kind = kind_of(name)
    more = " --kind fisher --head HEAD" if kind == "fisher" else ""
    return BadInput(
        f"--moments: {name} takes statistics of each expert on unlabelled inputs, one file per "
        f"expert; make each with `symerge moments EXPERT --inputs FOLDER --output FILE{more}`"
    )


def memory(plan: Plan, files: Sequence[Checkpoint]) -> int:
    """Returns the bytes that a merge holds because of its statistics, about."""
    largest = max(
        sum(file.tensors[entry].nbytes for file in files if entry in file.tensors)
        for entry in files[0].tensors
    )
    # As measured: Gram matrices are also held in float64, and solved for there.
    copies = 6 if any(entry.endswith(":mean") for entry in files[0].tensors) else 1
    tower = sum(leaf.info.nbytes for leaf in plan.leaves)  # of one expert, to know its statistics
    return max(copies * largest, 2 * tower)


class Statistics(Mapping[str, Any]):
    """The statistics of all experts, tensor by tensor: common name → stacked, [task, ...].

    `Moment` or Fisher diagonals, as NumPy arrays; nothing stays in memory.

    Attributes:
        files: the opened files, in the experts' order.
        kind: 'gram' or 'fisher'.
    """

    def __init__(self, files: Sequence[Checkpoint], kind: str, rules: Mapping[str, Rule]) -> None:
        self.files, self.kind = tuple(files), kind
        self._rules = rules

    def __getitem__(self, name: str) -> Any:
        path, kind = self._rules[name].path, self._rules[name].kind
        if self.kind == "fisher":
            return np.stack([kind.write(self._read(f, path, "diagonal")) for f in self.files])
        return Moment(
            np.stack([self._read(file, path, "mean") for file in self.files]),
            np.stack([self._read(file, path, "rows") for file in self.files]),
        )  # pyright: ignore[reportArgumentType]  (as arrays of the host)

    def of(self, leaf: Leaf) -> Any:
        """Returns the statistics of a leaf that some expert changed; None where none are needed.

        Raises:
            BadInput: a Fisher diagonal is missing.
        """
        found = self.get(leaf.name)
        if found is None and self.kind == "fisher":
            raise BadInput(
                f"{self.files[0].path}: has no statistics of tensor {leaf.source}, which an expert "
                "changed; they are made for image towers and encoders of texts, so merge experts "
                "that kept all else"
            )
        return found

    def __contains__(self, name: object) -> bool:  # without reading, unlike Mapping's own
        return name in self._rules

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def _read(self, file: Checkpoint, path: str, part: str) -> np.ndarray:
        value = file.read(f"{path}:{part}")
        if not np.isfinite(value).all():
            raise BadInput(
                f"{file.path}: the statistics of {path} are not finite; make them again with "
                "`symerge moments`"
            )
        return value


def read_statistics(plan: Plan, name: str, files: Sequence[str | Path | Checkpoint]) -> Statistics:
    """Matches files with the experts, whose weights are read for it one after the other.

    Args:
        plan: of the merge.
        name: of the method.
        files: of `symerge moments`, or opened ones, in the experts' order.

    Raises:
        BadInput: unreadable files, other than one per expert, of another kind, of another model,
            or of different leaves.
    """
    opened = [
        file if isinstance(file, Checkpoint) else joined(Path(file), [open_safetensors(file)])
        for file in files
    ]
    check_files(plan, name, opened)
    rules: dict[str, Rule] = {}
    for expert, file in zip(plan.experts, opened, strict=True):
        network = load_network(expert)
        tower = dict(network.params)
        check_model(file.path, file.metadata, tower)
        _check_shapes(file, flatten_dict(tower, sep="/"))
        if set(file.where) != set(opened[0].where):
            leaf = min(set(file.where) ^ set(opened[0].where)).rpartition(":")[0]
            raise BadInput(
                f"{file.path}: covers other leaves than {opened[0].path}, such as {leaf}; make "
                "both again with `symerge moments`"
            )
        rules = rules or {
            rule.source: rule
            for rule in tensor_rules(network)
            if any(f"{rule.path}:{part}" in file.where for part in ("mean", "diagonal"))
        }
    return Statistics(opened, kind_of(name), rules)


def _check_shapes(file: Checkpoint, weights: Mapping[str, Any]) -> None:
    """Compares the shapes in a file with those of the expert's leaves, path → array."""
    for entry, info in file.tensors.items():
        path, _, part = entry.rpartition(":")
        shape = np.shape(weights[path]) if path in weights else None
        fits = shape is not None and info.shape == _expected(part, shape)
        if not fits or (part == "mean" and f"{path}:rows" not in file.tensors):
            raise BadInput(
                f"{file.path}: {entry} has shape {info.shape}, which does not belong to a weight "
                f"{shape}; make the file again with `symerge moments`"
            )


def _expected(part: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a part of the statistics of a weight [..., out] or [d]."""
    if part == "rows":
        return ()
    if part == "diagonal" or len(shape) < 2:
        return shape
    return (int(np.prod(shape[:-1])),) * 2
