"""RoBERTa in the layout of Hugging Face: name → path in our tree, and its config file.

Dense weights are [out, in] there and [in, out] here; everything else is the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from symerge_jax.checkpoints.clip_layouts import DENSE, SAME, Rule
from symerge_jax.checkpoints.roberta_names import CLASSES, PREFIX
from symerge_jax.errors import BadInput
from symerge_jax.models.roberta_config import RobertaConfig

_BLOCK = (
    ("attention.self.query", "attention/query", "dense"),
    ("attention.self.key", "attention/key", "dense"),
    ("attention.self.value", "attention/value", "dense"),
    ("attention.output.dense", "attention/out", "dense"),
    ("attention.output.LayerNorm", "ln_1", "norm"),
    ("intermediate.dense", "mlp/fc", "dense"),
    ("output.dense", "mlp/proj", "dense"),
    ("output.LayerNorm", "ln_2", "norm"),
)
# Of a config file → what to call it; the tensors' own shapes are compared with these.
_SHAPED = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "intermediate_size": "hidden",
    "max_position_embeddings": "positions",
    "type_vocab_size": "token_types",
}
_OF_A_HEAD = ("id2label", "label2id", "num_labels", "problem_type")
_ONE_OF_THEM = "single_label_classification"


def roberta_rules(depth: int, prefix: str = PREFIX) -> list[Rule]:
    """Returns the rules of an encoder of `depth` blocks, in the order of its state dict."""
    tables = (
        ("word_embeddings", "token_embedding/embedding"),
        ("position_embeddings", "position_embedding"),
        ("token_type_embeddings", "token_type_embedding"),
    )
    rules = [Rule(f"{prefix}embeddings.{name}.weight", path, SAME) for name, path in tables]
    rules += _pair(f"{prefix}embeddings.LayerNorm", "ln_embedding", "norm")
    for i in range(depth):
        for name, path, kind in _BLOCK:
            rules += _pair(f"{prefix}encoder.layer.{i}.{name}", f"blocks_{i}/{path}", kind)
    return rules


def head_rules() -> list[Rule]:
    """Returns the rules of a head's four tensors, as its own file names them."""
    return [rule for name in ("dense", "out_proj") for rule in _pair(name, name, "dense")]


def _pair(source: str, path: str, kind: str) -> list[Rule]:
    leaf, change = ("kernel", DENSE) if kind == "dense" else ("scale", SAME)
    return [
        Rule(f"{source}.weight", f"{path}/{leaf}", change),
        Rule(f"{source}.bias", f"{path}/bias", SAME),
    ]


def stated_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what shapes do not show, from a parsed config.json.

    Keys that are absent have the defaults of transformers. The values are fields of
    `RobertaConfig`: heads, activation, layer_norm_eps, pad_token.

    Raises:
        BadInput: another function than the one that is computed, or a value that is none.
    """
    kind = config.get("model_type", "roberta")
    if kind not in CLASSES:
        raise BadInput(f"config: model_type is {kind!r}, expected one of {', '.join(CLASSES)}")
    expected = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for key, value in expected.items():
        if (config.get(key) or value) != value:
            raise BadInput(
                f"config: {key} is {config[key]!r}, expected {value!r}, the only one that is "
                "computed; its features would be wrong"
            )
    heads = config.get("num_attention_heads", 12)
    epsilon = config.get("layer_norm_eps", 1e-12)
    pad = config.get("pad_token_id", 1)
    if type(heads) is not int or heads < 1:
        raise BadInput(f"config: num_attention_heads is {heads!r}, expected a whole number above 0")
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise BadInput(f"config: layer_norm_eps is {epsilon!r}, expected a number from 0 to 1")
    if type(pad) is not int or pad < 0:
        raise BadInput(f"config: pad_token_id is {pad!r}, expected a whole number from 0")
    return {
        "heads": heads,
        "activation": "gelu",
        "layer_norm_eps": float(epsilon),
        "pad_token": pad,
    }


def roberta_sizes(
    shapes: Mapping[str, tuple[int, ...]], depth: int, config: Mapping[str, Any] | None
) -> RobertaConfig:
    """Returns the sizes of an encoder.

    Args:
        shapes: path in our tree → shape.
        depth: number of blocks.
        config: the parsed config.json; without one a head has 64 features, as in every released
            model, the epsilon is 1e-5 and padding is 1.

    Raises:
        BadInput: config and shapes disagree, or the heads cannot be told.
    """
    vocabulary, width = shapes["token_embedding/embedding"]
    hidden = shapes["blocks_0/mlp/fc/kernel"][1]
    found: dict[str, Any] = {
        "vocabulary": vocabulary,
        "width": width,
        "depth": depth,
        "hidden": hidden,
        "positions": shapes["position_embedding"][0],
        "token_types": shapes["token_type_embedding"][0],
    }
    for key, size in _SHAPED.items():
        if config is not None and key in config and config[key] != found[size]:
            raise BadInput(
                f"config: {key} is {config[key]!r}, but the tensors have {found[size]}; config and "
                "weights belong to different models"
            )
    if config is None and (width % 64 or width < 384):
        raise BadInput(
            f"the number of attention heads cannot be told from width {width}; put config.json "
            "beside the weights"
        )
    facts: dict[str, Any] = {"heads": width // 64} if config is None else stated_facts(config)
    del found["hidden"]
    return RobertaConfig(**found, **facts, mlp_width=None if hidden == 4 * width else hidden)


def stated_classes(config: Mapping[str, Any] | None) -> tuple[int | None, tuple[str, ...] | None]:
    """Returns how many outputs a config.json states, and their names; None where it does not.

    Names that transformers makes up (LABEL_0) are none.

    Raises:
        BadInput: `id2label` does not count from 0.
    """
    table = None if config is None else config.get("id2label")
    if config is None or table is None:
        count = None if config is None else config.get("num_labels")
        return (count if type(count) is int else None), None
    names = {str(key): str(name) for key, name in table.items()} if type(table) is dict else {}
    if not names or set(names) != {str(i) for i in range(len(names))}:
        raise BadInput(f"config: id2label is {table!r}, expected names for 0, 1, … in an object")
    classes = tuple(names[str(i)] for i in range(len(names)))
    made_up = all(name == f"LABEL_{i}" for i, name in enumerate(classes))
    return len(classes), None if made_up else classes


def config_json(
    config: RobertaConfig,
    *,
    outputs: int | None = None,
    classes: Sequence[str] | None = None,
    like: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the config.json that transformers and `roberta_sizes` read.

    Args:
        config: sizes.
        outputs: of the head; None for an encoder alone. With one it is a regression.
        classes: names of the outputs.
        like: config.json of the model it comes from, whose other keys stay.
    """
    found: dict[str, Any] = {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **encoder_json(like or {}),
        **{key: getattr(config, name) for key, name in _SHAPED.items()},
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": config.pad_token,
    }
    if outputs is not None:
        kind = CLASSES[found["model_type"]]
        found["architectures"] = [f"{kind}ForSequenceClassification"]
        names = classes or [f"LABEL_{i}" for i in range(outputs)]
        found["id2label"] = {str(i): name for i, name in enumerate(names)}
        found["label2id"] = {name: i for i, name in enumerate(names)}
        stated = (like or {}).get("problem_type")
        found["problem_type"] = "regression" if outputs == 1 else stated or _ONE_OF_THEM
    return found


def encoder_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json without what it says of a head."""
    kind = config.get("model_type", "roberta")
    rest = {key: value for key, value in config.items() if key not in _OF_A_HEAD}
    return {**rest, "architectures": [f"{CLASSES[kind]}Model"], "model_type": kind}
