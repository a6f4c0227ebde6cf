"""Representation Surgery: its laws, cases by hand, and the published loop."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt import surgery as module
from symerge_jax.adapt.merged import pick
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.surgery import (
    Surgery,
    correct,
    distance,
    in_turn,
    initial,
    surgery,
    uniform_start,
    unit,
)
from symerge_jax.errors import BadInput

GOLDEN = Path(__file__).parent / "golden" / "surgery.npz"
SIZES = (9, 7, 8)
WIDTH = 6


def drawn(seed=0, rest=(WIDTH,)):
    """Merged features of three tasks, and experts' that lie beside them."""
    rng = np.random.default_rng(seed)
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
    options = {"rank": 3, "iterations": 8, "batch_size": 4, "chunk_steps": 1} | options
    return surgery(*pair, **options)


def mean_distance(found, pair):
    """Over all samples, of each task."""
    return [
        float(distance(correct(pick(found, k), h), jnp.asarray(g)).mean())
        for k, (h, g) in enumerate(zip(*pair, strict=True))
    ]


def test_by_hand():
    part = Surgery(jnp.array([[1.0, -1.0]]), jnp.array([[2.0], [0.5]]))
    h = np.array([[3, 1], [1, 3]], np.float32)  # D h = 2 and −2
    corrected = correct(part, h)
    np.testing.assert_array_equal(corrected, [[-1, 0], [1, 3]])
    g = jnp.array([[0.0, 0], [1, 1]])
    np.testing.assert_array_equal(distance(corrected, g), [0.5, 1])

    once = Schedule(*(np.array(x) for x in ([0], [[0, 1]], [[True, True]], [True])))
    start = trees.stack([part])
    assert surgery([h], [g], module=start, schedule=once).losses == [0.75]
    first = once._replace(sample_mask=np.array([[True, False]]))
    assert surgery([h], [g], module=start, schedule=first).losses == [0.5]


def test_at_the_start_features_are_what_they_were(pair):
    start = initial(3, WIDTH)
    for k, h in enumerate(pair[0]):
        np.testing.assert_array_equal(correct(pick(start, k), h), h)


def test_modules_start_as_layers_of_pytorch_do():
    start = initial(8, 512)
    assert (start.down.shape, start.up.shape) == ((8, 16, 512), (8, 512, 16))
    assert sum(leaf.size for leaf in start) == 8 * 16384
    bound = 512**-0.5
    for down in start.down:  # U(−b, b) has the variance b²/3
        assert float(abs(down).max()) <= bound
        np.testing.assert_allclose(down.std(), bound / 3**0.5, rtol=0.05)
        np.testing.assert_allclose(down.mean(), 0, atol=bound / 20)
    assert not np.array_equal(start.down[0], start.down[1])
    assert not start.up.any()
    assert_trees_equal(initial(8, 512), start)
    assert not np.array_equal(initial(8, 512, seed=1).down, start.down)


def test_the_start_has_a_random_stream_that_no_step_has():
    start = uniform_start((2, 3), 5, jnp.float32)
    for step in (0, 1, 2**31 - 1):
        key = jax.random.fold_in(jax.random.key(5), step)
        assert not np.array_equal(jax.random.uniform(key, (2, 3), start.dtype, -1, 1), start)


def test_the_first_step_moves_only_the_way_up(pair):
    start = initial(3, WIDTH, rank=3)

    def far(part):
        return distance(correct(part, pair[0][0]), jnp.asarray(pair[1][0])).mean()

    gradient = jax.grad(far)(pick(start, 0))
    assert not gradient.down.any()
    assert gradient.up.all()
    found = run(pair, schedule=steps_of(0)).module
    np.testing.assert_array_equal(found.down, start.down)
    np.testing.assert_allclose(abs(found.up[0]), 1e-3, rtol=1e-3)  # Adam's first step is the rate
    assert not found.up[1:].any()


def test_nothing_is_learnt_where_the_merged_encoder_is_the_expert(pair):
    found = run((pair[0], pair[0]))
    assert not found.losses.any()
    assert_trees_equal(found.module, initial(3, WIDTH, rank=3))


def test_the_distance_is_flat_where_features_agree():
    h, g = jnp.array([[3.0, 2, -1]]), jnp.array([[1.0, 2, 5]])
    gradient = jax.grad(lambda x: distance(x, g).sum())(h)
    np.testing.assert_allclose(gradient, [[1 / 3, 0, -1 / 3]], rtol=1e-6)


def test_features_come_closer_to_the_experts(pair):
    found = run(pair, iterations=30, learning_rate=0.03)
    before, after = (mean_distance(m, pair) for m in (initial(3, WIDTH, rank=3), found.module))
    assert all(b < 0.8 * a for a, b in zip(before, after, strict=True))
    assert found.losses.shape == (90,)


def test_what_is_given_stays_as_it_was(pair):
    kept = [[x.copy() for x in arrays] for arrays in pair]
    start = initial(3, WIDTH, rank=3)
    run(pair, module=start)
    assert_trees_equal(list(pair), kept)
    assert_trees_equal(start, initial(3, WIDTH, rank=3))


def test_idle_modules_stay_if_masked_and_move_by_momentum_if_dense(pair):
    both = steps_of(0, 1, 1)
    first = run(pair, schedule=both.part(0, 1)).module
    masked, dense = (run(pair, schedule=both, idle=idle).module for idle in ("masked", "dense"))
    assert_trees_equal(pick(masked, 0), pick(first, 0))
    assert not np.array_equal(dense.up[0], first.up[0])
    for found in (masked, dense):  # task 2 never came
        assert_trees_equal(pick(found, 2), pick(first, 2))
        assert not np.array_equal(found.up[1], first.up[1])


def test_tasks_do_not_see_each_other_if_masked(pair):
    together = run(pair, schedule=steps_of(0, 1, 2, 1, 0, 2), idle="masked")
    for k in range(3):
        alone = run(pair, schedule=steps_of(k, k), idle="masked")
        assert_trees_close(pick(together.module, k), pick(alone.module, k))


def test_padding_is_not_looked_at(pair):
    schedule = schedules.sequential(SIZES, iterations=6, batch_size=4, seed=0)
    wild = schedule._replace(
        sample_indices=np.where(schedule.sample_mask, schedule.sample_indices, 1).astype(np.int32)
    )
    assert not np.array_equal(wild.sample_indices, schedule.sample_indices)
    ours, theirs = (run(pair, schedule=s) for s in (wild, schedule))
    assert_trees_equal(ours.module, theirs.module)
    np.testing.assert_array_equal(ours.losses, theirs.losses)


def test_maps_are_corrected_by_convolutions_of_one_pixel():
    part = pick(initial(1, WIDTH, rank=3), 0)
    part = part._replace(up=uniform_start((WIDTH, 3), 1, jnp.float32))
    maps = jnp.asarray(drawn(rest=(2, 5, WIDTH))[0][0])

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel.T[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = maps - convolve(jax.nn.relu(convolve(maps, part.down)), part.up)
    np.testing.assert_allclose(correct(part, maps), expected, rtol=1e-5, atol=1e-6)


def test_maps_are_compared_at_all_positions():
    pair = drawn(rest=(2, 5, WIDTH))
    found = run(pair, iterations=20, learning_rate=0.03)
    first = in_turn(SIZES, iterations=1, batch_size=4, batches=1, seed=0, shuffle_tasks=True)
    k, rows = first.task_ids[0], first.sample_indices[0]
    expected = abs(pair[0][k][rows] - pair[1][k][rows]).mean()
    np.testing.assert_allclose(found.losses[0], expected, rtol=1e-6)
    start = initial(3, WIDTH, rank=3)
    for before, after in zip(*(mean_distance(m, pair) for m in (start, found.module)), strict=True):
        assert after < before


def test_normalised_features_have_length_one_and_forget_their_scale(pair):
    np.testing.assert_allclose((unit(pair[0][0]) ** 2).sum(axis=-1), 1, rtol=1e-6)
    ours = run(pair, normalised=True)
    longer = run(([4 * h for h in pair[0]], [g / 2 for g in pair[1]]), normalised=True)
    assert_trees_equal(ours.module, longer.module)
    by_hand = run(tuple([unit(x) for x in arrays] for arrays in pair))
    assert_trees_equal(ours.module, by_hand.module)
    assert not np.array_equal(ours.losses, run(pair).losses)


def test_narrow_features_are_widened(pair):
    narrow = tuple([jnp.asarray(x, jnp.bfloat16) for x in arrays] for arrays in pair)
    wide = tuple([np.asarray(x, np.float32) for x in arrays] for arrays in narrow)
    ours, theirs = run(narrow), run(wide)
    assert ours.module.down.dtype == jnp.float32
    assert_trees_equal(ours.module, theirs.module)
    corrected = correct(pick(ours.module, 0), narrow[0][0])
    assert corrected.dtype == jnp.float32


def test_the_authors_take_two_steps_per_task_in_a_fixed_order():
    found = in_turn((5, 6), iterations=3, batch_size=2, batches=2, seed=0, shuffle_tasks=False)
    np.testing.assert_array_equal(found.task_ids, [0, 0, 1, 1] * 3)
    assert found.apply_update.all()
    first = found.task_ids == 0
    seen = found.sample_indices[first][found.sample_mask[first]]
    for begin in (0, 5):  # six batches of two, the third short: two passes over five samples
        assert sorted(seen[begin : begin + 5]) == list(range(5))


@pytest.mark.parametrize("shuffle_tasks", [True, False])
def test_with_one_batch_the_schedule_is_the_sequential_one(shuffle_tasks):
    options = {"iterations": 4, "batch_size": 3, "seed": 2, "shuffle_tasks": shuffle_tasks}
    ours = in_turn(SIZES, batches=1, **options)
    for field, expected in zip(ours, schedules.sequential(SIZES, **options), strict=True):
        np.testing.assert_array_equal(field, expected)


def test_shuffled_tasks_each_keep_their_batches():
    options = {"iterations": 4, "batch_size": 3, "batches": 2, "seed": 2}
    mixed, fixed = (in_turn(SIZES, shuffle_tasks=s, **options) for s in (True, False))
    visits = mixed.task_ids.reshape(4, 3, 2)
    np.testing.assert_array_equal(visits[..., 0], visits[..., 1])
    assert not np.array_equal(mixed.task_ids, fixed.task_ids)
    for k in range(3):
        ours, theirs = (s.sample_indices[s.task_ids == k] for s in (mixed, fixed))
        np.testing.assert_array_equal(ours, theirs)


def test_further_runs_reuse_the_program(monkeypatch):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return distance(*arguments)

    monkeypatch.setattr(module, "distance", counted)
    pair = drawn(rest=(WIDTH + 1,))  # of shapes that no other test has
    run(pair)
    once = len(traces)
    assert once > 0
    run(pair, seed=1, learning_rate=0.1, batches=2, shuffle_tasks=False)
    run(pair, module=initial(3, WIDTH + 1, rank=3, seed=4), normalised=True)
    assert len(traces) == once


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda h, g: (h[:2], g), {}, "features of 2 tasks and expert features of 3"),
        (lambda h, g: ([], []), {}, "features of 0 tasks"),
        (lambda h, g: (h, [g[0], g[1][:-1], g[2]]), {}, r"task 1: .*\(7, 6\).*\(6, 6\)"),
        (lambda h, g: ([*h[:2], h[2][:, :4]], [*g[:2], g[2][:, :4]]), {}, r"task 2: .*\(8, 4\)"),
        (lambda h, g: ([x[:, 0] for x in h],) * 2, {}, r"task 0: expected features \[n, "),
        (lambda h, g: ([x[:0] for x in h],) * 2, {}, "task 0: .*at least one input"),
        (lambda h, g: ([x.astype(int) for x in h], g), {}, "task 0: .*floats, got int64"),
        (lambda h, g: (h, g), {"rank": 0}, "rank must be at least 1, got 0"),
        (lambda h, g: (h, g), {"batches": 0}, "batches must be at least 1, got 0"),
        (lambda h, g: (h, g), {"iterations": 0}, "iterations must be at least 1, got 0"),
        (lambda h, g: (h, g), {"module": initial(3, 5)}, r"'down' of shape \(3, 16, 6\).*16, 5\)"),
        (lambda h, g: (h, g), {"module": initial(2, 6)}, r"'down' of shape \(3, 16, 6\).*\(2, 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(pair, change, options, message):
    with pytest.raises(BadInput, match=message) as caught:
        run(change(*pair), **options)
    assert "\n" not in str(caught.value)


def test_features_that_are_not_finite_are_refused(pair):
    bad = [pair[0][0], np.full_like(pair[0][1], np.nan), pair[0][2]]
    with pytest.raises(BadInput, match="loss of task 1 is nan"):
        run((bad, pair[1]))


def test_unknown_options_are_refused(pair):
    with pytest.raises(BadInput, match="idle must be one of dense, masked, got 'zero'"):
        inspect.unwrap(surgery)(*pair, idle="zero")


# schedule, idle modules
VARIANTS = {"dense": ("one", "dense"), "masked": ("one", "masked"), "authors": ("two", "dense")}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-9), (32, 1e-5)])
def test_it_agrees_with_the_published_loop(variant, bits, tolerance):
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    which, idle = VARIANTS[variant]
    parts = ("task_ids", "sample_indices", "sample_mask")
    fields = [arrays[f"schedule/{which}/{part}"] for part in parts]
    down = arrays["initial/down"].astype(f"float{bits}")
    with jax.enable_x64(bits == 64):
        found = surgery(
            *([arrays[f"{name}/task{k}"].astype(down.dtype) for k in range(3)]
              for name in ("features", "expert")),
            module=Surgery(jnp.asarray(down), jnp.zeros_like(down.swapaxes(1, 2))),
            learning_rate=0.01,
            idle=idle,
            schedule=Schedule(*fields, np.ones(len(fields[0]), bool)),
            chunk_steps=1,
        )  # fmt: skip
    assert found.module.down.dtype == down.dtype
    expected = f"{variant}/f{bits}"
    pairs = {"loss": found.losses, "final/down": found.module.down, "final/up": found.module.up}
    for key, ours in pairs.items():
        np.testing.assert_allclose(
            ours, arrays[f"{expected}/{key}"], rtol=0, atol=tolerance, err_msg=key
        )
