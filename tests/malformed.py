"""Small valid files of every kind that is read, and who reads them, to be damaged by tests."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import clip_checkpoints as clip
import numpy as np
import resnet_checkpoints as resnet
import roberta_checkpoints as roberta
import torch_by_hand as torch

from experiments import records
from symerge_jax.adapt_settings import settings_of
from symerge_jax.checkpoints.decoders import read_decoder, write_decoder
from symerge_jax.checkpoints.heads import read_head
from symerge_jax.checkpoints.open import load_clip, open_checkpoint, open_part
from symerge_jax.checkpoints.resnet import load_resnet
from symerge_jax.checkpoints.roberta import load_head, load_roberta
from symerge_jax.checkpoints.torch_file import open_torch
from symerge_jax.data.dense import read_scenes
from symerge_jax.data.images import read_images
from symerge_jax.data.meta import read_meta
from symerge_jax.data.packs import read_labels, read_pack
from symerge_jax.data.roberta_tokenizer import read_tokenizer, train_tokenizer
from symerge_jax.data.tasks_file import read_tasks_file
from symerge_jax.data.text import read_texts
from symerge_jax.inspect_files import describe


class Case(NamedTuple):
    """A folder of small valid files and its reader.

    Attributes:
        files: name → content.
        damage: which of them is damaged.
        form: 'bytes', or a form whose parts can be damaged with the whole in order: 'json',
            'text', 'zip', 'safetensors'.
        read: takes the folder.
    """

    files: Mapping[str, bytes]
    damage: str
    form: str
    read: Callable[[Path], object]


def _all_of(part: Any) -> object:
    return [part.read(name) for name in part.tensors]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"sentence": ["one", "two"], "label": [0, 1]}), buffer)
    return buffer.getvalue()


TASKS = b"""[model]
pretrained = "base"
vocabulary = "words"
[adapt]
method = "symerge"
iterations = 5
learning_rate = 0.01
[[task]]
name = "eurosat"
expert = "experts/eurosat"
head = "heads/eurosat.safetensors"
inputs = "images/eurosat"
[[task]]
name = "dtd"
expert = "experts/dtd"
classes = ["a", "b"]
templates = ["a photo of {}."]
inputs = "images/dtd"
"""
META = b'{"classes": ["a", "b"], "clip_classes": ["a", ["b", "c"]], "templates": ["a {}."]}'
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP
COLUMNS = b'{"own": ["label", "sentence"], "RTE": "no header; columns: index (a), sentence, label"}'
_TEXTS = ["some words and more of these words"] * 3
_TABLES = {
    ".tsv": b"sentence\tlabel\nsome text\t1\nmore of it\t0\n",
    ".csv": b'sentence,label\n"some, text",1\nmore,0\n',
    ".jsonl": b'{"sentence": "some text", "label": 1}\n{"sentence": "more", "label": 0}\n',
    ".txt": b"some text\nmore\n",
}


NAMES = (
    "x.safetensors", "head.safetensors", "decoder", "clip config", "preprocessor",
    "open_clip config", "roberta config", "resnet config", "index", "torch zip", "torch legacy",
    "torch pickle", "pickle", "pack", "encoded pack", "image", "scene", "tasks.toml", "meta.json",
    "texts .tsv", "texts .csv", "texts .jsonl", "texts .txt", "texts .parquet", "columns.json",
    "vocab.json", "merges.txt", "tokenizer.json", "record.json",
)  # fmt: skip


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files below a folder, and returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def cases(folder: Path) -> dict[str, Case]:
    """Returns every case by name; `folder` is for making them."""
    found: dict[str, Case] = {}

    def add(name: str, files: Mapping[str, bytes], damage: str, form: str, read: Any) -> None:
        assert damage in files
        found[name] = Case(files, damage, form, read)

    _add_checkpoints(folder, add)
    _add_torch(add)
    _add_data(add)
    _add_vocabularies(folder, add)
    record = records.new_record("vision", "tiny", {"seeds": [0]})
    for method in ("individual", "ties"):
        records.add_result(
            record, method=method, seed=0, task="dtd", metric="accuracy", value=50.0, n=4
        )
    record["summary"] = records.summarise(record)
    content = json.dumps(record).encode()
    add("record.json", {"r.json": content}, "r.json", "json", lambda d: records.read(d / "r.json"))
    return found


def _add_checkpoints(folder: Path, add: Any) -> None:
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(5, np.float16),
        "n": np.array(3, np.int64),
    }
    clip.write_safetensors(folder / "x.safetensors", tensors, {"format": "pt"})
    clip.write_safetensors(
        folder / "head.safetensors",
        {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)},
        {"classes": '["a", "b"]'},
    )
    for name, read in (("x", lambda p: _all_of(open_part(p))), ("head", read_head)):
        file = f"{name}.safetensors"
        content = (folder / file).read_bytes()
        add(file, {file: content}, file, "safetensors", lambda d, f=file, r=read: r(d / f))
    write_decoder(folder / "decoder", "depth", resnet.decoder())
    file = "heads/depth.safetensors"
    decoder = _files(folder / "decoder")
    add("decoder", decoder, file, "safetensors", lambda d: read_decoder(d / file))
    hugging_face = clip.hugging_face_json(text=True)
    clip.save(folder / "hf", clip.hugging_face(text=True), hugging_face)
    clip.save(
        folder / "oc", clip.open_clip(text=True), clip.open_clip_json(text=True),
        name="open_clip_model.safetensors",
    )  # fmt: skip
    clip.save(folder / "roberta", roberta.tensors(3), roberta.config(3, ("a", "b", "c")))
    clip.save(folder / "resnet", resnet.torchvision(), {"output_stride": 8})
    clip.save_sharded(folder / "sharded", clip.hugging_face(text=True), hugging_face)
    (folder / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": {"height": 8, "width": 8}, "image_mean": list(_MEAN)})
    )

    def text(d: Path) -> object:
        return load_roberta(d), load_head(open_checkpoint(d)), describe(open_checkpoint(d))

    def image(d: Path) -> object:
        return load_clip(d, text=True), describe(open_checkpoint(d))

    add("clip config", _files(folder / "hf"), "config.json", "json", image)
    add("preprocessor", _files(folder / "hf"), "preprocessor_config.json", "json", image)
    add("open_clip config", _files(folder / "oc"), "open_clip_config.json", "json", image)
    add("roberta config", _files(folder / "roberta"), "config.json", "json", text)
    add("resnet config", _files(folder / "resnet"), "config.json", "json", load_resnet)
    add("index", _files(folder / "sharded"), "model.safetensors.index.json", "json", image)


def _add_torch(add: Any) -> None:
    tensors = {"w": torch.floats(2, 3), "b": torch.floats(2, offset=6)}
    storages = {"0": torch.numbers(8)}
    contents = {
        "torch zip": torch.make_zip(tensors, storages),
        "torch legacy": torch.make_legacy(
            {"w": torch.floats(2, 3, view=b"N"), "b": torch.floats(2, offset=6, view=b"N")},
            storages,
        ),
        "torch pickle": torch.make_plain(torch.make_legacy(torch.storage_alone(b"N"), storages)),
        "pickle": pickle.dumps([1, 2.0, "x", b"y", None, {1}, (3,), {"a": -1}]),
    }
    for name, content in contents.items():
        form = "zip" if name == "torch zip" else "bytes"
        add(name, {"x.pt": content}, "x.pt", form, lambda d: _all_of(open_torch(d / "x.pt")))


def _add_data(add: Any) -> None:
    images = np.arange(2 * 9 * 8 * 3, dtype=np.uint8).reshape(2, 9, 8, 3)
    png = _png()
    packs = {
        "pack": _npz(images=images, labels=np.array([0, 1], np.int32)),
        "encoded pack": _npz(
            jpeg=np.frombuffer(png * 2, np.uint8),
            offsets=np.array([0, len(png), 2 * len(png)]),
            labels=np.array([1, 0]),
        ),
    }

    def pack(d: Path) -> object:
        return read_labels(d / "p.npz"), read_pack(d / "p.npz", size=4)

    for name, content in packs.items():
        add(name, {"p.npz": content}, "p.npz", "zip", pack)
    images_of = {"a/x.png": png, "b/y.png": png}
    add("image", images_of, "a/x.png", "bytes", lambda d: read_images(d, size=4))
    scene = _npz(
        rgb=images[0], label13=np.ones((9, 8), np.int8), depth=np.ones((9, 8), np.float32),
        normal=np.full((9, 8, 3), 3**-0.5, np.float32), valid=np.ones((9, 8), bool),
    )  # fmt: skip
    add("scene", {"0.npz": scene}, "0.npz", "zip", read_scenes)

    def tasks(d: Path) -> object:
        found = read_tasks_file(d / "tasks.toml")
        return settings_of(found), settings_of(found, texts=True), settings_of(found, scenes=True)

    add("tasks.toml", {"tasks.toml": TASKS}, "tasks.toml", "text", tasks)
    add("meta.json", {"meta.json": META}, "meta.json", "json", lambda d: read_meta(d / "meta.json"))
    tokenizer = train_tokenizer(_TEXTS, 270)
    for suffix, content in {**_TABLES, ".parquet": _parquet()}.items():
        form = "bytes" if suffix == ".parquet" else "text"
        place = f"own/dev{suffix}"

        def read(d: Path, place: str = place) -> object:
            return read_texts(d / place, tokenizer, max_length=8)

        add(f"texts {suffix}", {place: content}, place, form, read)
    files = {"columns.json": COLUMNS, "own/dev.tsv": b"1\tsome text\n0\tmore\n"}
    add(
        "columns.json", files, "columns.json", "json",
        lambda d: read_texts(d / "own/dev.tsv", tokenizer, max_length=8),
    )  # fmt: skip


def _add_vocabularies(folder: Path, add: Any) -> None:
    trained = train_tokenizer(_TEXTS, 270)
    trained.save(folder / "words")
    two = {n: c for n, c in _files(folder / "words").items() if n in ("vocab.json", "merges.txt")}
    model = {"type": "BPE", "vocab": trained.vocabulary, "merges": trained.merges}
    added = [{"id": 0, "content": "<s>"}, {"id": trained.vocabulary["<mask>"], "content": "<mask>"}]
    content = {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": added,
        "model": model,
    }
    whole = {"tokenizer.json": json.dumps(content).encode()}

    def read(d: Path) -> object:
        return read_tokenizer(d)(["some words"], max_length=8)

    add("vocab.json", two, "vocab.json", "json", read)
    add("merges.txt", two, "merges.txt", "text", read)
    add("tokenizer.json", whole, "tokenizer.json", "json", read)
