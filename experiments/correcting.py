"""Surgery and ProbSurgery rows of a vision table: features of a merged encoder, corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.adapting import (
    Around,
    chosen,
    key_of,
    learned,
    made,
    name_of,
    schedule_of,
    share,
    which,
)
from experiments.expert_outputs import outputs
from experiments.experts import Model
from experiments.merging import shared_encoder
from experiments.methods import Constants, Outcome, Run, Seed, base_of
from experiments.scoring import Scored, padded, scored
from experiments.tasks.task import Task
from symerge_jax.adapt.fit import Carry, Keep
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.objectives import exclude
from symerge_jax.adapt.probsurgery import ProbSurgery, probsurgery
from symerge_jax.adapt.probsurgery import correct as correct_mean
from symerge_jax.adapt.surgery import Surgery, correct, surgery
from symerge_jax.cache import digest
from symerge_jax.evaluate import predict
from symerge_jax.notation import Params


def corrected(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> Outcome:
    """Trains a module per task on the features of the merged encoder, and scores."""
    params, note = base_encoder(model, seed, tasks, run, constants, around)
    features = [predict(model.encode, params, task.test.inputs) for task in tasks]
    rows = [which(task, run.protocol) for task in tasks]
    schedule = schedule_of(run, [len(r) for r in rows], constants, seed.number)
    probabilistic = run.method.startswith("probsurgery")
    more: dict[str, Any] = {}
    if run.every is not None:
        more["chunk_steps"] = run.every * schedule.steps // constants.iterations
    curve: list[list[float]] = []

    def make(keep: Keep | None) -> dict[str, Any]:
        follow = around.bars.follow(name_of(run, seed), schedule.steps, schedule.batch_size)
        experts = outputs(model, seed.experts, tasks, around.cache)

        def on_chunk(carry: Carry, losses: np.ndarray) -> None:
            follow(losses)
            if run.every is not None:
                now = [score_one(model, carry.trainables, features[k], seed, task, k)
                       for k, task in enumerate(tasks)]  # fmt: skip
                curve.append([one.score for one in now])

        if run.every is None:  # points of a curve are not part of the state
            more["keep"] = keep
        found = (probsurgery if probabilistic else surgery)(
            [x[r] for x, r in zip(features, rows, strict=True)],
            [x.features[r] for x, r in zip(experts, rows, strict=True)],
            learning_rate=constants.correction_rate,
            seed=seed.number,
            schedule=schedule,
            on_chunk=on_chunk,
            **more,
        )
        parts = {"module": found.module._asdict(), "losses": found.losses}
        return parts | ({"curve": np.array(curve)} if curve else {})

    inputs, labels = chosen(tasks, seed.labels, run.protocol)
    key = key_of(model, seed, run, constants, around, inputs, labels) | {"base": digest(params)}
    kept = made(around, "corrections", key, make)
    module = (ProbSurgery if probabilistic else Surgery)(**kept["module"])
    scores = [score_one(model, module, features[k], seed, task, k) for k, task in enumerate(tasks)]
    return Outcome(
        run.name or run.method, seed.number, run.protocol == "held_out", scores,
        note=note,
        stored=1 + share(kept["module"], params),
        losses=kept["losses"],
        curve=kept.get("curve"),
    )  # fmt: skip


def score_one(
    model: Model,
    module: Surgery | ProbSurgery,
    features: np.ndarray,
    seed: Seed,
    task: Task,
    k: int,
) -> Scored:
    """Scores one task's head on its corrected features."""
    fix: Any = correct_mean if isinstance(module, ProbSurgery) else correct
    head, classes = padded(seed.experts.stacked, seed.experts.classes, k)
    logits = model.classify(head, fix(pick(module, k), features))
    return scored(np.asarray(exclude(logits, jnp.asarray(classes)[None])), task)


def base_encoder(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> tuple[Params, str | None]:
    """Returns the merged encoder that is corrected, and what was chosen on the way."""
    base = base_of(run.method)
    assert base is not None, f"{run.method} stands on nothing"
    if base != "adamerging":
        params, scale = shared_encoder(model, seed.experts, tasks, base, around.tune)
        return params, f"{run.name or run.method}: scale {scale:g} of {base}"
    first = Run("adamerging", protocol=run.protocol)
    known = around._replace(resume=True)  # its own row has just been made
    return learned(model, seed, tasks, first, constants, known)[0].params, None
