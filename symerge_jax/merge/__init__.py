"""Merging methods: functions from τ, leaves [task, ...], to the unscaled τ*, leaves [...].

`METHODS` is the only list of them. The scale is applied outside: θ = θ₀ + scale · τ*
(`symerge_jax.task_vectors.add`). A new method is one file here and one line in the table; the laws
in tests/test_laws.py then run over it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from symerge_jax.merge.average import weight_average
from symerge_jax.merge.breadcrumbs import breadcrumbs
from symerge_jax.merge.consensus import consensus
from symerge_jax.merge.consensus import plan as plan_consensus
from symerge_jax.merge.dare import dare
from symerge_jax.merge.dare import plan as plan_dare
from symerge_jax.merge.emr import compress_emr, emr
from symerge_jax.merge.emr import plan as plan_emr
from symerge_jax.merge.fisher import fisher, norms_of
from symerge_jax.merge.isotropic import iso_c, iso_cts
from symerge_jax.merge.leaves import OnLeaf
from symerge_jax.merge.lines import lines
from symerge_jax.merge.lines import plan as plan_lines
from symerge_jax.merge.lot import lot
from symerge_jax.merge.magmax import magmax
from symerge_jax.merge.pcb import pcb
from symerge_jax.merge.pcb import plan as plan_pcb
from symerge_jax.merge.regmean import regmean
from symerge_jax.merge.slerp import slerp
from symerge_jax.merge.tall_masks import compress_tall_masks, tall_masks
from symerge_jax.merge.tall_masks import plan as plan_tall_masks
from symerge_jax.merge.task_arithmetic import task_arithmetic
from symerge_jax.merge.ties import plan as plan_ties
from symerge_jax.merge.ties import ties
from symerge_jax.merge.tsv import compress_tsv_c, tsv_c, tsv_m
from symerge_jax.notation import Params


@dataclass(frozen=True)
class Method:
    """What is known about a merging method.

    Attributes:
        merge: τ → τ*; keyword-only options with the paper's defaults.
        scale: default of the scale λ in θ₀ + λ · τ*.
        kind: "shared" for one encoder for all tasks, "per_task" for τ* with a leading task axis.
        tunes_scale: whether λ is chosen on validation data in the literature.
        streams: whether a leaf's result depends on that leaf alone, so that one is held at a time.
        plan: of a method that goes over all leaves several times, one at a time:
            (passes, options) → function of one leaf; see `merge.leaves`.
        needs: what `merge` takes beside the task vectors: "leaves" (facts about each leaf),
            "pretrained" (θ₀) and "moments" (statistics of each expert, `second_moments`).
        norms: of a method that treats a leaf alone once it is told one number per task:
            (statistics [task, ...] of all leaves, one at a time) → its option `norms` [task].
        compress: of a per-task method, what is stored: `materialise(k)` gives τ*_k.
        drops: whether an entry of a task vector may have no part in the result, so that NaN in it
            would go unnoticed.
        working_set: of a method that needs everything at once, its peak memory in multiples of
            all K task vectors, as measured; for the forecast of `symerge merge`.
    """

    merge: Callable[..., Params]
    scale: float
    kind: Literal["shared", "per_task"] = "shared"
    tunes_scale: bool = True
    streams: bool = False
    plan: Callable[..., OnLeaf] | None = None
    norms: Callable[..., Any] | None = None
    needs: tuple[Literal["leaves", "pretrained", "moments"], ...] = ()
    compress: Callable[..., Any] | None = None
    drops: bool = True
    working_set: float = 1.0


METHODS: dict[str, Method] = {
    "weight_average": Method(
        weight_average, scale=1.0, tunes_scale=False, streams=True, drops=False
    ),
    "task_arithmetic": Method(task_arithmetic, scale=0.3, streams=True, drops=False),
    "ties": Method(ties, scale=1.0, plan=plan_ties),
    "magmax": Method(magmax, scale=0.5, streams=True),
    "pcb": Method(pcb, scale=1.2, plan=plan_pcb),
    "lines": Method(lines, scale=1.0, tunes_scale=False, plan=plan_lines, needs=("leaves",)),
    "tall_masks": Method(
        tall_masks,
        scale=1.0,
        kind="per_task",
        tunes_scale=False,
        plan=plan_tall_masks,
        compress=compress_tall_masks,
    ),
    "consensus": Method(consensus, scale=0.3, plan=plan_consensus),
    "tsv_m": Method(tsv_m, scale=1.0, streams=True, needs=("leaves",), working_set=3.0),
    "tsv_c": Method(
        tsv_c,
        scale=1.0,
        kind="per_task",
        tunes_scale=False,
        streams=True,
        needs=("leaves",),
        compress=compress_tsv_c,
        working_set=3.0,
    ),
    "iso_c": Method(iso_c, scale=1.0, streams=True, needs=("leaves",), working_set=2.0),
    "iso_cts": Method(iso_cts, scale=1.5, streams=True, needs=("leaves",), working_set=3.0),
    "emr": Method(
        emr,
        scale=1.0,
        kind="per_task",
        tunes_scale=False,
        plan=plan_emr,
        compress=compress_emr,
    ),
    "lot": Method(lot, scale=1.2, streams=True, needs=("moments", "leaves")),
    "breadcrumbs": Method(breadcrumbs, scale=0.2, streams=True, needs=("leaves",)),
    "dare": Method(dare, scale=0.3, plan=plan_dare, needs=("leaves",)),
    "slerp": Method(slerp, scale=1.0, tunes_scale=False, streams=True, needs=("pretrained",)),
    "fisher": Method(fisher, scale=1.0, tunes_scale=False, norms=norms_of, needs=("moments",)),
    "regmean": Method(
        regmean, scale=1.0, tunes_scale=False, streams=True, needs=("moments", "leaves")
    ),
}


def stored_bytes(method: Method, task_vectors: Any, **options: Any) -> int:
    """Returns what must be stored to serve all tasks, heads not counted; nothing is computed.

    Of a shared method one model; of a per-task method θ₀ and its compressed form: one vector and a
    bit per entry and task, or factors. Separate experts would be K models.

    Args:
        method: an entry of `METHODS`.
        task_vectors: τ, leaves [task, ...], or their shapes and dtypes.
        options: of the method; `leaves` where it decomposes matrices.
    """
    model = sum(
        int(np.prod(leaf.shape[1:], dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(task_vectors)
    )
    if method.compress is None:
        return model
    compress = partial(method.compress, **options)
    stored = jax.eval_shape(lambda tau: jax.tree.leaves(compress(tau)), task_vectors)
    return model + sum(leaf.size * leaf.dtype.itemsize for leaf in stored)
