"""SyMerge with true labels: the same method, told the truth."""

import importlib
import inspect
import pkgutil

import jax.numpy as jnp
import linear_world
import numpy as np
import pytest
from linear_world import classify, encode
from trees_close import assert_trees_equal

import symerge_jax.adapt
from symerge_jax.adapt.labelled import symerge_with_labels
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.schedule import sequential
from symerge_jax.adapt.symerge import symerge
from symerge_jax.errors import BadInput

SETTINGS = {"iterations": 4, "batch_size": 4, "head_rate": 0.1, "coefficient_rate": 0.05}


@pytest.fixture(scope="module")
def world():
    return linear_world.make()


@pytest.fixture
def labels(world):
    rng = np.random.default_rng(1)
    return [rng.integers(0, linear_world.CLASSES, len(x)) for x in world.inputs]


def run(world, labels, **more):
    classes = jnp.ones((3, linear_world.CLASSES), bool)
    own = {"classes": classes, **SETTINGS, **more}
    return symerge_with_labels(encode, classify, *world[:4], labels, **own)


def test_labels_stand_where_the_experts_classes_do(world, labels):
    told = [ExpertLabels(x.astype(np.int32), np.zeros(len(x), np.float32)) for x in labels]
    same = symerge(encode, classify, *world[:4], told, confidence_filter="none", **SETTINGS)
    adapted = run(world, labels)
    assert_trees_equal(adapted._asdict(), same._asdict())


def test_every_sample_counts_and_labels_matter(world, labels):
    adapted, others = run(world, labels), run(world, [2 - x for x in labels])
    drawn = sequential(linear_world.SIZES, iterations=4, batch_size=4, seed=0)
    np.testing.assert_array_equal(adapted.kept, drawn.sample_mask)
    assert not np.array_equal(adapted.heads["bias"], others.heads["bias"])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda labels: labels[:2], "got labels of 2 tasks, but heads of 3"),
        (lambda labels: [labels[0] + 3, *labels[1:]], "task 0: expected classes 0 to 2, got 3"),
        (lambda labels: [labels[0], labels[1] - 3, labels[2]], "task 1: expected classes 0 to 2"),
        (lambda labels: [x * 1.0 for x in labels], r"task 0: expected integers \[n\], got float64"),
        (lambda labels: [labels[0][:3], *labels[1:]], "task 0: expected one expert output per"),
    ],
)
def test_labels_that_do_not_fit(world, labels, spoil, says):
    with pytest.raises(BadInput, match=says):
        run(world, spoil(labels))


def test_no_other_function_of_adapt_takes_labels():
    takers = set()
    for part in pkgutil.iter_modules(symerge_jax.adapt.__path__):
        module = importlib.import_module(f"symerge_jax.adapt.{part.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if {"labels", "truth", "truths"} & set(inspect.signature(function).parameters):
                takers.add(name)
    assert takers == {"symerge_with_labels"}
