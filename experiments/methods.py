"""The rows of a table: their names, their hyper-parameters, and what each gives.

What they do is in `merging` (training-free) and `adapting` (test-time adaptation).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from experiments.experts import Experts
from experiments.scoring import Scored
from experiments.tasks.task import check_known
from symerge_jax.adapt.dense import AdaptedDense, Statistics
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.errors import BadInput
from symerge_jax.finetune import Recipe
from symerge_jax.merge import METHODS
from symerge_jax.notation import Coefficients

ENTROPY = (
    "adamerging",
    "adamerging_taskwise",
    "adamerging_sequential",
    "adamerging_plus_plus",
)
SYMERGE = ("symerge_coefficients", "symerge_head", "symerge")
CORRECTIONS = ("surgery", "probsurgery")  # of features, on top of a merged encoder
ADAPTIVE = (*ENTROPY, *CORRECTIONS, "wemoe", *SYMERGE)
JOINT = ("adamerging", "adamerging_taskwise", "adamerging_plus_plus", "wemoe")
KNOWN = ("pretrained", "individual", *METHODS, *ADAPTIVE)
PARTS = ("early", "late", "all")  # of the blocks, as "the one layer"
BASES = ("weight_average", "task_arithmetic", "ties")  # of corrections, beside AdaMerging

Protocol = Literal["transductive", "held_out", "online"]


class Constants(NamedTuple):
    """Hyper-parameters of one kind of data.

    Attributes:
        recipe: of fine-tuning; None for experts that are read.
        iterations: rounds of adaptation over the tasks.
        batch_size: inputs per task and iteration.
        rate: learning rate of coefficients and heads together, and of heads alone; on scenes of
            decoders.
        coefficient_rate: of coefficients alone, and beside a block; on scenes always.
        entropy_rate: of AdaMerging.
        initial: coefficient of every leaf and task at the start.
        block_rate: of a block that is each task's own.
        correction_rate: of Surgery and ProbSurgery.
        router_rate: of WEMoE.
        router_initial: λ of WEMoE, in the routers' start and outside the MLPs.
        objective: of SyMerge: "self_label", a distance to the expert's outputs, or "entropy".
        batch_norm: what SyMerge does with running statistics, where a network has some.
    """

    recipe: Recipe | None
    iterations: int
    batch_size: int
    rate: float
    coefficient_rate: float
    entropy_rate: float
    initial: float
    block_rate: float = 1e-5
    correction_rate: float = 1e-3
    router_rate: float = 1e-4
    router_initial: float = 0.3
    objective: str = "self_label"
    batch_norm: Statistics = "recalibrate"


class Seed(NamedTuple):
    """What the methods of one seed start from; `labels` is what each expert says of test images."""

    number: int
    experts: Experts
    labels: list[Any]


class Outcome(NamedTuple):
    """What one method gave under one seed.

    Attributes:
        method: its key, or the name that a script gave the run.
        seed: of the experts.
        half: whether it adapted on half of the test images.
        scores: per task.
        adapted: of a method that learns coefficients or a layer.
        note: what was chosen on the way.
        stored: encoders' worth of numbers that serve all tasks.
        losses: of a method that learns, [step].
        curve: accuracy in percent every so many iterations, [point, task].
        dense: of a method that learns on scenes.
    """

    method: str
    seed: int
    half: bool
    scores: list[Scored]
    adapted: Adapted | None = None
    note: str | None = None
    stored: float = 1.0
    losses: Any = None
    curve: Any = None
    dense: AdaptedDense | None = None


class Run(NamedTuple):
    """How an adaptive method is run, beside its constants.

    Attributes:
        method: its key.
        name: what the record calls it; the method's key otherwise.
        protocol: which test inputs it sees; see the options of `experiments.vision`.
        every: iterations between two looks at the test accuracy; None for no look.
        start: λ to start from.
    """

    method: str
    name: str | None = None
    protocol: Protocol = "transductive"
    every: int | None = None
    start: Coefficients | None = None


def is_adaptive(name: str) -> bool:
    """Whether a method learns from test inputs."""
    return name in ADAPTIVE or base_of(name) is not None or part_of(name) is not None


def base_of(name: str) -> str | None:
    """Returns what a correction stands on: `surgery_on_ties` → `ties`; None of other methods."""
    method, on, base = name.partition("_on_")
    if method not in CORRECTIONS:
        return None
    return base if on else "adamerging"


def part_of(name: str) -> str | None:
    """Returns which blocks are each task's own, `3` of `symerge_block_3`; None of other methods."""
    rest = name.removeprefix("symerge_")
    if rest == name:
        return None
    if rest in PARTS:
        return rest
    number = rest.removeprefix("block_")
    return number if number != rest and number.isdecimal() else None


def check_method(name: str, depth: int) -> None:
    """Raises `BadInput` for an unknown method, or a block that a tower of `depth` lacks."""
    part = part_of(name)
    if part is not None and part not in PARTS:
        if not 1 <= int(part) <= depth:
            raise BadInput(
                f"--methods {name}: the image tower has blocks 1 to {depth}; choose one of them"
            )
    elif part is None and base_of(name) is not None:
        check_known(base_of(name) or "", (*BASES, "adamerging"), "base")
    elif part is None:
        check_known(name, KNOWN, "method")
