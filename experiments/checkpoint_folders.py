"""Finds the public CLIP experts below one folder, in the layouts in which they are published.

    tanganke            clip-vit-base-patch32/, clip-vit-base-patch32_eurosat/ (Hugging Face)
    task_vectors, tint  ViT-B-32/zeroshot.pt, ViT-B-32/EuroSAT/finetuned.pt,
                        ViT-B-32/head_EuroSAT.pt
    tall_masks          ViT-B-32/EuroSATVal/nonlinear_{zeroshot,finetuned}.pt,
                        ViT-B-32/head_EuroSATVal.pt (or without Val)
    own                 pretrained/, eurosat/ with heads/eurosat.safetensors, as
                        experiments.finetune and `symerge` write them

Wherever a .pt file is expected, a .safetensors file of the same name does too. An expert is only
good with the head it was trained against: where no head lies there it is written by the text tower
of the pre-trained model, which tanganke's experts were trained against.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from experiments.experts import Experts, Model, Stored, differences
from experiments.prepare_needs import MODELS
from experiments.tasks.clip_data import Reader
from experiments.tasks.clip_heads import build_head
from experiments.tasks.clip_sets import ClipSet
from symerge_jax.cache import digest
from symerge_jax.checkpoints.heads import StoredHead, read_head
from symerge_jax.checkpoints.open import Loaded, load_clip
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.classifier import encoder
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput
from symerge_jax.merge_plan import plan
from symerge_jax.models.clip_config import PRESETS
from symerge_jax.models.heads import Head, stack_heads
from symerge_jax.notation import Params
from symerge_jax.score import computable
from symerge_jax.task_vectors import check_finite

SUFFIXES = (".pt", ".safetensors")


class Place(NamedTuple):
    """Where one task's expert and head are; no head means a zero-shot head."""

    encoder: Path
    head: Path | None


class Folder(NamedTuple):
    """A checkpoint folder: its layout, the pre-trained model, and a place per task."""

    layout: str
    pretrained: Path
    experts: tuple[Place, ...]


class Read(NamedTuple):
    """The real benchmark's models: the encoder, its checkpoint, and the experts."""

    model: Model
    loaded: Loaded
    experts: Experts


def find(folder: Path, model: str, sets: Sequence[ClipSet]) -> Folder:
    """Finds the pre-trained model and one expert per set.

    Raises:
        BadInput: no layout is there, or one is but lacks a file (named, with where it belongs).
    """
    if not folder.is_dir():
        raise BadInput(f"--checkpoints {folder}: there is no such folder")
    return (
        _hugging_face(folder, model, sets)
        or _pickled(folder, model, sets)
        or _own(folder, sets)
        or _nothing(folder, model)
    )


def _nothing(folder: Path, model: str) -> Folder:
    raise BadInput(
        f"--checkpoints {folder}: expected {MODELS[model]}/ (Hugging Face), {model}/zeroshot.pt "
        f"(task_vectors), {model}/<Set>Val/nonlinear_zeroshot.pt (TALL-masks) or pretrained/; "
        f"`python -m experiments.prepare vision --model {model} --checkpoints {folder}` fetches "
        "them or says where they belong"
    )


def _hugging_face(folder: Path, model: str, sets: Sequence[ClipSet]) -> Folder | None:
    start = folder / MODELS[model]
    if not start.is_dir():
        return None
    places = []
    for row in sets:
        here = _require(folder / f"{MODELS[model]}_{row.suffix}", "the expert")
        own = here / "heads" / f"{row.key}.safetensors"
        places.append(Place(here, own if own.is_file() else None))
    return Folder("tanganke", start, tuple(places))


def _pickled(folder: Path, model: str, sets: Sequence[ClipSet]) -> Folder | None:
    root = folder / model if (folder / model).is_dir() else folder
    start = _file(root / "zeroshot")
    tall = [row for row in sets if _file(root / f"{row.name}Val" / "nonlinear_finetuned")]
    if start is None and tall:
        start = next(
            filter(None, (_file(root / f"{row.name}Val" / "nonlinear_zeroshot") for row in tall)),
            None,
        )
    if start is None:
        return None
    places = []
    for row in sets:
        names = [f"{row.name}Val/nonlinear_finetuned", f"{row.name}/finetuned"]
        names = names if tall else names[::-1]
        expert = next(filter(None, (_file(root / name) for name in names)), None)
        expert = expert or _require(root / f"{names[0]}.pt", "the expert")
        heads = (f"head_{row.name}Val", f"head_{row.name}")
        head = next(filter(None, (_file(root / name) for name in heads)), None)
        places.append(Place(expert, head or _require(root / f"{heads[1]}.pt", "its head")))
    return Folder("tall_masks" if tall else "task_vectors", start, tuple(places))


def _own(folder: Path, sets: Sequence[ClipSet]) -> Folder | None:
    if not (folder / "pretrained").is_dir():
        return None
    places = []
    for row in sets:
        here = _require(folder / row.key, "the expert")
        head = _require(here / "heads" / f"{row.key}.safetensors", "its head")
        places.append(Place(here, head))
    return Folder("own", folder / "pretrained", tuple(places))


def _file(stem: Path) -> Path | None:
    found = [stem.parent / (stem.name + suffix) for suffix in SUFFIXES]
    return next((path for path in found if path.is_file()), None)


def _require(path: Path, what: str) -> Path:
    if not path.exists():
        raise BadInput(f"{path}: {what} is expected there and was not found")
    return path


def read(
    found: Folder, model: str, sets: Sequence[ClipSet], readers: Sequence[Reader], dtype: str
) -> Read:
    """Reads the pre-trained model, the heads and all task vectors.

    Args:
        found: where they are.
        model: which preset it must be, such as ViT-B-32.
        sets: the tasks, in the order of `found.experts`.
        readers: the data of each task, for the class names of zero-shot heads.
        dtype: of the computation.

    Raises:
        BadInput: unreadable files, or models that do not belong together.
    """
    say(f"checkpoints: {found.layout} layout, pre-trained {found.pretrained}")
    paths = [place.encoder for place in found.experts]
    planned = plan(found.pretrained, paths, [row.key for row in sets])
    text = any(place.head is None for place in found.experts)
    loaded = load_clip(planned.pretrained, text=text)
    for note in loaded.notes:
        say(f"{found.pretrained}: {note}")
    _check_preset(found.pretrained, loaded, model)
    tower = computable(loaded.params["vision"])
    heads = [
        _head(place, row, reader, loaded)
        for place, row, reader in zip(found.experts, sets, readers, strict=True)
    ]
    for head, row, place in zip(heads, sets, found.experts, strict=True):
        _check_head(head, row, place, loaded)
    experts = Stored(planned.experts, partial(_tower, tower=tower))
    tau = differences(experts, tower, lambda k: say(f"{sets[k].key}: expert {paths[k]}"))
    check_finite(tau, [row.key for row in sets])
    stacked, classes = stack_heads(heads)
    name = f"{loaded.vision} {digest(tower)} {dtype}"
    return Read(
        Model(encoder(loaded.vision, dtype), tower, name, loaded.vision),
        loaded,
        Experts(experts, heads, heads, tau, stacked, classes),
    )


def _tower(checkpoint: Checkpoint, tower: Params) -> Params:
    own = computable(load_clip(checkpoint).params["vision"])
    return {**tower, **own}  # a projection that the expert lacks was not trained


def _head(place: Place, row: ClipSet, reader: Reader, loaded: Loaded) -> Head:
    if place.head is not None:
        return _arrays(read_head(place.head))
    return build_head(row, reader.names, loaded)


def _arrays(stored: StoredHead) -> Head:
    return {name: jnp.asarray(value) for name, value in stored.head.items()}


def _check_preset(path: Path, loaded: Loaded, model: str) -> None:
    expected = PRESETS[model].vision
    for key in ("image_size", "patch_size", "width", "depth"):
        here, wanted = getattr(loaded.vision, key), getattr(expected, key)
        if here != wanted:
            raise BadInput(f"{path}: its {key} is {here}, but that of {model} is {wanted}")


def _check_head(head: Head, row: ClipSet, place: Place, loaded: Loaded) -> None:
    classes, width = head["weight"].shape
    features = loaded.vision.projection or loaded.vision.width
    if width != features:
        raise BadInput(
            f"{place.head or row.key}: the head takes features of width {width}, but the model "
            f"gives {features}; the head belongs to another model"
        )
    if place.head is not None and classes != row.classes:
        raise BadInput(
            f"{place.head}: has {classes} classes, but {row.name} has {row.classes}; it is the "
            "head of another set"
        )
