"""Opens a person's checkpoint, whatever it is: a file, a folder, or a name on the hub.

Folders are those of Hugging Face (`model.safetensors`, or shards with an index, or
`pytorch_model.bin`) and of open_clip (`open_clip_model.safetensors`); files are safetensors or
PyTorch's, told apart by their first bytes. Nothing is executed and no numbers are read yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from symerge_jax.checkpoints.layout import Names, is_text, names_of
from symerge_jax.checkpoints.source import Checkpoint, Part, joined, open_safetensors
from symerge_jax.errors import BadInput

if TYPE_CHECKING:  # imported when needed: opening a checkpoint takes milliseconds, JAX a second
    from symerge_jax.models.clip_config import TextConfig, VisionConfig

# In the order in which they are looked for; the first one found is read.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
PREPROCESSOR = "preprocessor_config.json"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint without reading its numbers.

    Args:
        path: a file, a folder, or `owner/name[@revision]` on the Hugging Face hub (downloaded, or
            taken from the hub's local cache).

    Raises:
        BadInput: there is nothing, it is no checkpoint, an index names a file outside its folder,
            or it is a LoRA adapter (which holds no weights of its own).
    """
    place = Path(path)
    if place.is_dir():
        return _open_folder(place)
    if place.exists():
        return _open_file(place)
    if is_hub_name(str(path)):
        return _from_hub(str(path))
    raise BadInput(
        f"{path}: there is no such file or folder; expected a checkpoint file, a folder with "
        f"{WEIGHTS[0]}, or a name on the hub such as openai/clip-vit-base-patch32"
    )


def is_hub_name(name: str) -> bool:
    """Whether a name that is no file or folder here may be one on the hub, and no mistyped path."""
    return _HUB_NAME.fullmatch(name) is not None and not name.endswith(_SUFFIXES)


def _open_file(path: Path) -> Checkpoint:
    if path.name.endswith(".index.json"):
        return _open_folder(path.parent, path.name)
    part = open_part(path)
    _refuse_adapter(path, part.tensors)
    config, extra = _config(path) if path.name in WEIGHTS else (None, ())
    return joined(path, [part], config=config, extra=extra)


def open_part(path: Path) -> Part:
    """Opens one file with tensors: safetensors or PyTorch, told apart by its first bytes."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    if path.suffix == ".safetensors" or (start[8:] == b"{" and start[4:8] == b"\0\0\0\0"):
        return open_safetensors(path)
    from symerge_jax.checkpoints.torch_file import open_torch

    return open_torch(path)


def _open_folder(folder: Path, found: str | None = None) -> Checkpoint:
    """Opens the weights `found` of a folder; those that are looked for first, if it is None."""
    if found is None:
        found = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if found is None:
        found = _only_weights(folder)
    config, extra = _config(folder / found)
    preprocessor = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).exists() else None
    if preprocessor is not None:
        extra = (*extra, folder / PREPROCESSOR)
    rest: dict[str, Any] = {"config": config, "preprocessor": preprocessor}
    if not found.endswith(".index.json"):
        part = open_part(folder / found)
        _refuse_adapter(folder, part.tensors)
        return joined(folder, [part], **rest, extra=extra)
    shards = _shards(folder / found)
    parts = [open_part(folder / name) for name in dict.fromkeys(shards.values())]
    checkpoint = joined(folder, parts, **rest, extra=(*extra, folder / found))
    _refuse_adapter(folder, checkpoint.where)
    for name, shard in shards.items():
        if checkpoint.where.get(name) is None or checkpoint.where[name].path.name != shard:
            raise BadInput(f"{folder / found}: says that {name} is in {shard}, which lacks it")
    for name in checkpoint.where:
        if name not in shards:
            raise BadInput(f"{folder / found}: does not list tensor {name}, which a shard holds")
    return checkpoint


def _only_weights(folder: Path) -> str:
    """Returns the one checkpoint file of a folder that has none of the usual names."""
    if (folder / "adapter_config.json").exists():
        raise BadInput(_ADAPTER.format(path=folder))
    if models := sorted(p for p in folder.glob("[0-9][0-9]_*") if p.is_dir()):
        raise BadInput(
            f"{folder}: holds one model per task; name one of its folders, such as {models[0]}"
        )
    names = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    if len(names) != 1:
        what = f"found {', '.join(names)}: name the file you mean" if names else "found none of it"
        raise BadInput(f"{folder}: expected {', '.join(WEIGHTS[:3])} or {WEIGHTS[3]}; {what}")
    return names[0]


def _shards(index: Path) -> dict[str, str]:
    """Reads tensor → file name of an index, whose files must lie beside it."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BadInput(f"{index}: expected an object weight_map from tensor to file name")
    for tensor, name in shards.items():
        # A name, not a path: an index from elsewhere must not reach other files.
        if not isinstance(name, str) or not _is_file_name(name):
            raise BadInput(
                f"{index}: weight_map sends {tensor} to {name!r}, which is no file of this folder"
            )
    return shards


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


def _config(weights: Path) -> tuple[Mapping[str, Any] | None, tuple[Path, ...]]:
    """Reads the config beside weights; where both kinds lie there, the one in their layout."""
    names = ["config.json", "open_clip_config.json"]
    for name in names[::-1] if weights.name.startswith("open_clip") else names:
        path = weights.parent / name
        if path.exists():
            return read_json(path), (path,)
    return None, ()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        BadInput: the file cannot be read or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


_ADAPTER = (
    "{path}: a LoRA adapter, which holds only low-rank changes and no model; merge it into its "
    "base model first (peft's merge_and_unload), and name the result"
)


def is_adapter(names: Mapping[str, Any]) -> bool:
    """Whether tensor names are those of a LoRA adapter."""
    return any(re.search(r"\.?lora_(A|B|down|up|magnitude)", name) for name in names)


def _refuse_adapter(path: Path, names: Mapping[str, Any]) -> None:
    if is_adapter(names):
        raise BadInput(_ADAPTER.format(path=path))


def _from_hub(name: str) -> Checkpoint:
    from symerge_jax.checkpoints.hub import download

    repository, _, revision = name.partition("@")
    folder, commit = download(repository, revision or None)
    checkpoint = _open_folder(folder)
    return Checkpoint(
        Path(name), checkpoint.parts, checkpoint.where, checkpoint.config,
        checkpoint.preprocessor, checkpoint.extra, commit,
    )  # fmt: skip


class Loaded(NamedTuple):
    """A CLIP model, read.

    Attributes:
        params: {'vision': tower} and, if asked for and present, 'text' and 'logit_scale'; NumPy
            arrays in the precision of the file.
        vision: sizes of the image tower.
        text: sizes of the text tower, None where it was not read.
        source: the checkpoint itself.
        names: how its tensors are called.
        notes: what had to be assumed, one sentence each.
    """

    params: dict[str, Any]
    vision: VisionConfig
    text: TextConfig | None
    source: Checkpoint
    names: Names
    notes: tuple[str, ...] = ()


def load_clip(path: str | Path | Checkpoint, *, text: bool = False) -> Loaded:
    """Reads the image tower of a CLIP model, and its text tower if asked to.

    Args:
        path: as for `open_checkpoint`, or what that returned.
        text: read the text tower too, where there is one.

    Raises:
        BadInput: no CLIP model; a tensor missing, unread or of another shape; a pickled module
            whose activation, LayerNorm or preprocessing is not what will be computed.
    """
    from symerge_jax.checkpoints.clip import from_hugging_face, from_open_clip

    source = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    names = names_of(source)
    if names.layout not in ("hugging_face", "open_clip"):
        raise BadInput(
            f"{source.path}: no CLIP image tower in it; expected tensor names of Hugging Face "
            f"(vision_model.…) or open_clip (visual.…), found {next(iter(names.source))}"
        )
    read = from_hugging_face if names.layout == "hugging_face" else from_open_clip
    whole = text and _has_text(names)
    wanted = {
        name: name
        for common, name in names.source.items()
        if whole or not is_text(common, names.layout)
    }
    facts = source.module
    stated = facts.activation if facts is not None else None
    notes = []
    if stated is None and source.config is None:
        notes.append("no config beside the weights: taking QuickGELU, as in OpenAI's models")
    converted = read(
        _Lazy(source, wanted),
        source.config,
        activation=stated or "quick_gelu",
        source=str(source.path),
    )
    _check_facts(source, converted.vision)
    return Loaded(
        converted.params, converted.vision, converted.text, source, names, tuple(notes)
    )  # fmt: skip


def load_sizes(source: Checkpoint) -> VisionConfig | None:
    """Returns the sizes of the image tower, or None where names and config do not tell them."""
    try:
        return load_clip(source).vision
    except BadInput:
        return None


def _has_text(names: Names) -> bool:
    """Whether the blocks of a text tower are there, not just left-overs."""
    blocks = {"hugging_face": "text_model.encoder.", "open_clip": "transformer.resblocks."}
    return any(common.startswith(blocks[names.layout]) for common in names.source)


# What CLIP's released weights were trained with; `data.preprocess` applies it.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def _check_facts(source: Checkpoint, vision: VisionConfig) -> None:
    """Compares what pickled classes and the preprocessing file say with what will be computed."""
    facts, files = source.module, source.preprocessor or {}
    found: list[tuple[str, Any, Any]] = []
    if facts is not None:
        found += [
            ("activation", facts.activation, vision.activation),
            ("LayerNorm epsilon", facts.layer_norm_eps, vision.layer_norm_eps),
            ("image size", facts.image_size, vision.image_size),
            ("image mean", facts.mean, _MEAN),
            ("image standard deviation", facts.std, _STD),
        ]
    crop = files.get("crop_size")
    found += [
        ("image mean", files.get("image_mean"), _MEAN),
        ("image standard deviation", files.get("image_std"), _STD),
        ("crop size", crop.get("height") if isinstance(crop, dict) else crop, vision.image_size),
    ]
    for what, stated, built in found:
        if stated is not None and not _agree(stated, built):
            raise BadInput(
                f"{source.path}: was made with {what} {str(stated)[:99]}, but the model that its "
                f"tensors and config describe has {built}; its features would be wrong"
            )


def _agree(stated: Any, built: Any) -> bool:
    if isinstance(built, str):
        return stated == built
    try:
        stated, built = np.asarray(stated, float), np.asarray(built, float)
    except (TypeError, ValueError, OverflowError):  # no numbers
        return False
    return stated.shape == built.shape and bool(np.allclose(stated, built, rtol=1e-4, atol=0))


class _Lazy(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, source: Checkpoint, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source.read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # without reading, unlike Mapping's own
        return name in self._names
