"""Finds the public RoBERTa experts of GLUE below one folder.

    public   roberta-base/, cola/roberta-base_lr1e-05/, … (huggingface.co/vanillaOVO/
             roberta_base_glue_ckpts, or inside a folder of that name)
    own      pretrained/, cola/, … as experiments.finetune writes them, or any classifier's folder

An expert's head is the classifier in its weights, or heads/<task>.safetensors beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experts import Experts, Model, Stored, differences
from experiments.tasks.task import Task
from experiments.text_experts import text_model
from symerge_jax.cache import digest
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.roberta import load_head, load_roberta
from symerge_jax.checkpoints.roberta_heads import read_text_head
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.cli.progress import say
from symerge_jax.data.roberta_tokenizer import RobertaTokenizer
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta import by_length, encode_tokens
from symerge_jax.models.roberta_heads import stack_text_heads
from symerge_jax.notation import Params
from symerge_jax.score import computable
from symerge_jax.task_vectors import check_finite

BASES = ("roberta-base", "FacebookAI/roberta-base", "pretrained")
PUBLIC = "roberta_base_glue_ckpts"


class Folder(NamedTuple):
    """Where the pre-trained model, its vocabulary and one expert per task are."""

    pretrained: Path
    vocabulary: Path
    experts: tuple[Path, ...]


class Read(NamedTuple):
    """The real benchmark's models: the encoder, its checkpoint, and the experts."""

    model: Model
    source: Checkpoint
    experts: Experts


def find(folder: Path, names: Sequence[str]) -> Folder:
    """Finds the pre-trained model and one expert per task.

    Raises:
        BadInput: something is not there; it is named, with where it belongs.
    """
    if not folder.is_dir():
        raise BadInput(f"--checkpoints {folder}: there is no such folder")
    base = next((folder / name for name in BASES if (folder / name).is_dir()), None)
    if base is None:
        raise BadInput(
            f"--checkpoints {folder}: expected the pre-trained model in {BASES[0]}/; "
            f"`python -m experiments.prepare language --checkpoints {folder}` fetches it or says "
            "where it belongs"
        )
    root = folder / PUBLIC if (folder / PUBLIC).is_dir() else folder
    return Folder(base, base, tuple(_expert(root, name) for name in names))


def _expert(root: Path, name: str) -> Path:
    here = root / name
    rates = sorted(here.glob("roberta-base_lr*")) if here.is_dir() else []
    if len(rates) > 1:
        raise BadInput(
            f"{here}: expected one expert, found {', '.join(path.name for path in rates)}; leave "
            "the one that is meant"
        )
    if rates:
        return rates[0]
    if not here.is_dir():
        raise BadInput(
            f"{here}: the expert is expected there, in {name}/roberta-base_lr…/ or in {name}/ "
            "itself, and was not found"
        )
    return here


def read(found: Folder, tasks: Sequence[Task], tokenizer: RobertaTokenizer, dtype: str) -> Read:
    """Reads the pre-trained model, the heads and all task vectors.

    Args:
        found: where they are.
        tasks: in the order of `found.experts`.
        tokenizer: must fit the model's embedding.
        dtype: of the computation, "float32" or "bfloat16".

    Raises:
        BadInput: unreadable files, or models that do not belong together.
    """
    loaded = load_roberta(found.pretrained)
    for note in loaded.notes:
        say(f"{found.pretrained}: {note}")
    tokenizer.check_rows(loaded.config.vocabulary, str(found.pretrained))
    start = computable(loaded.params)
    sources = [open_checkpoint(path) for path in found.experts]
    heads = [_head(source, task) for source, task in zip(sources, tasks, strict=True)]
    experts = Stored(sources, partial(_encoder, start=start))
    tau = differences(experts, start, lambda k: say(f"{tasks[k].name}: expert {found.experts[k]}"))
    check_finite(tau, [task.name for task in tasks])
    stacked, classes = stack_text_heads(heads)
    encode = by_length(encode_tokens(loaded.config, dtype=None if dtype == "float32" else dtype))
    model = text_model(encode, start, f"{loaded.config} {digest(start)} {dtype}")
    return Read(model, loaded.source, Experts(experts, heads, heads, tau, stacked, classes))


def _encoder(source: Checkpoint, start: Params) -> Params:
    own = computable(load_roberta(source).params)
    for (path, leaf), first in zip(
        jax.tree.leaves_with_path(own), jax.tree.leaves(start), strict=True
    ):
        if leaf.shape != first.shape:
            raise BadInput(
                f"{source.path}: {jax.tree_util.keystr(path)} has shape {leaf.shape}, but that "
                f"of the pre-trained model {first.shape}; it is no expert made from it"
            )
    return own


def _head(source: Checkpoint, task: Task) -> Any:
    """Returns the head in a classifier's weights, or the one stored beside them."""
    stored = source.path / "heads" / f"{task.name}.safetensors"
    if stored.is_file():
        head = read_text_head(stored).head
    else:
        found = load_head(source)
        if found is None:
            raise BadInput(
                f"{source.path}: no classifier in the weights and no heads/{task.name}.safetensors "
                "beside them; an expert comes with the head it was trained with"
            )
        head = found[0]
    outputs = len(np.asarray(head["out_proj"]["bias"]))
    if outputs != len(task.classes):
        raise BadInput(
            f"{source.path}: its head has {outputs} outputs, but {task.name} has "
            f"{len(task.classes)}; it is the expert of another task"
        )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), head)
