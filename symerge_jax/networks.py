"""CLIP's image tower, RoBERTa's encoder and ResNet's trunk, read from a checkpoint into one form.

Adaptation, evaluation and their scores need the same of all: what encodes, what classifies, how
heads are read and stacked. What takes a `Network` does not ask which of them it is, except where
inputs are read and where they are scored by other metrics. A ResNet's heads are decoders, which
need the size of the images (`dense.network`): what they say is made in `dense_adapt_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from symerge_jax.checkpoints.clip import source_rules
from symerge_jax.checkpoints.clip_layouts import Rule
from symerge_jax.checkpoints.heads import StoredHead, read_head, read_heads
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.open import Loaded, load_clip, open_checkpoint
from symerge_jax.checkpoints.resnet import LoadedResNet, load_resnet
from symerge_jax.checkpoints.resnet_layout import stated_stride, trunk_rules
from symerge_jax.checkpoints.roberta import LoadedRoberta, load_head, load_roberta
from symerge_jax.checkpoints.roberta_heads import StoredTextHead, read_text_head, read_text_heads
from symerge_jax.checkpoints.roberta_layout import roberta_rules
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.classifier import Encode, encoder
from symerge_jax.errors import BadInput
from symerge_jax.models import resnet, roberta
from symerge_jax.models.dense_heads import stack_decoders, unstack_decoders
from symerge_jax.models.heads import normalised_head, stack_heads, unstack_heads
from symerge_jax.models.roberta_heads import stack_text_heads, unstack_text_heads
from symerge_jax.notation import Array, Params
from symerge_jax.stored_decoders import StoredDecoder, read_stored_decoder, read_stored_decoders

AnyHead = StoredHead | StoredTextHead | StoredDecoder


class Family(NamedTuple):
    """What the networks of one kind share.

    Attributes:
        inputs: what they take, in the plural.
        part: what is merged of them.
        classify: (head, features) → logits; None of decoders.
        stack: heads → leaves [task, ...], and which outputs exist.
        unstack: the inverse.
        read_head: file → head.
        read_heads: a model's folder → its heads by name.
    """

    inputs: str
    part: str
    classify: Callable[[Any, Array], Array] | None
    stack: Callable[[Any], tuple[Any, Any]]
    unstack: Callable[[Any, Any], list[Any]]
    read_head: Callable[[str | Path], AnyHead]
    read_heads: Callable[[str | Path], Any]


IMAGES = Family(
    "images", "image tower", normalised_head, stack_heads, unstack_heads, read_head, read_heads
)
TEXTS = Family(
    "texts", "encoder", roberta.classify, stack_text_heads, unstack_text_heads,
    read_text_head, read_text_heads,
)  # fmt: skip
SCENES = Family(
    "images", "trunk", None, stack_decoders, unstack_decoders,
    read_stored_decoder, read_stored_decoders,
)  # fmt: skip


class Network(NamedTuple):
    """A network that was read.

    Attributes:
        family: `IMAGES`, `TEXTS` or `SCENES`.
        loaded: what was read.
        params: the image tower, the encoder, or the trunk's {'params', 'batch_stats'}; NumPy arrays
            in the precision of the file.
        encode: (θ, images uint8 or tokens int32 [batch, ...]) → features [batch, width], of a
            trunk [batch, rows, columns, width].
        width: of the features.
    """

    family: Family
    loaded: Loaded | LoadedRoberta | LoadedResNet
    params: Params
    encode: Encode
    width: int

    @property
    def classify(self) -> Callable[[Any, Array], Array]:
        """(head, features) → logits, of a network whose heads are no decoders."""
        assert self.family.classify is not None, "what decoders say is made in dense_adapt_files"
        return self.family.classify


def load_network(
    path: str | Path | Checkpoint, *, text: bool = False, stated_by: Sequence[Checkpoint] = ()
) -> Network:
    """Reads a CLIP, a RoBERTa or a ResNet.

    Args:
        path: as for `open_checkpoint`, or what that returned.
        text: read the text tower of a CLIP too, where there is one.
        stated_by: models of the same network, which may state the output stride of a ResNet that
            says nothing of it.

    Raises:
        BadInput: as `load_clip`, `load_roberta` and `load_resnet`.
    """
    source = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    layout = names_of(source).layout
    if layout == "resnet":
        strides = (stated_stride(one.config) for one in (source, *stated_by))
        trunk = load_resnet(source, output_stride=next(filter(None, strides), None))
        encode = resnet.encode_images(trunk.config)
        return Network(SCENES, trunk, trunk.variables, encode, trunk.config.features)
    if layout == "roberta":
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
    if isinstance(loaded, LoadedResNet):
        return trunk_rules(loaded.config.blocks)
    layout = "hugging_face" if loaded.names.layout == "hugging_face" else "open_clip"
    # Exports lose the prefix of open_clip alone.
    prefix = loaded.names.prefix if exported and layout == "hugging_face" else None
    return source_rules(network.params, layout, prefix=prefix)


def outputs_of(head: Any) -> int:
    """Returns the number of outputs of a head: classes, or 1 for a regression; or maps."""
    if "params" in head:
        return len(head["params"]["out"]["bias"])
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
    if isinstance(head, StoredDecoder):
        width = head.decoder.config.features
    else:
        own: Any = head.head
        width = len(own["dense"]["bias"]) if "dense" in own else own["weight"].shape[1]
    if width != network.width:
        what = "decoder" if isinstance(head, StoredDecoder) else "head"
        raise BadInput(
            f"{head.path}: the {what} takes features of width {width}, but "
            f"{network.loaded.source.path} gives {network.width}; the {what} belongs to another "
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
