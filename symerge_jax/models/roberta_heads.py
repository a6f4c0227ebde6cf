"""RoBERTa's heads of unequal size as one pytree, and apart again; the sibling of `models.heads`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.models.transformer import Tree
from symerge_jax.notation import Array


def stack_text_heads(heads: Sequence[Tree]) -> tuple[Tree, Array]:
    """Stacks heads over tasks, padding outputs with zeros.

    Args:
        heads: of `models.roberta.classify`, one per task, for features of one width.

    Returns:
        Leaves [task, ...] with the most outputs of all, and which of them exist, bool
        [task, outputs].
    """
    counts = np.array([len(head["out_proj"]["bias"]) for head in heads])
    most = int(counts.max())

    def padded(head: Tree) -> Tree:
        missing = most - len(head["out_proj"]["bias"])
        wide = {n: jnp.pad(jnp.asarray(x), [(0, 0)] * (x.ndim - 1) + [(0, missing)])
                for n, x in head["out_proj"].items()}  # fmt: skip
        return {"dense": head["dense"], "out_proj": wide}

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[padded(head) for head in heads])
    return stacked, jnp.asarray(np.arange(most)[None] < counts[:, None])


def unstack_text_heads(heads: Mapping[str, Any], exists: Array) -> list[Tree]:
    """Returns the heads of `stack_text_heads` again, one per task and without padding."""
    counts = np.asarray(exists).sum(axis=1)
    return [
        {
            "dense": {name: leaf[task] for name, leaf in heads["dense"].items()},
            "out_proj": {name: leaf[task, ..., :count] for name, leaf in heads["out_proj"].items()},
        }
        for task, count in enumerate(counts)
    ]
