"""The WEMoE row of a vision table: MLPs mixed per image by routers that learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache as memoise
from typing import Any

import jax
import jax.numpy as jnp

from experiments.adapting import Around, chosen, key_of, made, name_of, schedule_of, share
from experiments.experts import Model
from experiments.methods import Constants, Outcome, Run, Seed
from experiments.scoring import padded, scored
from experiments.tasks.task import Task
from symerge_jax.adapt.fit import Keep
from symerge_jax.adapt.objectives import exclude
from symerge_jax.adapt.wemoe import mixture, wemoe
from symerge_jax.classifier import moe_encoder
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.models.clip_moe import initial_router, mlp_leaves
from symerge_jax.models.heads import normalised_head
from symerge_jax.notation import Array


def routed(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> Outcome:
    """Trains the routers and scores."""
    if model.vision is None:
        raise BadInput("wemoe needs a CLIP image tower")
    experts, count = seed.experts, len(tasks)
    encode = moe_encoder(model.vision, around.dtype)
    parts = mixture(
        model.pretrained, experts.task_vectors, mlp_leaves(model.pretrained),
        coefficient=constants.router_initial,
    )  # fmt: skip
    router = initial_router(
        model.vision, count, jax.random.key(seed.number), coefficient=constants.router_initial
    )
    inputs, labels = chosen(tasks, seed.labels, run.protocol)
    schedule = schedule_of(run, [len(x) for x in inputs], constants, seed.number)

    def make(keep: Keep | None) -> dict[str, Any]:
        follow = around.bars.follow(name_of(run, seed), schedule.steps, schedule.batch_size)
        found = wemoe(
            encode, normalised_head, *parts, router, experts.stacked, inputs,
            classes=experts.classes,
            learning_rate=constants.router_rate,
            seed=seed.number,
            schedule=schedule,
            on_chunk=lambda carry, losses: follow(losses),
            keep=keep,
        )  # fmt: skip
        return found._asdict()

    key = key_of(model, seed, run, constants, around, inputs, labels)
    kept = made(around, "routers", key, make)
    trained = (parts, kept["router"])
    scores = []
    for k, task in enumerate(tasks):
        own = (trained, *padded(experts.stacked, experts.classes, k))
        scores.append(scored(predict(logits_of(encode), own, task.test.inputs), task))
    return Outcome(
        run.name or run.method, seed.number, run.protocol == "held_out", scores,
        stored=1 + share((parts.task_vectors, kept["router"]), model.pretrained),
        losses=kept["losses"],
    )  # fmt: skip


@memoise
def logits_of(encode: Callable[..., Array]) -> Callable[[Any, Array], Array]:
    """Returns (((mixture, router), head, classes), images) → logits, padded rows excluded."""

    def apply(model: Any, images: Array) -> Array:
        (parts, router), head, classes = model
        features = encode(*parts, router, images, None)
        return exclude(normalised_head(head, features), jnp.asarray(classes)[None])

    return apply
