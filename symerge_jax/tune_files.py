"""Training-free methods on a person's experts and unlabelled inputs: which scale serves best.

What `symerge adapt --method ties` does. Nothing is trained: the experts are merged, and of the
method's grid of scales the one is taken at which the merged model says most often what the experts
say about their own inputs. A regression, which names no class, has no part in the choice.
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
from symerge_jax.classifier import logits_of
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge import METHODS
from symerge_jax.merge_plan import check_ranks
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
        what each scale gave, `accuracies` being agreement in percent, of tasks with classes.

    Raises:
        BadInput: no task has classes.
    """
    entry = METHODS[name]
    chosen = [k for k, logits in enumerate(prepared.experts) if logits.shape[1] > 1]
    if not chosen:
        raise BadInput(
            f"{name}: all tasks are regressions, whose values are no classes to agree on, so no "
            "scale can be chosen; give one to `symerge merge --scale`"
        )
    check_ranks(prepared.plan, name, {})
    more: dict[str, Any] = {"seed": seed} if draws(name) else {}
    if "leaves" in entry.needs:
        more["leaves"] = tower_leaves(prepared.tower)
    merged = entry.merge(prepared.task_vectors, **more)
    trained = set(trees.paths(prepared.task_vectors))
    start, aside = trees.split(prepared.tower, lambda path, _: path in trained)
    network = prepared.network
    heads, classes = network.family.stack([task.head.head for task in prepared.tasks])
    logits = logits_of(network.encode, network.classify)

    def apply(model: Any, inputs: Any) -> Any:
        params, (head, own) = model
        return logits((trees.combine(params, aside), head, own), inputs)

    tuned = tune_scale(
        apply,
        start,
        merged,
        grid_of(name),
        [(jax.tree.map(lambda leaf, k=k: leaf[k], heads), classes[k]) for k in chosen],
        [prepared.tasks[k].inputs.rows for k in chosen],
        [prepared.experts[k].argmax(axis=1) for k in chosen],
    )
    params = trees.combine(add(start, merged, scale=tuned.scale), jax.tree.map(jnp.asarray, aside))
    empty = np.zeros(0, np.float32)
    return Adapted(params, {}, heads, empty, np.zeros((0, 0), bool)), tuned
