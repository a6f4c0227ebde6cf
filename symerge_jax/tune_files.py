"""Training-free methods on a person's experts and unlabelled inputs: which scale serves best.

What `symerge adapt --method ties` does. Nothing is trained: the experts are merged, and of the
method's grid of scales the one is taken at which the merged model says most often what the experts
say about their own inputs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.adapt_files import Prepared
from symerge_jax.adapt_settings import draws
from symerge_jax.classifier import encoder, logits_of
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge import METHODS
from symerge_jax.merge_plan import check_ranks
from symerge_jax.models.heads import stack_heads
from symerge_jax.task_vectors import add
from symerge_jax.tune import Tuned, grid_of, tune_scale


def merge_and_tune(prepared: Prepared, name: str, *, seed: int = 0) -> tuple[Adapted, Tuned]:
    """Merges, and chooses the scale by agreement with the experts; no label takes part.

    Args:
        prepared: of `adapt_files.prepare`.
        name: of the method, an entry of `adapt_settings.TUNED`.
        seed: of a method that draws at random.

    Returns:
        The model, with the heads as they were, nothing trained (no coefficients, no losses); and
        what each scale gave, `accuracies` being agreement in percent.
    """
    entry = METHODS[name]
    check_ranks(prepared.plan, name, {})
    more: dict[str, Any] = {"seed": seed} if draws(name) else {}
    if "leaves" in entry.needs:
        more["leaves"] = tower_leaves(prepared.tower)
    merged = entry.merge(prepared.task_vectors, **more)
    trained = set(trees.paths(prepared.task_vectors))
    start, aside = trees.split(prepared.tower, lambda path, _: path in trained)
    heads, classes = stack_heads([task.head.head for task in prepared.tasks])
    logits = logits_of(encoder(prepared.pretrained.vision))

    def apply(model: Any, images: Any) -> Any:
        params, (head, own) = model
        return logits((trees.combine(params, aside), head, own), images)

    tuned = tune_scale(
        apply,
        start,
        merged,
        grid_of(name),
        [(jax.tree.map(lambda leaf, k=k: leaf[k], heads), classes[k]) for k in range(len(classes))],
        [task.inputs.images for task in prepared.tasks],
        [np.asarray(labels[0]) for labels in prepared.experts],
    )
    params = trees.combine(add(start, merged, scale=tuned.scale), jax.tree.map(jnp.asarray, aside))
    empty = np.zeros(0, np.float32)
    return Adapted(params, {}, heads, empty, np.zeros((0, 0), bool)), tuned
