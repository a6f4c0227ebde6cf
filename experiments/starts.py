"""The merged model that adaptation starts from: one coefficient for all leaves and tasks.

It is Task Arithmetic whose scale is the initial coefficient; tables of methods choose their scale
on validation images instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.experts import Experts, Model
from experiments.methods import Outcome, Seed
from experiments.scoring import score
from experiments.tasks.task import Task
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.symerge import merged_encoder
from symerge_jax.notation import Params


def merged_start(model: Model, experts: Experts, value: float) -> Params:
    """Returns θ₀ + value · Σ_k τ_k."""
    coefficients = per_leaf(experts.task_vectors, value)
    return merged_encoder(model.pretrained, experts.task_vectors, coefficients)


def start_row(model: Model, seed: Seed, tasks: Sequence[Task], value: float) -> Outcome:
    """Scores the merged model that adaptation starts from, with the experts' heads."""
    experts = seed.experts
    encoders = [merged_start(model, experts, value)] * len(tasks)
    scores = score(model, encoders, experts.stacked, experts.classes, tasks)
    note = f"task_arithmetic: scale {value:g}, where adaptation starts"
    return Outcome("task_arithmetic", seed.number, False, scores, note=note)
