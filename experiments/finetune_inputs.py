"""What fine-tuning starts from: a pre-trained image tower, a task's images and labels, a head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experts import PROBE_SCALE
from experiments.tasks import clip_data, clip_heads
from experiments.tasks.clip_sets import ClipSet
from experiments.tasks.images import from_folders, probe
from experiments.tasks.task import Split, first
from experiments.tiny import base as tiny
from symerge_jax.cache import digest
from symerge_jax.checkpoints.heads import read_head
from symerge_jax.checkpoints.open import Loaded, load_clip
from symerge_jax.cli.progress import say
from symerge_jax.data.crops import Images, Originals
from symerge_jax.data.image_cache import files_key
from symerge_jax.data.meta import read_meta
from symerge_jax.errors import BadInput
from symerge_jax.evaluate import predict
from symerge_jax.models.clip_config import PRESETS, VisionConfig
from symerge_jax.models.heads import Head, Template
from symerge_jax.notation import Params
from symerge_jax.text_heads import head_from_text

TINY = tiny.Settings.model
_TEMPLATES = ("a photo of a {}.",)  # for a folder of one's own that names none


class Start(NamedTuple):
    """The pre-trained model.

    Attributes:
        vision: sizes of the image tower.
        params: of the image tower, float32.
        path: what the person named; None for the embedded model.
        loaded: the checkpoint; None for the embedded model.
    """

    vision: VisionConfig
    params: Params
    path: str | None
    loaded: Loaded | None


class TaskData(NamedTuple):
    """A task's images and labels.

    Attributes:
        classes: names, in label order.
        train: images of any size; decoded when they are asked for.
        labels: of `train`, int32 [n].
        test: of the model's size.
        key: digest of the training images and labels.
        clip_set: its row, if it is one of the benchmark's.
        names: of the classes as the benchmark's data gives them.
        prompts: names for prompts, a list of synonyms per class, and templates; None where they
            are not known.
    """

    classes: tuple[str, ...]
    train: Images
    labels: np.ndarray
    test: Split
    key: str
    clip_set: ClipSet | None = None
    names: tuple[str, ...] | None = None
    prompts: tuple[tuple[tuple[str, ...], ...], tuple[Template, ...]] | None = None


def load_start(model: str, pretrained: str | None) -> Start:
    """Reads the pre-trained image tower.

    Raises:
        BadInput: nothing was named, it cannot be read, or it is another model than `model`.
    """
    if pretrained is None:
        if model != TINY:
            raise BadInput(
                f"--model {model} needs --pretrained: a CLIP folder or file, or a name on the hub "
                "such as openai/clip-vit-base-patch32"
            )
        base = tiny.load()
        return Start(base.config.vision, base.params["vision"], None, None)
    loaded = load_clip(pretrained)
    for note in loaded.notes:
        say(f"{pretrained}: {note}")
    expected = PRESETS[model].vision
    for name in ("image_size", "patch_size", "width", "depth"):
        found, wanted = getattr(loaded.vision, name), getattr(expected, name)
        if found != wanted:
            raise BadInput(f"{pretrained}: its {name} is {found}, but that of {model} is {wanted}")
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), loaded.params["vision"])
    return Start(loaded.vision, params, pretrained, loaded)


def from_clip_sets(
    data: Path, task: str, *, size: int, whole: bool, limit: int | None, cache: Path
) -> TaskData:
    """Reads one of the benchmark's sets. Encoded images that lie in tables are kept in memory.

    Args:
        data: folder with a folder per set.
        task: name of the set.
        size: edge of the test images, in pixels.
        whole: train on the validation images too.
        limit: largest number of images of each split, drawn with seed 0.
        cache: root of the cache of decoded test images.

    Raises:
        BadInput: no such data, or it is unreadable.
    """
    reader = clip_data.find_set(data, task)
    for line in clip_data.differences(reader):
        say(f"warning: {line}")
    split, rows = clip_data.part_rows(reader, "train")
    if whole:
        rows = np.arange(clip_data.rows_of(reader, split).count)
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:limit])
    stored = reader.splits[split]
    sources, wheres = zip(*stored.images(rows), strict=True)
    labels = reader.labels(split)[rows]
    test = clip_data.read_split(reader, "test", size=size, cache=cache, limit=limit)
    count = max(int(labels.max()), int(test.labels.max())) + 1
    return TaskData(
        reader.names or tuple(map(str, range(max(count, reader.set.classes)))),
        Originals(sources, wheres, size=size),
        labels,
        test,
        digest(files_key(stored.files, root=reader.folder), split, rows, labels),
        reader.set,
        reader.names,
    )


def from_own_folder(
    data: Path, task: str, *, size: int, whole: bool, limit: int | None
) -> TaskData:
    """Reads a person's own folder; its images are made square first, and crops are cut from those.

    Raises:
        BadInput: it is missing or unreadable, or has no labels.
    """
    (found,) = from_folders(data, [task], size=size, limit=limit)
    parts = [found.train, found.validation] if whole else [found.train]
    train = first(Split(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))), limit)
    meta = read_meta(data / task / "meta.json")
    prompts = None
    if meta.clip_classes or meta.classes:
        names = meta.clip_classes or tuple((name,) for name in found.classes)
        prompts = names, meta.templates or _TEMPLATES
    return TaskData(
        found.classes, train.inputs, train.labels, found.test, digest(*train), prompts=prompts
    )


def task_head(
    start: Start, data: TaskData, encode: Callable[[Params, Any], Any], file: Path | None
) -> tuple[Head, str]:
    """Returns the head that the expert is trained against, and where it comes from.

    Raises:
        BadInput: the file is no head for this model and task, or class names are needed and not
            there.
    """
    if file is not None:
        stored = read_head(file)
        features = start.vision.projection or start.vision.width
        shape = (len(data.classes), features)
        if stored.head["weight"].shape != shape:
            raise BadInput(
                f"{file}: its weight is {list(stored.head['weight'].shape)}, expected "
                f"{list(shape)}: one row per class, one column per feature of the model"
            )
        return jax.tree.map(jnp.asarray, stored.head), str(file)
    if _has_text(start) and (data.clip_set is not None or data.prompts is not None):
        return _zero_shot(start, data), "zero-shot"
    count = min(len(data.labels), 20_000)
    rows = np.sort(np.random.default_rng(0).permutation(len(data.labels))[:count])
    features = predict(encode, start.params, _squares(data.train, rows, start.vision.image_size))
    head = probe(features, data.labels[rows], len(data.classes), scale=PROBE_SCALE)
    return head, "linear probe on the pre-trained features"


def _has_text(start: Start) -> bool:
    return start.loaded is not None and any(
        name.startswith(("text_model.encoder.", "transformer.resblocks."))
        for name in start.loaded.names.source
    )


def _zero_shot(start: Start, data: TaskData) -> Head:
    assert start.loaded is not None
    assert start.path is not None
    if data.clip_set is not None:
        return clip_heads.build_head(data.clip_set, data.names, start.path)
    assert data.prompts is not None
    return head_from_text(load_clip(start.loaded.source, text=True), *data.prompts)


def _squares(images: Images, rows: np.ndarray, size: int) -> np.ndarray:
    from symerge_jax.data.decode import decode_images

    sources = [images[int(row)] for row in rows]
    return decode_images(sources, [f"training image {row}" for row in rows], size=size)
