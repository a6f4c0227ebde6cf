"""Zero-shot heads from class names, by the text tower of a CLIP model that was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from symerge_jax.checkpoints.open import Loaded
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import encode_text
from symerge_jax.models.clip_config import TextConfig
from symerge_jax.models.heads import Head, Template, zero_shot_head
from symerge_jax.models.tokenizer import clip_tokenizer
from symerge_jax.notation import Array
from symerge_jax.score import computable


def head_from_text(
    model: Loaded,
    classes: Sequence[str | Sequence[str]],
    templates: Sequence[Template],
    *,
    vocabulary: str | Path | None = None,
) -> Head:
    """Writes a head; its rows have the length exp(logit_scale), 100 for OpenAI's models.

    Args:
        model: of `load_clip(..., text=True)`.
        classes: a name, or a list of synonyms, per class.
        templates: prompts with {} for the class name.
        vocabulary: what `clip_tokenizer` reads; the folder of the model's weights otherwise.

    Raises:
        BadInput: the model has no text tower, or no vocabulary lies beside it.
    """
    if model.text is None or "logit_scale" not in model.params:
        raise BadInput(
            f"{model.source.path}: has no text tower, which a head from class names needs; give a "
            "whole CLIP model as the pre-trained one, or the head as a file"
        )
    params, encode = computable(model.params["text"]), _encoder(model.text)
    place = vocabulary or model.source.parts[0].path.parent
    return zero_shot_head(
        lambda tokens: encode(params, tokens),
        clip_tokenizer(place, length=min(model.text.length, 77)),
        classes,
        templates,
        scale=np.exp(np.float32(model.params["logit_scale"])),
    )


@cache
def _encoder(config: TextConfig) -> Callable[[Any, Array], Array]:
    """Returns one compiled function per size, however many heads are written."""
    return jax.jit(encode_text(config))
