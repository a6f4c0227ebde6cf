"""Dense tasks on rooms: the embedded world's generated ones, and NYUv2's or one's own in folders.

Segmentation, depth and surface normals of the same images: the three tasks share one array of
inputs. Labels are maps of pixels, as in `symerge_jax.data.dense.Scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.tasks.task import Split, Task, check_known
from experiments.tiny import rooms
from symerge_jax.cache import cached
from symerge_jax.cli.progress import say
from symerge_jax.data.dense import Scenes, read_scenes
from symerge_jax.dense_metrics import DENSE_METRICS
from symerge_jax.errors import BadInput


class _Kind(NamedTuple):
    classes: tuple[str, ...]  # one entry for each output channel
    maps: str  # which of the scenes' arrays are its labels


KINDS: dict[str, _Kind] = {
    "segmentation": _Kind(rooms.CLASSES, "labels"),
    "depth": _Kind(("depth",), "depths"),
    "normal": _Kind(("x", "y", "z"), "normals"),
}
TASKS = tuple(KINDS)


def generated(
    names: Sequence[str] = TASKS, *, limit: int | None = None, cache: Path | None = None
) -> list[Task]:
    """Draws the rooms of the embedded world, or finds them drawn.

    There is one world: the rooms do not depend on a run's seed.

    Args:
        names: of the tasks, out of `TASKS`.
        limit: largest number of test scenes.
        cache: root of the cache; None keeps nothing.

    Raises:
        BadInput: an unknown task.
    """
    _check(names)

    def draw() -> dict[str, dict[str, np.ndarray]]:
        return {
            "train": rooms.scenes("train", rooms.TRAIN)._asdict(),
            "test": rooms.scenes("test", rooms.TEST)._asdict(),
        }

    key = {"world": rooms.rooms_digest()}
    drawn = cached(cache, "rooms", key, draw, report=say)
    return _tasks(names, Scenes(**drawn["train"]), Scenes(**drawn["test"]), limit)


def from_folder(
    folder: Path,
    names: Sequence[str] = TASKS,
    *,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    cache: Path | None = None,
) -> list[Task]:
    """Reads the splits train and test (or val) of a folder, such as MTAN's NYUv2.

    Args:
        folder: with both splits, as `read_scenes` describes them.
        names: of the tasks, out of `TASKS`; maps of the others need not be there.
        size: height and width to bring scenes to; None keeps theirs.
        limit: largest number of test scenes.
        cache: root of the cache; None reads everything into memory.

    Raises:
        BadInput: an unknown task, or scenes that cannot be read.
    """
    _check(names)
    need = [KINDS[name].maps for name in names]
    train, test = (
        read_scenes(folder, split=split, need=need, size=size, cache=cache, report=say)
        for split in ("train", "test")
    )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise BadInput(
            f"{folder}: expected scenes of one size, found {train.images.shape[1:3]} in train and "
            f"{test.images.shape[1:3]} in test; ask for one size"
        )
    if len(train.images) < 2:
        raise BadInput(
            f"{folder}: expected at least two training scenes, of which a tenth is for validation; "
            f"found {len(train.images)}"
        )
    return _tasks(names, train, test, limit)


def _check(names: Sequence[str]) -> None:
    for name in names:
        check_known(name, TASKS, "task")


def _tasks(names: Sequence[str], train: Scenes, test: Scenes, limit: int | None) -> list[Task]:
    """Tasks with a tenth of train for validation, drawn as `task.hold_out` does."""
    order = np.random.default_rng(0).permutation(len(train.images))
    count = max(1, len(order) // 10)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    parts = train.images[rest], train.images[chosen], test.images[:limit]  # one copy for all tasks

    tasks = []
    for name in names:
        classes, maps = KINDS[name]
        of_train, of_test = getattr(train, maps), getattr(test, maps)
        labels = of_train[rest], of_train[chosen], of_test[:limit]
        splits = [Split(*both) for both in zip(parts, labels, strict=True)]
        tasks.append(Task(name, classes, *splits, metric=DENSE_METRICS[name].names[0]))
    return tasks
