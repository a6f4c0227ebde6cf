"""What the language experiment needs: roberta-base, eight experts, and GLUE's files.

DIR/roberta-base/                      FacebookAI/roberta-base, with its vocabulary
DIR/cola/roberta-base_lr1e-05/, …      vanillaOVO/roberta_base_glue_ckpts (mrpc: lr5e-05)
DATA/cola/{train,validation}-….parquet nyu-mll/glue
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.prepare_needs import Missing, Need
from experiments.tasks.glue import ORDER, TASKS, GlueTask
from experiments.tasks.task import check_known
from symerge_jax.data.text import count_dev_texts, list_text_tasks
from symerge_jax.data.text_columns import glue_name
from symerge_jax.errors import BadInput

BASE = "FacebookAI/roberta-base"
EXPERTS = "vanillaOVO/roberta_base_glue_ckpts"
DATA = "nyu-mll/glue"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def chosen(names: Sequence[str] | None) -> tuple[GlueTask, ...]:
    """Returns the tasks of these names, all by default.

    Raises:
        BadInput: an unknown name.
    """
    for name in names or ():
        check_known(name, ORDER, "task")
    return tuple(task for task in TASKS if names is None or task.name in names)


def checkpoint_needs(tasks: Sequence[GlueTask]) -> list[Need]:
    """The pre-trained model, its vocabulary, and an expert per task."""
    hub = "https://huggingface.co/"

    def need(what: str, folder: str, repository: str, *names: str, below: str = "") -> Need:
        own = tuple(f"{below}{name}" for name in names)
        alternatives = tuple((*own, f"{below}{weights}") for weights in _WEIGHTS)
        return Need(what, alternatives, folder, repository, hub + repository)

    words = Need(
        "vocabulary", (("vocab.json", "merges.txt"),), "roberta-base", BASE, hub + BASE
    )  # fmt: skip
    needs = [need("pre-trained", "roberta-base", BASE, "config.json"), words]
    for task in tasks:
        below = f"{task.name}/roberta-base_lr{task.rate:.0e}/"
        needs.append(need(f"{task.name} expert", "", EXPERTS, "config.json", below=below))
    return needs


def data_need(task: GlueTask) -> Need:
    """Train and dev of one task, as the hub has them."""
    dev = "validation_matched" if task.name == "mnli" else "validation"
    files = tuple(f"{task.name}/{split}-00000-of-00001.parquet" for split in ("train", dev))
    origin = f"https://huggingface.co/datasets/{DATA} or gluebenchmark.com"
    return Need(task.name, (files,), "", DATA, origin, kind="dataset")


def data_needs(data: Path, tasks: Sequence[GlueTask]) -> list[Need]:
    """What to fetch: tasks of which nothing is there, or only files that the hub has too.

    Where dev texts lie in another file, the hub's beside it would make two of them.
    """
    there = {glue_name(name) for name in list_text_tasks(data)} if data.is_dir() else set()
    needs = [data_need(task) for task in tasks]
    return [
        need for need in needs
        if need.what not in there or any((data / name).is_file() for name in need.alternatives[0])
    ]  # fmt: skip


def check_layout(root: Path, tasks: Sequence[GlueTask]) -> list[Missing]:
    """Says where `experiments.language` would not find what is there, in a folder too deep."""
    from experiments import roberta_folders  # brings JAX, a second that others need not wait

    try:
        roberta_folders.find(root, [task.name for task in tasks])
    except BadInput as error:
        return [Missing("layout", str(root), str(error))]
    return []


def check_data(data: Path, tasks: Sequence[GlueTask]) -> list[Missing]:
    """Says which tasks lack train or dev, are unreadable, or have another number of dev texts."""
    found = []
    for task in tasks:
        origin = data_need(task).origin
        try:
            path, count = count_dev_texts(data, task.name, need_train=True)
        except BadInput as error:
            found.append(Missing(task.name, str(data / task.name), f"{error}; from {origin}"))
            continue
        if count != task.test:
            found.append(
                Missing(task.name, str(path), f"expected {task.test} dev texts, found {count}")
            )
    return found
