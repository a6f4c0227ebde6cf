"""The scale of a merge chosen by each task's own metric; the objective of each task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.adapting import objectives
from experiments.experts import Experts, Model
from experiments.language_start import GENERATED
from experiments.merging import tuned_by_metrics
from experiments.tasks.task import Split, Task

ROWS = np.array([[1.0, -3], [2, 5], [3, 0], [5, -1], [8, 2]], np.float32)


def encode(params, inputs):
    return jnp.asarray(inputs) * params["weights"][None]


def classify(head, features):
    return features.sum(axis=1, keepdims=True) * head["scale"]


def regression(labels):
    split = Split(ROWS, np.asarray(labels, np.float32))
    return Task("one", ("score",), None, split, split, metric="pearson_spearman")


def test_the_scale_is_the_one_with_the_highest_mean_of_the_metrics():
    """θ = [0, 1] + scale · [1, -1] reads the first column at scale 1, the second at 0."""
    start = {"weights": jnp.array([0.0, 1.0])}
    model = Model(encode, start, "two columns", classify=classify)
    head = {"scale": jnp.ones(())}
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), head)
    exist = jnp.ones((2, 1), bool)
    experts = Experts([start] * 2, [head] * 2, [head] * 2, {}, stacked, exist)
    merged = {"weights": jnp.array([1.0, -1.0])}
    for column, best in ((0, 1.0), (1, 0.1)):
        tasks = [regression(ROWS[:, column])] * 2
        assert tuned_by_metrics(model, experts, merged, (1.0, 0.5, 0.1), tasks) == best


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [((2, 3), "hard_ce"), ((2, 1, 3), ["hard_ce", "l1", "hard_ce"])],
)
def test_what_has_one_output_follows_its_value(outputs, expected):
    classes = np.arange(3)[None] < np.array(outputs)[:, None]
    assert objectives(GENERATED, classes) == expected
