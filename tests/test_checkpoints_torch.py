"""Full-size CLIP through files: from transformers to Flax features and back, tensor by tensor."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest

from symerge_jax.checkpoints.clip import fuse_qkv, to_open_clip
from symerge_jax.checkpoints.export import write_model
from symerge_jax.checkpoints.open import load_clip, open_checkpoint
from symerge_jax.merge_files import merge_files
from symerge_jax.merge_plan import plan
from symerge_jax.models.clip import encode_image, encode_text
from symerge_jax.verify import verify, write_reference

pytestmark = [pytest.mark.torch, pytest.mark.slow]

TOLERANCE = 1e-4
# Sizes of openai/clip-vit-large-patch14's image tower; those of B/32 are transformers' defaults.
L14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
CONTAINERS = ["safetensors", "sharded", "bin", "sharded bin"]


@pytest.fixture(scope="module", autouse=True)
def libraries():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.fixture
def disk(tmp_path):
    """A folder that is emptied at once: a full-size copy is up to 1.7 GB."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
    gc.collect()


def randomised(model):
    """At the usual scale the blocks hardly change the residual stream; here each one counts."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "layrnorm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module")
def clip_b32():
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    factors = {"initializer_factor": 2.0}
    config = CLIPConfig(text_config=dict(factors), vision_config=dict(factors), **factors)
    return randomised(CLIPModel(config))


@pytest.fixture(scope="module")
def tower_l14():
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    config = CLIPVisionConfig(**L14, initializer_factor=2.0)
    return randomised(CLIPVisionModelWithProjection(config))


def saved(model, folder, container):
    """Saves a model as transformers and people do."""
    import torch

    size = "250MB" if container.startswith("sharded") else "50GB"
    if container in ("safetensors", "sharded"):
        model.save_pretrained(folder, max_shard_size=size)
    elif container == "bin":
        folder.mkdir()
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        bin_shards(model, folder)
    return folder


def bin_shards(model, folder, shards=3):
    import torch

    model.config.save_pretrained(folder)
    state, index = model.state_dict(), {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        # A copy, since torch.save writes the whole storage of a view.
        mine = {name: state[name].clone() for name in list(state)[i::shards]}
        torch.save(mine, folder / file)
        index |= dict.fromkeys(mine, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "pytorch_model.bin.index.json").write_text(text)


def images(count=2):
    return np.random.default_rng(0).normal(size=(count, 3, 224, 224)).astype(np.float32)


def tokens():
    drawn = np.random.default_rng(0).integers(1, 49000, size=(3, 77))
    for row, end in zip(drawn, (5, 30, 76), strict=True):
        row[0], row[end:] = 49406, 49407
    return drawn


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def image_features(loaded, pixels):
    return jax.jit(encode_image(loaded.vision))(
        loaded.params["vision"], pixels.transpose(0, 2, 3, 1)
    )


def theirs_of(model, pixels):
    """What transformers' class gives as the image's feature."""
    import torch

    with torch.no_grad():
        found = model(pixel_values=torch.from_numpy(pixels))
    name = "image_embeds" if hasattr(found, "image_embeds") else "pooler_output"
    return getattr(found, name).numpy()


def assert_same_tensors(found, expected):
    import torch

    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def loaded_without_a_complaint(cls, folder):
    """Loads a folder with transformers; no key missing, none too many, none of another shape."""
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in report), report
    return model.eval()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_full_clip_survives_reading_and_writing(disk, clip_b32, container):
    import torch
    from transformers import CLIPModel

    folder = saved(clip_b32, disk / "in", container)
    loaded = load_clip(folder, text=True)
    assert (
        loaded.source.container
        == {
            "safetensors": "safetensors",
            "bin": "torch zip",
            "sharded": f"safetensors, {len(loaded.source.parts)} shards",
            "sharded bin": "torch zip, 3 shards",
        }[container]
    )
    assert container != "sharded" or len(loaded.source.parts) > 2
    pixels, ids = images(), tokens()
    with torch.no_grad():
        found = clip_b32(pixel_values=torch.from_numpy(pixels), input_ids=torch.from_numpy(ids))
    image = np.asarray(image_features(loaded, pixels))
    text = np.asarray(jax.jit(encode_text(loaded.text))(loaded.params["text"], ids))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    assert relative(a, found.image_embeds.numpy()) <= TOLERANCE
    assert relative(b, found.text_embeds.numpy()) <= TOLERANCE
    logits = np.exp(loaded.params["logit_scale"]) * a @ b.T
    assert relative(logits, found.logits_per_image.numpy()) <= TOLERANCE

    write_model(disk / "out", loaded.params, like=loaded.source)
    shutil.rmtree(folder)
    again = loaded_without_a_complaint(CLIPModel, disk / "out")
    assert_same_tensors(again, clip_b32)
    with torch.no_grad():
        again = again(pixel_values=torch.from_numpy(pixels), input_ids=torch.from_numpy(ids))
    assert relative(again.logits_per_image.numpy(), found.logits_per_image.numpy()) <= TOLERANCE


@pytest.mark.parametrize("container", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_an_image_tower_survives_reading_and_writing(disk, name, container):
    import torch
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(2)
    model = randomised(cls(transformers.CLIPVisionConfig(initializer_factor=2.0)))
    round_trip(disk, model, cls, container)


@pytest.mark.parametrize("container", ["sharded", "bin"])
def test_a_large_image_tower_survives_reading_and_writing(disk, tower_l14, container):
    from transformers import CLIPVisionModelWithProjection

    round_trip(disk, tower_l14, CLIPVisionModelWithProjection, container)


def round_trip(disk, model, cls, container):
    folder = saved(model, disk / "in", container)
    loaded = load_clip(folder)
    expected = theirs_of(model, images())
    assert relative(expected[:1], expected[1:]) > 0.01  # else agreement would mean nothing
    assert relative(image_features(loaded, images()), expected) <= TOLERANCE
    write_model(disk / "out", loaded.params, like=loaded.source)
    shutil.rmtree(folder)
    again = loaded_without_a_complaint(cls, disk / "out")
    assert_same_tensors(again, model)
    assert relative(theirs_of(again, images()), expected) <= TOLERANCE


def as_open_clip(model, folder, prefix):
    """The state dict that open_clip would have saved, and the tree it was made from."""
    loaded = load_clip(saved(model, folder, "safetensors"), text=True)
    tree = {k: fuse_qkv(v) if isinstance(v, dict) else v for k, v in loaded.params.items()}
    shutil.rmtree(folder)
    return to_open_clip(tree, prefix=prefix)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_open_clip_state_dict_becomes_a_model_of_transformers(disk, clip_b32, prefix):
    import torch
    from transformers import CLIPModel

    from symerge_jax.cli.convert import write_folder

    tensors = as_open_clip(clip_b32, disk / "hf", prefix)
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    torch.save(state, disk / "open_clip.pt")
    del tensors, state
    write_folder(
        open_checkpoint(disk / "open_clip.pt"), disk / "out", "hugging_face", overwrite=False
    )
    again = loaded_without_a_complaint(CLIPModel, disk / "out")
    assert_same_tensors(again, clip_b32)
    pixels, ids = torch.from_numpy(images()), torch.from_numpy(tokens())
    with torch.no_grad():
        found, expected = (
            m(pixel_values=pixels, input_ids=ids).logits_per_image.numpy()
            for m in (again, clip_b32)
        )
    assert relative(found, expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_merged_experts_are_a_model_of_transformers(disk, name):
    import torch
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(3)
    start = randomised(cls(transformers.CLIPVisionConfig(initializer_factor=2.0)))
    state = {key: value.clone() for key, value in start.state_dict().items()}
    saved(start, disk / "base", "safetensors")
    for k in range(2):
        with torch.no_grad():
            for weight in start.parameters():
                weight.add_(0.002 * torch.randn_like(weight))
        saved(start, disk / f"expert{k}", "safetensors" if k else "bin")
    chosen = plan(disk / "base", [disk / "expert0", disk / "expert1"])
    merge_files(chosen, "task_arithmetic", disk / "out", finish=write_reference)
    merged = loaded_without_a_complaint(cls, disk / "out")
    first, second = (cls.from_pretrained(disk / f"expert{k}").state_dict() for k in range(2))
    for key, value in merged.state_dict().items():
        if not value.is_floating_point():
            continue
        wanted = state[key] + 0.3 * (first[key] + second[key] - 2 * state[key])
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    expected = theirs_of(merged, images())
    assert relative(image_features(load_clip(disk / "out"), images()), expected) <= TOLERANCE
    assert all(finding.holds for finding in verify(disk / "out"))
