"""Readers for a person's own inputs."""

from symerge_jax.data.images import ImageSplit, ImageTask, find_tasks, read_images, read_task
from symerge_jax.data.preprocess import CLIP_MEAN, CLIP_STD, normalise, resize_and_crop
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer, read_tokenizer
from symerge_jax.data.text import TextSplit, TextTask, list_text_tasks, read_text_task, read_texts

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "ImageSplit",
    "ImageTask",
    "RobertaTokenizer",
    "TextSplit",
    "TextTask",
    "find_tasks",
    "list_text_tasks",
    "normalise",
    "read_images",
    "read_task",
    "read_text_task",
    "read_texts",
    "read_tokenizer",
    "resize_and_crop",
]
