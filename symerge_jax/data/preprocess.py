"""CLIP's image preprocessing: resize and crop on the host, normalise in the compiled program.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020); the rule is that of torchvision's Resize and CenterCrop over
PIL images, with which the released weights were trained. Where the margin is odd, Hugging Face's
CLIPImageProcessor crops one pixel away from torchvision; this file follows torchvision.

The resize runs in PIL, which rounds to uint8 between its two passes: `jax.image.resize` is off by
up to 21 levels on noise. Images then stay uint8 until the program that uses them.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

# Per-channel mean and standard deviation of CLIP's training images, for pixels in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the resize, before the crop: the short edge is `size` pixels."""
    short, long = min(height, width), max(height, width)
    long = int(size * long / short)
    return (size, long) if height <= width else (long, size)


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Scales the short edge to `size` (bicubic, antialiased), then crops the centre.

    Args:
        image: uint8 [height, width] grey or [height, width, 3] RGB.
        size: edge of the square that comes out, in pixels.

    Returns:
        uint8 [size, size, 3]; grey becomes three equal channels. An image that is already
        size × size keeps its pixels.
    """
    height, width = image.shape[:2]
    if (height, width) != (size, size):
        image = _crop(_resize(image, *resized_shape(height, width, size)), size)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def normalise(images: ArrayLike) -> Array:
    """(pixel / 255 − mean) / std with CLIP's constants, inside the compiled program.

    Args:
        images: uint8 [..., height, width, 3].

    Returns:
        float32 of the same shape.
    """
    images = jnp.asarray(images)
    axes = (1,) * (images.ndim - 1) + (3,)
    mean = jnp.asarray(CLIP_MEAN, jnp.float32).reshape(axes)
    std = jnp.asarray(CLIP_STD, jnp.float32).reshape(axes)
    return (images.astype(jnp.float32) / 255 - mean) / std


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(resized)


def _crop(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = int(round((height - size) / 2)), int(round((width - size) / 2))
    return image[top : top + size, left : left + size]
