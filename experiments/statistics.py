"""Statistics of experts on unlabelled images, for the merging methods that take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.experts import Experts, Model
from experiments.tasks.task import Task
from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.moments_files import tower_moments

# Images per task: of the papers, LOT 64, RegMean and Fisher 256.
EXAMPLES = {"lot": 64, "regmean": 256, "fisher": 256}


def moments(model: Model, experts: Experts, tasks: Sequence[Task], method: str) -> Any:
    """Returns the statistics that a method takes, leaves with a leading task axis.

    The images are those the experts were trained on, without their labels; validation images where
    experts were read and not made.
    """
    if model.vision is None:
        raise BadInput(f"{method} needs a CLIP image tower")
    found = [
        tower_moments(
            model.vision,
            experts.params[k],
            examples(task, EXAMPLES[method]),
            kind="fisher" if method == "fisher" else "gram",
            head=experts.heads[k],
            seed=k,
        )
        for k, task in enumerate(tasks)
    ]
    return trees.stack(found)


def examples(task: Task, count: int) -> np.ndarray:
    """Returns at most `count` images of a task, drawn with seed 0; their labels stay behind."""
    images = (task.validation if task.train is None else task.train).inputs
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return np.asarray(images[np.sort(chosen)])
