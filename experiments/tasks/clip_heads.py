"""Zero-shot heads of the benchmark's sets, from the text tower of a CLIP model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.tasks import clip_names
from experiments.tasks.clip_labels import prompt_names
from experiments.tasks.clip_sets import ClipSet
from symerge_jax.checkpoints.open import Loaded, load_clip
from symerge_jax.models.heads import Head
from symerge_jax.text_heads import head_from_text


def build_head(
    row: ClipSet,
    names: Sequence[str] | None,
    model: str | Path | Loaded,
    *,
    vocabulary: str | Path | None = None,
    printed_lists: bool = False,
) -> Head:
    """Writes the head of a set: its rows have the length exp(logit_scale), 100 for OpenAI's models.

    Args:
        row: the set.
        names: of its classes in the benchmark's order, as the data gives them (`Reader.names`).
        model: folder or file of a whole CLIP model, text tower included; or that model, read.
        vocabulary: what `clip_tokenizer` reads; the model's folder otherwise.
        printed_lists: FER2013's names as the heads of TALL-masks and SyMerge have them; see
            `clip_names.FER2013_PRINTED`.

    Raises:
        BadInput: no text tower or vocabulary, or class names that are needed are not there.
    """
    classes = prompt_names(row, names)
    if printed_lists and row.key == "fer2013":
        classes = clip_names.FER2013_PRINTED
    loaded = model if isinstance(model, Loaded) else load_clip(model, text=True)
    return head_from_text(loaded, classes, row.templates, vocabulary=vocabulary)
