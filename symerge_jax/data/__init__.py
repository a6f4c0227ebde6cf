"""Readers for a person's own inputs."""

from symerge_jax.data.images import ImageSplit, ImageTask, find_tasks, read_images, read_task
from symerge_jax.data.preprocess import CLIP_MEAN, CLIP_STD, normalise, resize_and_crop

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "ImageSplit",
    "ImageTask",
    "find_tasks",
    "normalise",
    "read_images",
    "read_task",
    "resize_and_crop",
]
