"""From experts to task vectors, and back to a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.task_vectors import add, check_finite, give_back, split_untrained, subtract


def model(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return {
        "ids": jnp.arange(3),
        "net": {
            "bias": jnp.asarray(rng.normal(size=2), dtype),
            "kernel": jnp.asarray(rng.normal(size=(2, 3)), dtype),
        },
    }


PRETRAINED = model(0)
EXPERTS = [model(1), model(2), model(3)]


def test_task_vectors_are_differences_with_a_task_axis():
    tau = subtract(EXPERTS, PRETRAINED)
    assert trees.task_count(tau) == 3
    for k, expert in enumerate(EXPERTS):
        np.testing.assert_array_equal(
            tau["net"]["kernel"][k], expert["net"]["kernel"] - PRETRAINED["net"]["kernel"]
        )


def test_integer_leaves_are_put_aside_and_given_back():
    tau = subtract(EXPERTS, PRETRAINED)
    assert tau["ids"] is None
    merged = add(PRETRAINED, jax.tree.map(lambda x: x.sum(axis=0), tau))
    np.testing.assert_array_equal(merged["ids"], PRETRAINED["ids"])
    assert merged["ids"].dtype == PRETRAINED["ids"].dtype


def test_adding_one_task_vector_gives_its_expert():
    tau = subtract(EXPERTS, PRETRAINED)
    for k, expert in enumerate(EXPERTS):
        one = jax.tree.map(lambda x, k=k: x[k], tau)
        assert_trees_close(add(PRETRAINED, one), expert)


def test_scale_zero_gives_the_pretrained_model_and_scales_may_be_arrays():
    one = jax.tree.map(lambda x: x[0], subtract(EXPERTS, PRETRAINED))
    assert_trees_equal(add(PRETRAINED, one, scale=0.0), PRETRAINED)
    assert_trees_equal(
        add(PRETRAINED, one, scale=0.5), add(PRETRAINED, one, scale=jnp.asarray(0.5))
    )
    jitted = jax.jit(add, static_argnames=())
    assert_trees_close(jitted(PRETRAINED, one, scale=0.5), add(PRETRAINED, one, scale=0.5))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_widened_before_subtracting_and_restored_after(dtype):
    pretrained, experts = model(0, dtype), [model(1, dtype), model(2, dtype)]
    tau = subtract(experts, pretrained)
    kernel = tau["net"]["kernel"]
    assert kernel.dtype == jnp.float32
    wide = [np.asarray(x["net"]["kernel"], np.float32) for x in (*experts, pretrained)]
    np.testing.assert_array_equal(kernel, np.stack([wide[0] - wide[2], wide[1] - wide[2]]))
    again = add(pretrained, jax.tree.map(lambda x: x[0], tau))
    assert_trees_equal(again, experts[0])


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_experts_are_refused(count):
    with pytest.raises(BadInput, match=f"at least two experts, got {count}"):
        subtract(EXPERTS[:count], PRETRAINED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.pop("net"),
            "expert 1 lacks the leaf 'net/bias' that the pre-trained model has",
        ),
        (lambda m: m.update(more=jnp.ones(1)), "expert 1 has the leaf 'more'"),
        (
            lambda m: m.update(net={"bias": jnp.ones(5), "kernel": jnp.ones((2, 3))}),
            r"net/bias: expert 1 has shape \(5,\), the pre-trained model has shape \(2,\)",
        ),
        (
            lambda m: m.update(ids=jnp.ones(3)),
            "ids: expert 1 has dtype float32, the pre-trained model has dtype int32",
        ),
    ],
    ids=["structure", "extra", "shape", "dtype"],
)
def test_an_expert_of_another_architecture_is_named_with_path_and_both_sides(change, message):
    odd = dict(model(2))
    change(odd)
    with pytest.raises(BadInput, match=message):
        subtract([EXPERTS[0], odd], PRETRAINED)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_leaf_and_task(bad):
    odd = model(2)
    odd["net"]["kernel"] = odd["net"]["kernel"].at[1, 2].set(bad)
    with pytest.raises(BadInput, match="task vector of task 1 is not finite at net/kernel"):
        subtract([EXPERTS[0], odd], PRETRAINED)
    with pytest.raises(BadInput, match="task vector of cars is not finite at w"):
        check_finite({"w": jnp.array([[0.0, 1.0], [bad, 0.0]])}, names=["sun", "cars"])


def test_untrained_leaves_are_split_off_and_given_back():
    pretrained = {**PRETRAINED, "text": jnp.ones(4)}
    experts = [{**expert, "text": jnp.ones(4)} for expert in EXPERTS]
    experts[0]["net"] = {**experts[0]["net"], "bias": PRETRAINED["net"]["bias"]}  # one of three
    parts, tau = split_untrained(pretrained, subtract(experts, pretrained))
    assert trees.paths(tau) == ["net/bias", "net/kernel"]
    assert trees.paths(parts.merged) == trees.paths(tau)
    assert trees.paths(parts.aside) == ["ids", "text"]
    one = jax.tree.map(lambda x: x[1], tau)
    assert_trees_close(give_back(add(parts.merged, one), parts.aside), experts[1])
