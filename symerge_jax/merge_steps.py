"""One merged leaf, and what is looked at in each: its numbers, its rank, the distance gone."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.merge.spectral import RankWarning
from symerge_jax.merge_plan import Leaf, Plan


class Step(NamedTuple):
    """One merged leaf: a value per output folder; what was read is None where it is a copy."""

    leaf: Leaf
    values: list[np.ndarray]
    theta: np.ndarray
    thetas: np.ndarray | None


Steps: TypeAlias = Iterator[Step]


@contextlib.contextmanager
def noting_rank(singular: list[str]) -> Iterator[None]:
    """Adds the tensors of rank warnings to `singular` instead of saying each by itself."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RankWarning)
        yield
    for one in caught:
        if isinstance(one.message, RankWarning):
            singular += one.message.paths
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def check_numbers(plan: Plan, leaf: Leaf, theta: np.ndarray, thetas: np.ndarray) -> None:
    """Looks for NaN and infinity where a method may drop entries, and them with it."""
    if not (_finite(theta) and _finite(thetas)):
        check_finite(plan, Step(leaf, [np.array([np.nan])], theta, thetas))


def check_finite(plan: Plan, step: Step) -> None:
    """NaN and infinity in any θ_k reach a merged leaf that drops nothing; looks for them there."""
    if all(_finite(value) for value in step.values):
        return
    source = step.leaf.source
    everyone = [(plan.pretrained, source), *zip(plan.experts, step.leaf.experts, strict=True)]
    for one, name in everyone:
        if not _finite(one.read(name)):
            raise BadInput(
                f"{one.path}: tensor {name} holds NaN or infinity; load that model again, or "
                "leave it out"
            )
    raise BadInput(f"tensor {source}: the merged values overflow {step.leaf.info.dtype}; lower "
                   "--scale")  # fmt: skip


def _finite(array: np.ndarray) -> bool:
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    return bool(np.isfinite(array).all())


def sample(array: np.ndarray) -> np.ndarray:
    """Returns the first numbers of each row of an array [n, ...]."""
    return array.reshape(len(array), -1)[:, :4096].astype(np.float32)


class Distances:
    """‖τ_k‖ / ‖θ₀‖, from a sample of each leaf: a glance, for a warning."""

    def __init__(self, count: int) -> None:
        self._tau, self._theta = np.zeros(count), 0.0

    def add(self, step: Step) -> None:
        if step.thetas is not None:
            theta = sample(step.theta[None])
            self._tau += np.square(sample(step.thetas) - theta).sum(axis=1, dtype=np.float64)
            self._theta += float(np.square(theta).sum())

    def ratios(self) -> tuple[float, ...]:
        return tuple(np.sqrt(self._tau / max(self._theta, 1e-30)).tolist())
