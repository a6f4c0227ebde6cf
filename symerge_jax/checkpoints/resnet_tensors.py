"""Applies the rules of `resnet_layout`: tensors → leaves with every shape checked, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from symerge_jax.checkpoints.clip_layouts import Rule
from symerge_jax.checkpoints.resnet_layout import counter_after
from symerge_jax.errors import BadInput

Read = Callable[[str], np.ndarray]
_NO_STATISTICS = (
    ", a running statistic of batch normalisation, without which nothing can be evaluated; save "
    "the whole state_dict(), buffers included"
)


def read_leaves(
    read: Read, names: Mapping[str, str], rules: Sequence[Rule], source: str
) -> dict[str, np.ndarray]:
    """Returns path in our tree → leaf.

    Args:
        read: name in the file → array.
        names: name in a rule, or of a counter → name in the file.
        rules: of one network.
        source: what to call the checkpoint in errors.

    Raises:
        BadInput: a tensor is missing, no rule reads it, or it has another number of axes.
    """
    flat: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.source not in names:
            statistic = rule.source.endswith(("running_mean", "running_var"))
            raise BadInput(
                f"{source}: tensor {rule.source} is missing{_NO_STATISTICS if statistic else ''}"
            )
        name = names[rule.source]
        value = read(name)
        axes = rule.kind.axes or 1
        if value.ndim != axes:
            raise BadInput(f"{source}: tensor {name} has shape {value.shape}, expected {axes} axes")
        flat[rule.path] = rule.kind.read(value)
    known = {rule.source for rule in rules} | set(counters_of(rules))
    if odd := [name for inner, name in names.items() if inner not in known]:
        raise BadInput(f"{source}: tensor {odd[0]} belongs to no known part")
    return flat


def check_shapes(
    flat: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    rules: Sequence[Rule],
    names: Mapping[str, str],
    source: str,
) -> None:
    """Compares leaves with `expected`, path → something with a shape.

    Raises:
        BadInput: names the first tensor of another shape.
    """
    assert set(flat) == set(expected), "a rule for each leaf"
    for rule in rules:
        came, wanted = flat[rule.path].shape, expected[rule.path].shape
        if came != wanted:
            raise BadInput(
                f"{source}: tensor {names[rule.source]} has shape {_stored(came)}, expected "
                f"{_stored(wanted)}"
            )


def _stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a leaf's shape as the file has it."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def counters_of(rules: Iterable[Rule]) -> list[str]:
    """Returns the names of all counters beside the tensors of some rules."""
    return [name for rule in rules if (name := counter_after(rule)) is not None]


def written(
    flat: Mapping[str, Any], rules: Sequence[Rule], counts: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Returns a state dict in the order of its rules, with counters where PyTorch has them.

    Args:
        flat: path → leaf.
        rules: one per leaf.
        counts: name → counter, of those to write; None for 0 everywhere.

    Raises:
        BadInput: a leaf without a rule, or a rule without a leaf.
    """
    if odd := set(flat) ^ {rule.path for rule in rules}:
        raise BadInput(f"leaf {min(odd)} of the tree and the layout of a ResNet do not match")
    found: dict[str, np.ndarray] = {}
    for rule in rules:
        found[rule.source] = np.asarray(rule.kind.write(np.asarray(flat[rule.path])), order="C")
        counter = counter_after(rule)
        if counter is not None and (counts is None or counter in counts):
            found[counter] = np.asarray(0 if counts is None else counts[counter], np.int64)
    return found
