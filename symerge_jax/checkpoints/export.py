"""Writes a model as a folder that others can load, check and trust.

A folder holds the weights in a public layout (`model.safetensors` and `config.json` for Hugging
Face, `open_clip_model.safetensors` and `open_clip_config.json` for open_clip), `heads/<task>`,
`reference.npz` (a few inputs and what the model makes of them) and `merge_card.json`: where the
model comes from, how it was made, and the SHA-256 of every file. It is made under a temporary name
and renamed when it is whole, so that a reader never meets half a model.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from symerge_jax.checkpoints.hashes import sha256
from symerge_jax.checkpoints.layout import LayoutName, Names, names_of
from symerge_jax.checkpoints.places import CARD, new_folder
from symerge_jax.checkpoints.places import check_output as check_output
from symerge_jax.checkpoints.places import new_file as new_file
from symerge_jax.checkpoints.safetensors_writer import SafetensorsWriter
from symerge_jax.checkpoints.source import Checkpoint, TensorInfo
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models.resnet_config import ResNetConfig
from symerge_jax.models.roberta_config import RobertaConfig

if TYPE_CHECKING:
    from symerge_jax.checkpoints.decoders import Decoder
    from symerge_jax.models.clip_config import VisionConfig

REFERENCE = "reference.npz"
FORMAT = 1
# What belongs to a model beside its weights and is copied as it is.
COMPANIONS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)
Head = Mapping[str, Any]


def write_model(
    output: str | Path,
    params: Mapping[str, Any],
    *,
    like: Checkpoint | VisionConfig | RobertaConfig | ResNetConfig,
    heads: Mapping[str, Head | Decoder] | None = None,
    classes: Mapping[str, Sequence[str] | None] | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], object] | None = None,
) -> Path:
    """Writes a CLIP model, a RoBERTa or a ResNet in the layout of the checkpoint it comes from.

    Tensors that `params` does not hold (a text tower, buffers) are copied from that checkpoint, and
    every tensor keeps its dtype there.

    Args:
        output: the folder to make.
        params: {'vision': tower}, with 'text' and 'logit_scale' where they changed; or the tower;
            or the encoder; or a trunk's {'params', 'batch_stats'}.
        like: the checkpoint whose names, dtypes and configuration the model has. For an image tower
            that comes from none, its sizes: open_clip's layout, or Hugging Face's for separate
            query, key and value. Likewise for an encoder or a trunk.
        heads: task → {'weight', 'bias'}, or a text head (`models.roberta.classify`), or a
            `checkpoints.decoders.Decoder`.
        classes: task → class names.
        card: what `merge_card.json` says beside versions and hashes.
        overwrite: replace a model that is there already.
        finish: called with the temporary folder before the card is written.

    Returns:
        The folder.

    Raises:
        BadInput: a tensor that the checkpoint lacks or that is not finite; a place that cannot be
            written.
    """
    with new_folder(output, overwrite=overwrite) as folder:
        if isinstance(like, Checkpoint):
            write_weights(folder, like, tensors_of(params, names_of(like).layout))
            write_description(like, folder)
        elif isinstance(like, RobertaConfig):
            from symerge_jax.checkpoints.roberta_export import save_roberta

            save_roberta(folder, params, like)
        elif isinstance(like, ResNetConfig):
            from symerge_jax.checkpoints.resnet_export import save_resnet

            save_resnet(folder, params, like)
        else:
            layout = "open_clip" if like.fused_qkv else "hugging_face"
            write_tensors(folder / weights_name(layout), tensors_of(params, layout))
            write_config(folder, layout, like, None)
        for name, head in (heads or {}).items():
            write_head(folder, name, head, (classes or {}).get(name))
        if finish is not None:
            finish(folder)
        write_card(folder, card or {})
    return Path(output)


def tensors_of(params: Mapping[str, Any], layout: LayoutName) -> dict[str, np.ndarray]:
    """Returns the tensors of a tree under their common names in a layout."""
    if layout == "roberta":
        from symerge_jax.checkpoints import roberta

        return roberta.to_hugging_face(dict(params))
    if layout == "resnet":
        from symerge_jax.checkpoints import resnet

        return resnet.to_torchvision(dict(params), counts={})
    from symerge_jax.checkpoints.clip import to_hugging_face, to_open_clip

    write = to_hugging_face if layout == "hugging_face" else to_open_clip
    return write(dict(params))


def write_weights(folder: Path, like: Checkpoint, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the weights' file: `tensors` by common name, all else copied from `like`."""
    names = names_of(like)
    common = {source: name for name, source in names.source.items()}
    missing = set(tensors) - set(names.source)
    if missing:
        raise BadInput(f"{like.path}: has no tensor {min(missing)}, which the new model has")
    infos = output_tensors(like, names)
    with SafetensorsWriter(
        folder / weights_name(names.layout), dict(infos.values()), {"format": "pt"}
    ) as file:
        for source, (name, info) in infos.items():
            value = tensors.get(common.get(source, ""))
            if value is None:
                value = like.read(source)
            elif value.shape != info.shape:
                raise BadInput(
                    f"{name}: has shape {value.shape}, in {like.path} it has {info.shape}"
                )
            with np.errstate(over="ignore"):  # said below
                value = np.asarray(value).astype(info.dtype, copy=False)
            _finite(str(like.path), {name: value})
            file.write(name, value)


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], *, name: str | None = None
) -> None:
    """Writes arrays to a new safetensors file, called `name` in errors.

    Raises:
        BadInput: one is not finite.
    """
    _finite(name or path.name, tensors)
    infos = {name: TensorInfo(value.shape, value.dtype) for name, value in tensors.items()}
    with SafetensorsWriter(path, infos, {"format": "pt"}) as file:
        for name, value in tensors.items():
            file.write(name, value)


def output_tensors(start: Checkpoint, names: Names) -> dict[str, tuple[str, TensorInfo]]:
    """Returns name in a checkpoint's file → name and info in an export.

    They are the same, but for the wrapper's prefix `model.` of open_clip's image encoders. Of a
    RoBERTa only the encoder is exported, of a ResNet the trunk, under their common names.
    """
    if names.layout in ("roberta", "resnet"):
        own = {source: name for name, source in names.source.items()}
        own |= {source: source.removeprefix(names.prefix) for source in names.aside}
        return {source: (name, start.tensors[source]) for source, name in own.items()}
    strip = names.prefix if names.layout == "open_clip" else ""
    return {name: (name.removeprefix(strip), start.tensors[name]) for name in start.where}


def weights_name(layout: LayoutName) -> str:
    """Returns the usual name of the weights' file."""
    return "open_clip_model.safetensors" if layout == "open_clip" else "model.safetensors"


def write_description(start: Checkpoint, folder: Path, others: Sequence[Checkpoint] = ()) -> None:
    """Writes the configuration of a model, and copies what else lies beside its weights.

    Models of the same network, `others`, may state what `start` does not.
    """
    from symerge_jax.checkpoints.open import load_clip

    layout = names_of(start).layout
    copy_companions(start, folder)
    if layout == "roberta":
        from symerge_jax.checkpoints.roberta_export import write_encoder_config

        write_encoder_config(start, folder)
    elif layout == "resnet":
        from symerge_jax.checkpoints.resnet_export import write_trunk_config

        write_trunk_config(start, folder, others)
    elif start.config is not None:
        name = "open_clip_config.json" if layout == "open_clip" else "config.json"
        write_json(folder / name, start.config)
    elif layout != "plain":
        # Sizes that only a config could tell: the weights are written all the same.
        with contextlib.suppress(BadInput):
            whole = load_clip(start, text=True)
            write_config(folder, layout, whole.vision, whole.text)


def write_config(folder: Path, layout: LayoutName, vision: Any, text: Any) -> None:
    """Writes the configuration file of a layout from the sizes of the towers."""
    from symerge_jax.checkpoints.clip_layouts import hugging_face_config, open_clip_config

    if layout == "open_clip":
        write_json(folder / "open_clip_config.json", open_clip_config(vision, text))
    else:
        write_json(folder / "config.json", hugging_face_config(vision, text))


def write_head(
    folder: Path, name: str, head: Head | Decoder, classes: Sequence[str] | None
) -> None:
    """Writes `heads/<name>.safetensors`: its tensors, and the class names in the metadata."""
    if not isinstance(head, Mapping):
        from symerge_jax.checkpoints.decoders import write_decoder

        named = head if classes is None else head._replace(classes=tuple(classes))
        write_decoder(folder, name, named)
        return
    if "dense" in head:
        from symerge_jax.checkpoints.roberta_heads import write_text_head

        write_text_head(folder, name, head, classes)
        return
    tensors = {key: np.asarray(value, order="C") for key, value in head.items()}
    _finite(f"head {name}", tensors)
    metadata = {} if classes is None else {"classes": json.dumps(list(classes))}
    content = safetensors.numpy.save(tensors, metadata=metadata)
    write_atomically(folder / "heads" / f"{name}.safetensors", content)


def write_reference(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `reference.npz`: inputs, and features or logits."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(folder / REFERENCE, buffer.getvalue())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def copy_companions(source: Checkpoint, folder: Path) -> None:
    """Copies tokenizer and preprocessing files that lie beside the weights."""
    here = source.parts[0].path.parent
    is_folder = source.path.is_dir() or source.revision is not None
    for name in COMPANIONS if is_folder else ():
        if (here / name).is_file():
            write_atomically(folder / name, (here / name).read_bytes())


def write_card(
    folder: Path, card: Mapping[str, Any], known: Mapping[Path, str] | None = None
) -> None:
    """Writes `merge_card.json` with the SHA-256 of all other files of the folder; do this last.

    The card holds its own checksum too, over all it says beside it.

    Args:
        folder: of the model.
        card: what it says.
        known: path → SHA-256 of files that were hashed already.
    """
    known = known or {}
    files = {
        path.relative_to(folder).as_posix(): known.get(path) or sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / CARD  # those of the models beneath count
    }
    whole = {
        "format": FORMAT,
        **card,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "files": files,
    }
    write_json(folder / CARD, {**whole, "sha256": card_digest(whole)})


def card_digest(card: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a card says, its own checksum left out."""
    import hashlib

    rest = {key: value for key, value in card.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and what it computes with."""
    from symerge_jax import __version__

    found = {"python": sys.version.split()[0], "symerge_jax": __version__}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def origin(checkpoint: Checkpoint, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """Returns what a card says of one input: its path, revision, and each file's size and hash."""
    found: dict[str, Any] = {"path": str(checkpoint.path)}
    if checkpoint.revision is not None:
        found["revision"] = checkpoint.revision
    found["files"] = {
        path.name: {"sha256": hashes[path], "bytes": checkpoint.stamps[path].size}
        for path in checkpoint.files
    }
    return found


def _finite(what: str, tensors: Mapping[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "fcV":
            continue
        if tensor.dtype.kind == "V":  # bfloat16 and 8-bit floats, as NumPy sees them
            tensor = tensor.astype(np.float32)
        if not np.isfinite(tensor).all():
            raise BadInput(f"{what}: {name} holds NaN or infinity; nothing was written")
