"""A whole dilated ResNet-50 with decoders gives what the same network gives in PyTorch."""

import jax
import numpy as np
import pytest

from symerge_jax.checkpoints.resnet import from_torchvision, load_resnet, source_names
from symerge_jax.checkpoints.resnet_export import save_resnet
from symerge_jax.models.dense_heads import OUTPUTS, decode, decode_in_training
from symerge_jax.models.resnet import PRESETS, encode_images, encode_in_training

pytestmark = pytest.mark.torch
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("torch")
    import torch_resnet

    return torch_resnet.made(256, (12, 24, 36), OUTPUTS)


@pytest.fixture(scope="module")
def ours(theirs):
    """The network as it is before any batch in training mode."""
    return from_torchvision({n: v.numpy().copy() for n, v in theirs.state_dict().items()})


def images(rows, height, width):
    """Patches of different brightness: a batch of noise alone has nearly no variance when pooled,
    and dividing by it makes rounding visible.
    """
    rng = np.random.default_rng(rows)
    patches = rng.random((rows, 6, 8, 3)) * np.linspace(0.3, 0.9, rows)[:, None, None, None]
    smooth = patches.repeat(height // 6, axis=1).repeat(width // 8, axis=2)
    return (smooth + 0.1 * rng.random(smooth.shape)).astype(np.float32)


def run(model, inputs):
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        features, maps = model(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy()))
    last = {"features": features, **maps}
    return {name: value.permute(0, 2, 3, 1).numpy() for name, value in last.items()}


def check(name, found, expected):
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"{name}: {error}"


def test_a_resnet_50_evaluated(theirs, ours):
    assert ours.config == PRESETS["resnet50"]
    inputs = images(1, 288, 384)
    expected = run(theirs.eval(), inputs)
    features = jax.jit(encode_images(ours.config))(ours.variables, inputs)
    assert features.shape == (1, 36, 48, 2048)
    check("features", features, expected["features"])
    for task, one in ours.decoders.items():
        maps = jax.jit(decode(one.config, (288, 384)))(one.variables, features)
        assert maps.shape == (1, 288, 384, OUTPUTS[task])
        check(task, maps, expected[task])


def test_a_resnet_50_in_training_and_the_statistics_it_leaves(theirs, ours):
    import torch_resnet

    inputs = images(3, 96, 128)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    expected = run(torch_resnet.without_dropout(theirs), inputs)
    after = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    theirs.load_state_dict(before)

    features, moved = jax.jit(encode_in_training(ours.config))(ours.variables, inputs)
    check("features", features, expected["features"])
    then = from_torchvision(after)
    names = source_names(then.variables)
    assert sum(path.startswith("batch_stats") for _, path in names) == 106
    jax.tree.map(lambda a, b: check("trunk", a, b), moved, then.variables["batch_stats"])
    for task, one in ours.decoders.items():
        maps, stats = jax.jit(decode_in_training(one.config, (96, 128)))(one.variables, features)
        check(task, maps, expected[task])
        left = then.decoders[task].variables["batch_stats"]
        jax.tree.map(lambda a, b, t=task: check(t, a, b), stats, left)


def test_what_is_written_loads_in_pytorch(tmp_path, theirs, ours):
    torch = pytest.importorskip("torch")
    import torch_resnet
    from safetensors.torch import load_file

    save_resnet(tmp_path, ours.variables, ours.config, decoders=ours.decoders, counts=ours.counts)
    trunk = torch_resnet.Trunk()
    trunk.load_state_dict(load_file(tmp_path / "model.safetensors"))  # strict
    for task, head in theirs.decoders.items():
        fresh = torch_resnet.Head(2048, 256, (12, 24, 36), OUTPUTS[task])
        fresh.load_state_dict(load_file(tmp_path / "heads" / f"{task}.safetensors"))
        for name, value in head.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value), name
    for name, value in theirs.encoder.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], value), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_of_pytorch_is_read(tmp_path, zipped, whole):
    torch = pytest.importorskip("torch")
    import torch_resnet

    sizes = {"blocks": (1, 1, 1, 1), "planes": (2, 3, 4, 5), "stem": 2, "expansion": 2}
    model = torch_resnet.made(4, (12, 24, 36), {"depth": 1}, **sizes)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    lightning = {"epoch": 3, "state_dict": state, "optimizer_states": [{"lr": 0.1}]}
    path = tmp_path / "x.ckpt"
    torch.save(model if whole else lightning, path, _use_new_zipfile_serialization=zipped)
    loaded = load_resnet(path)
    expected = from_torchvision({name: value.numpy() for name, value in state.items()})
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected.variables)
    depth = expected.decoders["depth"].variables
    jax.tree.map(np.testing.assert_array_equal, loaded.decoders["depth"].variables, depth)
    assert loaded.counts["bn1.num_batches_tracked"] == 7
