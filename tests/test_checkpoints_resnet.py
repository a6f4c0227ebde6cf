"""ResNet checkpoints are read whoever saved them, written back bit by bit, or refused by name."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet_checkpoints as nets
from clip_checkpoints import assert_same, read_all, save, write_safetensors, write_torch
from flax.traverse_util import flatten_dict, unflatten_dict
from test_checkpoints_roberta import write_legacy

from symerge_jax.checkpoints.decoders import (
    Decoder,
    decoder_tensors,
    read_decoder,
    read_decoders,
    write_decoder,
)
from symerge_jax.checkpoints.export import write_description, write_model
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.resnet import (
    from_torchvision,
    load_resnet,
    source_names,
    to_torchvision,
)
from symerge_jax.checkpoints.resnet_export import save_resnet, write_own_decoders
from symerge_jax.checkpoints.resnet_layout import trunk_rules
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves, tower_leaves
from symerge_jax.merge.leaves import Leaf

GOLDEN = Path(__file__).parent / "golden" / "resnet.npz"


def assert_trees(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def floats(tensors):
    return {name: value for name, value in tensors.items() if value.dtype == np.float32}


# --- reading ------------------------------------------------------------------------------------


def test_torchvisions_names_go_there_and_back_bit_by_bit():
    with np.load(GOLDEN) as file:
        start = "state_dict/"
        state = {n[len(start) :]: file[n] for n in file.files if n.startswith(start)}
    found = from_torchvision(state)
    again = to_torchvision(found.variables, classifier=found.classifier, counts=found.counts)
    assert_same(again, state)
    assert list(again) == list(state)  # torchvision's order
    assert (found.prefix, found.aside, found.decoders) == ("", (), {})
    assert found.config.blocks == (2, 2, 1, 1)
    assert found.config.output_stride == 8


def test_old_files_without_counters_go_there_and_back():
    state = nets.torchvision(counters=False)
    found = from_torchvision(state)
    assert found.counts == {}
    again = to_torchvision(found.variables, classifier=found.classifier, counts=found.counts)
    assert_same(again, state)
    fresh = to_torchvision(found.variables)
    assert fresh["layer2.1.bn2.num_batches_tracked"] == np.int64(0)
    assert len(fresh) == nets.WEIGHTS + 3 * nets.NORMS


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_trunk_is_read_from_every_container(tmp_path, form):
    state = floats(nets.torchvision())
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    {"safetensors": write_safetensors, "zip": write_torch, "legacy": write_legacy}[form](
        path, state
    )
    loaded = load_resnet(path)
    assert_trees(loaded.variables, nets.variables())
    assert_trees(loaded.classifier, nets.fc())
    assert loaded.config == nets.SIZES
    assert loaded.names.layout == "resnet"
    assert len(loaded.names.source) == nets.WEIGHTS + nets.STATISTICS
    assert loaded.names.left_out == ("fc.weight", "fc.bias")
    assert loaded.notes[0].startswith("no config beside the weights states output_stride: taking 8")
    assert load_resnet(path, output_stride=32).notes == ()


@pytest.mark.parametrize("prefix", ["", "model.", "module.net."])
def test_a_training_programs_trunk_and_decoders_are_read(prefix):
    own = {"segmentation": nets.decoder(4), "depth": nets.decoder(1, seed=3)}
    state = nets.lightning(nets.torchvision(), own, prefix)
    state[f"{prefix}loss.weight"] = np.ones(3, np.float32)
    found = from_torchvision(state)
    assert found.prefix == f"{prefix}encoder."
    assert_trees(found.variables, nets.variables())
    assert found.aside == (f"{prefix}loss.weight",)
    assert list(found.decoders) == ["segmentation", "depth"]
    for task, one in own.items():
        assert_trees(found.decoders[task].variables, one.variables)
        assert found.decoders[task].config == nets.HEAD
        assert_same(decoder_tensors(found.decoders[task]), decoder_tensors(one))


def test_networks_with_similar_names_are_not_taken_for_one(tmp_path):
    state = nets.torchvision()
    basic = {name: value for name, value in state.items() if "conv3" not in name}
    grouped = dict(state)
    grouped["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][:, :1]
    excited = {**state, "layer1.0.se.fc1.weight": np.ones((2, 2), np.float32)}
    twice = {f"{p}.{n}": v for p in ("encoder_q", "encoder_k") for n, v in state.items()}
    for i, odd in enumerate((basic, grouped, excited, twice)):
        path = write_safetensors(tmp_path / f"{i}.safetensors", odd)
        assert names_of(open_checkpoint(path)).layout == "plain"
        with pytest.raises(BadInput, match="no ResNet in it; expected the tensor names of torch"):
            load_resnet(path)


def without(state, *ends):
    return {name: value for name, value in state.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: without(s, "running_mean", "running_var"),
            "x: tensor bn1.running_mean is missing, a running statistic of batch normalisation, "
            "without which nothing can be evaluated; save the whole state_dict(), buffers included",
        ),
        (lambda s: without(s, "layer2.1.conv2.weight"), "x: tensor layer2.1.conv2.weight is miss"),
        (lambda s: {n: v for n, v in s.items() if "layer3" not in n}, "stage layer3 has no blocks"),
        (
            lambda s: s | {"layer1.0.bn2.bias": np.ones(7, np.float32)},
            "x: tensor layer1.0.bn2.bias has shape (7,), expected (2,)",
        ),
        (
            lambda s: s | {"layer4.0.conv2.weight": np.ones((4, 3, 3, 3), np.float32)},
            "x: tensor layer4.0.conv2.weight has shape (4, 3, 3, 3), expected (4, 4, 3, 3)",
        ),
        (
            lambda s: s | {"layer4.0.conv2.weight": np.ones((4, 4), np.float32)},
            "x: tensor layer4.0.conv2.weight has shape (4, 4), expected 4 axes",
        ),
        (
            lambda s: s | {"fc.bias": np.ones(3, np.float32)},
            "x: the classifier fc has shapes",
        ),
        (
            lambda s: s | {"layer1.0.downsample.0.weight": np.ones((4, 4, 1, 1), np.float32),
                           "layer2.1.downsample.0.weight": np.ones((4, 4, 1, 1), np.float32)},
            "x: tensor layer2.1.downsample.0.weight belongs to no known part",
        ),
    ],
)  # fmt: skip
def test_the_first_tensor_that_does_not_fit_is_named(change, says):
    with pytest.raises(BadInput) as caught:
        from_torchvision(change(nets.torchvision()), source="x")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stated_output_stride_is_taken_or_refused(tmp_path):
    state = nets.torchvision()
    folder = save(tmp_path / "m", state, {"output_stride": 16, "architecture": "resnet50"})
    loaded = load_resnet(folder)
    assert (loaded.config.output_stride, loaded.notes) == (16, ())
    (folder / "config.json").write_text('{"output_stride": 12}')
    with pytest.raises(BadInput, match=r"m: config: output_stride is 12, expected 8, 16 or 32"):
        load_resnet(folder)


# --- writing ------------------------------------------------------------------------------------


def test_a_saved_folder_is_read_again(tmp_path):
    heads = {"depth": nets.decoder(1), "segmentation": nets.decoder(4, classes=tuple("abcd"))}
    save_resnet(tmp_path / "m", nets.variables(), nets.SIZES, decoders=heads, classifier=nets.fc())
    loaded = load_resnet(tmp_path / "m")
    assert_trees(loaded.variables, nets.variables())
    assert_trees(loaded.classifier, nets.fc())
    assert (loaded.config, loaded.notes, loaded.decoders) == (nets.SIZES, (), {})
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config == {"architecture": "resnet", "output_stride": 8}
    found = read_decoders(tmp_path / "m")
    assert list(found) == ["depth", "segmentation"]
    for task, one in heads.items():
        assert_trees(found[task].variables, one.variables)
        assert (found[task].config, found[task].classes) == (one.config, one.classes)
        assert found[task].outputs == one.outputs


def test_a_model_is_written_in_the_layout_of_the_checkpoint_it_comes_from(tmp_path):
    state = nets.lightning(nets.torchvision(), {"depth": nets.decoder(1)})
    start = open_checkpoint(write_safetensors(tmp_path / "x.safetensors", state))
    write_model(
        tmp_path / "m", nets.variables(7), like=start, heads={"depth": nets.decoder(1, seed=5)}
    )
    found = read_all(tmp_path / "m" / "model.safetensors")
    expected = nets.torchvision(7, classes=None)
    assert_same(found, expected | {n: v for n, v in found.items() if v.dtype == np.int64})
    counter = "layer2.1.bn2.num_batches_tracked"
    assert found[counter] == state[f"model.encoder.{counter}"]
    assert_trees(read_decoders(tmp_path / "m")["depth"].variables, nets.decoder(1, 5).variables)
    own = write_model(tmp_path / "own", nets.variables(), like=nets.SIZES)
    assert load_resnet(own).config == nets.SIZES


def test_a_merged_trunk_has_the_output_stride_that_any_of_its_models_states(tmp_path):
    state = nets.torchvision()
    start = open_checkpoint(write_safetensors(tmp_path / "x.safetensors", state))
    expert = open_checkpoint(save(tmp_path / "e", state, {"output_stride": 16, "mine": 1}))
    for name, others, stride in (("a", [expert], 16), ("b", [], 8)):
        (tmp_path / name).mkdir()
        write_description(start, tmp_path / name, others)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config == {"architecture": "resnet", "output_stride": stride}


def test_what_is_no_trunk_or_not_finite_is_not_written(tmp_path):
    tree = nets.variables()
    del tree["params"]["layer3_0"]["bn2"]
    with pytest.raises(BadInput, match="leaf params/layer3_0/bn2/bias of the tree and the layout"):
        to_torchvision(tree)
    bad = nets.variables()
    bad["params"]["bn1"]["bias"][0] = np.nan
    with pytest.raises(BadInput, match=r"bn1\.bias holds NaN"):
        save_resnet(tmp_path / "m", bad, nets.SIZES)
    assert not (tmp_path / "m" / "model.safetensors").exists()


# --- decoders -----------------------------------------------------------------------------------


def test_a_decoders_file_says_its_dilations_classes_and_counters(tmp_path):
    config = nets.DecoderConfig(features=8, width=3, rates=(2, 5))
    variables = nets.drawn(nets.decoder_shapes(config, 2), 0)
    counts = {"2.num_batches_tracked": np.array(12)}
    one = Decoder(variables, config, ("wall", "floor"), counts)
    found = read_decoder(write_decoder(tmp_path, "segmentation", one))
    assert (found.config, found.classes) == (config, one.classes)
    assert found.counts == counts
    assert_trees(found.variables, variables)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: without(t, "convs.0.1.running_var"), "convs.0.1.running_var is missing, a run"),
        (lambda t: without(t, "4.bias"), "tensor 4.bias is missing"),
        (lambda t: t | {"0.convs.5.0.weight": t["4.weight"]}, "belongs to no known part"),
        (lambda t: t | {"2.bias": np.ones(4, np.float32)}, "2.bias has shape (4,), expected (3,)"),
        (lambda t: t | {"4.bias": np.full(3, np.nan, np.float32)}, "4.bias holds NaN or infinity"),
        (lambda t: {"weight": t["4.bias"]}, "expected a decoder with tensors such as 0.project.0"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_decoder_is_refused(tmp_path, change, says):
    path = tmp_path / "d.safetensors"
    write_safetensors(path, change(decoder_tensors(nets.decoder())))
    with pytest.raises(BadInput) as caught:
        read_decoder(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("rates", ["[1, 0, 2]", "no", "3"])
def test_dilations_that_are_none_are_refused(tmp_path, rates):
    path = tmp_path / "d.safetensors"
    write_safetensors(path, decoder_tensors(nets.decoder()), {"rates": rates})
    with pytest.raises(BadInput, match="rates in its metadata"):
        read_decoder(path)
    with pytest.raises(BadInput, match="there is no such file; expected a decoder"):
        read_decoder(tmp_path / "none.safetensors")


def test_class_names_and_numbers_are_checked_before_a_decoder_is_written(tmp_path):
    with pytest.raises(BadInput, match="2 class names for 3 maps; expected one per map"):
        write_decoder(tmp_path, "x", nets.decoder(3, classes=("a", "b")))
    bad = nets.decoder()
    bad.variables["batch_stats"]["last"]["bn"]["mean"][0] = np.inf
    with pytest.raises(BadInput, match=r"decoder x: tensor 2\.running_mean holds NaN"):
        write_decoder(tmp_path, "x", bad)
    assert not (tmp_path / "heads").exists()


def test_of_several_decoders_an_experts_own_has_its_name(tmp_path):
    _, paths = nets.family(tmp_path / "in")
    experts = [open_checkpoint(path) for path in paths]
    for _ in range(2):  # the same again is no conflict
        write_own_decoders(list(nets.TASKS), experts, tmp_path / "out")
    found = read_decoders(tmp_path / "out")
    assert {task: one.outputs for task, one in found.items()} == nets.TASKS
    assert_trees(found["depth"].variables, nets.decoder(1, seed=1).variables)
    with pytest.raises(BadInput, match=r"and none is called like its task, a; name the tasks"):
        write_own_decoders(["a"], experts[:1], tmp_path / "other")
    with pytest.raises(BadInput, match=r"another than heads/depth\.safetensors"):
        write_own_decoders(["depth"], experts[:1], tmp_path / "out")


# --- leaves -------------------------------------------------------------------------------------


def test_residual_blocks_are_numbered_through_all_stages():
    paths = {rule.path: 0 for rule in trunk_rules((3, 4, 6, 3))}
    shapes = unflatten_dict(paths, sep="/")
    facts = flatten_dict(tower_leaves(shapes), sep="/")
    assert facts["params/conv1/kernel"] == Leaf("conv_hwio")
    assert facts["batch_stats/bn1/var"] == Leaf()
    assert facts["params/layer1_2/conv2/kernel"] == Leaf("conv_hwio", depth=2)
    assert facts["params/layer2_0/downsample_bn/scale"] == Leaf(depth=3)
    assert facts["batch_stats/layer4_2/bn3/mean"] == Leaf(depth=15)
    alone = flatten_dict(tower_leaves(shapes["params"]), sep="/")
    assert alone == {p[7:]: fact for p, fact in facts.items() if p.startswith("params/")}


def test_names_in_files_tell_what_paths_in_our_tree_do():
    tree = nets.variables()
    leaves, facts = (flatten_dict(t, sep="/") for t in (tree, tower_leaves(tree)))
    names = source_names(tree)
    found = named_leaves({name: jnp.shape(leaves[path]) for name, path in names}, "resnet")
    for name, path in names:
        matrix = facts[path].matrix and "conv_oihw"
        assert found[name] == Leaf(matrix, facts[path].depth), name
    assert found["layer3.0.conv1.weight"] == Leaf("conv_oihw", depth=3)
