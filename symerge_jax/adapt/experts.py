"""Experts leave the loop: what they say about unlabelled inputs is worked out once and kept.

There is no augmentation in test-time adaptation, so an expert's answer to an input never changes;
the published code asks for it again at every step.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.cache import cached, digest
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import Apply, predict
from symerge_jax.notation import Array, Float


def labels_of(logits: Float[Array, "n classes"]) -> ExpertLabels:
    """Returns the class and the largest softmax probability of each row."""
    logits = np.asarray(logits)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    return ExpertLabels(logits.argmax(axis=1).astype(np.int32), confidence)


def expert_predictions(
    logits_of: Apply,
    experts: Sequence[Any],
    inputs: Sequence[Any],
    *,
    batch_size: int = 250,
    cache: str | Path | None = None,
    program: str = "",
    report: Callable[[str], object] = print,
) -> list[ExpertLabels]:
    """Returns each expert's predictions on its own task's inputs.

    Args:
        logits_of: (expert, inputs [batch, ...]) → logits [batch, classes]; one function for all.
        experts: one per task, whatever `logits_of` takes first, such as (encoder, head). Heads are
            as they were trained: no padded classes.
        inputs: one pytree per task, leaves [n, ...].
        batch_size: inputs per call.
        cache: folder that keeps predictions under a hash of expert, inputs and `program`.
        program: says what `logits_of` computes, such as the model's configuration.
        report: receives a line when a cache file is damaged.

    Raises:
        BadInput: the lists differ in length; an expert's logits are not finite.
    """
    if len(experts) != len(inputs):
        raise BadInput(f"got {len(experts)} experts, but inputs of {len(inputs)} tasks")
    if cache is not None and not program:
        raise BadInput("expert_predictions: a cache needs `program`, the name of what is computed")
    found = []
    for k, (expert, own) in enumerate(zip(experts, inputs, strict=True)):

        def make(expert: Any = expert, own: Any = own, k: int = k) -> dict[str, np.ndarray]:
            logits = predict(logits_of, expert, own, batch_size=batch_size)
            if not np.isfinite(logits).all():
                raise BadInput(
                    f"expert {k} gives logits that are not finite; its weights or inputs are bad"
                )
            return labels_of(logits)._asdict()

        key = {"program": program, "jax": jax.__version__}
        if cache is not None:
            key |= {"expert": digest(expert), "inputs": digest(own)}
        kept = cached(cache, "predictions", key, make, report=report)
        found.append(ExpertLabels(**kept))
    return found
