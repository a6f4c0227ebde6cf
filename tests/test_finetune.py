"""Fine-tuning: it learns, it repeats, a frozen head stays, and it says when it cannot go on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from symerge_jax.data.crops import image_batches
from symerge_jax.errors import BadInput
from symerge_jax.finetune import Recipe, finetune, finetune_batches
from symerge_jax.finetune_steps import moved
from symerge_jax.recipes import (
    batch_rows,
    dense_recipe,
    fusion_bench_recipe,
    learning_rates,
    task_arithmetic_recipe,
)

PIXELS, FEATURES, CLASSES = 6, 5, 3
RECIPE = Recipe(steps=60, batch_size=16, learning_rate=0.1, head_rate=0.1, optimiser="sgd")


def encode(params, images):
    return images @ params["kernel"]


def classify(head, features):
    return features @ head["weight"].T + head["bias"][None]


def problem(seed=0, count=200):
    """Classes that a linear rule tells apart."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, PIXELS)).astype(np.float32)
    labels = (images @ rng.normal(size=(PIXELS, CLASSES))).argmax(axis=1).astype(np.int32)
    params = {"kernel": jnp.asarray(rng.normal(size=(PIXELS, FEATURES)) / 3, jnp.float32)}
    head = {
        "weight": jnp.asarray(rng.normal(size=(CLASSES, FEATURES)) / 3, jnp.float32),
        "bias": jnp.zeros(CLASSES, jnp.float32),
    }
    return params, head, images, labels


def trained(images, labels, recipe, **options):
    params, head, _, _ = problem()
    return finetune(encode, classify, params, head, images, labels, recipe, **options)


def right(expert, images, labels):
    logits = classify(expert.head, encode(expert.params, images))
    return float((np.asarray(logits).argmax(axis=1) == labels).mean())


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(
    "recipe", [RECIPE, RECIPE._replace(optimiser="adamw", learning_rate=0.03, head_rate=0.03)]
)
def test_it_learns(recipe):
    params, head, images, labels = problem()
    expert = finetune(encode, classify, params, head, images, labels, recipe)
    assert expert.losses.shape == (60,)
    assert expert.losses[-10:].mean() < 0.5 * expert.losses[:5].mean()
    assert right(expert, images, labels) > 0.85


def test_a_regression_is_learned_by_the_first_logit():
    _, _, images, _ = problem()
    values = (2.5 + images[:, 0] - images[:, 1]).astype(np.float32)
    recipe = RECIPE._replace(learning_rate=0.02, head_rate=0.02, clip=0.0, steps=200)
    expert = trained(images, values, recipe, loss="squared_error")
    found = np.asarray(classify(expert.head, encode(expert.params, images)))[:, 0]
    assert np.mean((found - values) ** 2) < 0.05 * np.var(values)
    np.testing.assert_array_equal(expert.head["bias"][1:], 0)  # the others have no part


def test_what_it_is_given_is_left_alone():
    params, head, images, labels = problem()
    before = jax.tree.map(np.array, (params, head))
    finetune(encode, classify, params, head, images, labels, RECIPE)
    assert same((params, head), before)


def test_a_head_without_a_rate_stays_bit_identical():
    params, head, images, labels = problem()
    recipe = RECIPE._replace(head_rate=0.0)
    expert = finetune(encode, classify, params, head, images, labels, recipe)
    assert same(expert.head, head)
    assert not same(expert.params, params)


def test_the_seed_and_nothing_else_decides_the_result():
    params, head, images, labels = problem()
    one, again, other = (
        finetune(encode, classify, params, head, images, labels, RECIPE, seed=s, chunk_steps=c)
        for s, c in ((1, 50), (1, 20), (2, 50))
    )
    assert same(one, again)  # also however the steps are cut into calls
    assert not same(one.params, other.params)


def test_chunks_are_reported():
    params, head, images, labels = problem()
    seen = []
    expert = finetune(
        encode, classify, params, head, images, labels, RECIPE, chunk_steps=25, on_chunk=seen.append
    )
    assert [len(losses) for losses in seen] == [25, 25, 10]
    np.testing.assert_array_equal(np.concatenate(seen), expert.losses)


def test_a_loss_that_is_not_finite_is_refused():
    params, head, images, labels = problem()
    images[7, 2] = np.nan
    with pytest.raises(BadInput, match="diverged before step 50; lower the learning rate"):
        finetune(encode, classify, params, head, images, labels, RECIPE)


def test_unequal_counts_and_unknown_optimisers_are_refused():
    params, head, images, labels = problem()
    with pytest.raises(BadInput, match="200 images, but 199 labels"):
        finetune(encode, classify, params, head, images, labels[1:], RECIPE)
    with pytest.raises(BadInput, match="sgd or adamw, got 'adagrad'"):
        finetune(
            encode, classify, params, head, images, labels, RECIPE._replace(optimiser="adagrad")
        )


def test_few_images_are_used_again_and_again():
    params, head, images, labels = problem(count=5)
    recipe = RECIPE._replace(steps=20)
    expert = finetune(encode, classify, params, head, images, labels, recipe)
    assert right(expert, images, labels) > 0.5


def test_a_moved_image_is_a_window_of_the_padded_one():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
    shifted = np.asarray(moved(jnp.asarray(images), jax.random.key(3), 2))
    assert shifted.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    offsets = set()
    for before, after in zip(padded, shifted, strict=True):
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(before[y : y + 5, x : x + 7], after)
        ]
        assert len(fits) == 1
        offsets.add(fits[0])
    assert len(offsets) > 5


# --- recipes ------------------------------------------------------------------------------------


def rates(recipe, *steps):
    with jax.numpy_dtype_promotion("standard"):
        return [float(learning_rates(recipe, recipe.learning_rate)(jnp.int32(s))) for s in steps]


def test_the_task_arithmetic_recipe_by_hand():
    recipe = task_arithmetic_recipe(21_600, 12)  # EuroSAT: 168 full batches and 96 images more
    assert recipe.steps == 12 * 169
    assert (recipe.optimiser, recipe.weight_decay, recipe.clip) == ("adamw", 0.1, 1.0)
    found = rates(recipe, 0, 1, 249, 499, 500, 500 + 764, 2028)
    expected = [2e-8, 4e-8, 5e-6, 1e-5, 1e-5, 5e-6, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)
    assert task_arithmetic_recipe(1000, 4, batch_size=64, accumulate=2).steps == 32


def test_a_short_run_never_ends_its_warm_up():
    recipe = task_arithmetic_recipe(128, 20)
    assert recipe.steps == 20
    np.testing.assert_allclose(rates(recipe, 0, 19), [2e-8, 4e-7], rtol=1e-4)


def test_the_fusion_bench_recipe_by_hand():
    recipe = fusion_bench_recipe()
    assert (recipe.steps, recipe.batch_size, recipe.optimiser) == (4000, 32, "adam")
    assert (recipe.weight_decay, recipe.clip) == (0.0, 0.0)
    np.testing.assert_allclose(rates(recipe, 0, 2000, 3999), 1e-5, rtol=1e-6)
    assert fusion_bench_recipe(batch_size=128).batch_size == 128


def test_the_dense_recipe_by_hand():
    recipe = dense_recipe(795)  # NYUv2: 49 full batches and 11 images more
    assert (recipe.steps, recipe.batch_size, recipe.halve_every) == (2000, 16, 500)
    assert (recipe.optimiser, recipe.clip, recipe.frozen) == ("adam", 0.0, ())
    assert recipe.head_rate == recipe.learning_rate
    found = rates(recipe, 0, 499, 500, 999, 1000, 1999)
    np.testing.assert_allclose(found, [1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 1.25e-5], rtol=1e-6)
    assert dense_recipe(9, epochs=3, batch_size=4).steps == 9


def test_halving_may_begin_after_a_warm_up_and_needs_its_number_of_steps():
    recipe = Recipe(learning_rate=1.0, warmup_steps=4, decay="halving", halve_every=3)
    np.testing.assert_allclose(rates(recipe, 0, 3, 6, 7, 10), [0.25, 1, 1, 0.5, 0.25], rtol=1e-6)
    with pytest.raises(BadInput, match="halving needs halve_every of 1 or more, got 0"):
        learning_rates(recipe._replace(halve_every=0), 1.0)


def test_a_linear_decay_ends_at_zero():
    recipe = Recipe(steps=100, warmup=0.06, decay="linear", learning_rate=1.0)
    found = [float(learning_rates(recipe, 1.0)(step)) for step in (0, 5, 6, 53, 100)]
    np.testing.assert_allclose(found, [1 / 6, 1, 1, 0.5, 0], atol=1e-6)


def test_a_warm_up_by_fraction_may_end_in_a_constant_rate():
    recipe = Recipe(steps=100, warmup=0.1, decay="constant", learning_rate=1.0)
    np.testing.assert_allclose(rates(recipe, 0, 9, 10, 99), [0.1, 1.0, 1.0, 1.0], rtol=1e-6)


def test_the_last_batch_of_a_pass_holds_the_rest():
    rows = batch_rows(10, Recipe(steps=6, batch_size=4, whole_passes=True), 0).reshape(6, 4)
    assert ((rows >= 0).sum(axis=1) == [4, 4, 2, 4, 4, 2]).all()
    for one_pass in (rows[:3], rows[3:]):
        np.testing.assert_array_equal(np.sort(one_pass[one_pass >= 0]), np.arange(10))
    filled = batch_rows(10, Recipe(steps=5, batch_size=4), 0)
    np.testing.assert_array_equal(np.bincount(filled.ravel()), 2)


def one_step(images, labels, **changes):
    """θ after a step of plain gradient descent."""
    recipe = Recipe(
        steps=1, learning_rate=0.1, optimiser="sgd", clip=0.0, warmup_steps=0, decay="constant"
    )
    return trained(images, labels, recipe._replace(**changes)).params["kernel"]


def test_a_batch_that_is_not_full_is_the_mean_of_what_it_holds():
    _, _, images, labels = problem(count=3)
    partly = one_step(images, labels, batch_size=8, whole_passes=True)
    full = one_step(images, labels, batch_size=3)
    np.testing.assert_allclose(partly, full, rtol=1e-5, atol=1e-7)


def test_accumulated_batches_make_the_step_of_one_large_batch():
    _, _, images, labels = problem(count=12)
    large = one_step(images, labels, batch_size=12)
    small = one_step(images, labels, batch_size=3, accumulate=4)
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-7)
    fewer = one_step(images, labels, batch_size=3, accumulate=2)
    assert abs(fewer - large).max() > 1e-4


def test_what_is_frozen_stays_and_does_not_count_in_the_norm():
    _, _, images, labels = problem(count=8)
    # The head's gradient would make the norm larger, and the clipped step of θ smaller.
    with_head = one_step(images, labels, batch_size=8, clip=1e-3)
    without = one_step(images, labels, batch_size=8, clip=1e-3, frozen=("head",))
    start = problem()[0]["kernel"]
    assert np.linalg.norm(without - start) > 1.05 * np.linalg.norm(with_head - start)
    np.testing.assert_allclose(np.linalg.norm(without - start), 1e-4, rtol=1e-3)


def test_frozen_branches_are_found_by_whole_names():
    params = {"proj": {"kernel": jnp.eye(4)}, "projection": {"kernel": jnp.eye(4)}}
    head = {"weight": jnp.eye(4), "bias": jnp.zeros(4)}
    recipe = RECIPE._replace(steps=2, head_rate=0.0, frozen=("head", "encoder/proj"))

    def twice(params, images):
        return images @ params["proj"]["kernel"] @ params["projection"]["kernel"]

    expert = finetune(
        twice, classify, params, head, np.eye(4, dtype=np.float32), np.arange(4), recipe
    )
    assert same(expert.head, head)
    assert same(expert.params["proj"], params["proj"])
    assert not same(expert.params["projection"], params["projection"])
    with pytest.raises(BadInput, match="frozen must name head, encoder or encoder/…, got 'proj'"):
        finetune(
            twice,
            classify,
            params,
            head,
            np.eye(4),
            np.arange(4),
            RECIPE._replace(frozen=("proj",)),
        )


def test_adam_is_the_one_of_optax():
    _, _, images, labels = problem(count=6)
    got = one_step(images, labels, batch_size=6, optimiser="adam", learning_rate=1e-2)
    params, head, _, _ = problem()

    def loss(params):
        logits = classify(head, encode(params, jnp.asarray(images)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    sign = np.sign(jax.grad(loss)(params)["kernel"])  # the first step of Adam
    np.testing.assert_allclose(got, params["kernel"] - 1e-2 * sign, atol=1e-5)


# --- batches from the host ----------------------------------------------------------------------

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
KINDS = (np.arange(20) % 3).astype(np.int32)
LONG = Recipe(steps=12, batch_size=8, learning_rate=0.02, warmup=0.3)


def see(params, images):
    means = images.astype(jnp.float32).mean(axis=3).reshape(images.shape[0], -1) / 255
    return means @ params["kernel"]


def start():
    rng = np.random.default_rng(4)
    params = {"kernel": jnp.asarray(rng.normal(size=(36, 5)), jnp.float32)}
    weight = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    return params, {"weight": weight, "bias": jnp.zeros(3)}


def from_arrays(recipe, **options):
    return finetune(see, classify, *start(), PICTURES, KINDS, recipe, **options)


def from_batches(recipe, *, seed=0, **options):
    rows = batch_rows(len(PICTURES), recipe, seed)
    batches = image_batches(PICTURES, KINDS, rows, size=6, seed=seed, crop=False, threads=2)
    return finetune_batches(see, classify, *start(), batches, recipe, seed=seed, **options)


RECIPES = {
    "filled": LONG,
    "whole passes": LONG._replace(whole_passes=True, shift=1),
    "accumulated": LONG._replace(accumulate=2, whole_passes=True, frozen=("head",)),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_images_on_the_device_and_batches_from_the_host_give_the_same_bits(recipe):
    # Filled batches from the host carry a mask of ones, which rounds the mean in its own way.
    ours, theirs = from_arrays(recipe), from_batches(recipe)
    if recipe.whole_passes:
        assert same(ours, theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_batches_that_end_too_early_are_told():
    batches = iter([(PICTURES[:4], KINDS[:4])] * 5)
    with pytest.raises(BadInput, match="the batches ended after step 5 of 12"):
        finetune_batches(see, classify, *start(), batches, LONG, chunk_steps=2)


# --- continuing ---------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stopping_after(count, error=Stop):
    """An `on_chunk` that ends the run once it has seen `count` losses."""
    seen = []

    def on_chunk(losses):
        seen.extend(losses)
        if len(seen) >= count:
            raise error

    return on_chunk


@pytest.mark.parametrize("form", [from_arrays, from_batches])
@pytest.mark.parametrize("name", ["filled", "accumulated"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, form, name):
    recipe = RECIPES[name]
    whole = form(recipe, chunk_steps=3)
    options = {"chunk_steps": 3, "state_folder": tmp_path / "run", "save_every": 6}
    with pytest.raises(Stop):
        form(recipe, on_chunk=stopping_after(9), **options)
    seen = []
    assert same(form(recipe, on_chunk=seen.append, **options), whole)
    assert [len(losses) for losses in seen] == [6, 3, 3]  # what was saved, and the rest
    np.testing.assert_array_equal(np.concatenate(seen), whole.losses)
    seen.clear()
    assert same(form(recipe, on_chunk=seen.append, **options), whole)  # nothing is left to do
    assert [len(losses) for losses in seen] == [12]


def test_ctrl_c_saves_what_is_done(tmp_path):
    options = {"chunk_steps": 3, "state_folder": tmp_path / "run", "save_every": 100}
    with pytest.raises(KeyboardInterrupt):
        from_arrays(LONG, on_chunk=stopping_after(6, KeyboardInterrupt), **options)
    seen = []
    assert same(from_arrays(LONG, on_chunk=seen.append, **options), from_arrays(LONG))
    assert len(seen[0]) == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": LONG._replace(learning_rate=0.5)}, "another recipe .* remove the folder"),
        ({"seed": 1}, r"another seed \(0, now 1\)"),
        ({"images": 255 - PICTURES}, "another data"),
    ],
)
def test_the_state_of_a_run_with_other_settings_or_data_is_refused(tmp_path, change, says):
    def run(*, recipe=LONG, images=PICTURES, **options):
        return finetune(
            see, classify, *start(), images, KINDS, recipe, state_folder=tmp_path, **options
        )

    run()
    with pytest.raises(BadInput, match=says):
        run(**change)


def test_the_state_of_other_batches_is_refused(tmp_path):
    from_batches(LONG, state_folder=tmp_path, data="one")
    with pytest.raises(BadInput, match=r'another data \("one", now "two"\)'):
        from_batches(LONG, state_folder=tmp_path, data="two")
