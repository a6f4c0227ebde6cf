"""`symerge merge lot`, regmean and fisher: statistics from files, beside those in memory."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import clip_checkpoints as clips
import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import refused, symerge

from symerge_jax import trees
from symerge_jax.checkpoints.clip import to_hugging_face, to_open_clip
from symerge_jax.checkpoints.hashes import sha256
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge import METHODS
from symerge_jax.merge_files import merge_files
from symerge_jax.merge_plan import plan
from symerge_jax.merge_statistics import memory, read_statistics
from symerge_jax.second_moments import Moment, load_moments, save_moments
from symerge_jax.task_vectors import add, subtract

pytestmark = pytest.mark.usefixtures("separate")

FILES = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}
KINDS = {"lot": "gram", "regmean": "gram", "fisher": "fisher"}
every_method = pytest.mark.parametrize("method", KINDS)


def drawn(tower, kind, seed):
    """Random statistics of a tower: as many rows as half of the inputs, so that some lack."""
    rng = np.random.default_rng(seed)

    def leaf(path, weight):
        if kind == "fisher":
            return rng.uniform(0, 1e-3, weight.shape).astype(np.float32)
        name = path[-1].key
        if name == "scale":
            return Moment(rng.uniform(0, 2, weight.shape).astype(np.float32), np.float32(9 + seed))
        if name != "kernel":
            return None
        size = int(np.prod(weight.shape[:-1]))
        x = rng.normal(size=(size // 2, size)).astype(np.float32)
        return Moment(x.T @ x / len(x), np.float32(len(x) + seed))

    return jax.tree_util.tree_map_with_path(leaf, tower)


class World(NamedTuple):
    """A pre-trained model, two experts, and kind → a file of random statistics of each."""

    base: Path
    experts: list[Path]
    moments: dict[str, list[Path]]


def made(folder, layout):
    start = getattr(clips, layout)()
    config, name = getattr(clips, f"{layout}_json")(), FILES[layout]
    base = clips.save(folder / "base", start, config, name=name)
    experts, moments = [], {"gram": [], "fisher": []}
    for k, task in enumerate(("fruit", "sky")):
        experts.append(clips.save(folder / task, clips.moved(start, k), config, name=name))
        tower = load_clip(experts[-1]).params["vision"]
        for kind, paths in moments.items():
            path = folder / f"{task}_{kind}.safetensors"
            paths.append(save_moments(path, drawn(tower, kind, k), tower))
    return World(base, experts, moments)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """layout → `World`."""
    return {layout: made(tmp_path_factory.mktemp(layout), layout) for layout in FILES}


@pytest.fixture
def world(worlds):
    """The one in open_clip's layout."""
    return worlds["open_clip"]


@pytest.fixture
def words(tmp_path, world):
    """Words of a merge of two experts."""

    def of(method, moments, *rest, base=world.base, experts=world.experts):
        given = ("--moments", *moments) if moments else ()
        models = ("--pretrained", base, "--experts", *experts)
        return ("merge", method, *models, *given, "--output", tmp_path / "out", *rest)

    return of


def in_memory(world, method):
    """The merge by the library's function on our towers, as tensors of the layout."""
    start, *experts = (load_clip(path).params["vision"] for path in (world.base, *world.experts))
    own = zip(world.moments[KINDS[method]], experts, strict=True)
    options = {"moments": trees.stack([load_moments(path, tower) for path, tower in own])}
    if "leaves" in METHODS[method].needs:
        options["leaves"] = tower_leaves(start)
    tau = METHODS[method].merge(subtract(experts, start), **options)
    merged = jax.tree.map(np.asarray, add(start, tau, scale=METHODS[method].scale))
    fused = "in_proj" in start["blocks_0"]["attention"]
    return (to_open_clip if fused else to_hugging_face)(merged)


def assert_close(found, expected):
    for name, value in expected.items():
        size = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6 * size, err_msg=name)


@every_method
@pytest.mark.parametrize("layout", FILES)
def test_statistics_from_files_merge_as_in_memory(tmp_path, worlds, method, layout):
    world = worlds[layout]
    chosen = plan(world.base, world.experts)
    moments = read_statistics(chosen, method, world.moments[KINDS[method]])
    merge_files(chosen, method, tmp_path / "out", moments=moments)
    found = safetensors.numpy.load_file(tmp_path / "out" / FILES[layout])
    expected = in_memory(world, method)
    assert set(found) == set(expected)
    assert_close(found, expected)


def test_the_command_merges_and_its_card_names_the_files(capsys, tmp_path, world, words):
    own = world.moments["gram"]
    assert symerge(*words("regmean", own)) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == str(tmp_path / "out")
    assert "regmean: 2 experts, 20 tensors, one tensor of all experts at a time" in captured.err
    assert_close(
        safetensors.numpy.load_file(tmp_path / "out" / FILES["open_clip"]),
        in_memory(world, "regmean"),
    )
    card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
    assert card["settings"] == {"scale": 1.0}
    for path, found in zip(own, card["inputs"]["moments"], strict=True):
        about = {"sha256": sha256(path), "bytes": path.stat().st_size}
        assert found == {"path": str(path), "files": {path.name: about}}


def test_leaves_nobody_changed_need_no_statistics(tmp_path, world):
    """Experts that carry an unchanged text tower are merged with those of the image tower."""
    full = clips.open_clip(text=True)
    config, name = clips.open_clip_json(text=True), FILES["open_clip"]
    places = []
    for place in (world.base, *world.experts):
        whole = full | safetensors.numpy.load_file(place / name)
        places.append(clips.save(tmp_path / place.name, whole, config, name=name))
    chosen = plan(places[0], places[1:])
    moments = read_statistics(chosen, "fisher", world.moments["fisher"])
    result = merge_files(chosen, "fisher", tmp_path / "out", moments=moments)
    found = safetensors.numpy.load_file(tmp_path / "out" / name)
    expected = in_memory(world, "fisher")
    assert_close(found, expected)
    assert result.copied == len(full) - len(expected)


def test_memory_counts_the_statistics(world):
    chosen, own = plan(world.base, world.experts), world.moments["gram"]
    opened = read_statistics(chosen, "lot", own).files
    largest = max(info.nbytes for info in opened[0].tensors.values())
    assert memory(chosen, opened) == 6 * len(own) * largest
    assert memory(chosen, opened * 2) == 2 * memory(chosen, opened)


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys, tmp_path, words):
    def of(*given, alone=True, **options):
        return refused(capsys, *words(*given, **options), among=tmp_path, alone=alone)

    return of


@pytest.fixture
def changed(tmp_path, world):
    """Writes a file of statistics of the second expert after a change of its arrays."""

    def write(change, kind="gram"):
        path = world.moments[kind][1]
        arrays = safetensors.numpy.load_file(path)
        change(arrays)
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata()
        safetensors.numpy.save_file(arrays, tmp_path / "changed.safetensors", metadata=metadata)
        return [world.moments[kind][0], tmp_path / "changed.safetensors"]

    return write


@every_method
def test_missing_statistics_name_the_command_that_makes_them(refusal, method):
    says = refusal(method, None)
    assert f"--moments: {method} takes statistics of each expert on unlabelled inputs" in says
    assert "`symerge moments EXPERT --inputs FOLDER --output FILE" in says
    assert ("--kind fisher --head HEAD" in says) == (method == "fisher")


def test_the_library_says_so_too(tmp_path, world):
    with pytest.raises(BadInput, match="lot takes statistics of each expert"):
        merge_files(plan(world.base, world.experts), "lot", tmp_path / "out")


def test_methods_that_take_none(refusal, world):
    own = world.moments["gram"]
    assert "--moments is no option of ties; it has --aggregate" in refusal("ties", own)
    says = refusal("lines", None, "--base", "lot")
    assert "--base lot: takes statistics of each expert, which lines has no place for" in says


def test_other_than_one_file_per_expert(refusal, world):
    own = world.moments["gram"]
    says = refusal("lot", own[:1])
    assert "--moments: expected 2 files, one per expert and in the order of --experts" in says
    assert "got 1" in says


@every_method
def test_statistics_of_the_other_kind(refusal, world, method):
    other = {"gram": "fisher", "fisher": "gram"}[KINDS[method]]
    own = world.moments[other]
    says = refusal(method, own)
    assert f"{own[0]}: holds statistics of kind {other}, but {method} takes those of kind" in says


@pytest.mark.parametrize("method", ["lot", "fisher"])
def test_statistics_in_another_order(refusal, world, method):
    own = world.moments[KINDS[method]]
    says = refusal(method, own[::-1], alone=False)
    assert f"{own[1]}: holds the statistics of another model; compute them with" in says


def test_files_of_another_kind(refusal, tmp_path, world):
    own = world.moments["gram"]
    expert = world.experts[0] / FILES["open_clip"]
    assert f"{expert}: expected statistics in format 1" in refusal("lot", [expert, own[1]])
    gone = tmp_path / "gone.safetensors"
    assert f"{gone}: cannot be read" in refusal("lot", [own[0], gone])
    gone.write_bytes(own[1].read_bytes()[:-100])
    assert f"{gone}: not a whole safetensors file" in refusal("lot", [own[0], gone])


@pytest.mark.parametrize(
    ("method", "entry"),
    [
        ("lot", "blocks_0/ln_1/scale:mean"),
        ("regmean", "blocks_0/mlp/proj/kernel:mean"),
        ("fisher", "blocks_0/mlp/fc/bias:diagonal"),
    ],
)
def test_statistics_that_are_not_finite(refusal, changed, method, entry):
    def change(arrays):
        arrays[entry].flat[1] = np.inf

    own = changed(change, KINDS[method])
    leaf = entry.partition(":")[0]
    says = refusal(method, own, alone=False)
    assert f"{own[1]}: the statistics of {leaf} are not finite; make them again" in says


def test_statistics_that_do_not_belong_to_a_weight(refusal, changed):
    entry = "blocks_0/mlp/fc/kernel:mean"
    own = changed(lambda arrays: arrays.update({entry: np.eye(5, dtype=np.float32)}))
    assert f"{own[1]}: {entry} has shape (5, 5), which does" in refusal("lot", own, alone=False)
    own = changed(lambda arrays: arrays.pop("blocks_0/mlp/fc/kernel:rows"))
    assert f"{own[1]}: {entry} has shape" in refusal("lot", own, alone=False)
    own = changed(
        lambda arrays: [arrays.pop(f"blocks_0/mlp/fc/kernel:{p}") for p in ("mean", "rows")]
    )
    assert "covers other leaves than" in refusal("lot", own, alone=False)


def test_a_changed_leaf_without_a_diagonal(refusal, tmp_path, world):
    own = []
    for k, expert in enumerate(world.experts):
        tower = load_clip(expert).params["vision"]
        diagonals = drawn(tower, "fisher", k)
        del diagonals["projection"]
        own.append(save_moments(tmp_path / f"{expert.name}.safetensors", diagonals, tower))
    says = refusal("fisher", own, alone=False)
    assert f"{own[0]}: has no statistics of tensor visual.proj, which an expert changed" in says


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, world):
    own = [shutil.copy(path, tmp_path / path.name) for path in world.moments["gram"]]
    chosen = plan(world.base, world.experts)

    def touch(done, total):
        if done == total:
            os.utime(own[1], ns=(0, 1))

    moments = read_statistics(chosen, "regmean", own)
    with pytest.raises(BadInput, match="the file changed while it was read"):
        merge_files(chosen, "regmean", tmp_path / "out", moments=moments, progress=touch)
    assert not (tmp_path / "out").exists()
