"""Image classification tasks: the embedded world's and those in a person's own folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.task import Split, Task, check_known, first, hold_out
from experiments.tiny import world
from experiments.tiny.base import Base
from symerge_jax.cache import cached
from symerge_jax.cli.progress import say
from symerge_jax.data.images import read_task
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import encode_text
from symerge_jax.models.heads import Head, zero_shot_head

TRAIN, TEST = 2000, 500  # pictures per task of the embedded world


def generated(
    names: Sequence[str],
    base: Base,
    *,
    limit: int | None,
    cache: Path,
) -> list[Task]:
    """Draws tasks of the embedded world (or finds them drawn) and writes their zero-shot heads.

    There is one world: the pictures do not depend on a run's seed.

    Raises:
        BadInput: an unknown task.
    """
    for name in names:
        check_known(name, world.TASKS, "task")
    key = {"world": world.worlds_digest(), "train": TRAIN, "test": TEST}
    read = jax.jit(encode_text(base.config.text))

    def text(tokens: jax.Array) -> jax.Array:
        return read(base.params["text"], tokens)

    tasks = []
    for name in names:

        def draw(name: str = name) -> dict[str, dict[str, np.ndarray]]:
            train = world.images(name, split="train", count=TRAIN, seed=0)
            test = world.images(name, split="test", count=TEST, seed=0)
            return {
                split: {"images": images, "labels": labels}
                for split, (images, labels) in (("train", train), ("test", test))
            }

        drawn = cached(cache, "pictures", key | {"task": name}, draw, report=say)
        train, validation = hold_out(_split(drawn["train"]))
        test = _split(drawn["test"])
        classes = world.FAMILIES[name].classes
        head = zero_shot_head(text, base.tokenizer, classes, world.TEMPLATES, scale=base.scale())
        tasks.append(Task(name, classes, train, validation, first(test, limit), head))
    return tasks


def _split(kept: dict[str, np.ndarray]) -> Split:
    return Split(kept["images"], kept["labels"])


def from_folders(folder: Path, names: Sequence[str], *, size: int, limit: int | None) -> list[Task]:
    """Reads tasks from `folder/<task>`, each image at `size` pixels.

    Raises:
        BadInput: unreadable data, or too few labels to train and score an expert.
    """
    tasks = []
    for name in names:
        task = read_task(folder, name, size=size)
        splits = {}
        for part in ("train", "validation", "test"):
            split = getattr(task, part)
            if split is None or split.labels is None:
                raise BadInput(
                    f"{folder / name}: the {part} images have no labels; fine-tuning an expert and "
                    "scoring it need them (labels in the npz, or one folder per class)"
                )
            splits[part] = Split(split.images, split.labels)
        if len(np.unique(splits["train"].labels)) < 2:
            raise BadInput(
                f"{folder / name}: the training images show fewer than two classes; an expert "
                "cannot be trained on them"
            )
        splits["test"] = first(splits["test"], limit)
        assert task.classes is not None  # whoever has labels has classes
        tasks.append(Task(name, task.classes, **splits, head=None))
    return tasks


def probe(features: np.ndarray, labels: np.ndarray, classes: int, *, scale: float) -> Head:
    """Fits a linear head on normalised features: where experts without a zero-shot head begin.

    Args:
        features: [n, d].
        labels: int [n].
        classes: number of rows; a class without an image gets a zero row and a low bias.
        scale: what the features are multiplied by, as logits are in CLIP.
    """
    from sklearn.linear_model import LogisticRegression

    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    fitted = LogisticRegression(C=1.0, max_iter=500, tol=1e-3).fit(scale * unit, labels)
    weight = np.zeros((classes, features.shape[1]), np.float32)
    bias = np.full(classes, -10.0, np.float32)
    rows, offsets = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps one row then
        rows, offsets = np.stack([-rows[0], rows[0]]) / 2, np.array([-offsets[0], offsets[0]]) / 2
    weight[fitted.classes_] = scale * rows
    bias[fitted.classes_] = offsets
    return {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}
