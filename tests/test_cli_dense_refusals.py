"""What `symerge adapt`, `evaluate` and `moments` refuse of scenes, each in one sentence."""

import numpy as np
import pytest
import resnet_checkpoints as nets
import tiny_scenes
from clip_checkpoints import read_all, save, write_safetensors
from commands import refused
from PIL import Image
from tiny_scenes import PIXELS, save_scene, write_tasks

from symerge_jax.checkpoints.decoders import Decoder, write_decoder
from symerge_jax.models.dense_heads import decoder_shapes
from symerge_jax.models.resnet_config import DecoderConfig

pytestmark = pytest.mark.usefixtures("separate")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tiny_scenes.made(tmp_path_factory.getbasetemp())


@pytest.fixture
def refusal(capsys, tmp_path, scenes):
    def of(*words, alone=True, **change):
        file = write_tasks(tmp_path / "tasks.toml", scenes, **change)
        words = ("adapt", file, "--output", tmp_path / "out", *words)
        return refused(capsys, *words, among=tmp_path, alone=alone)

    return of


def own_scenes(folder, count=2, size=PIXELS, **change):
    """Scenes of one's own, with arrays replaced, or left out where they are None."""
    for i, scene in enumerate(tiny_scenes.scenes(np.random.default_rng(1), count, size)):
        save_scene(folder / f"{i}.npz", **(scene | change))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": np.full(PIXELS, 2500.0)}, "expected depths in metres, found 2500 to 2500, all"),
        ({"label13": np.full(PIXELS, 13)}, "expected labels from 0 to 12, or -1 for pixels to"),
        ({"label13": np.full(PIXELS, -2)}, "found -2 in row 0, column 0"),
        ({"label13": np.zeros((16, 16))}, "a map of 16 x 24 pixels like its image, found 16 x 16"),
        ({"normal": np.full((*PIXELS, 3), 3.0)}, "expected normals of length 1, 0 where not known"),
        ({"rgb": np.full((*PIXELS, 3), 7.5)}, "expected an image as uint8, or as floats from 0"),
    ],
)
def test_a_map_that_is_something_else(refusal, capsys, tmp_path, scenes, change, says):
    """Before anything runs, although labels are for the report alone."""
    folder = own_scenes(tmp_path / "own", **change)
    found = refusal(depth={"inputs": f"'{folder}'"})
    assert says in found
    assert str(folder / "0.npz") in found
    words = ("evaluate", scenes.experts["depth"], "--task", folder)
    assert says in refused(capsys, *words, among=tmp_path)


def test_images_of_two_sizes(refusal, tmp_path):
    folder = own_scenes(tmp_path / "small", size=(8, 12))
    says = refusal(depth={"inputs": f"'{folder}'"})
    assert "the images of task depth have 8 x 12 pixels, those of segmentation 16 x 24" in says
    for i, size in enumerate(((16, 24), (24, 16))):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "mixed" / f"{i}.png")
    says = refusal(depth={"inputs": f"'{tmp_path / 'mixed'}'"})
    assert f"{tmp_path / 'mixed' / '1.png'}: expected 16 x 24 pixels as in 0.png" in says


def test_inputs_that_are_not_there(refusal, tmp_path):
    gone = tmp_path / "gone"
    assert f"{gone}: does not exist" in refusal(depth={"inputs": f"'{gone}'"})
    gone.mkdir()
    assert f"{gone}: expected scenes" in refusal(depth={"inputs": f"'{gone}'"})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--batch-size", 1), "batch_size must be at least 2 to recalibrate batch normalisation"),
        (("--batch-norm", "freeze"), "batch_norm must be one of recalibrate, merge_stats, pretrai"),
        (("--method", "adamerging"), "[[task]] depth: depth has no classes, so its predictions"),
        (("--method", "adamerging_taskwise"), "[[task]] depth: depth has no classes, so its pred"),
    ],
)
def test_a_setting_that_cannot_be(refusal, tmp_path, words, says):
    found = refusal(*words)
    assert f"{tmp_path / 'tasks.toml'}: " in found
    assert says in found


def test_a_method_without_training(refusal):
    says = refusal("--method", "ties", adapt="")
    assert "ties is not there for dense prediction; take symerge, or `symerge merge ties`" in says


def test_entropy_of_normals_and_of_classes(refusal, scenes):
    alone = {"depth": None, "segmentation": None}
    second = {"name": "'normals b'", "expert": f"'{scenes.experts['normals']}'"}
    second["head"] = f"'{scenes.experts['normals'] / 'heads' / 'normals.safetensors'}'"
    says = refusal("--method", "adamerging", **(alone | {"depth": second}))
    assert "[[task]] normals b: normal has no classes" in says
    second = {"name": "'segmentation b'", "expert": f"'{scenes.experts['segmentation']}'"}
    head = scenes.experts["segmentation"] / "heads" / "segmentation.safetensors"
    second["head"] = f"'{head}'"
    says = refusal("--method", "adamerging", depth=second, normals=None)
    assert "adamerging is not there for dense prediction; take symerge" in says


def test_one_image_has_nothing_to_recalibrate_with(refusal, tmp_path):
    folder = own_scenes(tmp_path / "one", count=1)
    says = refusal(depth={"inputs": f"'{folder}'"})
    assert f"{folder}: task depth has one image, which has no variance to recalibrate" in says
    assert "task segmentation has one image" in refusal("--limit", 1)


def test_a_checkpoint_without_running_statistics(refusal, tmp_path, scenes):
    tensors = read_all(scenes.base / "model.safetensors")
    base = save(tmp_path / "base", {n: v for n, v in tensors.items() if "running" not in n})
    says = refusal(model={"pretrained": f"'{base}'"})
    assert "running_mean" in says
    tensors = read_all(scenes.experts["depth"] / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "running" not in name}
    write_safetensors(tmp_path / "expert.safetensors", kept)
    says = refusal(depth={"expert": f"'{tmp_path / 'expert.safetensors'}'"})
    assert f"{tmp_path / 'expert.safetensors'}: " in says
    assert "running_mean" in says


def decoder_file(folder, outputs=1, **sizes):
    config = DecoderConfig(**({"features": 8, "width": 3, "rates": (2,)} | sizes))
    drawn = tiny_scenes.drawn(np.random.default_rng(0), decoder_shapes(config, outputs))
    return write_decoder(folder, "own", Decoder(drawn, config))


def test_a_decoder_that_is_none_of_this_trunk(refusal, tmp_path, scenes):
    path = decoder_file(tmp_path, features=16)
    says = refusal(depth={"head": f"'{path}'"})
    assert f"{path}: the decoder takes features of width 16, but {scenes.base} gives 8" in says
    path = decoder_file(tmp_path, width=5)
    says = refusal(depth={"head": f"'{path}'"})
    assert f"{path}: the decoder has width 5 and dilations (2,), that of" in says
    path = decoder_file(tmp_path, outputs=2)
    says = refusal(depth={"head": f"'{path}'"})
    assert f"{path}: the decoder of task depth gives 2 maps, but depth has 1" in says
    says = refusal(segmentation={"head": f"'{path}'"})
    assert f"{scenes.rooms}: has labels up to 12, but {path} has 2 classes" in says


def test_a_task_without_a_decoder(refusal, tmp_path, scenes):
    says = refusal(depth={"expert": f"'{scenes.base}'"})
    assert f"{scenes.base}: no decoder in the weights and no heads/depth.safetensors" in says
    says = refusal(depth={"classes": "['a', 'b']", "templates": "['a {}']"})
    assert "[[task]] depth has classes and templates, from which no head for scenes can" in says
    base, experts = nets.family(tmp_path / "family")
    change = {task: {"expert": f"'{path}'"} for task, path in zip(nets.TASKS, experts, strict=True)}
    change = {"normals" if task == "normal" else task: one for task, one in change.items()}
    says = refusal(model={"pretrained": f"'{base}'"}, alone=False, **change)
    assert f"{experts[2]}: holds decoders of segmentation, depth, normal, and none is" in says


def test_what_evaluate_refuses(capsys, tmp_path, scenes):
    def refusal(*words, model=scenes.experts["depth"]):
        return refused(capsys, "evaluate", model, *words, among=tmp_path)

    assert "not one pixel of the scenes has a depth, so there is nothing to score" in refusal(
        "--task", scenes.plain
    )
    own = own_scenes(tmp_path / "depth", depth=None)
    says = refusal("--task", own)
    assert "expected depth maps of the scenes, found none; add them, or leave that task" in says
    assert "has no head 'normals'; it has depth" in refusal("--task", own, "--head", "normals")
    assert "--batch-size has no part in" in refusal("--task", own, "--batch-size", 4)
    assert "has no head 'depth', nor any other" in refusal("--task", own, model=scenes.base)


def test_moments_are_not_made_of_a_resnet(capsys, tmp_path, scenes):
    words = ("--inputs", scenes.plain, "--output", tmp_path / "out.safetensors")
    says = refused(capsys, "moments", scenes.experts["depth"], *words, among=tmp_path)
    assert f"{scenes.experts['depth']}: a ResNet, of which no statistics can be made" in says
