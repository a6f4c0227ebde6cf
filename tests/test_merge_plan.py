"""What a merge will read and need, and which checkpoints are refused: then nothing is written."""

import json
import os
from dataclasses import replace

import clip_checkpoints as clips
import numpy as np
import pytest
from merging import COUNTER, both_ways, everyone, merged_by_files, moved, refusal, written

from symerge_jax import merge_files as module
from symerge_jax.checkpoints.clip_layouts import hugging_face_config
from symerge_jax.checkpoints.hashes import sha256
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.errors import BadInput
from symerge_jax.merge import METHODS, Method
from symerge_jax.merge_plan import default_names, forecast, plan


@pytest.fixture
def tensors():
    """θ₀ as Hugging Face names it, with an integer buffer."""
    return clips.hugging_face() | {COUNTER: np.arange(5)}


@pytest.fixture
def folders(tmp_path, tensors):
    """θ₀ and three experts as Hugging Face folders."""
    return written(tmp_path, tensors, [moved(tensors, k) for k in range(3)])


# --- names, hashes, memory ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/eurosat", "a/dtd"], ["eurosat", "dtd"]),
        (["a/eurosat/model.safetensors", "a/dtd/model.safetensors"], ["eurosat", "dtd"]),
        (["a/eurosat.pt", "b/dtd.pt"], ["eurosat", "dtd"]),
        (["run1/eurosat/best/x.pt", "run2/dtd/best/x.pt"], ["eurosat", "dtd"]),
        (["owner/clip_eurosat@v1", "owner/clip_dtd@v2"], ["clip_eurosat", "clip_dtd"]),
        (["/data/a@b/eurosat/x.pt", "/data/a@b/dtd/x.pt"], ["eurosat", "dtd"]),
        (["a/x.pt", "a/x.pt"], ["task0", "task1"]),
    ],
)
def test_tasks_are_named_after_what_tells_the_experts_apart(paths, names):
    assert default_names(paths) == tuple(names)


def test_names_can_be_given(tmp_path, folders):
    merged_by_files(tmp_path / "out", folders, "task_arithmetic", names=("x", "y", "z"))
    card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
    assert card["tasks"] == ["x", "y", "z"]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "b"), ("a", "b", "../c"), ("a", "b", "")])
def test_names_that_do_not_fit_are_refused(tmp_path, folders, names):
    assert refusal(tmp_path / "out", folders, names=names).startswith("--names: expected ")


def test_one_expert_is_too_few(tmp_path, folders):
    assert "at least two experts, got 1" in refusal(tmp_path / "out", (folders[0], folders[1][:1]))


def test_the_card_tells_every_input_by_hash(tmp_path, folders):
    merged_by_files(tmp_path / "out", folders, "task_arithmetic")
    card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
    assert (card["method"], card["layout"]) == ("task_arithmetic", "hugging_face")
    for place, found in zip(
        (folders[0], *folders[1]),
        (card["inputs"]["pretrained"], *card["inputs"]["experts"]),
        strict=True,
    ):
        assert found["path"] == str(place)
        assert found["files"] == {
            name: {"sha256": sha256(place / name), "bytes": (place / name).stat().st_size}
            for name in ("model.safetensors", "config.json")
        }


def test_progress_counts_every_leaf(tmp_path, folders):
    seen = []
    merged_by_files(tmp_path / "out", folders, "ties", progress=lambda *args: seen.append(args))
    leaves = len(plan(*folders).leaves)
    assert seen == [(k + 1, leaves) for k in range(leaves)]


def test_memory_grows_with_the_experts_only_where_all_are_held(tmp_path):
    start = clips.hugging_face()
    folders = written(tmp_path, start, [moved(start, k) for k in range(4)])
    few, many = (plan(folders[0], folders[1][:k]) for k in (2, 4))
    largest = max(leaf.info.nbytes for leaf in few.leaves)
    total = sum(leaf.info.nbytes for leaf in few.leaves)
    streamed, planned = METHODS["task_arithmetic"], METHODS["ties"]
    whole = Method(everyone, scale=1.0, working_set=4.0)
    for method in (streamed, planned):
        assert forecast(many, method) - forecast(few, method) == 8 * largest
    assert forecast(many, whole) - forecast(few, whole) == 2 * total * whole.working_set


def test_every_leaf_has_the_common_name_of_its_source(folders):
    chosen = plan(*folders)
    names = names_of(chosen.pretrained)
    assert [leaf.source for leaf in chosen.leaves] == list(names.source.values())
    assert chosen.rest == (COUNTER,)


# --- what is refused ------------------------------------------------------------------------------


@both_ways
def test_an_expert_equal_to_the_start_is_refused(tmp_path, tensors, name):
    experts = [moved(tensors, 0), dict(tensors), moved(tensors, 2)]
    folders = written(tmp_path, tensors, experts)
    message = refusal(tmp_path / "out", folders, name)
    assert message.startswith(f"{folders[1][1]}: equals the pre-trained model in every tensor")


@both_ways
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("who", [0, 1, "base"])
def test_numbers_that_are_not_finite_are_named(tmp_path, tensors, name, value, who):
    leaf = "vision_model.encoder.layers.0.mlp.fc1.weight"
    bad = {leaf: np.where(np.arange(8) == 3, np.float32(value), tensors[leaf])}
    experts = [moved(tensors, k) for k in range(2)]
    if who == "base":  # as it would be: the experts inherit it
        tensors, experts = tensors | bad, [one | bad for one in experts]
    else:
        experts[who] |= bad
    folders = written(tmp_path, tensors, experts)
    message = refusal(tmp_path / "out", folders, name)
    culprit = folders[0] if who == "base" else folders[1][who]
    assert message.startswith(f"{culprit}: tensor {leaf} holds NaN or infinity")


@both_ways
def test_infinity_where_another_value_was_infinite_is_named(tmp_path, tensors, name):
    leaf = "vision_model.pre_layrnorm.weight"
    start = tensors | {leaf: np.full(8, np.inf, np.float32)}
    experts = [moved(tensors, k) | {leaf: np.full(8, np.inf, np.float32)} for k in range(2)]
    experts[1][leaf] = np.full(8, -np.inf, np.float32)
    folders = written(tmp_path, start, experts)
    message = refusal(tmp_path / "out", folders, name)
    assert message.startswith(f"{folders[0]}: tensor {leaf} holds NaN or infinity")


@both_ways
def test_merged_values_too_large_for_the_dtype_are_named(tmp_path, tensors, name):
    start = {k: v if k == COUNTER else v.astype(np.float16) for k, v in tensors.items()}
    folders = written(tmp_path, start, [moved(start, k) for k in range(2)])
    message = refusal(tmp_path / "out", folders, name, scale=1e9)
    assert "the merged values overflow float16; lower --scale" in message


LAYER = "vision_model.encoder.layers.0.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("change", "who", "words"),
    [
        (lambda t: t.update({LAYER: t[LAYER][:5]}), 1,
         f"tensor {LAYER} has shape (5,), in {{base}} it has (32,)"),
        (lambda t: t.update({LAYER: t[LAYER].astype(np.float16)}), 1,
         f"tensor {LAYER} is float16, in {{base}} it is float32"),
        (lambda t: t.pop(LAYER), 1, f"lacks tensor {LAYER}, which another expert has"),
        (lambda t: t.update(extra=np.ones(2, np.float32)), 0,
         "has tensor extra, which {base} lacks"),
        (lambda t: t.update({"vision_model.embeddings.position_embedding.weight":
                             np.ones((10, 8), np.float32)}), 0,
         "position_embedding.weight has shape (10, 8), in {base} it has (5, 8)"),
    ],
    ids=["shape", "dtype", "missing", "extra", "image size"],
)  # fmt: skip
def test_experts_of_another_architecture_are_named(tmp_path, tensors, change, who, words):
    experts = [moved(tensors, k) for k in range(2)]
    change(experts[who])
    folders = written(tmp_path, tensors, experts)
    message = refusal(tmp_path / "out", folders)
    assert message.startswith(f"{folders[1][who]}: ")
    assert words.format(base=folders[0]) in message


def test_a_tensor_the_start_lacks_is_named(tmp_path, tensors):
    experts = [moved(tensors, k) for k in range(2)]
    start = {name: value for name, value in tensors.items() if name != LAYER}
    folders = written(tmp_path, start, experts)
    message = refusal(tmp_path / "out", folders)
    assert message.startswith(f"{folders[1][0]}: has tensor {LAYER}, which {folders[0]} lacks")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "gelu"}, "has activation gelu, but {base} has quick_gelu"),
        ({"heads": 4}, "has heads 4, but {base} has 2"),
        ({"layer_norm_eps": 1e-6}, "has layer norm eps 1e-06, but {base} has 1e-05"),
        ({"image_size": 12}, "has image size 12, but {base} has 8"),
    ],
    ids=lambda value: str(value),
)
def test_models_that_compute_different_functions_are_named(tmp_path, tensors, change, words):
    folders = written(tmp_path, tensors, [moved(tensors, k) for k in range(2)])
    sizes = replace(clips.VISION, fused_qkv=False, **change)
    text = json.dumps(hugging_face_config(sizes, None))
    (folders[1][1] / "config.json").write_text(text)
    message = refusal(tmp_path / "out", folders)
    assert message.startswith(f"{folders[1][1]}: ")
    assert words.format(base=folders[0]) in message


def test_mixed_layouts_are_refused(tmp_path, folders):
    other = clips.save(tmp_path / "oc", clips.open_clip(), clips.open_clip_json())
    message = refusal(tmp_path / "out", (folders[0], [*folders[1], other]))
    assert message.startswith(f"{other} has the open_clip layout, {folders[0]} the hugging_face")


def test_a_config_with_impossible_sizes_is_named(tmp_path, folders):
    (folders[1][2] / "config.json").write_text('{"num_attention_heads": 3}')
    assert refusal(tmp_path / "out", folders).startswith(f"{folders[1][2]}: ")


@both_ways
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, folders, name):
    def touch(done, total):
        if done == total:
            os.utime(folders[1][0] / "model.safetensors", ns=(0, 1))

    message = refusal(tmp_path / "out", folders, name, progress=touch)
    assert "eurosat/model.safetensors: the file changed while it was read" in message


@both_ways
def test_an_interrupted_merge_leaves_nothing(tmp_path, folders, name):
    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged_by_files(tmp_path / "out", folders, name, progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_an_output_that_is_there_is_refused_before_any_work(tmp_path, folders, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("precious")
    monkeypatch.setattr(module, "_leaves", None)
    with pytest.raises(BadInput, match="is there already"):
        merged_by_files(tmp_path / "out", folders, "task_arithmetic")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
