"""Reads the texts of a task for a head: tokens by the model's vocabulary, labels as its outputs.

The counterpart of `inputs`. Longer texts are cut to 128 tokens, as the public experts of GLUE were
trained. Labels are read for scores alone, and a file may lack them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from symerge_jax.checkpoints.roberta_heads import StoredTextHead
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.data.roberta_tokenizer import PAD_ID, RobertaTokenizer, read_tokenizer
from symerge_jax.data.text import count_dev_texts, read_texts
from symerge_jax.data.text_columns import glue_name
from symerge_jax.data.text_files import FORMATS
from symerge_jax.errors import BadInput
from symerge_jax.inputs import rows_of
from symerge_jax.models.roberta_config import RobertaConfig
from symerge_jax.score import text_metric

LENGTH = 128  # tokens, at most

# One file of each form in which a vocabulary comes.
_VOCABULARIES = ("vocab.json", "tokenizer.json", "encoder.json")


class Texts(NamedTuple):
    """The texts of one task.

    Attributes:
        tokens: int32 [n, length], padded at the end.
        labels: rows of the head, int [n]; of a regression float32 [n]; None where not known.
        metric: by which the task is scored.
    """

    tokens: np.ndarray
    labels: np.ndarray | None
    metric: str


def find_vocabulary(
    given: Path | None,
    models: Sequence[Checkpoint],
    config: RobertaConfig,
    *,
    option: str = "--vocabulary FOLDER",
) -> RobertaTokenizer:
    """Reads the vocabulary of a model.

    Args:
        given: its folder, if the person names it; that of the first of `models` with one otherwise.
        models: beside whose weights it may lie; the first is the one it is for.
        config: sizes of that one.
        option: how to name a folder.

    Raises:
        BadInput: there is none, it is damaged, or the model has no row for one of its ids.
    """
    model = str(models[0].path)
    places = [given] if given else [one.parts[0].path.parent for one in models]
    having = [p for p in places if any((p / name).is_file() for name in _VOCABULARIES)]
    if not having and not given:
        raise BadInput(
            f"{model}: no vocabulary of RoBERTa (vocab.json and merges.txt, or tokenizer.json) "
            f"beside the weights, which texts need; name its folder with {option}"
        )
    tokenizer = read_tokenizer((having or places)[0])
    tokenizer.check_rows(config.vocabulary, model)
    if config.pad_token != PAD_ID:
        raise BadInput(
            f"{model}: its config has pad_token_id {config.pad_token}, but texts are padded with "
            f"{PAD_ID} as for every RoBERTa; correct the config"
        )
    return tokenizer


def write_vocabulary(tokenizer: RobertaTokenizer, folder: Path) -> None:
    """Writes a vocabulary, unless the files that were copied to the folder are the same one."""
    with contextlib.suppress(BadInput):
        if read_tokenizer(folder).digest == tokenizer.digest:
            return
    for name in (*_VOCABULARIES, "special_tokens_map.json"):  # of another vocabulary
        (folder / name).unlink(missing_ok=True)
    tokenizer.save(folder)


def find_texts(path: Path, *, train: bool = False) -> Path:
    """Returns the file itself, or that of a task's folder: dev, or train where it is asked for.

    Raises:
        BadInput: there is nothing, or a folder without a file of texts.
    """
    if not path.exists():
        raise BadInput(
            f"{path}: does not exist; expected a file of texts ({', '.join(FORMATS)}) or the "
            "folder of a task"
        )
    if not path.is_dir():
        return path
    trains = [file for kind in FORMATS if train and (file := path / f"train{kind}").is_file()]
    path = path.absolute()  # "." has a name, too
    return trains[0] if trains else count_dev_texts(path.parent, path.name)[0]


def read_text_inputs(
    path: Path,
    head: StoredTextHead,
    tokenizer: RobertaTokenizer,
    config: RobertaConfig,
    *,
    name: str,
    limit: int | None = None,
) -> Texts:
    """Reads a task's texts and, where they are known, its labels.

    Classes that the file or GLUE's task name become rows of the head by name if the head knows all
    of them, else in their order, if there are as many. With one output labels are numbers.

    Args:
        path: a file, or the folder of a task.
        head: that the labels are for.
        tokenizer: of the model.
        config: its sizes.
        name: of the task; that of the folder counts where it is one of GLUE's.
        limit: take only the first texts.

    Raises:
        BadInput: unreadable texts, or labels that are not the head's.
    """
    path = find_texts(path)
    folder = path.absolute().parent.name
    name = folder if glue_name(folder) else name
    read = read_texts(path, tokenizer, name=name, max_length=min(LENGTH, config.length))
    labels = None if read.labels is None else _labels(read.labels, read.classes, head, path)
    labels = None if labels is None else labels[:limit]
    return Texts(read.tokens[:limit], labels, text_metric(name, head.outputs))


def draw_texts(
    path: Path, tokenizer: RobertaTokenizer, config: RobertaConfig, count: int
) -> np.ndarray:
    """Returns tokens int32 [n, length] of texts drawn with seed 0, all where there are fewer.

    Raises:
        BadInput: unreadable texts.
    """
    tokens = read_texts(path, tokenizer, max_length=min(LENGTH, config.length)).tokens
    chosen = np.random.default_rng(0).permutation(len(tokens))[:count]
    return tokens[np.sort(chosen)]


def _labels(
    labels: np.ndarray, classes: tuple[str, ...] | None, head: StoredTextHead, path: Path
) -> np.ndarray:
    if head.outputs == 1:
        return labels if classes is None else _numbers(classes, head, path)[labels]
    if classes is None:
        raise BadInput(
            f"{path}: its labels are numbers to predict, but {head.path} has {head.outputs} "
            "outputs, one per class; the head belongs to another task"
        )
    numbered = classes == tuple(map(str, range(len(classes))))
    folded = head._replace(classes=head.classes and tuple(map(str.casefold, head.classes)))
    names = None if numbered else tuple(map(str.casefold, classes))
    return rows_of(folded, labels, names, path)


def _numbers(classes: tuple[str, ...], head: StoredTextHead, path: Path) -> np.ndarray:
    """Returns the classes of a file as numbers, float32 [classes].

    Raises:
        BadInput: one is none.
    """
    values = []
    for name in classes:
        try:
            values.append(float(name))
        except ValueError:
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            raise BadInput(
                f"{path}: expected numbers to predict, since {head.path} has one output, found the "
                f"label {name!r}; correct it, or give the head that belongs to these classes"
            )
    return np.array(values, np.float32)
