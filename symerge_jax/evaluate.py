"""Evaluation: push batches through `apply`, then let a metric look at the outputs.

The only such loop of the library.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.notation import Array, Params

Apply = Callable[[Any, Any], Any]  # (params, inputs [batch, ...]) → outputs [batch, ...]
Metric = Callable[[Array, Array], Any]  # (outputs [n, ...], truth [n, ...]) → a number


def predict(apply: Apply, params: Params, inputs: Any, *, batch_size: int = 250) -> Any:
    """Returns `apply(params, inputs)` as NumPy arrays, worked out batch by batch.

    The program is compiled once per `apply` and shapes; the last batch is padded, so the number of
    inputs does not matter.

    Args:
        apply: a pure function; pass the same object to reuse its program.
        params: whatever `apply` takes first.
        inputs: a pytree with leaves [n, ...], n ≥ 1.
        batch_size: inputs per call.

    Raises:
        BadInput: no input at all.
    """
    inputs = jax.tree.map(np.asarray, inputs)  # once, also if they lie on the device
    count = len(jax.tree.leaves(inputs)[0])
    if count == 0:
        raise BadInput("nothing to evaluate: expected at least one input, got none")
    run = _compiled(apply)
    params = jax.tree.map(jnp.asarray, params)  # not once per batch, if they lie on the host
    batch_size = min(batch_size, -(-count // 16) * 16)  # few programs, and little padding
    parts = []
    for begin in range(0, count, batch_size):
        rows = np.minimum(np.arange(begin, begin + batch_size), count - 1)
        parts.append(run(params, jax.tree.map(lambda x, r=rows: x[r], inputs)))
    return jax.tree.map(lambda *p: np.concatenate([np.asarray(x) for x in p])[:count], *parts)


@cache
def _compiled(apply: Apply) -> Apply:
    return jax.jit(apply)


def evaluate(
    apply: Apply,
    params: Params,
    inputs: Any,
    truth: Array,
    metrics: Mapping[str, Metric],
    *,
    batch_size: int = 250,
) -> dict[str, float]:
    """Returns each metric of the outputs against the truth, over the whole ordered set.

    Args:
        apply: (params, inputs) → outputs.
        params: first argument of `apply`.
        inputs: leaves [n, ...].
        truth: [n, ...].
        metrics: name → function of all outputs and the truth.
        batch_size: inputs per call of `apply`.

    Raises:
        BadInput: inputs and truth differ in number.
    """
    count = len(jax.tree.leaves(inputs)[0])
    if count != len(truth):
        raise BadInput(f"cannot evaluate: {count} inputs, but {len(truth)} labels")
    outputs = jnp.asarray(predict(apply, params, inputs, batch_size=batch_size))
    return {name: float(metric(outputs, jnp.asarray(truth))) for name, metric in metrics.items()}
