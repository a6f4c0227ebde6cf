"""Classification heads in files: ours, and the pickled ones of the task-vector checkpoints.

Ours is a safetensors file with `weight` [classes, d] and `bias` [classes], and the class names as a
JSON list under `classes` in its metadata. The pickled ones are a Linear subclass with an attribute
`normalize`; the weight already holds CLIP's logit scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from symerge_jax.checkpoints.open import open_part
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.models.heads import Head


class StoredHead(NamedTuple):
    """A head that was read, with its class names where the file has them."""

    head: Head
    classes: tuple[str, ...] | None
    path: Path


def read_head(path: str | Path) -> StoredHead:
    """Reads a classification head.

    Raises:
        BadInput: the file is no head, its shapes disagree, it holds NaN or infinity, or it is for
            features that are not normalised.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; expected a classification head")
    part = open_part(path)
    names = {name.rsplit(".", 1)[-1]: name for name in part.tensors}
    if "weight" not in names or set(names) - {"weight", "bias"} or len(names) < len(part.tensors):
        raise BadInput(
            f"{path}: expected a head with the tensors weight and bias, found "
            f"{', '.join(list(part.tensors)[:4])}"
        )
    if part.module is not None and part.module.normalize is False:
        raise BadInput(
            f"{path}: this head was made for features that are not normalised, which no CLIP "
            "expert of the task-vector checkpoints uses"
        )
    weight = np.asarray(part.read(names["weight"]), np.float32)
    if weight.ndim != 2:
        raise BadInput(f"{path}: weight has shape {weight.shape}, expected [classes, features]")
    bias = np.zeros(len(weight), np.float32)
    if "bias" in names:
        bias = np.asarray(part.read(names["bias"]), np.float32)
    if bias.shape != weight.shape[:1]:
        raise BadInput(f"{path}: weight has {len(weight)} classes, but bias has shape {bias.shape}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise BadInput(f"{path}: the head holds NaN or infinity; make or download it again")
    classes = class_names(path, part.metadata, len(weight))
    return StoredHead({"weight": weight, "bias": bias}, classes, path)


def class_names(path: Path, metadata: dict[str, str], count: int) -> tuple[str, ...] | None:
    """Returns the class names in a head's metadata, None where there are none.

    Raises:
        BadInput: they are no JSON list of `count` names.
    """
    if "classes" not in metadata:
        return None
    try:
        classes = json.loads(metadata["classes"])
    except ValueError as error:
        raise BadInput(f"{path}: the class names in its metadata are not JSON ({error})") from error
    if not isinstance(classes, list):
        raise BadInput(f"{path}: expected a JSON list under classes in its metadata")
    if len(classes) != count:
        raise BadInput(
            f"{path}: its metadata names {len(classes)} classes, but its weight has {count}"
        )
    return tuple(map(str, classes))


def read_heads(folder: str | Path) -> dict[str, StoredHead]:
    """Reads every head of a model's folder, task → head, sorted by name."""
    return {
        path.stem: read_head(path)
        for path in sorted((Path(folder) / "heads").glob("*.safetensors"))
    }


def copy_heads(models: Iterable[Checkpoint], folder: Path) -> None:
    """Copies the heads that lie beside models' weights into the folder of a new model.

    Raises:
        BadInput: two models bring different heads of one name.
    """
    found: dict[str, Path] = {}
    for model in models:
        for path in sorted((model.parts[0].path.parent / "heads").glob("*.safetensors")):
            content = path.read_bytes()
            if path.name in found and found[path.name].read_bytes() != content:
                raise BadInput(
                    f"{path}: another model has a different head of this name, "
                    f"{found[path.name]}; rename one"
                )
            found[path.name] = path
            write_atomically(folder / "heads" / path.name, content)
