"""What the names in a checkpoint tell: its layout, and one name per tensor whatever stands before.

The same model comes as `vision_model.encoder…`, `encoder…` (recent transformers), `visual…` or
`model.visual…`. A common name lets a pre-trained model and its experts be compared although they
were saved by different classes: the image tower starts with `vision_model.` in the Hugging Face
layout and with `visual.` in that of open_clip, the encoder of a RoBERTa with `roberta.`, and the
trunk of a ResNet has torchvision's names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from symerge_jax.checkpoints import resnet_names
from symerge_jax.checkpoints.clip_layouts import naming
from symerge_jax.checkpoints.roberta_names import parts_of, prefix_of
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput

LayoutName = Literal["hugging_face", "open_clip", "roberta", "resnet", "plain"]

# No parameters: position counters, the causal mask, OpenAI's size constants.
ASIDE = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")
# What is left of open_clip's text tower in the image encoders of the task-vector checkpoints.
TEXT_LEFTOVERS = (
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "token_embedding.weight",
    "ln_final.weight",
    "ln_final.bias",
)

_KNOWN: dict[LayoutName, str] = {
    "hugging_face": "embeddings.patch_embedding.weight",
    "open_clip": "visual.conv1.weight",
}
# Parts of a Hugging Face CLIP beside the image tower.
_OUTSIDE = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")
_OPEN_CLIP_TEXT = ("transformer.", *TEXT_LEFTOVERS)


class Names(NamedTuple):
    """How the tensors of a checkpoint are called.

    Attributes:
        layout: 'hugging_face' or 'open_clip' for a CLIP, 'roberta', 'resnet'; 'plain' for a model
            of another kind, whose names are common names as they are.
        prefix: what stands before the image tower's names in a Hugging Face checkpoint
            ('vision_model.' or less), before every name in one of open_clip, before the encoder's
            names in a RoBERTa ('roberta.' or nothing), and before the trunk's in a ResNet.
        source: common name → name in the file, in the file's order.
        aside: names in the file of buffers that are no parameters.
        left_out: names in the file of tensors that a model made from it does not have: of a
            RoBERTa all but its encoder, such as classifier, pooler and language model; of a ResNet
            all but its trunk, such as classifier and decoders.
    """

    layout: LayoutName
    prefix: str
    source: dict[str, str]
    aside: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def names_of(checkpoint: Checkpoint) -> Names:
    """Returns the common names of a checkpoint's tensors.

    Raises:
        BadInput: two tensors would have the same common name, or it holds several image towers or
            encoders.
    """
    if (found := _roberta(checkpoint) or _resnet(checkpoint)) is not None:
        return found
    layout, prefix = _layout(checkpoint)
    source: dict[str, str] = {}
    aside = []
    for name in checkpoint.where:
        if name.rsplit(".", 1)[-1] in ASIDE:
            aside.append(name)
            continue
        common = _common(name, layout, prefix)
        if common in source:
            raise BadInput(f"{checkpoint.path}: {source[common]} and {name} are the same tensor")
        source[common] = name
    return Names(layout, prefix, source, tuple(aside))


def _roberta(checkpoint: Checkpoint) -> Names | None:
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    with naming(checkpoint.path):
        prefix = prefix_of(shapes, checkpoint.config)
        if prefix is None:
            return None
        encoder = parts_of(shapes, prefix).encoder
    kept = set(encoder.values())
    left_out = tuple(name for name in checkpoint.where if name not in kept)
    return Names("roberta", prefix, encoder, (), left_out)


def _resnet(checkpoint: Checkpoint) -> Names | None:
    prefix = resnet_names.prefix_of({name: info.shape for name, info in checkpoint.tensors.items()})
    if prefix is None:
        return None
    parts = resnet_names.parts_of(checkpoint.where, prefix)
    aside = tuple(parts.counters.values())
    kept = {*parts.trunk.values(), *aside}
    left_out = tuple(name for name in checkpoint.where if name not in kept)
    return Names("resnet", prefix, parts.trunk, aside, left_out)


def _layout(checkpoint: Checkpoint) -> tuple[LayoutName, str]:
    for layout, known in _KNOWN.items():
        hits = [name for name in checkpoint.where if name == known or name.endswith("." + known)]
        if len(hits) > 1:
            raise BadInput(f"{checkpoint.path}: holds several image towers: {', '.join(hits)}")
        if hits:
            return layout, hits[0].removesuffix(known)
    return "plain", ""


def _common(name: str, layout: LayoutName, prefix: str) -> str:
    if layout == "open_clip":
        return name.removeprefix(prefix)
    if layout == "hugging_face":
        outer = prefix.removesuffix("vision_model.")
        bare = name.removeprefix(outer)
        if prefix.endswith("vision_model.") or bare.startswith(_OUTSIDE):
            return bare
        return "vision_model." + bare
    return name


def is_text(common: str, layout: LayoutName) -> bool:
    """Whether a common name belongs to the text tower, or to what is left of it."""
    if layout == "hugging_face":
        return common.startswith(("text_model.", "text_projection.", "logit_scale"))
    return layout == "open_clip" and common.startswith(_OPEN_CLIP_TEXT)


def check_same_layout(named: Iterable[tuple[str, Names]]) -> LayoutName:
    """Returns the layout that all checkpoints share.

    Raises:
        BadInput: two differ: a leaf of one is three leaves of the other, so that merging them
            needs a choice that only the person can make.
    """
    (first, reference), *rest = named
    for name, names in rest:
        if names.layout != reference.layout:
            raise BadInput(
                f"{name} has the {names.layout} layout, {first} the {reference.layout} layout; "
                "convert one with `symerge convert` so that both have the same tensors"
            )
    return reference.layout
