"""What experts say about their tasks' test images; no label takes part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.experts import Experts, Model
from experiments.scoring import padded
from experiments.tasks.task import Task
from symerge_jax.adapt.distances import ExpertOutputs
from symerge_jax.adapt.experts import expert_predictions
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.cache import cached, digest
from symerge_jax.classifier import logits_of
from symerge_jax.cli.progress import say
from symerge_jax.evaluate import predict


def label(model: Model, experts: Experts, tasks: Sequence[Task], cache: Path) -> list[ExpertLabels]:
    """Returns each expert's classes and how sure it is of them."""
    found = []
    for k, task in enumerate(tasks):  # one expert in memory at a time
        expert = (experts.params[k], *padded(experts.stacked, experts.classes, k))
        found += expert_predictions(
            logits_of(model.encode, model.classify),
            [expert],
            [task.test.inputs],
            cache=cache,
            program=model.program,
            report=say,
        )
    return found


def outputs(
    model: Model, experts: Experts, tasks: Sequence[Task], cache: Path
) -> list[ExpertOutputs]:
    """Returns each expert's features, and the logits of its padded head."""
    found = []
    for k, task in enumerate(tasks):
        head, _ = padded(experts.stacked, experts.classes, k)

        def make(k: int = k, task: Task = task) -> dict[str, np.ndarray]:
            features = predict(model.encode, experts.params[k], task.test.inputs)
            return {"features": features}

        key = {
            "program": model.program, "jax": jax.__version__,
            "expert": digest(experts.params[k]), "inputs": digest(task.test.inputs),
        }  # fmt: skip
        features = cached(cache, "features", key, make, report=say)["features"]
        logits = np.asarray(model.classify(head, features))
        found.append(ExpertOutputs(logits, features))
    return found
