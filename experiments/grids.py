"""Grids of settings as they are typed, `lr=0.001,0.01 init=0.1,0.3`, and the runs they mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.methods import Constants
from symerge_jax.adapt.sweep import Point
from symerge_jax.cli.errors import nearest
from symerge_jax.errors import BadInput

MOST = 10_000

# What a key stands for, and which methods it makes a difference to.
KEYS = {
    "lr": "learning rate",
    "lr_coefficients": "learning rate of coefficients",
    "lr_heads": "learning rate of heads",
    "init": "initial coefficient",
}
_METHODS = {
    "lr_coefficients": ("symerge", "symerge_coefficients"),
    "lr_heads": ("symerge", "symerge_head"),
}

Grid = Mapping[str, tuple[float, ...]]


class Cell(NamedTuple):
    """One point of a grid for one method.

    Attributes:
        method: its key.
        values: of the grid's keys, in their order.
    """

    method: str
    values: dict[str, float]

    @property
    def name(self) -> str:
        """What a record calls it: `symerge@lr=0.01,init=0.3`."""
        return f"{self.method}@" + ",".join(f"{k}={v:g}" for k, v in self.values.items())


def parsed(words: Sequence[str]) -> Grid:
    """Returns the grid that words like `lr=0.001,0.01` say.

    Raises:
        BadInput: a word of another form, an unknown key, a value out of range, something twice.
    """
    grid: dict[str, tuple[float, ...]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.replace("-", "_")
        if not equals or not text:
            raise BadInput(f"--grid {word}: expected KEY=VALUE,VALUE…, such as lr=0.001,0.01")
        if key not in KEYS:
            raise BadInput(
                f"--grid {word}: unknown key {key!r}{nearest(key, KEYS)}; known: {', '.join(KEYS)}"
            )
        if key in grid:
            raise BadInput(f"--grid names {key} twice; put its values behind one, with commas")
        values = tuple(_value(key, one) for one in text.split(","))
        for value in values:
            if values.count(value) > 1:
                raise BadInput(f"--grid {word}: {value:g} is there twice; leave one of them out")
        grid[key] = values
    both = [key for key in ("lr_coefficients", "lr_heads") if key in grid]
    if "lr" in grid and both:
        raise BadInput(f"--grid: lr sets the rates of both, so that {both[0]} has no place beside "
                       "it; name lr_coefficients and lr_heads instead")  # fmt: skip
    return grid


def _value(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"--grid {key}: expected numbers between commas, got {text!r}") from None
    if key == "init" and not 0 <= value <= 1:
        raise BadInput(f"--grid init: expected numbers from 0 to 1, got {text}")
    if key != "init" and not (math.isfinite(value) and value > 0):
        raise BadInput(f"--grid {key}: expected numbers above 0, got {text}")
    return value


def cells(grid: Grid, methods: Sequence[str]) -> list[Cell]:
    """Returns the cross product, method by method.

    Raises:
        BadInput: a key that one of the methods does not know, or too many points.
    """
    for key, method in itertools.product(grid, methods):
        if method not in _METHODS.get(key, methods):
            what = "coefficients" if key == "lr_coefficients" else "heads"
            raise BadInput(
                f"--grid {key}: {method} trains no {what}; leave the key out, or choose other "
                "--methods"
            )
    count = math.prod(len(values) for values in grid.values()) * len(methods)
    if count > MOST:
        raise BadInput(
            f"--grid: {count} points are more than {MOST}; take fewer values, or several runs"
        )
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [Cell(method, values) for method in methods for values in every]


def point_of(cell: Cell, constants: Constants, seed: int) -> Point:
    """Returns a run's numbers; what the grid leaves out is the setting's own."""
    given = cell.values
    alone = cell.method == "symerge_coefficients"
    lam = constants.coefficient_rate if alone else constants.rate
    lam = given.get("lr_coefficients", given.get("lr", lam))
    heads = given.get("lr_heads", given.get("lr", constants.rate))
    return Point(
        coefficient_rate=0.0 if cell.method == "symerge_head" else lam,
        head_rate=0.0 if alone else heads,
        initial_coefficient=given.get("init", constants.initial),
        seed=seed,
    )
