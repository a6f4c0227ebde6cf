"""`symerge adapt TASKS.toml`: learn how to merge from unlabelled inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tyro

from symerge_jax.checkpoints.export import check_output
from symerge_jax.data.tasks_file import read_tasks_file
from symerge_jax.errors import BadInput, Diverged


@dataclasses.dataclass(frozen=True)
class Settings:
    """Merges experts and adapts the merge, with one layer per task, to unlabelled inputs.

    The file names the pre-trained model, and per task an expert, a head (or class names and
    templates) and a folder or npz of images; of a RoBERTa a file of texts, and of a ResNet scenes,
    where the head may be the expert's own. A ResNet's task is segmentation, depth or normal by its
    name, or else by how many maps its decoder gives: one is a depth, three without class names are
    normals. `docs/checkpoints.md` shows each. Options here win over the file's [adapt].
    """

    tasks: tyro.conf.Positional[Path]
    """The tasks.toml."""
    output: Path
    """Folder to write."""
    method: str | None = None
    """symerge, symerge_coefficients, symerge_head or an adamerging variant; or a training-free
    method, such as ties, whose scale is chosen by agreement with the experts; symerge otherwise."""
    iterations: int | None = None
    """Rounds over the tasks; 500 otherwise, 1000 for texts, 25 for scenes."""
    batch_size: int | None = None
    """Inputs per task and round; 32 otherwise, 16 for scenes."""
    learning_rate: float | None = None
    """Adam's learning rate; 0.01 otherwise (0.001 where only coefficients learn), 0.0005 for
    texts, 0.0001 for scenes."""
    initial_coefficient: float | None = None
    """λ at the start; 0.3 otherwise, 0.1 with more than 8 tasks."""
    seed: int | None = None
    """Seed of task order and batches; 0 otherwise."""
    batch_norm: str | None = None
    """Running statistics of a ResNet: recalibrate (as in training, otherwise), merge_stats (with
    coefficients, like weights) or pretrained_stats."""
    limit: int | None = None
    """Adapt on the first inputs of each task only."""
    devices: int | None = None
    """Devices that share every mini-batch of images or texts; one otherwise."""
    split_task_vectors: bool = False
    """Each of those devices keeps its share of the models only; slower, but more fit."""
    resume: bool = False
    """Go on from what an interrupted equal run left in OUTPUT.unfinished."""
    overwrite: bool = False
    """Replace a model that is there already."""


_OF_ADAPT = (
    "method", "iterations", "batch_size", "learning_rate", "initial_coefficient", "seed",
    "batch_norm",
)  # fmt: skip


def main(settings: Settings) -> None:
    """Adapts, scores, writes, and prints the folder's path last."""
    check_output(settings.output, overwrite=settings.overwrite)
    if settings.limit is not None and settings.limit < 1:
        raise BadInput(f"--limit must be at least 1, got {settings.limit}")
    file = read_tasks_file(settings.tasks)
    given = {key: getattr(settings, key) for key in _OF_ADAPT}
    given = {key: value for key, value in given.items() if value is not None}
    in_file = file.adapt.keys() - given.keys()
    file = file._replace(adapt=file.adapt | given)

    import jax

    from symerge_jax import adapt_files, adapt_settings, adapt_tasks
    from symerge_jax.cli.programs import keep_own_programs
    from symerge_jax.cli.progress import Bars, say
    from symerge_jax.kept_run import kept_run
    from symerge_jax.parallel import use_devices

    if settings.split_task_vectors and (settings.devices or 1) < 2:
        raise BadInput("--split-task-vectors: one device has all; give --devices of 2 or more")
    devices = None if settings.devices is None else use_devices(settings.devices)
    chosen = adapt_settings.settings_of(file)
    for key in adapt_settings.without_part(chosen.method, given):
        raise BadInput(
            f"--{key.replace('_', '-')} has no part in {chosen.method}, which trains nothing; "
            "leave it out"
        )
    idle = adapt_settings.without_part(chosen.method, sorted(in_file))
    if idle:
        say(f"{', '.join(idle)} in [adapt] has no part in {chosen.method}, which trains nothing")
    keep_own_programs()
    prepared = adapt_files.prepare(file, limit=settings.limit, report=say)
    chosen = adapt_tasks.settings_for(file, prepared.network)  # whose defaults may be others
    if devices is not None and len(devices) > 1:
        adapt_files.check_shareable(prepared, chosen)
    if jax.process_count() > 1:
        raise BadInput("symerge adapt runs in one process; unset JAX_NUM_PROCESSES and the like")
    if chosen.method in adapt_settings.TUNED:
        from symerge_jax.tune_files import merge_and_tune

        adapted, tuned = merge_and_tune(prepared, chosen.method, seed=chosen.seed)
        say(f"{chosen.method}: scale {tuned.scale:g} of {tuned.scales[0]:g} to "
            f"{tuned.scales[-1]:g} agrees most with the experts")  # fmt: skip
        finish(settings, prepared, chosen, adapted, tuned)
        return
    unfinished = settings.output.absolute().with_name(f"{settings.output.name}.unfinished")
    identity = adapt_files.identity_of(prepared, chosen) | {"devices": len(devices or [0])}
    # The state stays until the model is written.
    with kept_run(unfinished, identity, resume=settings.resume) as keep:
        with Bars() as bars:
            follow = bars.follow(
                chosen.method,
                adapt_settings.steps_of(chosen, len(file.tasks)),
                adapt_settings.batch_size_of(chosen),
            )
            try:
                adapted = adapt_files.run(
                    prepared, chosen,
                    on_chunk=lambda carry, losses: follow(losses),
                    keep=keep,
                    devices=devices,
                    split_task_vectors=settings.split_task_vectors,
                )  # fmt: skip
            except Diverged as error:
                raise error.named([task.name for task in file.tasks]) from error
        finish(settings, prepared, chosen, adapted, None)


def finish(settings: Settings, prepared: Any, chosen: Any, adapted: Any, tuned: Any) -> None:
    """Scores, writes, and prints the folder's path last."""
    from symerge_jax import adapt_files

    scores = adapt_files.score(prepared, adapted)
    adapt_files.write(
        prepared, chosen, adapted, scores, settings.output,
        tuned=tuned, overwrite=settings.overwrite,
    )  # fmt: skip
    report(scores)
    print(settings.output.absolute())


# Field of a score → heading.
_HEADINGS = {
    "metric": "metric",
    "agreement": "agrees with expert %",
    "accuracy": "accuracy %",
    "expert_accuracy": "expert's accuracy %",
    "score": "score %",
    "expert_score": "expert's score %",
    "from_expert": "with expert",
    "scores": "with labels",
    "expert_scores": "expert's",
}


def report(scores: Mapping[str, Any]) -> None:
    """Prints a row per task, in percent; of scenes one per metric, in its own unit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symerge_jax.dense_adapt_files import DenseScore

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task")
    first = next(iter(scores.values()))
    scenes = isinstance(first, DenseScore)
    if scenes:
        table.add_column("metric")
    for field in first._fields:
        table.add_column(_HEADINGS[field], justify="right")
    if scenes:
        table.add_column("unit")
    for name, one in scores.items():
        for row in _by_metric(one) if scenes else [map(_cell, one)]:
            table.add_row(Text(name), *row)
    Console(stderr=True).print(table)


def _by_metric(score: Any) -> Iterator[list[str]]:
    """Yields the cells of each metric of one task of scenes, but for the task's name."""
    from symerge_jax.cli.metrics import UNITS, number

    for metric in score.scores or score.from_expert:
        values = ((one or {}).get(metric) for one in score)
        yield [metric, *(number(metric, value) for value in values), UNITS[metric]]


def _cell(value: str | float | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.2f}"
