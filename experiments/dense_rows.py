"""Adaptive rows of a dense table: adapt on unlabelled test images, then score.

What adapts receives images and what experts say about them; labels are read by `scoring` at the
end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from experiments.adapting import Around, made, name_of, share
from experiments.correcting import base_encoder
from experiments.experts import Model
from experiments.methods import Constants, Outcome, Run, Seed, base_of
from experiments.scoring import padded, score, scored_maps
from experiments.tasks.task import Task
from symerge_jax import __version__
from symerge_jax.adapt.dense import AdaptedDense, Network, Statistics, symerge_dense
from symerge_jax.adapt.dense_surgery import dense_surgery
from symerge_jax.adapt.fit import Keep
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.probsurgery import ProbSurgery
from symerge_jax.adapt.probsurgery import correct as correct_mean
from symerge_jax.adapt.schedule import Schedule, sequential
from symerge_jax.adapt.surgery import Surgery, correct
from symerge_jax.cache import digest
from symerge_jax.notation import Array, Params

# Rows that differ from another in what becomes of running statistics: row → (method, statistics).
ABLATION: dict[str, tuple[str, Statistics]] = {
    "symerge_recalibrate": ("symerge", "recalibrate"),
    "task_arithmetic_recalibrate": ("task_arithmetic", "recalibrate"),
    "symerge_merge_stats": ("symerge", "merge_stats"),
    "symerge_pretrained_stats": ("symerge", "pretrained_stats"),
}


def dense_row(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> Outcome:
    """Adapts on unlabelled test images and scores."""
    if base_of(run.method) is not None:
        return corrected(model, seed, tasks, run, constants, around)
    adapted = learned(model, seed, tasks, run, constants, around)
    encoders = [adapted.encoder] * len(tasks)
    scores = score(model, encoders, adapted.decoders, seed.experts.classes, tasks)
    return Outcome(
        run.method, seed.number, False, scores, stored=1.0, losses=adapted.losses, dense=adapted
    )


def learned(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> AdaptedDense:
    """Returns what SyMerge learns, or Task Arithmetic with statistics of the test images."""
    experts, own = seed.experts, model.dense
    assert own is not None
    method, statistics = ABLATION.get(run.method, (run.method,))[0], _statistics(run, constants)
    coefficient_rate, head_rate = {
        "symerge": (constants.coefficient_rate, constants.rate),
        "symerge_head": (0.0, constants.rate),
        "symerge_coefficients": (constants.coefficient_rate, 0.0),
        "task_arithmetic": (0.0, 0.0),
    }[method]
    images = [task.test.inputs for task in tasks]
    schedule = _schedule(images, constants, seed.number)

    def make(keep: Keep | None) -> dict[str, Any]:
        follow = around.bars.follow(name_of(run, seed), schedule.steps, schedule.batch_size)
        found = symerge_dense(
            own, model.pretrained, experts.task_vectors, experts.stacked,
            [len(task.classes) for task in tasks], images, seed.labels,
            [task.name for task in tasks],
            statistics=statistics,
            coefficient_rate=coefficient_rate,
            head_rate=head_rate,
            initial_coefficient=constants.initial,
            seed=seed.number,
            schedule=schedule,
            on_chunk=lambda carry, losses: follow(losses),
            keep=keep,
        )  # fmt: skip
        return found._asdict()

    key = _key(model, seed, run, constants, around, images)
    return AdaptedDense(**made(around, "adapted-maps", key, make))


def _schedule(images: Sequence[np.ndarray], constants: Constants, seed: int) -> Schedule:
    """Corrections, too, take whole batches, as table 2 says no other; none is larger than a set."""
    sizes = [len(own) for own in images]
    return sequential(
        sizes,
        iterations=constants.iterations,
        batch_size=min(constants.batch_size, max(sizes)),
        seed=seed,
    )


def _key(
    model: Model,
    seed: Seed,
    run: Run,
    constants: Constants,
    around: Around,
    images: Sequence[np.ndarray],
) -> dict[str, Any]:
    experts = seed.experts
    return {
        "method": run.method, "version": __version__, "seed": seed.number, "model": model.name,
        "experts": digest(experts.task_vectors, experts.stacked), "inputs": digest(images),
        "said": digest(*seed.labels), "dtype": around.dtype,
        "constants": str(constants._replace(batch_norm=_statistics(run, constants))),
    }  # fmt: skip


def _statistics(run: Run, constants: Constants) -> Statistics:
    return ABLATION[run.method][1] if run.method in ABLATION else constants.batch_norm


def corrected(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> Outcome:
    """Trains a module per task on the features of the merged encoder, and scores."""
    experts, network = seed.experts, model.dense
    assert network is not None
    params, note = base_encoder(model, seed, tasks, run, constants, around)
    images = [task.test.inputs for task in tasks]
    schedule = _schedule(images, constants, seed.number)
    probabilistic = run.method.startswith("probsurgery")

    def make(keep: Keep | None) -> dict[str, Any]:
        follow = around.bars.follow(name_of(run, seed), schedule.steps, schedule.batch_size)
        found = dense_surgery(
            model.encode, params, model.pretrained, experts.task_vectors, images,
            probabilistic=probabilistic,
            learning_rate=constants.correction_rate,
            seed=seed.number,
            schedule=schedule,
            on_chunk=lambda carry, losses: follow(losses),
            keep=keep,
        )  # fmt: skip
        return {"module": found.module._asdict(), "losses": found.losses}

    key = _key(model, seed, run, constants, around, images) | {"base": digest(params)}
    kept = made(around, "corrected-maps", key, make)
    module = (ProbSurgery if probabilistic else Surgery)(**kept["module"])
    behind = with_module(network, correct_mean if probabilistic else correct)
    scores = [
        scored_maps(
            behind, (params, pick(module, k)), padded(experts.stacked, experts.classes, k)[0],
            task,
        )
        for k, task in enumerate(tasks)
    ]  # fmt: skip
    return Outcome(
        run.method, seed.number, False, scores,
        note=note,
        stored=1 + share(kept["module"], params),
        losses=kept["losses"],
    )  # fmt: skip


@cache
def with_module(network: Network, fix: Callable[[Any, Array], Array]) -> Network:
    """Returns a network whose encoder is (variables, one task's module): features, corrected."""

    def encode(both: tuple[Params, Any], images: Array) -> Array:
        variables, part = both
        return fix(part, network.encode(variables, images))

    return network._replace(encode=encode)
