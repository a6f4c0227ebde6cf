"""Zero-shot heads of the benchmark's sets, from the text tower of a CLIP model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import clip_names
from experiments.tasks.clip_labels import prompt_names
from experiments.tasks.clip_sets import ClipSet
from symerge_jax.checkpoints.open import load_clip
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import encode_text
from symerge_jax.models.heads import Head, zero_shot_head
from symerge_jax.models.tokenizer import clip_tokenizer


def build_head(
    row: ClipSet,
    names: Sequence[str] | None,
    model: str | Path,
    *,
    vocabulary: str | Path | None = None,
    printed_lists: bool = False,
) -> Head:
    """Writes the head of a set: its rows have the length exp(logit_scale), 100 for OpenAI's models.

    Args:
        row: the set.
        names: of its classes in the benchmark's order, as the data gives them (`Reader.names`).
        model: folder or file of a whole CLIP model, text tower included.
        vocabulary: what `clip_tokenizer` reads; the model's folder otherwise.
        printed_lists: FER2013's names as the heads of TALL-masks and SyMerge have them; see
            `clip_names.FER2013_PRINTED`.

    Raises:
        BadInput: no text tower or vocabulary, or class names that are needed are not there.
    """
    classes = prompt_names(row, names)
    if printed_lists and row.key == "fer2013":
        classes = clip_names.FER2013_PRINTED
    loaded = load_clip(model, text=True)
    if loaded.text is None or "logit_scale" not in loaded.params:
        raise BadInput(
            f"{model}: has no text tower, and a zero-shot head is written by one; give the folder "
            "of the whole pre-trained CLIP model"
        )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params["text"])
    encode = jax.jit(encode_text(loaded.text))
    length = min(loaded.text.length, 77)
    return zero_shot_head(
        lambda tokens: encode(params, tokens),
        clip_tokenizer(vocabulary or _folder(Path(model)), length=length),
        classes,
        row.templates,
        scale=np.exp(np.float32(loaded.params["logit_scale"])),
    )


def _folder(model: Path) -> Path:
    return model if model.is_dir() else model.parent
