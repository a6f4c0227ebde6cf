"""Finding and reading ResNet experts: own folders, files of training programs, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import resnet_checkpoints as nets
from clip_checkpoints import save, write_safetensors

from experiments import resnet_folders
from experiments.tasks.task import Split, Task
from symerge_jax.checkpoints.decoders import write_decoder
from symerge_jax.checkpoints.resnet_export import save_resnet
from symerge_jax.errors import BadInput
from symerge_jax.models.resnet import variable_shapes

SIZE = (16, 24)
_NONE = Split(np.zeros((0, *SIZE, 3), np.uint8), np.zeros((0, *SIZE), np.int8))
TASKS = [Task(name, ("x",) * n, _NONE, _NONE, _NONE) for name, n in nets.TASKS.items()]
NAMES = [task.name for task in TASKS]


def family(folder):
    """A trunk as torchvision's file, two experts of a training program, one as a folder."""
    base, experts = nets.family(folder / "made")
    base.rename(folder / "resnet50-abc.safetensors")
    experts[0].rename(folder / "segmentation.ckpt")
    experts[1].rename(folder / "resnet50_depth.safetensors")
    trunk = {**nets.variables(), "params": nets.variables(5)["params"]}
    decoders = {"normal": nets.decoder(3, seed=7)}
    save_resnet(folder / "normal", trunk, nets.SIZES, decoders=decoders)
    return folder


@pytest.fixture
def folder(tmp_path):
    return family(tmp_path)


def test_files_of_a_training_program_and_folders_are_read_alike(folder):
    found = resnet_folders.find(folder, NAMES)
    assert found.pretrained.name == "resnet50-abc.safetensors"
    assert [path.name for path in found.experts] == [
        "segmentation.ckpt", "resnet50_depth.safetensors", "normal",
    ]  # fmt: skip
    read = resnet_folders.read(found, TASKS, SIZE, "float32")
    assert read.source.config == nets.SIZES
    assert read.decoders == nets.HEAD
    tau = read.experts.task_vectors
    own = nets.variables(5)["params"]["conv1"]["kernel"]
    start = nets.variables()["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(tau["params"]["conv1"]["kernel"][2], own - start, rtol=1e-6)
    assert not np.any(tau["batch_stats"]["bn1"]["var"][2])  # left as they were there
    assert np.all(tau["batch_stats"]["bn1"]["var"][0])
    for k, (task, count) in enumerate(nets.TASKS.items()):
        seed = 7 if task == "normal" else k
        expected = nets.decoder(count, seed=seed).variables["params"]["out"]["bias"]
        np.testing.assert_array_equal(read.experts.heads[k]["params"]["out"]["bias"], expected)
    assert np.asarray(read.experts.classes).tolist() == [
        [True] * 3, [True, False, False], [True] * 3,
    ]  # fmt: skip
    assert read.model.family == "ResNet"


def test_an_output_stride_that_an_expert_states_is_that_of_all(folder):
    (folder / "segmentation.ckpt").unlink()
    save(folder / "segmentation", nets.torchvision(classes=None), {"output_stride": 8})
    found = resnet_folders.find(folder, NAMES[:1])
    with pytest.raises(BadInput, match="no decoder of segmentation in them .found none."):
        resnet_folders.read(found, TASKS[:1], SIZE, "float32")
    save_resnet(folder / "x", nets.variables(), nets.SIZES)
    (folder / "x" / "config.json").write_text('{"output_stride": 16}')
    found = found._replace(experts=(folder / "normal", folder / "x"))
    with pytest.raises(BadInput, match="x: has output stride 16, but .*normal has 8"):
        resnet_folders.read(found, TASKS[:2], SIZE, "float32")
    found = found._replace(experts=(folder / "resnet50_depth.safetensors",))
    read = resnet_folders.read(found._replace(pretrained=folder / "x"), TASKS[1:2], SIZE, "float32")
    assert read.source.config.output_stride == 16


def test_what_is_missing_or_there_twice_is_named(folder):
    with pytest.raises(BadInput, match="there is no such folder"):
        resnet_folders.find(folder / "none", NAMES)
    (folder / "depth").mkdir()
    with pytest.raises(BadInput, match=r"one expert of depth, found depth, resnet50_depth\.safe"):
        resnet_folders.find(folder, NAMES)
    (folder / "depth").rmdir()
    (folder / "resnet50_depth.safetensors").unlink()
    with pytest.raises(BadInput, match="--task depth --out OUT` trains it"):
        resnet_folders.find(folder, NAMES)
    write_safetensors(folder / "resnet50.pth", nets.torchvision())
    with pytest.raises(BadInput, match=r"one pre-trained trunk, found resnet50-abc.*, resnet50\."):
        resnet_folders.find(folder, NAMES)
    for path in folder.glob("resnet50*"):
        path.unlink()
    with pytest.raises(BadInput, match="experiments.prepare dense --checkpoints"):
        resnet_folders.find(folder, NAMES)


def test_models_that_do_not_belong_together_are_refused(folder):
    found = resnet_folders.find(folder, NAMES)
    found = found._replace(experts=found.experts[2:])
    with pytest.raises(BadInput, match="its decoder gives 3 maps, but normal has 1"):
        resnet_folders.read(found, [TASKS[2]._replace(classes=("x",))], SIZE, "float32")
    rates = replace(nets.HEAD, rates=(2, 4, 6))  # the shapes are the same
    write_decoder(folder / "normal", "depth", nets.decoder(1)._replace(config=rates))
    both = found._replace(experts=found.experts * 2)
    with pytest.raises(BadInput, match="experts that are merged have decoders of one kind"):
        resnet_folders.read(both, TASKS[1:], SIZE, "float32")
    larger = replace(nets.SIZES, stem=6)
    save_resnet(folder / "other", nets.drawn(variable_shapes(larger), 0), larger)
    with pytest.raises(BadInput, match="it is no expert made from it"):
        resnet_folders.read(found._replace(pretrained=folder / "other"), TASKS[2:], SIZE, "float32")
