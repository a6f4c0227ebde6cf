"""The two public layouts of CLIP: source name → path in our tree, and their config files.

Each layout is one table of rules in the order of the source's own state dict.

Dense weights are [out, in] in PyTorch and [in, out] here; convolutions OIHW there and HWIO here;
open_clip's `proj` and `text_projection` are right-multiplied, so they are [in, out] in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.models.clip_config import ClipConfig, TextConfig, VisionConfig


class Kind(NamedTuple):
    """A change of axes, both ways, and the number of axes (None: any)."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]
    axes: int | None = None


SAME = Kind(lambda x: x, lambda x: x)
DENSE = Kind(np.transpose, np.transpose, 2)
CONV = Kind(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), 4)


class Rule(NamedTuple):
    """One tensor: its name in the source, its path in our tree, its change of axes."""

    source: str
    path: str
    kind: Kind


def _norm(source: str, path: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{path}/scale", SAME),
        Rule(f"{source}.bias", f"{path}/bias", SAME),
    ]


def _dense(source: str, path: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{path}/kernel", DENSE),
        Rule(f"{source}.bias", f"{path}/bias", SAME),
    ]


def _hugging_face_blocks(source: str, path: str, depth: int) -> Iterator[Rule]:
    for i in range(depth):
        ours, theirs = f"{path}/blocks_{i}", f"{source}encoder.layers.{i}"
        for name, leaf in (("k", "key"), ("v", "value"), ("q", "query"), ("out", "out")):
            yield from _dense(f"{theirs}.self_attn.{name}_proj", f"{ours}/attention/{leaf}")
        yield from _norm(f"{theirs}.layer_norm1", f"{ours}/ln_1")
        yield from _dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc")
        yield from _dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/proj")
        yield from _norm(f"{theirs}.layer_norm2", f"{ours}/ln_2")


def _open_clip_blocks(source: str, path: str, depth: int) -> Iterator[Rule]:
    for i in range(depth):
        ours, theirs = f"{path}/blocks_{i}", f"{source}transformer.resblocks.{i}"
        yield from _norm(f"{theirs}.ln_1", f"{ours}/ln_1")
        yield Rule(f"{theirs}.attn.in_proj_weight", f"{ours}/attention/in_proj/kernel", DENSE)
        yield Rule(f"{theirs}.attn.in_proj_bias", f"{ours}/attention/in_proj/bias", SAME)
        yield from _dense(f"{theirs}.attn.out_proj", f"{ours}/attention/out")
        yield from _norm(f"{theirs}.ln_2", f"{ours}/ln_2")
        yield from _dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp/fc")
        yield from _dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp/proj")


def hugging_face_rules(
    prefix: str, *, depth: int, projection: bool, text_depth: int | None = None
) -> list[Rule]:
    """Returns the rules of CLIPVisionModel(WithProjection), or of CLIPModel given `text_depth`.

    Args:
        prefix: before the image tower's names: 'vision_model.' or '' (or, around all, 'clip.…').
        depth: blocks of the image tower.
        projection: whether `visual_projection` is there.
        text_depth: blocks of the text tower.
    """
    outer = prefix.removesuffix("vision_model.")
    text = f"{outer}text_model."
    rules: list[Rule] = []
    if text_depth is not None:
        rules.append(Rule(f"{outer}logit_scale", "logit_scale", SAME))
        table = f"{text}embeddings.token_embedding.weight"
        rules.append(Rule(table, "text/token_embedding/embedding", SAME))
        position = f"{text}embeddings.position_embedding.weight"
        rules.append(Rule(position, "text/position_embedding", SAME))
        rules += _hugging_face_blocks(text, "text", text_depth)
        rules += _norm(f"{text}final_layer_norm", "text/ln_final")
    embeddings = f"{prefix}embeddings"
    rules += [
        Rule(f"{embeddings}.class_embedding", "vision/class_embedding", SAME),
        Rule(f"{embeddings}.patch_embedding.weight", "vision/patch_embedding/kernel", CONV),
        Rule(f"{embeddings}.position_embedding.weight", "vision/position_embedding", SAME),
        *_norm(f"{prefix}pre_layrnorm", "vision/ln_pre"),  # spelled so at the source
        *_hugging_face_blocks(prefix, "vision", depth),
        *_norm(f"{prefix}post_layernorm", "vision/ln_post"),
    ]
    if projection:
        name = f"{outer}visual_projection.weight"
        rules.append(Rule(name, "vision/projection/kernel", DENSE))
    if text_depth is not None:
        rules.append(Rule(f"{outer}text_projection.weight", "text/projection/kernel", DENSE))
    return rules


def open_clip_rules(
    prefix: str, *, depth: int, projection: bool, text_depth: int | None = None
) -> list[Rule]:
    """Returns the rules of open_clip's image encoder, or of its CLIP given `text_depth`.

    Args:
        prefix: before every name: '' or 'model.'.
        depth: blocks of the image tower.
        projection: whether `visual.proj` is there.
        text_depth: blocks of the text tower.
    """
    visual = f"{prefix}visual."
    rules: list[Rule] = []
    if text_depth is not None:
        rules += [
            Rule(f"{prefix}positional_embedding", "text/position_embedding", SAME),
            Rule(f"{prefix}text_projection", "text/projection/kernel", SAME),
            Rule(f"{prefix}logit_scale", "logit_scale", SAME),
        ]
    rules.append(Rule(f"{visual}class_embedding", "vision/class_embedding", SAME))
    rules.append(Rule(f"{visual}positional_embedding", "vision/position_embedding", SAME))
    if projection:
        rules.append(Rule(f"{visual}proj", "vision/projection/kernel", SAME))
    rules += [
        Rule(f"{visual}conv1.weight", "vision/patch_embedding/kernel", CONV),
        *_norm(f"{visual}ln_pre", "vision/ln_pre"),
        *_open_clip_blocks(visual, "vision", depth),
        *_norm(f"{visual}ln_post", "vision/ln_post"),
    ]
    if text_depth is not None:
        rules += _open_clip_blocks(prefix, "text", text_depth)
        rules.append(
            Rule(f"{prefix}token_embedding.weight", "text/token_embedding/embedding", SAME)
        )
        rules += _norm(f"{prefix}ln_final", "text/ln_final")
    return rules


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Puts the checkpoint's name before errors in its config."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from error


# Above any size of a network; the products of a few such sizes are still numbers of bytes.
_LARGEST = 2**20


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Returns a whole number above 0 from a config file."""
    value = config[key] if default is None else config.get(key, default)
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise BadInput(
            f"config: {key} is {brief(value)}, expected a whole number above 0"
            + (f" and up to {_LARGEST}" if type(value) is int and value > 0 else "")
        )
    return value


def _number(config: Mapping[str, Any], key: str, default: float, most: float) -> float:
    """Returns a number from 0 to `most` from a config file."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 <= value <= most:  # NaN is neither
        raise BadInput(f"config: {key} is {brief(value)}, expected a number from 0 to {most:g}")
    return float(value)


def _hidden(config: Mapping[str, Any]) -> int:
    """Returns the MLP's width of an open_clip tower."""
    return int(_size(config, "width") * _number(config, "mlp_ratio", 4.0, 1024.0))


def brief(value: object) -> str:
    """Returns a value of a config file for an error: short, and on one line."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**64 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _part(
    config: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Returns an object inside a config file."""
    value = config[key] if default is None else config.get(key, default)
    if not isinstance(value, Mapping):
        raise BadInput(f"config: {key} is {brief(value)}, expected an object")
    return value


def hugging_face_sizes(config: Mapping[str, Any], *, projection: bool) -> ClipConfig:
    """Reads a parsed config.json of CLIPModel or CLIPVisionModel(WithProjection).

    Keys that are absent have the defaults of transformers, which writes only what differs. The
    legacy end of text, id 2, means that OpenAI's rule (the highest id) finds it.

    Args:
        config: the parsed file.
        projection: whether the checkpoint holds `visual_projection`; the file does not tell.

    Raises:
        BadInput: a size is no whole number above 0, or they do not fit together.
    """
    image, text = _part(config, "vision_config", config), _part(config, "text_config", {})
    # The outer one counts, unless it is absent or null.
    shared = {} if config.get("projection_dim") is None else config
    eos = text.get("eos_token_id", 49407)
    if type(eos) is not int or not 0 <= eos < 2**31:
        raise BadInput(f"config: eos_token_id is {brief(eos)}, expected a token's id")
    return ClipConfig(
        VisionConfig(
            image_size=_size(image, "image_size", 224),
            patch_size=_size(image, "patch_size", 32),
            width=_size(image, "hidden_size", 768),
            depth=_size(image, "num_hidden_layers", 12),
            heads=_size(image, "num_attention_heads", 12),
            mlp_width=_size(image, "intermediate_size", 3072),
            projection=_size(shared or image, "projection_dim", 512) if projection else None,
            activation=str(image.get("hidden_act", "quick_gelu")),
            fused_qkv=False,
            layer_norm_eps=_number(image, "layer_norm_eps", 1e-5, 1.0),
        ),
        TextConfig(
            vocabulary=_size(text, "vocab_size", 49408),
            length=_size(text, "max_position_embeddings", 77),
            width=_size(text, "hidden_size", 512),
            depth=_size(text, "num_hidden_layers", 12),
            heads=_size(text, "num_attention_heads", 8),
            mlp_width=_size(text, "intermediate_size", 2048),
            projection=_size(shared or text, "projection_dim", 512),
            activation=str(text.get("hidden_act", "quick_gelu")),
            fused_qkv=False,
            layer_norm_eps=_number(text, "layer_norm_eps", 1e-5, 1.0),
            pooling="argmax" if eos == 2 else "eos",
            eos_token=eos,
        ),
    )


def open_clip_sizes(config: Mapping[str, Any]) -> VisionConfig | ClipConfig:
    """Reads open_clip's model config (embed_dim, vision_cfg, text_cfg, quick_gelu).

    Without text_cfg it is an image tower alone.

    Raises:
        BadInput: a key is absent, a size is no whole number above 0, or the image tower is no
            vision transformer.
    """
    config = _part(config, "model_cfg", config)
    try:
        image, d = _part(config, "vision_cfg"), _size(config, "embed_dim")
        text = None if config.get("text_cfg") is None else _part(config, "text_cfg")
        activation = "quick_gelu" if config.get("quick_gelu", False) else "gelu"
        if not isinstance(image["layers"], int) or "timm_model_name" in image:
            raise BadInput(
                "open_clip config: vision_cfg describes no plain vision transformer, "
                "the only image tower that is supported"
            )
        vision = VisionConfig(
            image_size=_size(image, "image_size"),
            patch_size=_size(image, "patch_size"),
            width=_size(image, "width"),
            depth=_size(image, "layers"),
            heads=max(1, _size(image, "width") // _size(image, "head_width", 64)),
            mlp_width=_hidden(image),
            projection=d,
            activation=activation,
        )
        if text is None:
            return vision
        return ClipConfig(
            vision,
            TextConfig(
                vocabulary=_size(text, "vocab_size", 49408),
                length=_size(text, "context_length", 77),
                width=_size(text, "width"),
                depth=_size(text, "layers"),
                heads=_size(text, "heads"),
                mlp_width=_hidden(text),
                projection=d,
                activation=activation,
            ),
        )
    except KeyError as error:
        raise BadInput(f"open_clip config: expected a key {error}, found none") from None


def open_clip_config(vision: VisionConfig, text: TextConfig | None) -> dict[str, Any]:
    """Returns the model config that `open_clip_sizes` reads."""
    model: dict[str, Any] = {
        "embed_dim": vision.projection,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.depth,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "patch_size": vision.patch_size,
            "mlp_ratio": vision.hidden / vision.width,
        },
        "quick_gelu": vision.activation == "quick_gelu",
    }
    if text is not None:
        model["text_cfg"] = {
            "context_length": text.length,
            "vocab_size": text.vocabulary,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
            "mlp_ratio": text.hidden / text.width,
        }
    return {"model_cfg": model}


def hugging_face_config(vision: VisionConfig, text: TextConfig | None) -> dict[str, Any]:
    """Returns the config.json that `hugging_face_sizes` and transformers read."""
    shared = {"projection_dim": vision.projection or 512}
    image = {
        "model_type": "clip_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": vision.hidden,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.activation,
        "layer_norm_eps": vision.layer_norm_eps,
        **shared,
    }
    if text is None:
        name = "CLIPVisionModel" if vision.projection is None else "CLIPVisionModelWithProjection"
        return {"architectures": [name], **image}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **shared,
        "vision_config": image,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.length,
            "hidden_size": text.width,
            "intermediate_size": text.hidden,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "hidden_act": text.activation,
            "layer_norm_eps": text.layer_norm_eps,
            "eos_token_id": text.eos_token if text.pooling == "eos" else 2,
            **shared,
        },
    }
