"""Merging methods: functions from τ, leaves [task, ...], to the unscaled τ*, leaves [...].

`METHODS` is the only list of them. The scale is applied outside: θ = θ₀ + scale · τ*
(`symerge_jax.task_vectors.add`). A new method is one file here and one line in the table; the laws
in tests/test_laws.py then run over it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from symerge_jax.merge.average import weight_average
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.merge.ties import ties
from symerge_jax.notation import Params


@dataclass(frozen=True)
class Method:
    """What is known about a merging method.

    Attributes:
        merge: τ → τ*; keyword-only options with the paper's defaults.
        scale: default of the scale λ in θ₀ + λ · τ*.
        kind: "shared" for one encoder for all tasks, "per_task" for τ* with a leading task axis.
        tunes_scale: whether λ is chosen on validation data in the literature.
        streams: whether one leaf at a time suffices, so that memory does not grow with K models.
        working_set: of a method that needs everything at once, its peak memory in multiples of
            all K task vectors, as measured; for the forecast of `symerge merge`.
    """

    merge: Callable[..., Params]
    scale: float
    kind: Literal["shared", "per_task"] = "shared"
    tunes_scale: bool = True
    streams: bool = False
    working_set: float = 1.0


METHODS: dict[str, Method] = {
    "weight_average": Method(weight_average, scale=1.0, tunes_scale=False, streams=True),
    "task_arithmetic": Method(task_arithmetic, scale=0.3, streams=True),
    "ties": Method(ties, scale=1.0, working_set=4.0),
}
