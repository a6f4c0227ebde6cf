"""A plan carried out as `symerge merge` does: leaves one at a time, as NumPy arrays."""

import jax
import numpy as np

from symerge_jax.trees import path_name


def over_disk(plan, task_vectors, **options):
    """Returns the merged tree; each pass makes its leaves anew and only one is alive at a time."""
    leaves = [
        (path_name(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(task_vectors)
    ]

    def passes():
        for path, leaf in leaves:
            yield path, leaf.copy()

    merge = plan(passes, **options)
    return jax.tree.unflatten(
        jax.tree.structure(task_vectors), [merge(path, leaf.copy()) for path, leaf in leaves]
    )
