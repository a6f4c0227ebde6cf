"""Fetches public checkpoints and data sets, or says exactly which file belongs where.

    python -m experiments.prepare vision --checkpoints DIR --data DIR
    python -m experiments.prepare vision --checkpoints DIR --source tint --tasks eurosat svhn
    python -m experiments.prepare vision --data DIR --check          never uses the network
    python -m experiments.prepare language --checkpoints DIR --data DIR
    python -m experiments.prepare dense --checkpoints DIR --data DIR

What is there already is not fetched again. Files of the Hugging Face hub are pinned to a commit and
entered with their sha256 in DIR/sources.json. At the end everything is checked: the files, their
hashes, and the numbers of classes and images (or of texts, or of scenes) of each data set. If
anything is missing or differs, a table says what goes where and where it is to be had, and the exit
code is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from experiments import prepare_language
from experiments.fetch import Listing, Unreachable, changed, fetch, look, read_sources
from experiments.prepare_needs import (
    MODELS,
    Missing,
    Need,
    cautions,
    checkpoint_needs,
    data_need,
)
from experiments.tasks.clip_data import differences, find_set, places
from experiments.tasks.clip_sets import ORDER20, ClipSet, clip_set
from symerge_jax.cli.errors import DONE, nearest, run
from symerge_jax.cli.progress import say
from symerge_jax.errors import BadInput


@dataclass(frozen=True)
class Settings:
    """Fetches checkpoints and data sets of an experiment, or says which file belongs where."""

    experiment: tyro.conf.Positional[Literal["vision", "language", "dense"]]
    """What to prepare for."""
    model: str | None = None
    """Name of the model: ViT-B-32 (the default), ViT-B-16 or ViT-L-14; roberta-base for texts,
    resnet50 for scenes."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks; the first TASK_COUNT of the benchmark otherwise."""
    task_count: Literal[8, 14, 20] = 8
    """How many tasks, if none is named."""
    checkpoints: Path | None = None
    """Folder for pre-trained and fine-tuned checkpoints; none are prepared otherwise."""
    data: Path | None = None
    """Folder for data sets, one folder each; none are prepared otherwise."""
    source: Literal["tanganke", "tint", "task_vectors", "tall_masks"] = "tanganke"
    """Whose experts; tanganke's are safetensors files, the others' pickles."""
    revision: tuple[str, ...] = ()
    """Commits to fetch instead of the newest or last ones, each as OWNER/NAME=COMMIT."""
    check: bool = False
    """Only check what is there; never use the network."""
    dry_run: bool = False
    """Say what would be fetched, and stop."""


class Plan(NamedTuple):
    """What a run is about, checked."""

    model: str
    rows: tuple[ClipSet, ...]
    revisions: dict[str, str]  # repository → commit


def main(settings: Settings) -> int:
    """Prepares, checks and reports; returns 1 if anything is missing or differs."""
    if settings.experiment == "language":
        return language(settings)
    if settings.experiment == "dense":
        return dense(settings)
    plan = check_settings(settings)
    needs: list[tuple[Path, Need]] = []
    if settings.checkpoints is not None:
        for text in cautions(settings.source, plan.rows):
            say(f"warning: {text}")
        found = checkpoint_needs(settings.source, plan.model, plan.rows)
        needs += [(settings.checkpoints, need) for need in found]
    if settings.data is not None:
        absent = [row for row in plan.rows if not _readable(settings.data, row)]
        needs += [(settings.data, data_need(row)) for row in absent]
    if settings.dry_run:
        return describe(needs)
    if not settings.check:
        fetch_all(needs, plan.revisions)
    missing = [
        Missing(need.what, str(root / need.shown), need.origin)
        for root, need in needs
        if need.is_checkpoint and place(root, need) is None
    ]
    if settings.data is not None:
        missing += check_data(settings.data, plan.rows)
    bases = [place(root, need) for root, need in needs if need.is_checkpoint]
    return report(settings, missing, next(filter(None, bases), None))


def language(settings: Settings) -> int:
    """Prepares, checks and reports what `experiments.language` needs."""
    check_places(settings)
    if settings.model not in (None, "roberta-base"):
        raise BadInput(f"--model {settings.model}: only roberta-base has public experts of GLUE")
    tasks, revisions = prepare_language.chosen(settings.tasks), revisions_of(settings)
    needs: list[tuple[Path, Need]] = []
    models = [] if settings.checkpoints is None else prepare_language.checkpoint_needs(tasks)
    if settings.checkpoints is not None:
        needs += [(settings.checkpoints, need) for need in models]
    if settings.data is not None:
        needs += [
            (settings.data, need) for need in prepare_language.data_needs(settings.data, tasks)
        ]
    if settings.dry_run:
        return describe(needs)
    if not settings.check:
        fetch_all(needs, revisions)
    missing: list[Missing] = []
    if settings.checkpoints is not None:
        root = settings.checkpoints
        missing += [
            Missing(need.what, str(root / need.shown), need.origin)
            for need in models if place(root, need) is None
        ] or prepare_language.check_layout(root, tasks)  # fmt: skip
    if settings.data is not None:
        missing += prepare_language.check_data(settings.data, tasks)
    return report(settings, missing, settings.checkpoints)


def dense(settings: Settings) -> int:
    """Prepares, checks and reports what `experiments.dense` needs."""
    from experiments import prepare_dense  # brings Flax, a second that others need not wait

    check_places(settings)
    if settings.model not in (None, prepare_dense.MODEL):
        raise BadInput(
            f"--model {settings.model}: the dense experiment has {prepare_dense.MODEL} alone"
        )
    tasks, revisions = prepare_dense.chosen(settings.tasks), revisions_of(settings)
    root, data = settings.checkpoints, settings.data

    def models() -> list[tuple[Path, Need]]:  # that are not there yet
        if root is None:
            return []
        return [(root, need) for need in prepare_dense.checkpoint_needs(root, data, tasks)]

    scenes = [] if data is None else [(data, need) for need in prepare_dense.data_needs(data)]
    if settings.dry_run:
        return describe([*models(), *scenes])
    if not settings.check:
        fetch_all([*models(), *scenes], revisions)
    missing = [Missing(need.what, str(at / need.shown), need.origin) for at, need in models()]
    if data is not None:
        missing += prepare_dense.check_data(data, tasks)
    return report(settings, missing, root)


def report(settings: Settings, missing: list[Missing], base: Path | None) -> int:
    """Says what is missing or changed, or with which options the experiment runs."""
    for root in {root for root in (settings.checkpoints, settings.data) if root is not None}:
        if settings.check and root.is_dir():
            missing += [Missing("changed", str(root / name), why) for name, why in changed(root)]
    if missing:
        print_table(missing)
        return 1
    words = [] if base is None else [f"--checkpoints {base}"]
    words += [f"--data {settings.data}"] if settings.data is not None else []
    print(f"everything is there: {' '.join(words)}")
    return DONE


def check_settings(settings: Settings) -> Plan:
    """Returns what the settings ask for.

    Raises:
        BadInput: an unknown model or task, no folder, or a malformed revision.
    """
    check_places(settings)
    model = (settings.model or "ViT-B-32").replace("/", "-")
    if model not in MODELS:
        raise BadInput(
            f"unknown model {settings.model!r}{nearest(model, MODELS)}; known: {', '.join(MODELS)}"
        )
    names = settings.tasks or ORDER20[: settings.task_count]
    rows = tuple(dict.fromkeys(clip_set(name) for name in names))
    return Plan(model, rows, revisions_of(settings))


def check_places(settings: Settings) -> None:
    """Raises `BadInput` where no folder is given, or a file stands in its place."""
    if settings.checkpoints is None and settings.data is None:
        raise BadInput("nothing to prepare: give --checkpoints DIR, --data DIR or both")
    for name in ("checkpoints", "data"):
        folder = getattr(settings, name)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise BadInput(f"--{name} {folder}: expected a folder, found a file")


def revisions_of(settings: Settings) -> dict[str, str]:
    """Returns repository → the commit that was asked for."""
    revisions = {}
    for text in settings.revision:
        repository, equals, commit = text.partition("=")
        if not equals or repository.count("/") != 1 or not commit:
            raise BadInput(f"--revision {text}: expected OWNER/NAME=COMMIT")
        revisions[repository] = commit
    return revisions


# --- fetching -----------------------------------------------------------------------------------


def fetch_all(needs: Sequence[tuple[Path, Need]], revisions: dict[str, str]) -> None:
    """Fetches what is not there, and warns once of each repository that is not to be had."""
    unreachable: set[str] = set()
    listings: dict[str, Listing] = {}
    for root, need in needs:
        repository = need.repository
        if repository is None or repository in unreachable:
            continue
        entry = read_sources(root).get(repository, {})
        asked = revisions.get(repository)
        if place(root, need) is not None and asked in (None, entry.get("revision")):
            continue
        revision = asked or need.revision or entry.get("revision")
        try:
            if repository not in listings:
                listings[repository] = look(repository, need.kind, revision)
            listing = listings[repository]
            files = need.choose(listing.files)
            if not files:
                say(f"{need.what}: {repository} has no {need.wanted}")
                continue
            say(f"{need.what}: fetching {len(files)} files of {repository}")
            fetch(listing, files, root / need.folder, root=root)
        except Unreachable as error:
            unreachable.add(repository)
            say(f"warning: {repository} is not to be had now: {error}")


def place(root: Path, need: Need) -> Path | None:
    """The folder below which what is needed lies: `root`, or one in it, as repositories have it."""
    inner = sorted(root.glob("*/")) if root.is_dir() else []
    for base in (root, *inner):
        for names in need.alternatives:
            if all((base / need.folder / name).is_file() for name in names):
                return base
    return None


# --- checking -----------------------------------------------------------------------------------


def check_data(data: Path, rows: Sequence[ClipSet]) -> list[Missing]:
    """Says which sets are missing, unreadable, or have other numbers of classes or images."""
    found = []
    for row in rows:
        origin = data_need(row).origin
        if not places(data, row):
            found.append(Missing(row.key, str(data / row.key), origin))
            continue
        try:
            reader = find_set(data, row.key)
            wrong = [line.removeprefix(f"{row.key}: ") for line in differences(reader)]
            if "train" not in reader.splits:
                wrong.append("no training images, which validation is drawn from")
            found += [Missing(row.key, str(reader.folder), why) for why in wrong]
        except BadInput as error:
            found.append(Missing(row.key, str(data / row.key), f"{error}; from {origin}"))
    return found


def _readable(data: Path, row: ClipSet) -> bool:
    """Whether the set is there in any form, so that it need not be fetched."""
    try:
        return "train" in find_set(data, row.key, report=lambda line: None).splits
    except BadInput:
        return False


def describe(needs: Sequence[tuple[Path, Need]]) -> int:
    """Says what would be fetched."""
    for root, need in needs:
        if place(root, need) is not None:
            print(f"{need.what}: there")
        elif need.repository is None:
            print(f"{need.what}: {root / need.shown} from {need.origin}")
        else:
            print(f"{need.what}: {need.wanted} of {need.repository} to {root / need.folder}")
    return DONE


def print_table(missing: Sequence[Missing]) -> None:
    """Prints what is missing or wrong: what, the file or folder, and where to get it or why."""
    lines = [Missing("what", "file or folder", "where to get it, or what is wrong"), *missing]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for what, path, origin in lines:
        print(f"{what:<{widths[0]}}  {path:<{widths[1]}}  {origin}")


if __name__ == "__main__":
    sys.exit(run(main, Settings, None, prog="python -m experiments.prepare"))
