"""Writes a RoBERTa as a folder that transformers, `load_roberta` and the commands read.

The encoder is in `model.safetensors` as `roberta.…`, and so is one classifier if it is given; a
merged model has none of its own, but its experts' in `heads/`. Not written are a pooler and a
language model's head: no classifier uses them, and no expert trains them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.roberta import load_head, load_roberta, to_hugging_face
from symerge_jax.checkpoints.roberta_heads import head_tensors, read_text_head, write_text_head
from symerge_jax.checkpoints.roberta_layout import config_json, encoder_json
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta_config import RobertaConfig


def save_roberta(
    folder: str | Path,
    params: Mapping[str, Any],
    config: RobertaConfig,
    *,
    head: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    like: Checkpoint | None = None,
) -> Path:
    """Writes `model.safetensors` and `config.json`, for RobertaForSequenceClassification.

    Args:
        folder: made if it is not there.
        params: the encoder.
        config: its sizes.
        head: of the classifier, see `models.roberta.classify`; one output is a regression.
        classes: names of the outputs.
        like: the checkpoint it comes from: other keys of its config are kept, and the tokenizer's
            files beside it are copied.

    Returns:
        The folder.

    Raises:
        BadInput: the tree is no encoder, a tensor is not finite, class names that are not as many
            as the outputs.
    """
    folder = Path(folder)
    outputs = None if head is None else len(np.asarray(head["out_proj"]["bias"]))
    if classes is not None and outputs is not None and len(classes) != outputs:
        raise BadInput(
            f"{folder}: {len(classes)} class names for a head with {outputs} outputs; expected "
            "one per output"
        )
    tensors = to_hugging_face(dict(params), head=None if head is None else dict(head))
    path = folder / export.weights_name("roberta")
    with export.new_file(path) as temporary:
        export.write_tensors(temporary, tensors, name=str(path))
    before = None if like is None else like.config
    found = config_json(config, outputs=outputs, classes=classes, like=before)
    export.write_json(folder / "config.json", found)
    if like is not None:
        export.copy_companions(like, folder)
    return folder


def write_encoder_config(source: Checkpoint, folder: Path) -> None:
    """Writes the config.json of a model's encoder alone; none where its sizes cannot be told."""
    if source.config is not None:
        export.write_json(folder / "config.json", encoder_json(source.config))
        return
    with contextlib.suppress(BadInput):  # the weights are written all the same
        export.write_json(folder / "config.json", config_json(load_roberta(source).config))


def write_own_heads(names: Sequence[str], models: Sequence[Checkpoint], folder: Path) -> None:
    """Writes the classifier in each model's weights as `heads/<name>.safetensors`.

    Args:
        names: of the heads, one per model.
        models: RoBERTas; those without a classifier are passed over.
        folder: of the new model.

    Raises:
        BadInput: another head of that name is there already.
    """
    for name, model in zip(names, models, strict=True):
        found = load_head(model)
        if found is None:
            continue
        head, classes = found
        path = folder / "heads" / f"{name}.safetensors"
        if path.exists():
            _check_same(head, path, model)
        else:
            write_text_head(folder, name, head, classes)


def _check_same(head: Mapping[str, Any], path: Path, model: Checkpoint) -> None:
    there = head_tensors(read_text_head(path).head)
    for key, value in head_tensors(head).items():
        if not np.array_equal(np.asarray(value, np.float32), there[key]):
            raise BadInput(
                f"{model.path}: the classifier in its weights is another than "
                f"heads/{path.name} beside them or beside another model; rename or remove that file"
            )
