"""ProbSurgery: its laws, cases by hand, and the published loop."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.adapt import probsurgery as module
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt import surgery as deterministic
from symerge_jax.adapt.fit import Batch
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.probsurgery import (
    ProbSurgery,
    correct,
    divergence,
    initial,
    moments,
    probsurgery,
    standard_normal,
)
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.surgery import Surgery, distance, surgery, uniform_start
from symerge_jax.errors import BadInput

GOLDEN = Path(__file__).parent / "golden" / "probsurgery.npz"
SIZES = (9, 7, 8)
WIDTH, HIDDEN = 6, 5


def drawn(rest=(WIDTH,)):
    """Merged features of three tasks, and experts' that lie beside them."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, *rest)).astype(np.float32) for n in SIZES]
    return features, [h + rng.normal(size=rest[-1:]).astype(np.float32) for h in features]


@pytest.fixture(scope="module")
def pair():
    return drawn()


def steps_of(*tasks):
    """One update per task named, on its first four samples."""
    count = len(tasks)
    return Schedule(
        np.array(tasks, np.int32),
        np.tile(np.arange(4, dtype=np.int32), (count, 1)),
        np.ones((count, 4), bool),
        np.ones(count, bool),
    )


def run(pair, **options):
    # Chunks of one step: runs of all lengths are one program.
    options = {"hidden": HIDDEN, "iterations": 8, "batch_size": 4, "chunk_steps": 1} | options
    return probsurgery(*pair, **options)


def no_noise(batch):
    return jnp.zeros_like(batch.inputs)


def trained(seed=0):
    """One task's module with all parts away from 0."""
    return ProbSurgery(
        *(uniform_start(shape, seed + i, jnp.float32)
          for i, shape in enumerate(((HIDDEN, WIDTH), (WIDTH, HIDDEN), (WIDTH, HIDDEN))))
    )  # fmt: skip


def first_loss(pair, part, noise=standard_normal, beta=0.0, seed=0):
    """The loss of a run's first step, on four samples of task 0."""
    options = {"module": trees.stack([part] * 3), "schedule": steps_of(0)}
    return run(pair, **options, noise=noise, beta=beta, seed=seed).losses[0]


def test_by_hand():
    # u = relu([1 −1] h); μ = [1, 0] u; v = [0, ln 2] u
    part = ProbSurgery(
        jnp.array([[1.0, -1.0]]), jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [np.log(2)]])
    )
    h = jnp.array([[2.0, 1], [1, 2]])  # u = 1 and 0
    mean, log_variance = moments(part, h)
    np.testing.assert_array_equal(mean, [[1, 0], [0, 0]])
    np.testing.assert_allclose(jnp.exp(log_variance), [[1, 2], [1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(correct(part, h), [[1, 1], [1, 2]])
    kl = (1 + (2 - 1 - np.log(2))) / 2
    np.testing.assert_allclose(divergence(mean, log_variance), [kl, 0], rtol=1e-6)

    def ones(batch):
        return jnp.ones_like(batch.inputs)

    # h' = h − (μ + exp(v/2)): [2−1−1, 1−√2] and [0, 1]; g = 0
    once = Schedule(*(np.array(x) for x in ([0], [[0, 1]], [[True, True]], [True])))
    start = trees.stack([part])
    options = {"module": start, "beta": 0.5, "noise": ones}
    both = probsurgery([h], [jnp.zeros_like(h)], schedule=once, **options)
    np.testing.assert_allclose(both.losses, [(2**0.5 - 1 + 1) / 4 + 0.5 * kl / 2], rtol=1e-6)
    first = once._replace(sample_mask=np.array([[True, False]]))
    alone = probsurgery([h], [jnp.zeros_like(h)], schedule=first, **options)
    np.testing.assert_allclose(alone.losses, [(2**0.5 - 1) / 2 + 0.5 * kl], rtol=1e-6)


def test_at_the_start_features_are_what_they_were_and_nothing_diverges(pair):
    start = initial(3, WIDTH)
    assert [leaf.shape for leaf in start] == [(3, 128, 6), (3, 6, 128), (3, 6, 128)]
    for k, h in enumerate(pair[0]):
        np.testing.assert_array_equal(correct(pick(start, k), h), h)
        assert not divergence(*moments(pick(start, k), jnp.asarray(h))).any()
    assert sum(leaf.size for leaf in initial(1, 512)) == 196_608


def test_training_starts_from_features_minus_noise(pair):
    key = jax.random.fold_in(jax.random.key(3), 0)
    h, g = (jnp.asarray(arrays[0][:4]) for arrays in pair)
    eps = jax.random.normal(key, h.shape, h.dtype)
    expected = distance(h - eps, g).mean()
    ours = first_loss(pair, pick(initial(3, WIDTH), 0), beta=1.0, seed=3)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_divergence_is_never_negative(scale):
    rng = np.random.default_rng(1)
    mean, log_variance = (jnp.asarray(scale * rng.normal(size=(500, 4)), jnp.float32) for _ in "mv")
    found = divergence(mean, log_variance)
    assert (found > 0).all()
    m, v = np.float64(mean), np.float64(log_variance)
    expected = -0.5 * (1 + v - m**2 - np.exp(v)).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-7 * scale)  # ulps of v
    only_variance = divergence(jnp.zeros_like(mean), log_variance)
    assert (only_variance >= -1e-12).all()


def test_without_variance_it_is_surgery(pair):
    low = jnp.full((WIDTH, HIDDEN), -1e3)
    part = trained()._replace(down=abs(trained().down), log_variance=low)
    positive = [abs(h) + 1 for h in pair[0]]  # so that u > 0 and v is far below 0
    assert float(moments(part, jnp.asarray(positive[0]))[1].max()) < -500
    plain = Surgery(part.down, part.mean)
    for h in positive:
        np.testing.assert_array_equal(correct(part, h), deterministic.correct(plain, h))
    noisy = first_loss((positive, pair[1]), part)
    theirs = surgery(
        positive, pair[1], module=trees.stack([plain] * 3), schedule=steps_of(0), chunk_steps=1
    ).losses[0]
    np.testing.assert_allclose(noisy, theirs, rtol=1e-6)


@pytest.mark.parametrize("idle", ["dense", "masked"])
def test_without_noise_and_divergence_it_trains_as_surgery(pair, idle):
    ours = run(pair, noise=no_noise, beta=0.0, idle=idle)
    options = {"rank": HIDDEN, "iterations": 8, "batch_size": 4, "chunk_steps": 1}
    theirs = surgery(*pair, idle=idle, **options)
    assert_trees_close(ours.module.down, theirs.module.down)
    assert_trees_close(ours.module.mean, theirs.module.up)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-6)
    assert not ours.module.log_variance.any()


def test_the_seed_changes_training_but_not_evaluation(pair):
    part = trained()
    losses = [first_loss(pair, part, seed=seed) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    h = jnp.asarray(pair[0][0])
    mean, _ = moments(part, h)
    for _ in range(2):
        np.testing.assert_array_equal(correct(part, h), h - mean)


def test_each_step_draws_anew(pair):
    losses = run(pair, schedule=steps_of(0, 0, 0), learning_rate=0.0).losses
    assert len(set(losses.tolist())) == 3
    still = run(pair, schedule=steps_of(0, 0, 0), learning_rate=0.0, noise=no_noise).losses
    assert len(set(still.tolist())) == 1


def test_noise_is_standard_normal():
    key = jax.random.key(0)
    inputs = jnp.zeros((100, 8, 8, 4), jnp.float32)
    eps = standard_normal(Batch(jnp.int32(0), inputs, (), (), key, jnp.int32(0)))
    assert (eps.shape, eps.dtype) == (inputs.shape, inputs.dtype)
    np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)


def test_the_first_step_moves_mean_and_variance_but_not_the_way_down(pair):
    start = initial(3, WIDTH, hidden=HIDDEN)
    found = run(pair, schedule=steps_of(0)).module
    np.testing.assert_array_equal(found.down, start.down)
    assert found.mean[0].any()
    assert found.log_variance[0].any()
    assert not found.mean[1:].any()
    assert not found.log_variance[1:].any()


def test_features_come_closer_to_the_experts(pair):
    found = run(pair, iterations=60, learning_rate=0.03).module
    for k, (h, g) in enumerate(zip(*pair, strict=True)):
        corrected = correct(pick(found, k), h)
        before, after = (distance(x, jnp.asarray(g)).mean() for x in (h, corrected))
        assert after < 0.8 * before


def test_a_large_weight_keeps_the_distribution_at_the_standard_one(pair):
    def spread(beta):
        found = run(pair, iterations=30, learning_rate=0.03, beta=beta).module
        return divergence(*moments(pick(found, 0), jnp.asarray(pair[0][0]))).mean()

    assert spread(10.0) < 0.1 * spread(1e-4)


def test_idle_modules_stay_if_masked_and_move_by_momentum_if_dense(pair):
    both = steps_of(0, 1, 1)
    first = run(pair, schedule=both.part(0, 1)).module
    masked, dense = (run(pair, schedule=both, idle=idle).module for idle in ("masked", "dense"))
    assert_trees_equal(pick(masked, 0), pick(first, 0))
    assert not np.array_equal(dense.mean[0], first.mean[0])
    for found in (masked, dense):  # task 2 never came
        assert_trees_equal(pick(found, 2), pick(first, 2))


def test_a_shared_module_is_one_for_all_tasks(pair):
    found = run(pair, shared=True, schedule=steps_of(0, 1, 2)).module
    assert [leaf.shape[0] for leaf in found] == [3, 3, 3]
    for k in (1, 2):
        assert_trees_equal(pick(found, k), pick(found, 0))
    one = run(pair, shared=True, schedule=steps_of(0)).module
    assert not np.array_equal(found.mean, one.mean)
    # what tasks call their inputs does not matter: one task that has all of them gives the same
    joined = tuple([np.concatenate(arrays)] for arrays in pair)
    offsets = np.cumsum([0, *SIZES[:-1]])[:, None]
    schedule = steps_of(0, 1, 2)
    schedule = schedule._replace(
        task_ids=np.zeros(3, np.int32),
        sample_indices=(schedule.sample_indices + offsets).astype(np.int32),
    )
    assert_trees_close(pick(run(joined, schedule=schedule).module, 0), pick(found, 0))


def test_padding_is_not_looked_at(pair):
    schedule = schedules.sequential(SIZES, iterations=6, batch_size=4, seed=0)
    wild = schedule._replace(
        sample_indices=np.where(schedule.sample_mask, schedule.sample_indices, 1).astype(np.int32)
    )
    assert not np.array_equal(wild.sample_indices, schedule.sample_indices)
    ours, theirs = (run(pair, schedule=s, beta=1.0) for s in (wild, schedule))
    assert_trees_equal(ours.module, theirs.module)
    np.testing.assert_array_equal(ours.losses, theirs.losses)


def test_maps_average_over_positions():
    pair = drawn(rest=(2, 3, WIDTH))
    part = trained()
    maps = jnp.asarray(pair[0][0])
    flat = maps.reshape(-1, WIDTH)
    np.testing.assert_allclose(correct(part, maps).reshape(-1, WIDTH), correct(part, flat), 1e-5)
    mean, log_variance = moments(part, maps)
    expected = divergence(*moments(part, flat)).reshape(len(maps), 6).mean(axis=1)
    np.testing.assert_allclose(divergence(mean, log_variance), expected, rtol=1e-5)
    losses = run(pair, iterations=20, learning_rate=0.03).losses
    assert losses[-9:].mean() < losses[:9].mean()


def test_further_runs_reuse_the_program(pair):
    traces = []

    def counted(batch):
        traces.append(1)
        return standard_normal(batch)

    run(pair, noise=counted)
    once = len(traces)
    assert once > 0
    run(pair, noise=counted, seed=1, learning_rate=0.1, beta=1.0, shuffle_tasks=False)
    assert len(traces) == once


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda h, g: (h[:2], g), {}, "features of 2 tasks and expert features of 3"),
        (lambda h, g: (h, [g[0], g[1][:, :4], g[2]]), {}, r"task 1: .*\(7, 6\).*\(7, 4\)"),
        (lambda h, g: (h, g), {"hidden": 0}, "hidden must be at least 1, got 0"),
        (lambda h, g: (h, g), {"module": initial(3, 5)}, r"'down' of shape \(3, 128, 6\).*128, 5"),
        (lambda h, g: (h, g), {"module": initial(3, 6), "shared": True}, r"shape \(1, 128, 6\)"),
        (lambda h, g: (h, g), {"module": initial(3, 6)._replace(mean=jnp.zeros((3, 6, 4)))},
         r"'mean' of shape \(3, 6, 128\).*\(3, 6, 4\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(pair, change, options, message):
    with pytest.raises(BadInput, match=message) as caught:
        run(change(*pair), **options)
    assert "\n" not in str(caught.value)


def test_unknown_options_are_refused(pair):
    with pytest.raises(BadInput, match="idle must be one of dense, masked, got 'zero'"):
        inspect.unwrap(module.probsurgery)(*pair, idle="zero")


# Compiled programs hold the noise of one variant and precision, so each has a function of its own.
def replayed(noise):
    def draw(batch):
        return jnp.asarray(noise)[batch.step]

    return draw


@pytest.mark.parametrize("variant", ["dense", "masked", "shared"])
@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-9), (32, 1e-5)])
def test_it_agrees_with_the_published_loop(variant, bits, tolerance):
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    parts = ("task_ids", "sample_indices", "sample_mask")
    fields = [arrays[f"schedule/one/{part}"] for part in parts]
    down = arrays["initial/down"].astype(f"float{bits}")[: 1 if variant == "shared" else 3]
    out = np.zeros_like(down.swapaxes(1, 2))
    with jax.enable_x64(bits == 64):
        found = probsurgery(
            *([arrays[f"{name}/task{k}"].astype(down.dtype) for k in range(3)]
              for name in ("features", "expert")),
            module=ProbSurgery(*map(jnp.asarray, (down, out, out))),
            beta=0.05,
            shared=variant == "shared",
            learning_rate=0.01,
            idle="masked" if variant == "masked" else "dense",
            schedule=Schedule(*fields, np.ones(len(fields[0]), bool)),
            chunk_steps=1,
            noise=replayed(arrays["noise"].astype(down.dtype)),
        )  # fmt: skip
    assert found.module.down.dtype == down.dtype
    expected = f"{variant}/f{bits}"
    np.testing.assert_allclose(found.losses, arrays[f"{expected}/loss"], rtol=0, atol=tolerance)
    for name, ours in found.module._asdict().items():
        theirs = np.broadcast_to(arrays[f"{expected}/final/{name}"], ours.shape)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)
