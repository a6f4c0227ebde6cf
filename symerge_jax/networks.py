"""CLIP's image tower and RoBERTa's encoder, read from a checkpoint into one form.

Adaptation, evaluation and their scores need the same of both: what encodes, what classifies, how
heads are read and stacked. What takes a `Network` does not ask which of them it is, except where
inputs are read and where the two are scored by other metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from symerge_jax.checkpoints.clip import source_rules
from symerge_jax.checkpoints.clip_layouts import Rule
from symerge_jax.checkpoints.heads import StoredHead, read_head, read_heads
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.open import Loaded, load_clip, open_checkpoint
from symerge_jax.checkpoints.roberta import LoadedRoberta, load_head, load_roberta
from symerge_jax.checkpoints.roberta_heads import StoredTextHead, read_text_head, read_text_heads
from symerge_jax.checkpoints.roberta_layout import roberta_rules
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.classifier import Encode, encoder
from symerge_jax.errors import BadInput
from symerge_jax.models import roberta
from symerge_jax.models.heads import normalised_head, stack_heads, unstack_heads
from symerge_jax.models.roberta_heads import stack_text_heads, unstack_text_heads
from symerge_jax.notation import Array, Params

AnyHead = StoredHead | StoredTextHead


class Family(NamedTuple):
    """What the networks of one kind share.

    Attributes:
        inputs: what they take, in the plural.
        part: what is merged of them.
        classify: (head, features) → logits.
        stack: heads → leaves [task, ...], and which outputs exist.
        unstack: the inverse.
        read_head: file → head.
        read_heads: a model's folder → its heads by name.
    """

    inputs: str
    part: str
    classify: Callable[[Any, Array], Array]
    stack: Callable[[Any], tuple[Any, Array]]
    unstack: Callable[[Any, Array], list[Any]]
    read_head: Callable[[str | Path], AnyHead]
    read_heads: Callable[[str | Path], Any]


IMAGES = Family(
    "images", "image tower", normalised_head, stack_heads, unstack_heads, read_head, read_heads
)
TEXTS = Family(
    "texts", "encoder", roberta.classify, stack_text_heads, unstack_text_heads,
    read_text_head, read_text_heads,
)  # fmt: skip


class Network(NamedTuple):
    """A network that was read.

    Attributes:
        family: `IMAGES` or `TEXTS`.
        loaded: what was read.
        params: the image tower or the encoder; NumPy arrays in the precision of the file.
        encode: (θ, images uint8 or tokens int32 [batch, ...]) → features [batch, width].
        width: of the features.
    """

    family: Family
    loaded: Loaded | LoadedRoberta
    params: Params
    encode: Encode
    width: int


def load_network(path: str | Path | Checkpoint, *, text: bool = False) -> Network:
    """Reads a CLIP or a RoBERTa.

    Args:
        path: as for `open_checkpoint`, or what that returned.
        text: read the text tower of a CLIP too, where there is one.

    Raises:
        BadInput: as `load_clip` and `load_roberta`.
    """
    source = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    if names_of(source).layout == "roberta":
        read = load_roberta(source)
        encode = roberta.by_length(roberta.encode_tokens(read.config), pad=read.config.pad_token)
        return Network(TEXTS, read, read.params, encode, read.config.width)
    loaded = load_clip(source, text=text)
    vision = loaded.vision
    width = vision.projection or vision.width
    return Network(IMAGES, loaded, loaded.params["vision"], encoder(vision), width)


def tensor_rules(network: Network, *, exported: bool = False) -> list[Rule]:
    """Returns how each leaf of `network.params` is stored, in the order of its source.

    Args:
        network: the network.
        exported: names as `export.write_model` writes them; common names otherwise.
    """
    loaded = network.loaded
    if isinstance(loaded, LoadedRoberta):
        return roberta_rules(loaded.config.depth)
    layout = "hugging_face" if loaded.names.layout == "hugging_face" else "open_clip"
    # Exports lose the prefix of open_clip alone.
    prefix = loaded.names.prefix if exported and layout == "hugging_face" else None
    return source_rules(network.params, layout, prefix=prefix)


def outputs_of(head: Any) -> int:
    """Returns the number of outputs of a head of either family: classes, or 1 for a regression."""
    return len(head["out_proj"]["bias"] if "out_proj" in head else head["bias"])


def check_width(head: AnyHead, network: Network, *, more: str = "") -> None:
    """Looks whether a head takes the features of a network.

    Args:
        head: of the network's family.
        network: what it stands on.
        more: what to do about it, at the end of the sentence.

    Raises:
        BadInput: features of another width.
    """
    own = head.head
    width = len(own["dense"]["bias"]) if "dense" in own else own["weight"].shape[1]
    if width != network.width:
        raise BadInput(
            f"{head.path}: the head takes features of width {width}, but "
            f"{network.loaded.source.path} gives {network.width}; the head belongs to another "
            f"model{more}"
        )


def own_text_head(model: Checkpoint, name: str) -> StoredTextHead:
    """Reads the classifier in a model's weights, or heads/<name>.safetensors beside them.

    Raises:
        BadInput: there is none.
    """
    found = load_head(model)
    if found is not None:
        head = jax.tree.map(lambda x: np.asarray(x, np.float32), found[0])
        return StoredTextHead(head, found[1], Path(model.path))
    beside = model.parts[0].path.parent / "heads" / f"{name}.safetensors"
    if not beside.is_file():
        raise BadInput(
            f"{model.path}: no classifier in the weights and no heads/{name}.safetensors beside "
            "them; give the head as a file"
        )
    return read_text_head(beside)
