"""PCB by hand, against a transcription in NumPy float64, and from leaves on disk."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from from_disk import over_disk
from trees_close import assert_trees_close, assert_trees_equal
from two_tasks import SPLIT, TEN

from symerge_jax.errors import BadInput
from symerge_jax.merge.pcb import VARIANTS, pcb, plan

RNG = np.random.default_rng(5)
TAU = {
    "a": jnp.asarray(RNG.normal(size=(3, 70, 11)) * (RNG.random((3, 70, 11)) > 0.2), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(3, 900)) * 0.3, jnp.float32),
}

HAND = {
    "standalone": [1.6235, 0, -5, 3.0280, 0, 0, 0, 0, 0, 6],
    "vision": [1.6555, 0, -5, 3.4092, 0, 0, 0, 0, 0, 6],
    "evolution": [1.6919, 0, -5, 3.7622, 0, 0, 0, 0, 0, 6],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_by_hand(variant):
    merged = pcb(TEN, variant=variant, density=0.4, clip_quantile=0.0)
    np.testing.assert_allclose(merged["w"], HAND[variant], atol=5e-5)


def test_one_task_keeps_its_best_entries():
    merged = pcb({"w": TEN["w"][:1]}, density=0.4, clip_quantile=0.0)
    np.testing.assert_array_equal(merged["w"], [0, 0, 3, 4, 0, 0, 0, 0, 0, 6])


def transcribed(tau, variant, r, q, lam=1.0, extra=0):
    """The formulas, with sorted copies, in float64."""
    tasks, stored = tau.shape
    tau = np.concatenate([tau.astype(np.float64), np.zeros((tasks, extra))], axis=1)
    n_entries = tau.shape[1]

    def clip(x, low, high):
        s = np.sort(x)
        first, last = math.floor(n_entries * low), math.floor(n_entries * (1 - high) - 1)
        return np.clip(x, s[first], s[last])

    def mm(x):
        return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.zeros_like(x)

    a = np.stack([clip(np.abs(row), q, q) for row in tau])
    n = np.stack([mm(row) for row in a])
    signed = np.sign(tau) * n
    agreement = {
        "vision": np.tanh(tau * signed.sum(0)),
        "standalone": np.tanh(tau * tau.sum(0)),
        "evolution": np.tanh(signed[:, None] * signed[None]).sum(1),
    }[variant]
    scores = np.exp(tasks * n**2) * agreement
    w = np.stack([mm(clip(row, 1 - r, 0)) for row in scores])
    lam = np.broadcast_to(lam, (tasks,))[:, None]
    merged = (lam * np.sign(tau) * a * w).sum(0) / np.maximum(w.sum(0), 1e-12)
    return merged[:stored]


def raveled(tree):
    return np.concatenate([np.asarray(x).reshape(3, -1) for x in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("extra", [0, 600])
@pytest.mark.parametrize(("r", "q"), [(0.05, 0.01), (0.3, 0.0), (1.0, 0.2)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_follows_the_formulas(variant, r, q, extra):
    lam = [0.5, 1.2, 2.0]
    merged = pcb(
        TAU,
        variant=variant,
        density=r,
        clip_quantile=q,
        coefficients=lam,
        quantile_extra_zeros=extra,
    )
    ours = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(merged)])
    expected = transcribed(raveled(TAU), variant, r, q, lam, extra)
    # An entry whose weight is rounding noise divides noise by noise.
    assert (np.abs(ours - expected) > 1e-4).sum() <= 2


def test_quantiles_are_global_over_leaves():
    whole = pcb(TEN, density=0.4, clip_quantile=0.1)["w"]
    parts = pcb(SPLIT, density=0.4, clip_quantile=0.1)
    np.testing.assert_array_equal(np.concatenate([parts["a"], parts["b"]]), whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_signs_flip_with_the_task_vectors(variant):
    flipped = pcb(jax.tree.map(jnp.negative, TAU), variant=variant)
    assert_trees_equal(flipped, jax.tree.map(jnp.negative, pcb(TAU, variant=variant)))


def test_only_the_variant_evolution_scales_with_the_task_vectors():
    larger = jax.tree.map(lambda x: 4 * x, TAU)
    merged = jax.tree.map(lambda x: 4 * x, pcb(TAU, variant="evolution"))
    assert_trees_close(pcb(larger, variant="evolution"), merged, atol=1e-5)
    for variant in ("vision", "standalone"):
        merged = 4 * pcb(TAU, variant=variant)["a"]
        assert float(jnp.abs(pcb(larger, variant=variant)["a"] - merged).max()) > 0.01


def test_a_common_coefficient_is_a_scale():
    merged = jax.tree.map(lambda x: 1.2 * x, pcb(TAU))
    assert_trees_close(pcb(TAU, coefficients=1.2), merged)


@pytest.mark.parametrize("variant", VARIANTS)
def test_jit_and_leaves_from_disk_change_nothing(variant):
    merged = pcb(TAU, variant=variant)
    assert_trees_equal(over_disk(plan, TAU, variant=variant), merged)
    assert_trees_close(jax.jit(lambda tau: pcb(tau, variant=variant))(TAU), merged, rtol=1e-5)


def test_many_tasks_overflow_nothing():
    tau = {"w": jnp.asarray(RNG.normal(size=(100, 50)), jnp.float32)}
    assert np.isfinite(pcb(tau)["w"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"pcb: density must lie in \(0, 1\], got 0.0"),
        ({"density": 5.0}, "0.05 for 5 percent"),
        ({"clip_quantile": 0.5}, r"pcb: clip_quantile must lie in \[0, 0.5\), got 0.5"),
        ({"variant": "b"}, "pcb: variant must be one of vision, standalone, evolution, got 'b'"),
        ({"coefficients": [1.0, 2.0, 3.0]}, "pcb: coefficients must be one number or one per task"),
        ({"coefficients": float("nan")}, "pcb: coefficients must be finite"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        over_disk(plan, TEN, **options)
