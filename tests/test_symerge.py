"""SyMerge on a linear world: what moves, what stays, what is refused."""

import inspect

import jax
import jax.numpy as jnp
import linear_world
import numpy as np
import pytest
from linear_world import classify, encode
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.adapt.coefficients import clamp_all, interpolate, per_leaf
from symerge_jax.adapt.distances import ExpertOutputs
from symerge_jax.adapt.experts import labels_of
from symerge_jax.adapt.fit import fit, pool
from symerge_jax.adapt.merged import Constants, Trainables, encoder_loss, objective_ids
from symerge_jax.adapt.schedule import Schedule, sequential
from symerge_jax.adapt.symerge import symerge
from symerge_jax.errors import BadInput

unchecked = inspect.unwrap(symerge)  # without the tests' own checks of types and shapes


@pytest.fixture(scope="module")
def world():
    return linear_world.make()


# Runs of 36 steps share few programs; compiling is what takes time here.
def run(world, **options):
    return symerge(encode, classify, *world, **({"iterations": 12, "batch_size": 4} | options))


def merged(world, coefficients):
    return jax.jit(lambda p, t, lam: interpolate(p, t, clamp_all(lam)))(
        world.pretrained, world.task_vectors, coefficients
    )


def test_the_loss_falls_and_shapes_are_those_that_went_in(world):
    adapted = run(world, head_rate=0.1, coefficient_rate=0.05)
    assert adapted.losses.shape == (36,)
    assert adapted.kept.shape == (36, 4)
    assert adapted.kept.dtype == bool
    assert adapted.losses[-9:].mean() < 0.8 * adapted.losses[:9].mean()
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(adapted.params) == shapes(world.pretrained)
    assert shapes(adapted.heads) == shapes(world.heads)
    assert all(lam.shape == (3,) for lam in jax.tree.leaves(adapted.coefficients))
    assert_trees_close(adapted.params, merged(world, adapted.coefficients))


def test_a_seed_is_a_run(world):
    assert_trees_equal(run(world, seed=1), run(world, seed=1))
    assert not np.array_equal(run(world, seed=1).losses, run(world, seed=2).losses)


def test_before_the_first_step_the_model_is_task_arithmetic(world):
    frozen = run(world, head_rate=0.0, coefficient_rate=0.0, initial_coefficient=0.2)
    start = per_leaf(world.task_vectors, 0.2)
    assert_trees_equal(frozen.coefficients, start)
    assert_trees_equal(frozen.params, merged(world, start))
    assert_trees_equal(frozen.heads, world.heads)


def test_head_only_leaves_the_encoder_bit_identical(world):
    adapted = run(world, coefficient_rate=0.0)
    start = per_leaf(world.task_vectors, 0.3)
    assert_trees_equal(adapted.coefficients, start)
    assert_trees_equal(adapted.params, merged(world, start))
    assert not np.array_equal(adapted.heads["weight"], world.heads["weight"])


def test_head_only_on_kept_features_is_the_full_loss_with_a_rate_of_zero(world):
    start = Trainables(per_leaf(world.task_vectors, 0.3), world.heads)
    whole = fit(
        encoder_loss(encode, classify),
        start,
        pool(world.inputs, world.experts),
        sequential(linear_world.SIZES, iterations=12, batch_size=4, seed=0),
        rates=Trainables(0.0, 0.01),
        per_task=Trainables(False, True),
        idle="zero",
        constants=Constants(
            world.pretrained,
            world.task_vectors,
            jnp.ones((3, 3), bool),
            objective_ids(["code"] * 3),
        ),
    )
    adapted = run(world, coefficient_rate=0.0)
    np.testing.assert_allclose(adapted.losses, whole.losses, rtol=1e-5)
    assert_trees_close(adapted.heads, whole.trainables.heads, rtol=1e-5)


def test_heads_of_zero_rate_stay_bit_identical(world):
    adapted = run(world, head_rate=0.0)
    assert_trees_equal(adapted.heads, world.heads)
    assert not np.array_equal(adapted.coefficients["kernel"], np.full(3, 0.3, np.float32))


def test_the_clamp_changes_nothing_inside_the_interval(world):
    with_clamp = run(world, coefficient_rate=0.001)
    without = run(world, coefficient_rate=0.001, clamp=False)
    assert_trees_close(with_clamp.coefficients, without.coefficients)
    assert_trees_close(with_clamp.heads, without.heads)


def test_a_coefficient_outside_the_interval_never_moves(world):
    start = per_leaf(world.task_vectors, 0.3)
    start["bias"] = jnp.array([-0.5, 0.3, 1.5])
    adapted = run(world, coefficients=start)
    np.testing.assert_array_equal(adapted.coefficients["bias"][::2], start["bias"][::2])
    assert adapted.coefficients["bias"][1] != start["bias"][1]
    free = run(world, coefficients=start, clamp=False).coefficients["bias"]
    assert (free != start["bias"]).all()


def test_padded_classes_change_nothing(world):
    wide = {
        "bias": jnp.pad(world.heads["bias"], ((0, 0), (0, 2)), constant_values=50.0),
        "weight": jnp.pad(world.heads["weight"], ((0, 0), (0, 0), (0, 2)), constant_values=9.0),
    }
    exists = jnp.tile(jnp.arange(5) < 3, (3, 1))
    plain, padded = run(world), run(world._replace(heads=wide), classes=exists)
    np.testing.assert_allclose(padded.losses, plain.losses, rtol=1e-4)
    np.testing.assert_array_equal(padded.kept, plain.kept)
    assert_trees_close(padded.coefficients, plain.coefficients, rtol=1e-5)
    own = jax.tree.map(lambda leaf: leaf[..., :3], padded.heads)
    assert_trees_close(own, plain.heads, rtol=1e-5)
    extra = jax.tree.map(lambda leaf: leaf[..., 3:], padded.heads)
    assert_trees_equal(extra, jax.tree.map(lambda leaf: leaf[..., 3:], wide))


def test_without_the_filter_every_sample_counts(world):
    schedule = sequential(linear_world.SIZES, iterations=12, batch_size=4, seed=0)
    everything = run(world, confidence_filter="none")
    np.testing.assert_array_equal(everything.kept, schedule.sample_mask)
    code = run(world, confidence_filter="code").kept
    paper = run(world, confidence_filter="paper").kept
    assert not (paper[0] & ~code[0]).any(), "the code's rule drops a part of what the paper drops"


def test_the_filter_is_idle_where_all_labels_agree(world):
    sure = [own._replace(confidence=np.ones_like(own.confidence)) for own in world.experts]
    world = world._replace(experts=sure)
    runs = [run(world, confidence_filter=name) for name in ("none", "code", "paper")]
    for other in runs[1:]:
        assert_trees_equal(other, runs[0])


@pytest.mark.parametrize("idle_heads", ["dense", "masked"])
def test_a_head_that_never_came_stays(world, idle_heads):
    schedule = sequential([9, 7], iterations=18, batch_size=4, seed=0)
    adapted = run(world, schedule=schedule, idle_heads=idle_heads)
    np.testing.assert_array_equal(adapted.heads["weight"][2], world.heads["weight"][2])
    assert not np.array_equal(adapted.heads["weight"][1], world.heads["weight"][1])


def test_idle_heads_move_only_if_dense(world):
    once = np.where(np.arange(36) == 0, 0, 1).astype(np.int32)  # task 0 first and never again
    schedule = sequential(linear_world.SIZES, iterations=12, batch_size=4, seed=0)
    schedule = schedule._replace(task_ids=once, sample_indices=schedule.sample_indices % 7)
    dense, masked = (
        run(world, schedule=schedule, idle_heads=idle).heads["weight"][0] - world.heads["weight"][0]
        for idle in ("dense", "masked")
    )
    assert (abs(masked) <= 0.0101).all(), "one step of Adam, at most the rate"
    assert abs(dense).max() > 0.02, "momentum carries it further"


def test_on_chunk_sees_every_loss(world):
    seen = []
    adapted = run(world, on_chunk=lambda carry, losses: seen.append((int(carry.step), losses)))
    np.testing.assert_array_equal(np.concatenate([losses for _, losses in seen]), adapted.losses)
    assert seen[-1][0] == 36


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"confidence_filter": "crosspseudo"},
            "confidence_filter must be one of none, code, paper",
        ),
        ({"idle_heads": "sparse"}, "idle_heads must be one of dense, masked, got 'sparse'"),
    ],
)
def test_unknown_options_are_refused(world, options, message):
    with pytest.raises(BadInput, match=message):
        unchecked(encode, classify, *world, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w._replace(inputs=w.inputs[:2], experts=w.experts[:2]),
            "3 task vectors, 3 heads",
        ),
        (lambda w: w._replace(experts=w.experts[:2]), "2 experts for inputs of 3 tasks"),
        (
            lambda w: w._replace(heads=jax.tree.map(lambda x: x[:2], w.heads)),
            "3 task vectors, 2 heads and inputs of 3 tasks",
        ),
        (
            lambda w: w._replace(inputs=[w.inputs[0][:5], *w.inputs[1:]]),
            r"task 0: expected one expert output per input.*lengths \[5, 9\]",
        ),
        (lambda w: w._replace(inputs=[w.inputs[0][:0], *w.inputs[1:]]), "at least one input"),
    ],
    ids=["inputs", "experts", "heads", "samples", "empty"],
)
def test_counts_that_do_not_fit_are_refused(world, change, message):
    with pytest.raises(BadInput, match=message):
        run(change(world))


@pytest.mark.parametrize("shape", [(2, 3), (3, 4)])
def test_classes_that_do_not_fit_the_heads_are_refused(world, shape):
    with pytest.raises(BadInput, match=r"classes: expected \[task, classes\] of shape \(3, 3\)"):
        unchecked(encode, classify, *world, classes=jnp.ones(shape, bool), iterations=1)


def test_an_input_that_is_not_a_number_is_found(world):
    inputs = [world.inputs[0], world.inputs[1] * np.nan, world.inputs[2]]
    with pytest.raises(BadInput, match="the loss of task 1 is nan at step"):
        run(world._replace(inputs=inputs))


# --- other objectives, other layers -------------------------------------------------------------


def outputs_of_experts(world, scale=1.0):
    features = [np.asarray(encode(world.pretrained, x)) for x in world.inputs]
    logits = [scale * np.asarray(classify(jax.tree.map(lambda x, k=k: x[k], world.heads), f))
              for k, f in enumerate(features)]  # fmt: skip
    return [ExpertOutputs(*pair) for pair in zip(logits, features, strict=True)]


@pytest.mark.parametrize("objective", ["l2", "kl"])
def test_an_expert_that_says_what_the_merged_model_says_moves_little(world, objective):
    """With λ = 0 the merged model is θ₀, whose outputs these are: the loss begins at 0."""
    given = world._replace(experts=outputs_of_experts(world))
    adapted = run(given, objective=objective, initial_coefficient=0.0)
    np.testing.assert_allclose(adapted.losses[0], 0, atol=1e-6)
    far = world._replace(experts=outputs_of_experts(world, scale=3.0))
    losses = run(far, objective=objective, initial_coefficient=0.0, head_rate=0.1).losses
    assert losses[0] > 0.1
    assert losses[-9:].mean() < 0.8 * losses[:9].mean()


def test_an_objective_of_outputs_needs_them_and_the_others_labels(world):
    with pytest.raises(BadInput, match="objective l2: expected ExpertOutputs of each expert"):
        run(world, objective="l2")
    given = world._replace(experts=outputs_of_experts(world))
    with pytest.raises(BadInput, match="objective code: expected ExpertLabels of each expert"):
        run(given)
    narrow = [one._replace(logits=one.logits[:, :2]) for one in given.experts]
    with pytest.raises(BadInput, match="the heads give 3 logits, but expert 0 2"):
        run(given._replace(experts=narrow), objective="l2")
    with pytest.raises(BadInput, match="objective must be one of self_label, entropy, soft_ce"):
        run(world, objective="l3")


def test_hard_labels_as_a_distance_are_self_labels_without_a_filter(world):
    outputs = outputs_of_experts(world, scale=3.0)
    labels = [labels_of(one.logits) for one in outputs]
    plain = run(world._replace(experts=labels), confidence_filter="none")
    same = run(world._replace(experts=outputs), objective="hard_ce")
    np.testing.assert_allclose(same.losses, plain.losses, rtol=1e-5, atol=1e-6)


def test_each_task_may_have_an_objective_of_its_own(world):
    """Each task's first loss is what a run with that objective for all tasks begins with."""
    given = world._replace(experts=outputs_of_experts(world, scale=3.0))
    names = ["hard_ce", "l1", "hard_ce"]
    mixed = run(given, objective=names, head_rate=0.0, coefficient_rate=0.0)
    alone = {n: run(given, objective=n, head_rate=0.0, coefficient_rate=0.0) for n in set(names)}
    tasks = sequential(linear_world.SIZES, iterations=12, batch_size=4, seed=0).task_ids
    expected = [alone[names[k]].losses[step] for step, k in enumerate(tasks)]
    np.testing.assert_allclose(mixed.losses, expected, rtol=1e-6)
    assert not np.allclose(alone["l1"].losses, alone["hard_ce"].losses)


def test_objectives_that_need_other_targets_do_not_mix(world):
    given = world._replace(experts=outputs_of_experts(world))
    with pytest.raises(BadInput, match="objectives l1, code, l1: those that compare"):
        run(given, objective=["l1", "self_label", "l1"])
    with pytest.raises(BadInput, match="got 2 objectives for 3 tasks"):
        run(given, objective=["l1", "l1"])


OWN = {"bias": False, "kernel": True}


def test_a_layer_of_each_task_starts_at_the_merged_values(world):
    adapted = run(world, layer=OWN, layer_rate=0.0, head_rate=0.0, coefficient_rate=0.0)
    start = merged(world, per_leaf(world.task_vectors, 0.3))
    assert adapted.coefficients["kernel"] is None
    for k in range(3):
        assert_trees_equal(adapted.encoder(k), start)


def test_own_layers_learn_beside_the_coefficients_of_the_others(world):
    adapted = run(world, layer=OWN, layer_rate=0.02, head_rate=0.0)
    start = merged(world, per_leaf(world.task_vectors, 0.3))
    kernels = [np.asarray(adapted.encoder(k)["kernel"]) for k in range(3)]
    assert adapted.layers["bias"] is None
    assert not any(np.array_equal(kernel, start["kernel"]) for kernel in kernels)
    assert not np.array_equal(kernels[0], kernels[1])
    assert_trees_equal(adapted.encoder(0)["bias"], adapted.params["bias"])
    assert not np.array_equal(adapted.params["bias"], start["bias"])
    assert_trees_equal(adapted.heads, world.heads)
    assert adapted.losses[-9:].mean() < adapted.losses[:9].mean()


def test_a_tasks_steps_leave_the_layers_of_the_others(world):
    schedule = sequential(linear_world.SIZES, iterations=12, batch_size=4, seed=0)
    first = schedule.task_ids != 1
    only = Schedule(*(field[first] for field in schedule))
    adapted = run(world, layer=OWN, layer_rate=0.02, head_rate=0.0, schedule=only)
    start = merged(world, per_leaf(world.task_vectors, 0.3))
    np.testing.assert_array_equal(adapted.encoder(1)["kernel"], start["kernel"])
    assert not np.array_equal(adapted.encoder(0)["kernel"], start["kernel"])


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"kernel": True}, "layer: expected a pytree of bool with the leaves of θ₀"),
        ({"bias": False, "kernel": False}, "some leaves of the encoder and not all, got 0 of 2"),
        ({"bias": True, "kernel": True}, "some leaves of the encoder and not all, got 2 of 2"),
    ],
)
def test_a_layer_that_is_none_is_refused(world, layer, says):
    with pytest.raises(BadInput, match=says):
        run(world, layer=layer)


@pytest.mark.parametrize("stored_as", ["bfloat16", "int8"])
def test_task_vectors_stored_in_less_adapt_nearly_alike(world, stored_as):
    whole, less = run(world), run(world, stored_as=stored_as)
    np.testing.assert_allclose(less.losses, whole.losses, rtol=0.03, atol=0.01)
    assert not np.array_equal(less.losses, whole.losses)
