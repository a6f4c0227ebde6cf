"""Classification heads on RoBERTa's features in files of their own, beside the linear ones.

A safetensors file with `dense.weight` [width, width], `dense.bias`, `out_proj.weight`
[outputs, width] and `out_proj.bias`, and the class names as a JSON list under `classes` in its
metadata. In memory a head is the pytree of `models.roberta.classify`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from symerge_jax.checkpoints.heads import class_names
from symerge_jax.checkpoints.open import open_part
from symerge_jax.checkpoints.roberta_layout import head_rules
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically

Tree = dict[str, Any]
NAMES = tuple(rule.source for rule in head_rules())


class StoredTextHead(NamedTuple):
    """A head that was read, with its class names where the file has them."""

    head: Tree
    classes: tuple[str, ...] | None
    path: Path

    @property
    def outputs(self) -> int:
        """Number of classes; 1 for a regression."""
        return len(self.head["out_proj"]["bias"])


def read_text_head(path: str | Path) -> StoredTextHead:
    """Reads a head, in float32.

    Raises:
        BadInput: the file is no such head, its shapes disagree, or it holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; expected a head of a text classifier")
    part = open_part(path)
    names = {name.removeprefix("classifier."): name for name in part.tensors}
    if set(names) != set(NAMES):
        raise BadInput(
            f"{path}: expected a head with the tensors {', '.join(NAMES)}, found "
            f"{', '.join(list(part.tensors)[:4])}"
        )
    tensors = {name: np.asarray(part.read(names[name]), np.float32) for name in NAMES}
    head = head_tree(tensors, str(path))
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise BadInput(f"{path}: {name} holds NaN or infinity; make or download it again")
    classes = class_names(path, part.metadata, len(tensors["out_proj.bias"]))
    return StoredTextHead(head, classes, path)


def read_text_heads(folder: str | Path) -> dict[str, StoredTextHead]:
    """Reads every head of a model's folder, task → head, sorted by name."""
    return {
        path.stem: read_text_head(path)
        for path in sorted((Path(folder) / "heads").glob("*.safetensors"))
    }


def write_text_head(
    folder: Path, name: str, head: Mapping[str, Any], classes: Sequence[str] | None = None
) -> Path:
    """Writes `heads/<name>.safetensors` in a model's folder; returns the file.

    Raises:
        BadInput: the head's shapes disagree, or it holds NaN or infinity.
    """
    tensors = head_tensors(head)
    head_tree(tensors, f"head {name}")
    for key, value in tensors.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise BadInput(f"head {name}: {key} holds NaN or infinity; nothing was written")
    metadata = {} if classes is None else {"classes": json.dumps(list(classes))}
    path = folder / "heads" / f"{name}.safetensors"
    write_atomically(path, safetensors.numpy.save(tensors, metadata=metadata))
    return path


def head_tensors(head: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the four tensors of a head under the names of its file."""
    flat = flatten_dict(dict(head), sep="/")
    return {
        rule.source: np.asarray(rule.kind.write(np.asarray(flat[rule.path])), order="C")
        for rule in head_rules()
    }


def head_tree(tensors: Mapping[str, np.ndarray], source: str, *, width: int | None = None) -> Tree:
    """Returns a head from its four tensors.

    Args:
        tensors: by the names of its file.
        source: what to call it in errors.
        width: of the features, where they are known.

    Raises:
        BadInput: shapes that do not fit together.
    """
    outputs = len(tensors["out_proj.bias"]) if tensors["out_proj.bias"].ndim else 0
    d = width or (tensors["dense.bias"].size if tensors["dense.bias"].ndim == 1 else 0)
    shapes = ((d, d), (d,), (outputs, d), (outputs,))
    for name, shape in zip(NAMES, shapes, strict=True):
        if tensors[name].shape != shape:
            raise BadInput(
                f"{source}: tensor {name} of the head has shape {tensors[name].shape}, expected "
                f"{shape} for features of width {d}; the head belongs to another model"
            )
    return unflatten_dict(
        {rule.path: rule.kind.read(tensors[rule.source]) for rule in head_rules()}, sep="/"
    )
