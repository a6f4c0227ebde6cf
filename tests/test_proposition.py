"""Proposition 1: both sides of the inequality, and how often it holds."""

import numpy as np
import pytest
from pair_command import assert_refused

from experiments import proposition
from experiments.pairs import Pairs

# Losses [encoder, task]; the diagonal holds the experts.
CROSS = np.array([[0.2, 3.0], [1.0, 0.4]])
MERGED = np.array([[0.2, 1.8], [0.5, 0.4]])
FOUND = Pairs(
    np.eye(2), CROSS, np.eye(2), MERGED, np.array([50.0, 50.0]), np.array([2.0, 1.5])
)  # fmt: skip


def test_both_sides_by_hand():
    found = proposition.sides(FOUND)
    # pairs: encoder 0 on task 1, encoder 1 on task 0
    np.testing.assert_allclose(found.left, [1.8, 0.5])
    np.testing.assert_allclose(found.right, [(3.0 + 0.4) / 2, (1.0 + 0.2) / 2])
    np.testing.assert_allclose(found.without, [(1.5 + 0.4) / 2, (2.0 + 0.2) / 2])
    np.testing.assert_array_equal(found.synergy, [False, True])  # 3 > 1.5, 1 < 2


def test_shares_by_hand():
    known = proposition.shares(proposition.sides(FOUND))
    # 1.8 > 1.7 breaks the bound, 0.5 <= 0.6 holds
    assert known == {
        "pairs": 2,
        "holds": 50,
        "holds_without_synergy": 50,  # 1.8 > 0.95, 0.5 <= 1.1
        "synergy": 50,
        "holds_where_synergy": 100,
    }
    said = proposition.sentence(proposition.sides(FOUND))
    assert "holds for 50.0 % of 2 pairs (largest excess 0.100 nats)" in said


def test_no_pair_with_synergy_is_no_share():
    found = proposition.sides(FOUND._replace(pretrained_loss=np.zeros(2)))
    assert proposition.shares(found)["holds_where_synergy"] is None


def test_the_bound_holds_for_outputs_that_are_linear_in_the_weights():
    # What the proof assumes: the merge's logits are the mean of both, and the loss is convex.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(0, 4, (3, 200, 5))

    def loss(z):
        shifted = z - z.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -log_p[np.arange(200), labels].mean()

    cross = np.array([[loss(z)] * 3 for z in logits])
    merged = np.array([[loss((a + b) / 2) for b in logits] for a in logits])
    found = proposition.sides(
        Pairs(cross, cross, merged, merged, np.zeros(3), np.array([9.0, 9, 9]))
    )
    # Here encoder j is its own expert on "task" j, so L_j(θ_j) is the diagonal.
    assert proposition.shares(found)["holds"] == 100


def test_the_record_and_the_picture(tmp_path):
    found = proposition.sides(FOUND)
    stored = proposition.stored(found)
    assert stored["left"] == pytest.approx([1.8, 0.5])
    assert stored["synergy"] == [False, True]
    proposition.draw(found, tmp_path)
    assert (tmp_path / "proposition.png").stat().st_size > 5000


def test_an_option_without_effect_is_refused(capsys):
    assert_refused(capsys, proposition, "--methods", "ties", says="--methods ties: this experiment")
