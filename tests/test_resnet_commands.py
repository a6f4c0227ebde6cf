"""Commands on ResNet files: merge, inspect, convert and verify, as a person runs them."""

import json

import jax
import numpy as np
import pytest
import resnet_checkpoints as nets
from clip_checkpoints import assert_same, read_all, save, write_safetensors
from commands import refused, symerge

from symerge_jax import verify  # noqa: F401 (else a thread imports it while types are checked)
from symerge_jax.checkpoints.decoders import read_decoders
from symerge_jax.checkpoints.resnet import load_resnet
from symerge_jax.models.dense_heads import decode
from symerge_jax.models.resnet import encode_images

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return nets.family(tmp_path_factory.mktemp("family"))


def merge(family, out, method="task_arithmetic", *words):
    base, experts = family
    return symerge(
        "merge", method, "--pretrained", base, "--experts", *experts, "--output", out, *words
    )


def trunk_of(path):
    found = {name.removeprefix("model.encoder."): v for name, v in read_all(path).items()}
    names = set(nets.torchvision(classes=None, counters=False))
    return {name: value for name, value in found.items() if name in names}


def tasks_vector_sum(family, name):
    base, experts = family
    start = trunk_of(base)[name]
    return start, sum(trunk_of(one)[name] - start for one in experts)


def test_the_trunk_is_merged_and_each_experts_own_decoder_becomes_a_head(capsys, tmp_path, family):
    base, _ = family
    assert merge(family, tmp_path / "out", "task_arithmetic", "--scale", 0.4) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out")]
    said = " ".join(captured.err.split())
    assert f"{base}: left out, no part of the encoder: fc.weight, fc.bias" in said
    assert f"{nets.WEIGHTS + nets.STATISTICS} tensors merged, 0 copied" in said
    found = read_all(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(trunk_of(base))  # θ₀ has no counters
    for name, value in found.items():
        theta, tau = tasks_vector_sum(family, name)
        np.testing.assert_allclose(value, theta + 0.4 * tau, rtol=1e-5, atol=1e-6, err_msg=name)
    heads = read_decoders(tmp_path / "out")
    assert {task: one.outputs for task, one in heads.items()} == nets.TASKS
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"architecture": "resnet", "output_stride": 8}

    with np.load(tmp_path / "out" / "reference.npz") as file:
        stored = {name: file[name] for name in file.files}
    assert set(stored) == {"inputs", "features", *(f"logits/{task}" for task in nets.TASKS)}
    loaded = load_resnet(tmp_path / "out")
    features = jax.jit(encode_images(loaded.config))(loaded.variables, stored["inputs"])
    np.testing.assert_allclose(stored["features"], features, rtol=1e-4, atol=1e-5)
    depth = jax.jit(decode(heads["depth"].config))(heads["depth"].variables, features)
    np.testing.assert_allclose(stored["logits/depth"], depth, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert symerge("verify", tmp_path / "out") == 0
    # Weights, config, reference, three heads; features, three maps.
    assert "all 10 checks hold" in " ".join(capsys.readouterr().out.split())


def test_running_statistics_take_the_experts_mean_or_stay(tmp_path, family):
    name, weight = "layer2.1.bn2.running_var", "layer2.1.bn2.weight"
    theta, tau = tasks_vector_sum(family, name)
    start, moved = tasks_vector_sum(family, weight)
    expected = {"mean": theta + tau / 3, "pretrained": theta}
    for buffers, value in expected.items():
        out = tmp_path / buffers
        words = ("--scale", 1, "--buffers", buffers)
        assert merge(family, out, "task_arithmetic", *words) == 0
        found = read_all(out / "model.safetensors")
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[weight], start + moved, rtol=1e-5, atol=1e-6)


def test_counters_are_those_of_the_pretrained_model_and_no_variance_falls_below_0(tmp_path):
    start = nets.torchvision()
    paths = [write_safetensors(tmp_path / "base.safetensors", start)]
    for k in range(2):
        tensors = nets.moved(start, k)
        tensors["bn1.running_var"] = start["bn1.running_var"] * np.float32(0.2)
        paths.append(write_safetensors(tmp_path / f"{k}.safetensors", tensors))
    assert merge((paths[0], paths[1:]), tmp_path / "out", "task_arithmetic", "--scale", 1) == 0
    found = read_all(tmp_path / "out" / "model.safetensors")
    assert not found["bn1.running_var"].any()  # 1 − 0.8 − 0.8 of it
    counters = {n: v for n, v in start.items() if n.endswith("num_batches_tracked")}
    assert_same({n: found[n] for n in counters}, counters)


def test_a_method_that_asks_for_blocks_runs(tmp_path, family):
    assert merge(family, tmp_path / "out", "lines") == 0
    assert load_resnet(tmp_path / "out").config == nets.SIZES
    assert list(read_decoders(tmp_path / "out")) == sorted(nets.TASKS)


def test_experts_with_another_output_stride_are_refused(capsys, tmp_path, family):
    base, _ = family
    experts = [
        save(tmp_path / f"e{k}", nets.moved(nets.torchvision(classes=None), k),
             {"output_stride": stride})
        for k, stride in enumerate((16, 8))
    ]  # fmt: skip
    words = ("--pretrained", base, "--experts", *experts, "--output", tmp_path / "out")
    line = refused(capsys, "merge", "ties", *words, among=tmp_path)
    assert f"{experts[1]}: has output stride 8, but {experts[0]} has 16" in line


def test_tasks_that_are_not_called_like_their_decoders_are_refused(capsys, tmp_path, family):
    base, experts = family
    words = ("--pretrained", base, "--experts", *experts, "--output", tmp_path / "out")
    more = ("--names", "a", "depth", "normal")
    line = refused(capsys, "merge", "ties", *words, *more, among=tmp_path, alone=False)
    assert f"{experts[0]}: holds decoders of segmentation, depth, normal, and none" in line


def test_inspect_says_what_a_trunk_is_and_how_a_family_is_related(capsys, family):
    base, experts = family
    assert symerge("inspect", base, *experts, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    start, first = found["files"][:2]
    assert start["architecture"] == (
        "ResNet trunk: 1-2-1-1 blocks, 8 features, output stride 8, classifier of 5 outputs"
    )
    assert first["architecture"].endswith(
        "decoder of segmentation, decoder of depth, decoder of normal"
    )
    assert (first["layout"], first["activation"]) == ("resnet", "relu")
    assert (start["left_out"], start["aside"]) == (["fc.weight", "fc.bias"], [])
    assert len(first["aside"]) == nets.NORMS
    relation = found["relation"]
    assert relation["pretrained"] == 0
    assert relation["blocks"][:4] == ["all", "input", "layer1.0", "layer2.0"]
    assert relation["left_out"] == []
    assert all(relation["same_start"])


def test_convert_writes_torchvisions_names_and_a_file_per_decoder(capsys, tmp_path, family):
    _, experts = family
    assert symerge("convert", experts[1], tmp_path / "out", "--to", "hf") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "states output_stride: taking 8" in said
    found = read_all(tmp_path / "out" / "model.safetensors")
    stored = read_all(experts[1])
    encoder = "model.encoder."
    assert_same(found, {n[14:]: v for n, v in stored.items() if n.startswith(encoder)})
    assert {t: one.outputs for t, one in read_decoders(tmp_path / "out").items()} == nets.TASKS
    assert symerge("verify", tmp_path / "out") == 0


def test_a_classifier_goes_through_convert_bit_by_bit(tmp_path):
    state = nets.torchvision()
    source = write_safetensors(tmp_path / "x.safetensors", state)
    assert symerge("convert", source, tmp_path / "out", "--to", "hf") == 0
    assert_same(read_all(tmp_path / "out" / "model.safetensors"), state)
    with np.load(tmp_path / "out" / "reference.npz") as file:
        assert file["logits"].shape == (2, 5)


def test_what_cannot_be_converted_is_refused(capsys, tmp_path):
    state = nets.torchvision()
    source = write_safetensors(tmp_path / "x.safetensors", state)
    words = ("convert", source, tmp_path / "out", "--to")
    line = refused(capsys, *words, "open_clip", among=tmp_path)
    assert f"{source}: a ResNet, which open_clip's layout has no names for; take --to hf" in line
    bare = {name: value for name, value in state.items() if "running" not in name}
    write_safetensors(source, bare)
    line = refused(capsys, *words, "hf", among=tmp_path)
    assert f"{source}: tensor bn1.running_mean is missing, a running statistic" in line
