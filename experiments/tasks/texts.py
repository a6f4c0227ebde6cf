"""Text tasks: the embedded language world's, and GLUE's or one's own in folders.

Inputs are token ids, int32 [n, length], padded at the end with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.tasks.glue import ORDER
from experiments.tasks.task import Split, Task, check_known, first, hold_out
from experiments.tiny import language_world as world
from symerge_jax.cache import cached
from symerge_jax.cli.progress import say
from symerge_jax.data.roberta_tokenizer import PAD_ID, RobertaTokenizer
from symerge_jax.data.text import TextSplit, list_text_tasks, read_text_task
from symerge_jax.data.text_columns import glue_name
from symerge_jax.errors import BadInput


def generated(
    names: Sequence[str] = world.TASKS, *, limit: int | None = None, cache: Path | None = None
) -> list[Task]:
    """Writes tasks of the embedded world, or finds them written.

    There is one world: the texts do not depend on a run's seed.

    Args:
        names: of the tasks.
        limit: largest number of test examples.
        cache: root of the cache; None keeps nothing.

    Raises:
        BadInput: an unknown task.
    """
    for name in names:
        check_known(name, world.TASKS, "task")
    return [_generated(name, limit, cache) for name in names]


def _generated(name: str, limit: int | None, cache: Path | None) -> Task:
    kind = world.KINDS[name]

    def write() -> dict[str, dict[str, np.ndarray]]:
        train = world.examples(name, split="train", count=kind.train)
        test = world.examples(name, split="test", count=world.TEST)
        return {
            split: {"tokens": world.tokens(found.texts), "labels": found.labels}
            for split, found in (("train", train), ("test", test))
        }

    key = {"world": world.world_digest(), "task": name}
    written = cached(cache, "texts", key, write, report=say)
    whole, test = (Split(written[s]["tokens"], written[s]["labels"]) for s in ("train", "test"))
    train, validation = hold_out(whole)
    return Task(name, kind.classes, train, validation, first(test, limit), metric=kind.metric)


def find_text_tasks(folder: Path) -> list[str]:
    """Returns the names of the folders with a text task, GLUE's in the paper's order first.

    Raises:
        BadInput: the folder cannot be read.
    """
    found = list_text_tasks(folder)
    place = {name: i for i, name in enumerate(ORDER)}
    return sorted(found, key=lambda name: (place.get(glue_name(name) or "", len(ORDER)), name))


def from_folders(
    folder: Path,
    names: Sequence[str],
    tokenizer: RobertaTokenizer,
    *,
    length: int = 128,
    limit: int | None = None,
    cache: Path | None = None,
) -> list[Task]:
    """Reads tasks from `folder/<task>`; dev is what is scored, as GLUE keeps its test labels.

    All rows are padded to the longest of all tasks.

    Args:
        folder: where the tasks are.
        names: of the sub-folders, or GLUE's names of its tasks.
        tokenizer: of the model.
        length: longer texts are cut to it.
        limit: largest number of test examples.
        cache: folder to keep tokens in; None keeps none.

    Raises:
        BadInput: unreadable data, or labels that are missing or all alike.
    """
    tasks = []
    for name in names:
        read = read_text_task(folder, name, tokenizer, max_length=length, cache=cache)
        where = folder / read.name
        train, validation, test = (
            _labelled(split, where, part)
            for part, split in (
                ("train", read.train), ("validation", read.validation), ("dev", read.dev),
            )
        )  # fmt: skip
        if len(np.unique(train.labels)) < 2:
            raise BadInput(
                f"{where}: all training texts have one label; an expert cannot be trained on them"
            )
        assert read.metric is not None  # whoever has labels has a metric
        tasks.append(
            Task(
                glue_name(read.name) or read.name, read.classes or ("score",), train, validation,
                first(test, limit), metric=read.metric,
            )
        )  # fmt: skip
    return _of_one_length(tasks)


def _of_one_length(tasks: Sequence[Task]) -> list[Task]:
    """Pads all rows to the longest, so that one program serves all tasks."""
    parts = ("train", "validation", "test")
    longest = max(getattr(task, part).inputs.shape[1] for task in tasks for part in parts)

    def padded(split: Split) -> Split:
        missing = longest - split.inputs.shape[1]
        inputs = np.pad(split.inputs, ((0, 0), (0, missing)), constant_values=PAD_ID)
        return split._replace(inputs=inputs)

    return [
        task._replace(**{part: padded(getattr(task, part)) for part in parts}) for task in tasks
    ]


def _labelled(split: TextSplit | None, folder: Path, part: str) -> Split:
    if split is None or split.labels is None:
        raise BadInput(
            f"{folder}: the {part} texts have no labels; making an expert and scoring it need them"
        )
    return Split(split.tokens, split.labels)
