"""Two basins: references, the way between experts, the command."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair_command import assert_refused, install, record_of, run_command, values

from experiments import disjoint
from experiments.disjoint import Other, Settings
from experiments.experts import Experts, Model
from experiments.merging import training_free
from experiments.methods import Outcome, Seed
from experiments.scene import Scene, Start
from experiments.vision_start import GENERATED
from symerge_jax.adapt.symerge import Adapted
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.errors import BadInput

THETA0, OTHER = {"w": np.array([1.0, 2.0], np.float32)}, {"w": np.array([4.0, 0.0], np.float32)}
EXPERTS = [{"w": np.array([5.0, 1.0], np.float32)}, {"w": np.array([2.0, 4.0], np.float32)}]


def scene():
    """A scene of two vectors: enough to take references from."""
    model = Model(lambda params, images: images, THETA0, "toy")
    experts = Experts(EXPERTS, [], [], None, {}, np.ones((2, 1), bool))
    seeds = {0: Seed(0, experts, [])}
    return Scene({}, None, GENERATED, Start(model, None), [], seeds, [], None)  # type: ignore


def merged(kind, lam):
    other = Other("other", OTHER, lambda params: params, lambda head: head)
    found = disjoint.with_reference(scene(), scene().seeds, other, kind)
    tau = found.seeds[0].experts.task_vectors["w"]
    return np.asarray(found.model.pretrained["w"] + np.tensordot(np.array(lam), tau, 1))


@pytest.mark.parametrize("kind", ["first", "other", "mean"])
def test_either_expert_is_in_reach_of_a_common_reference(kind):
    np.testing.assert_allclose(merged(kind, [1, 0]), EXPERTS[0]["w"])
    np.testing.assert_allclose(merged(kind, [0, 1]), EXPERTS[1]["w"])
    np.testing.assert_allclose(merged(kind, [0.5, 0.5]), [3.5, 2.5])  # the mean of both


def test_without_coefficients_the_reference_is_left():
    np.testing.assert_array_equal(merged("first", [0, 0]), [1, 2])
    np.testing.assert_array_equal(merged("other", [0, 0]), [4, 0])
    np.testing.assert_array_equal(merged("mean", [0, 0]), [2.5, 1])


def test_each_experts_own_reference_takes_its_task_vector_from_its_own_model():
    np.testing.assert_array_equal(merged("own", [0, 1]), EXPERTS[1]["w"])
    np.testing.assert_array_equal(merged("own", [1, 0]), [1 + 5 - 4, 2 + 1 - 0])  # out of reach


def test_references_have_cache_names_of_their_own():
    other = Other("other", OTHER, lambda params: params, lambda head: head)
    names = {disjoint.with_reference(scene(), {}, other, kind).model.name
             for kind in ("first", "other", "mean")}  # fmt: skip
    assert len(names) == 3


def test_the_way_between_two_models():
    half = disjoint.between(THETA0, OTHER, 0.25)["w"]
    np.testing.assert_allclose(half, [1.75, 1.5])


def test_mean_coefficients_are_clamped_first():
    lam = {"a": jnp.array([1.5, 0.2]), "b": jnp.array([0.5, -3.0])}
    adapted = Adapted({}, lam, {}, np.zeros(0), np.zeros((0, 0), bool))
    rows = [Outcome("symerge", 4, False, [], adapted), Outcome("weight_average", 4, False, [])]
    assert disjoint.mean_coefficients(rows) == {"symerge": {"4": pytest.approx([0.75, 0.1])}}


def test_two_tasks_are_named_for_every_kind_of_data(tmp_path):
    assert disjoint.with_tasks(Settings()).tasks == ("terrain", "textures")
    real = Settings(model="ViT-B-32", checkpoints=tmp_path, data=tmp_path)
    assert disjoint.with_tasks(real).tasks == ("eurosat", "dtd")
    assert disjoint.with_tasks(Settings(tasks=("runes", "signs"))).tasks == ("runes", "signs")
    with pytest.raises(BadInput, match="name both, or neither"):
        disjoint.with_tasks(dataclasses.replace(real, other_expert="somewhere"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--tasks runes shapes angles", "merges two experts, got 3 tasks"),
        ("--permutation -1", "--permutation must be at least 0, got -1"),
        ("--methods symrge", "unknown method 'symrge' (did you mean symerge?)"),
        ("--other-pretrained a --other-expert b", "--other-pretrained needs --model"),
    ],
)
def test_what_is_refused(capsys, tmp_path, words, says):
    assert_refused(capsys, disjoint, "--out", tmp_path / "runs", *words.split(), says=says)
    assert not (tmp_path / "runs").exists()


def test_surgery_comes_last_since_it_stands_on_adamerging():
    assert list(disjoint.ROWS)[-1] == "surgery"
    assert "adamerging" in disjoint.ROWS


def test_a_run_from_end_to_end(capsys, tmp_path, monkeypatch):
    install(monkeypatch, disjoint, tasks=("digits", "signs"))
    asked = []

    def stub(model, seed, tasks, run, constants, around):
        """Says what it was given; adapts nothing."""
        asked.append((run.name, model.pretrained, seed.experts, constants.initial))
        scores = training_free(model, seed, tasks, "weight_average").scores
        return Outcome(run.name, seed.number, False, scores)

    monkeypatch.setattr(disjoint, "adaptive", stub)
    words = ("--methods", "symerge", "symerge_from_0.3", "symerge_on_other_reference", "--quick")
    assert run_command(disjoint, *words, "--out", tmp_path) == 0
    record, folder = record_of(capsys.readouterr())
    assert [(name, initial) for name, _, _, initial in asked] == [
        ("symerge", 0.5), ("symerge_from_0.3", 0.3), ("symerge_on_other_reference", 0.5),
    ]  # fmt: skip

    # Each expert does on its own task what it did before, in either basin.
    path = record["data"]["path"]
    assert path["t"] == [0, 0.5, 1]
    same, two = (np.array(path[kind]["0"]) for kind in ("same_basin", "two_basins"))
    assert (same[0, 1], same[2, 0]) == (two[0, 1], two[2, 0])
    assert values(record, "individual")["digits"] == two[2, 0]
    assert values(record, "individual_signs") == {"digits": two[0, 0], "signs": two[0, 1]}

    # Its weights moved far: the vector to it is longer than fine-tuning made it.
    _, pretrained, experts, _ = asked[0]
    lengths = [
        np.sqrt(sum(float(jnp.square(x[k]).sum()) for x in jax.tree.leaves(experts.task_vectors)))
        for k in range(2)
    ]
    assert lengths[0] > 3 * lengths[1]
    changed = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(*map(jax.tree.leaves, (pretrained, asked[2][1])), strict=True)
    ]
    assert all(changed)
    for name in ("accuracy", "path"):
        assert folder.joinpath(f"{name}.png").stat().st_size > 5000


def from_files(tiny, data, **changes):
    """What --other-pretrained and --other-expert name, for a first model like the tiny one."""
    settings = Settings(
        data=data,
        other_pretrained=str(tiny.full["hugging_face"]),
        other_expert=str(tiny.experts["hugging_face"]["fruit"]),
    )
    vision = dataclasses.replace(load_clip(tiny.base["hugging_face"]).vision, **changes)
    start = SimpleNamespace(vision=vision)
    toy = SimpleNamespace(start=start, model=None, tasks=[SimpleNamespace(name="eurosat")])
    return disjoint.other_start(toy, settings)  # type: ignore


def test_another_pre_training_comes_with_its_expert_and_a_classifier_of_its_own(tiny, tmp_path):
    (tmp_path / "eurosat").mkdir()
    np.savez(
        tmp_path / "eurosat" / "test.npz",
        images=np.zeros((20, 8, 8, 3), np.uint8),
        labels=np.arange(20, dtype=np.int32) % 10,
    )
    other = from_files(tiny, tmp_path)
    theirs = load_clip(tiny.experts["hugging_face"]["fruit"]).params["vision"]
    jax.tree.map(np.testing.assert_array_equal, other.expert({}), theirs)
    base = load_clip(tiny.base["hugging_face"]).params["vision"]
    jax.tree.map(np.testing.assert_array_equal, other.pretrained, base)
    head = other.head({})
    scale = np.exp(2.0)  # of the tiny model's text tower
    np.testing.assert_allclose(np.linalg.norm(head["weight"], axis=1), scale, rtol=1e-4)
    assert head["weight"].shape == (10, 24)


def test_a_model_of_another_shape_is_refused(tiny, tmp_path):
    with pytest.raises(BadInput, match="expected an image tower like the first one's"):
        from_files(tiny, tmp_path, activation="gelu")
