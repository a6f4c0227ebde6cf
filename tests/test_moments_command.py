"""`symerge moments`: what it writes, that no label takes part, and what it refuses."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import contents, refused, symerge
from tiny_experts import CLASSES, LAYOUTS, PER_CLASS, SIZE, VISION
from trees_close import assert_trees_close

from symerge_jax import moments_files
from symerge_jax.checkpoints.heads import read_head
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.data.images import draw_images
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import VisionTower
from symerge_jax.models.heads import normalised_head
from symerge_jax.second_moments import fisher_diagonal, gram_matrices, load_moments

pytestmark = pytest.mark.usefixtures("separate")

WEIGHTS = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}
SKY = len(CLASSES["sky"]) * PER_CLASS  # images


@pytest.fixture
def words(tmp_path, tiny):
    """Words of a run on the expert sky; later ones win."""

    def of(*more, layout="open_clip", expert=None, inputs=None, output="sky.safetensors"):
        expert = tiny.experts[layout]["sky"] if expert is None else expert
        inputs = tiny.folder / "unlabelled" / "sky" if inputs is None else inputs
        return ("moments", expert, "--inputs", inputs, "--output", tmp_path / output, *more)

    return of


@pytest.fixture
def written(tmp_path, words):
    """Runs the command; returns the file's arrays."""

    def run(*more, output="sky.safetensors", **options):
        assert symerge(*words(*more, output=output, **options)) == 0
        return safetensors.numpy.load_file(tmp_path / output)

    return run


@pytest.fixture
def without_projection(tmp_path, tiny):
    """The expert sky as those who leave out the projection publish it."""
    folder = shutil.copytree(tiny.experts["hugging_face"]["sky"], tmp_path / "bare")
    tensors = safetensors.numpy.load_file(folder / WEIGHTS["hugging_face"])
    del tensors["visual_projection.weight"]
    safetensors.numpy.save_file(tensors, folder / WEIGHTS["hugging_face"])
    return folder


def apply_of(loaded):
    """The whole tower as a function, with every token."""
    tower = VisionTower(loaded.vision, every_token=True)
    return lambda params, images: tower.apply({"params": params}, images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gram_matrices_are_those_of_the_expert(capsys, tmp_path, tiny, words, layout):
    assert symerge(*words(layout=layout)) == 0
    captured = capsys.readouterr()
    file = tmp_path / "sky.safetensors"
    assert captured.out.splitlines()[-1] == str(file)
    place = tiny.folder / "unlabelled" / "sky"
    assert f"{tiny.experts[layout]['sky']}: {SKY} images of {place}" in captured.err
    loaded = load_clip(tiny.experts[layout]["sky"])
    params, images = loaded.params["vision"], draw_images(place, 64, size=SIZE)
    patches = ("patch_embedding/kernel",)
    expected = gram_matrices(apply_of(loaded), params, [normalise(images)], patches=patches)
    assert_trees_close(load_moments(file, params), expected, rtol=1e-4, atol=1e-4)


def test_fisher_diagonals_are_those_of_the_expert_with_its_head(tmp_path, tiny, words):
    more = ("--kind", "fisher", "--head", tiny.head("sky"), "--limit", 5)
    assert symerge(*words(*more, layout="hugging_face")) == 0
    loaded, head = load_clip(tiny.experts["hugging_face"]["sky"]), read_head(tiny.head("sky")).head
    images = draw_images(tiny.folder / "unlabelled" / "sky", 5, size=SIZE)
    expected = fisher_diagonal(
        apply_of(loaded),
        loaded.params["vision"],
        [normalise(images)],
        lambda features: normalised_head(head, features),
        key=jax.random.key(0),
        at_once=moments_files.AT_ONCE,  # the program that the command has compiled already
    )
    found = load_moments(tmp_path / "sky.safetensors", loaded.params["vision"])
    assert_trees_close(found, expected, rtol=1e-3, atol=1e-9)
    assert any(leaf.any() for leaf in jax.tree.leaves(found))


def pack(folder, *, labels):
    """A pack of nine random images, with whatever stands for labels."""
    images = np.random.default_rng(1).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    path = folder / f"{labels.dtype.kind}.npz"
    np.savez(path, images=images, labels=labels)
    return path


def test_labels_take_no_part(tmp_path, written):
    labels = [np.arange(9) % 2, np.array(["nonsense"] * 3)]
    one, other = (
        written(inputs=pack(tmp_path, labels=own), output=f"{k}.safetensors")
        for k, own in enumerate(labels)
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def rows(found):
    """Images that were seen: rows of the projection, which sees the class token alone."""
    return int(found["projection/kernel:rows"])


def test_a_limit_draws_images_and_always_the_same_ones(tiny, written):
    assert rows(written("--limit", 9)) == 9
    place = tiny.folder / "unlabelled" / "sky"
    first, again, everything = (draw_images(place, n, size=SIZE) for n in (9, 9, SKY))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, everything[:9])
    kept = [any(np.array_equal(a, b) for b in everything) for a in first]
    assert all(kept)


def test_without_a_limit_the_numbers_are_those_of_the_papers(monkeypatch, tiny, words):
    seen = []

    def note(path, count, **options):
        seen.append(count)
        raise BadInput("that is all")

    monkeypatch.setattr(moments_files, "draw_images", note)
    assert symerge(*words()) == 2
    assert symerge(*words("--kind", "fisher", "--head", tiny.head("sky"))) == 2
    assert seen == [64, 256]


def test_of_a_tasks_folder_the_training_images_are_taken(tmp_path, tiny, written):
    task = tmp_path / "sky"
    task.mkdir()
    shutil.copy(pack(tmp_path, labels=np.arange(9) % 2), task / "test.npz")
    assert rows(written(inputs=task, output="a.safetensors")) == 9
    shutil.copytree(tiny.folder / "images" / "sky" / "test", task / "train")  # class folders
    assert rows(written(inputs=task, output="b.safetensors")) == SKY


def test_a_file_that_is_there_is_replaced_when_asked(tmp_path, written):
    first = written("--limit", 3)
    assert rows(first) == 3
    assert rows(written("--overwrite")) == SKY


def test_a_model_is_not_replaced_by_its_statistics(refusal, tiny):
    path = tiny.experts["open_clip"]["sky"] / "open_clip_model.safetensors"
    before = path.read_bytes()
    says = refusal("--overwrite", output=path)
    assert f"{path}: holds something else than statistics" in says
    assert path.read_bytes() == before


def test_an_expert_without_its_projection(tmp_path, tiny, written, without_projection):
    found = written(expert=without_projection)
    assert not any(name.startswith("projection") for name in found)
    more = ("--kind", "fisher", "--head", tiny.head("sky"), "--limit", 5)
    more = (*more, "--pretrained", tiny.base["hugging_face"])
    found = written(*more, expert=without_projection, output="fisher.safetensors")
    own = load_clip(without_projection).params["vision"]
    assert set(load_moments(tmp_path / "fisher.safetensors", own)) == set(own)


def test_a_merge_with_them_comes_closer_than_the_mean(tmp_path, tiny, written):
    """A layer of RegMean's answers what enters it more like the experts do."""
    experts = [tiny.experts["open_clip"][task] for task in ("sky", "fruit")]
    grams = [
        written(
            *("--limit", SKY),
            expert=expert,
            inputs=tiny.folder / "unlabelled" / expert.name,
            output=f"{expert.name}.safetensors",
        )["blocks_1/mlp/fc/kernel:mean"]
        for expert in experts
    ]
    models = ("--pretrained", tiny.base["open_clip"], "--experts", *experts)
    files = ("--moments", *(tmp_path / f"{expert.name}.safetensors" for expert in experts))
    assert symerge("merge", "regmean", *models, *files, "--output", tmp_path / "out") == 0
    start, merged, *theirs = (
        load_clip(place).params["vision"]["blocks_1"]["mlp"]["fc"]["kernel"]
        for place in (tiny.base["open_clip"], tmp_path / "out", *experts)
    )

    def away(weight):
        return sum(
            np.einsum("io,ij,jo->", weight - one, gram, weight - one)
            for one, gram in zip(theirs, grams, strict=True)
        )

    assert away(merged) < 0.99 * away((theirs[0] + theirs[1]) / 2)
    assert away(merged) < 0.99 * away(start)


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys, tmp_path, words):
    def of(*more, alone=True, **options):
        return refused(capsys, *words(*more, **options), among=tmp_path, alone=alone)

    return of


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--limit", 0), "--limit must be at least 1, got 0"),
        (("--kind", "fisher"), "--head: statistics of kind fisher need the expert's head"),
        (("--head", "x.safetensors"), "--head is no option of kind gram; leave it out, or add"),
        (("--kind", "hessian"), "hessian"),
        (("--knd", "gram"), "unknown option --knd (did you mean --kind?)"),
    ],
)
def test_a_bad_option(refusal, more, says):
    assert says in refusal(*more)


def test_missing_pieces_are_named(refusal, tmp_path):
    gone = tmp_path / "gone"
    assert f"{gone}: there is no such file or folder" in refusal(expert=gone)
    assert f"{gone}: does not exist" in refusal(inputs=gone)
    head = ("--kind", "fisher", "--head", gone)
    assert f"{gone}: there is no such file; expected a classification head" in refusal(*head)
    assert f"{gone}: there is no such file or folder" in refusal("--pretrained", gone)


def test_an_output_that_cannot_be(refusal, tmp_path):
    assert "expected a name that ends with .safetensors" in refusal(output="sky.npz")
    (tmp_path / "there.safetensors").write_text("mine")
    says = refusal(output="there.safetensors")
    assert "there.safetensors: is there already; choose another name or add --overwrite" in says
    says = refusal(output="there.safetensors/x.safetensors")
    assert f"cannot be written, because {tmp_path / 'there.safetensors'} is a file" in says
    (tmp_path / "folder.safetensors").mkdir()
    assert "expected a file to write, found a folder" in refusal(
        "--overwrite", output="folder.safetensors"
    )


def test_a_folder_without_images(refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: expected images" in refusal(inputs=tmp_path / "empty")
    np.savez(tmp_path / "none.npz", images=np.zeros((0, SIZE, SIZE, 3), np.uint8))
    says = refusal(inputs=tmp_path / "none.npz")
    assert f"{tmp_path / 'none.npz'}: expected at least one image, found none" in says


def test_a_head_for_other_features(refusal, tiny, without_projection):
    more = ("--kind", "fisher", "--head", tiny.head("sky"))
    says = refusal(*more, expert=without_projection)
    assert f"takes features of width {VISION.projection}, but {without_projection} gives" in says
    assert "name the model it was fine-tuned from with --pretrained" in says


def test_a_pretrained_model_of_another_kind(refusal, tiny):
    other = tiny.base["hugging_face"]
    says = refusal("--pretrained", other)
    assert f"{tiny.experts['open_clip']['sky']} has the open_clip layout, {other} the" in says


def test_an_expert_with_a_number_that_is_none(refusal, tmp_path, tiny):
    shutil.copytree(tiny.experts["open_clip"]["sky"], tmp_path / "broken")
    path = tmp_path / "broken" / WEIGHTS["open_clip"]
    tensors = safetensors.numpy.load_file(path)
    tensors["visual.transformer.resblocks.1.mlp.c_fc.bias"][3] = np.nan
    safetensors.numpy.save_file(tensors, path)
    says = refusal(expert=tmp_path / "broken", alone=False)
    assert f"{tmp_path / 'broken'}: the inputs of blocks_1/mlp/proj/kernel are not finite" in says


def test_an_interrupted_run_leaves_nothing(capsys, monkeypatch, tmp_path, words):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(moments_files, "tower_moments", interrupt)
    before = contents(tmp_path)
    assert symerge(*words()) == 130
    assert capsys.readouterr().out == ""
    assert contents(tmp_path) == before
