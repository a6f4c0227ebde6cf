"""Statistics of experts on unlabelled images, for the merging methods that take them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experts import Experts, Model
from experiments.tasks.images import Task
from symerge_jax import trees
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import VisionTower
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import normalised_head
from symerge_jax.second_moments import fisher_diagonal, gram_matrices

# Images per task: of the papers, LOT 64, RegMean and Fisher 256.
EXAMPLES = {"lot": 64, "regmean": 256, "fisher": 256}
BATCH = 32


def moments(model: Model, experts: Experts, tasks: Sequence[Task], method: str) -> Any:
    """Returns the statistics that a method takes, leaves with a leading task axis.

    The images are those the experts were trained on, without their labels; validation images where
    experts were read and not made.
    """
    if model.vision is None:
        raise BadInput(f"{method} needs a CLIP image tower")
    found = []
    for k, task in enumerate(tasks):
        images = examples(task, EXAMPLES[method])
        batches = [
            normalise(images[begin : begin + BATCH]) for begin in range(0, len(images), BATCH)
        ]
        params = jax.tree.map(jnp.asarray, experts.params[k])
        apply = every_token(model.vision)
        if method == "fisher":
            head = experts.heads[k]
            found.append(
                fisher_diagonal(
                    apply, params, batches,
                    lambda features, head=head: normalised_head(head, features),
                    key=jax.random.key(k),
                    at_once=8,
                )
            )  # fmt: skip
        else:
            kernel = "patch_embedding/kernel"
            found.append(gram_matrices(apply, params, batches, patches=(kernel,)))
    return trees.stack(found)


def examples(task: Task, count: int) -> np.ndarray:
    """Returns at most `count` images of a task, drawn with seed 0; their labels stay behind."""
    images = (task.validation if task.train is None else task.train).images
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return np.asarray(images[np.sort(chosen)])


@cache
def every_token(config: VisionConfig) -> Any:
    """Returns (θ, normalised images) → features, with every token worked out in the last block."""
    tower = VisionTower(config, every_token=True)

    def apply(params: Any, images: Any) -> Any:
        return tower.apply({"params": params}, images)

    return apply
