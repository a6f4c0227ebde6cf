"""SyMerge with true labels: the upper bound that test-time adaptation is measured against.

SyMerge, arXiv 2412.19098, figure C, dashed line. The only place of `adapt` that takes labels: not a
method of test-time adaptation, which has none, but what it would reach if experts were never wrong.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from symerge_jax.adapt.merged import Classify, Encode
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.symerge import Adapted, symerge
from symerge_jax.errors import BadInput
from symerge_jax.notation import Params, TaskVectors


def symerge_with_labels(
    encode: Encode,
    classify: Classify,
    pretrained: Params,
    task_vectors: TaskVectors,
    heads: Params,
    inputs: Sequence[Any],
    labels: Sequence[np.ndarray],
    *,
    classes: Any,
    **settings: Any,
) -> Adapted:
    """Runs `symerge` with the true labels where it has the experts' classes; every sample counts.

    Args:
        encode: (θ, inputs [batch, ...]) → features [batch, features].
        classify: (head, features) → logits [batch, classes].
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...].
        heads: leaves [task, ...], padded to one number of classes.
        inputs: one pytree per task, leaves [n, ...].
        labels: one per task, int [n]: the true classes.
        classes: bool [task, classes], which rows of the padded heads exist.
        settings: of `symerge`, but for `objective` and `confidence_filter`, which are fixed here.

    Raises:
        BadInput: a label that is no class of its task; whatever `symerge` refuses.
    """
    counts = np.asarray(classes).sum(axis=1)
    if len(labels) != len(counts):
        raise BadInput(f"got labels of {len(labels)} tasks, but heads of {len(counts)}")
    sure = []
    for k, (own, count) in enumerate(zip(map(np.asarray, labels), counts, strict=True)):
        if own.ndim != 1 or own.dtype.kind not in "iu":
            raise BadInput(
                f"labels of task {k}: expected integers [n], got {own.dtype} {list(own.shape)}"
            )
        if own.size and not (own.min() >= 0 and own.max() < count):
            raise BadInput(
                f"labels of task {k}: expected classes 0 to {count - 1}, got {own.min()} to "
                f"{own.max()}"
            )
        sure.append(ExpertLabels(own.astype(np.int32), np.ones(len(own), np.float32)))
    return symerge(
        encode, classify, pretrained, task_vectors, heads, inputs, sure,
        classes=classes,
        objective="self_label",
        confidence_filter="none",
        **settings,
    )  # fmt: skip
