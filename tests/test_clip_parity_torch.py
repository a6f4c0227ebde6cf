"""A full ViT-B/32 CLIP with random weights gives what PyTorch's CLIPModel gives."""

import jax
import numpy as np
import pytest

from symerge_jax.checkpoints.clip import from_hugging_face, to_hugging_face
from symerge_jax.models.clip import encode_image, encode_text

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("torch")
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    # At the usual scale the blocks hardly change the residual stream; here each one counts.
    config = CLIPConfig(
        text_config={"initializer_factor": 2.0},
        vision_config={"initializer_factor": 2.0},
        initializer_factor=2.0,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "layrnorm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(3, 3, 224, 224)).astype(np.float32)
    tokens = generator.integers(1, 49000, size=(4, 77))
    for row, end in zip(tokens, (5, 12, 30, 76), strict=True):
        row[0], row[end:] = 49406, 49407
    return images, tokens


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_features_and_logits_agree(model, inputs):
    import torch

    images, tokens = inputs
    with torch.no_grad():
        pixels, ids = torch.from_numpy(images), torch.from_numpy(tokens)
        expected = model(pixel_values=pixels, input_ids=ids).logits_per_image.numpy()
        image = model.visual_projection(model.vision_model(pixels).pooler_output).numpy()
        text = model.text_projection(model.text_model(ids).pooler_output).numpy()
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    ours = from_hugging_face(tensors, model.config.to_dict())
    image_features = jax.jit(encode_image(ours.vision))(
        ours.params["vision"], images.transpose(0, 2, 3, 1)
    )
    text_features = jax.jit(encode_text(ours.text))(ours.params["text"], tokens)
    assert relative(image_features, image) <= 1e-4
    assert relative(text_features, text) <= 1e-4
    # The images (and texts) must differ from one another for agreement to mean something.
    assert relative(image[:1], image[1:2]) > 0.1
    assert relative(text[:1], text[1:2]) > 0.1

    a, b = (np.asarray(x) for x in (image_features, text_features))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    logits = np.exp(ours.params["logit_scale"]) * a @ b.T
    assert relative(logits, expected) <= 1e-4


def test_sizes_need_no_config_and_the_state_dict_survives(model):
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    ours = from_hugging_face(tensors)
    given = from_hugging_face(tensors, model.config.to_dict())
    assert (ours.vision.heads, ours.text.heads) == (given.vision.heads, given.text.heads) == (12, 8)
    again = to_hugging_face(ours.params, prefix=ours.prefix)
    assert list(again) == [name for name in tensors if name not in ours.aside]
    for name, value in again.items():
        np.testing.assert_array_equal(value, tensors[name])
