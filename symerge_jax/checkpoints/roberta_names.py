"""How the tensors of a RoBERTa are called, whatever class of model saved them.

The encoder comes as `roberta.embeddings…` inside a classifier or a language model, as
`embeddings…` alone, and in files of the first years with `gamma` and `beta` for LayerNorm's weight
and bias. Its common names are those of today's classifier, `roberta.…`. XLM-RoBERTa and CamemBERT
are the same network with other vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from symerge_jax.errors import BadInput

# model_type of a config file → what its classes in transformers are called.
CLASSES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
PREFIX = "roberta."  # of common names
HEAD = (
    "classifier.dense.weight",
    "classifier.dense.bias",
    "classifier.out_proj.weight",
    "classifier.out_proj.bias",
)

_WORDS = "embeddings.word_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_COUNTERS = ("position_ids", "token_type_ids")
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Parts(NamedTuple):
    """The tensors of one checkpoint.

    Attributes:
        encoder: common name, starting with 'roberta.' → name in the file.
        head: name of `HEAD` → name in the file.
        passed_over: names in the file that are known and no part of either: pooler, language
            model, position counters, classifiers of tokens.
        unknown: all others.
    """

    encoder: dict[str, str]
    head: dict[str, str]
    passed_over: tuple[str, ...]
    unknown: tuple[str, ...]


def prefix_of(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None
) -> str | None:
    """Returns what stands before the encoder's names, or None where there is no RoBERTa.

    Args:
        shapes: name → shape.
        config: the parsed config.json, if there is one.

    Raises:
        BadInput: several encoders.
    """
    ends = [name for name in shapes if name == _WORDS or name.endswith("." + _WORDS)]
    prefixes = [name.removesuffix(_WORDS) for name in ends]
    found = [prefix for prefix in prefixes if _is_roberta(prefix, shapes, config)]
    if len(found) > 1:
        raise BadInput(f"holds several RoBERTa encoders: {', '.join(found)}")
    return found[0] if found else None


def _is_roberta(
    prefix: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None
) -> bool:
    """Whether an encoder is RoBERTa's and not BERT's, whose tensors have the same names."""
    if prefix:
        return prefix == PREFIX or prefix.endswith("." + PREFIX)
    kind = None if config is None else config.get("model_type")
    if kind is not None:
        return kind in CLASSES
    return shapes.get(_TYPES, (0,))[0] == 1  # BERT has two


def parts_of(names: Iterable[str], prefix: str) -> Parts:
    """Sorts the names of a checkpoint.

    Args:
        names: of its tensors.
        prefix: of `prefix_of`.

    Raises:
        BadInput: two tensors would have the same common name.
    """
    outer = prefix.removesuffix(PREFIX)
    parts = Parts({}, {}, (), ())
    passed_over, unknown = [], []
    for name in names:
        bare = name.removeprefix(outer)
        if name.rsplit(".", 1)[-1] in _COUNTERS or bare.startswith(("lm_head.", "pooler.")):
            passed_over.append(name)
        elif bare in HEAD:
            parts.head[bare] = name
        elif bare.startswith("classifier."):
            passed_over.append(name)
        elif (inner := name.removeprefix(prefix)) == name and prefix:
            unknown.append(name)
        elif inner.startswith("pooler."):
            passed_over.append(name)
        elif not prefix and not inner.startswith(("embeddings.", "encoder.")):
            unknown.append(name)
        else:
            common = PREFIX + _of_today(inner)
            if common in parts.encoder:
                raise BadInput(f"{parts.encoder[common]} and {name} are the same tensor")
            parts.encoder[common] = name
    return Parts(parts.encoder, parts.head, tuple(passed_over), tuple(unknown))


def _of_today(name: str) -> str:
    for old, new in _OLD.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def in_file(common: str, prefix: str) -> str:
    """Returns what a tensor of the encoder would be called in a checkpoint with this prefix."""
    return prefix + common.removeprefix(PREFIX)
