"""The paper's numbers that stand beside ours, and what each of its analyses is called.

Jung et al., "SyMerge: From Non-Interference to Synergistic Merging via Single-Layer Adaptation".
An experiment's script holds the numbers of its own table or figure (`PAPER`); here are those of
Tables 1 and A, and for each record the paper's means per method where the paper has them.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.records import EXPERT, Record
from experiments.tables import Means
from experiments.tasks import glue

# Table 1: mean accuracy over 8, 14 and 20 tasks; LOT as on the project page.
_COUNTS = (8, 14, 20)
_TABLE_1 = {
    "ViT-B-32": {
        "pretrained": (48.0, 57.1, 56.0),
        "individual": (90.5, 89.5, 90.4),
        "task_arithmetic": (69.1, 65.4, 60.8),
        "ties": (72.9, 65.2, 63.1),
        "pcb": (75.6, 63.8, 52.7),
        "lines": (74.1, 68.0, 63.7),
        "consensus": (74.9, 70.3, 65.0),
        "tsv_m": (84.0, 80.1, 76.6),
        "iso_cts": (84.2, 80.6, 76.9),
        "emr": (88.7, 86.1, 86.6),
        "lot": (82.7, 77.3, 73.1),
        "adamerging": (80.1, 76.7, 69.6),
        "surgery": (87.5, 84.6, 84.5),
        "wemoe": (89.4, 83.0, 78.9),
        "probsurgery": (87.4, 84.9, 84.5),
        "symerge": (90.1, 88.7, 88.6),
    },
    "ViT-L-14": {
        "pretrained": (64.5, 68.1, 65.1),
        "individual": (94.2, 93.2, 94.0),
        "task_arithmetic": (84.5, 78.4, 73.9),
        "ties": (86.0, 80.5, 73.0),
        "pcb": (87.5, 81.3, 73.4),
        "lines": (86.9, 80.4, 75.7),
        "consensus": (86.6, 82.3, 78.9),
        "tsv_m": (91.5, 88.2, 87.2),
        "iso_cts": (93.0, 89.7, 89.2),
        "emr": (93.7, 91.4, 92.0),
        "lot": (90.5, 86.2, 84.1),
        "adamerging": (90.8, 85.2, 82.1),
        "surgery": (92.3, 90.4, 89.5),
        "wemoe": (93.6, 88.4, 78.8),
        "probsurgery": (92.7, 90.7, 90.2),
        "symerge": (94.1, 92.8, 93.2),
    },
}
VISION: dict[tuple[str, int], dict[str, float]] = {
    (model, count): {method: means[i] for method, means in rows.items()}
    for model, rows in _TABLE_1.items()
    for i, count in enumerate(_COUNTS)
}

# Table A: mean over four tasks and seven corruptions, ViT-B/32.
CORRUPTED = {
    "pretrained": 35.6,
    "individual": 74.5,
    "task_arithmetic": 55.9,
    "ties": 52.5,
    "pcb": 59.1,
    "lines": 59.4,
    "consensus": 57.4,
    "iso_cts": 65.0,
    "adamerging": 67.2,
    "surgery": 68.8,
    "wemoe": 68.6,
    "symerge": 73.7,
}


class Analysis(NamedTuple):
    """One analysis of the paper: what it is called here, and where the paper has it."""

    title: str
    source: str


# In the order of the page.
ANALYSES = {
    "vision": Analysis("Merging 8, 14 and 20 image tasks", "Table 1, Tables E–J"),
    "components": Analysis("What is trained: coefficients, heads, or both", "Table 5"),
    "layers": Analysis("Which layer is each task's own", "Figure 5, Table B"),
    "losses": Analysis("Which loss guides the adaptation", "Figure C"),
    "proxy_loss": Analysis("Losses without labels against the true loss", "Figure 4, Table C"),
    "transfer": Analysis("Adapted heads on other merged encoders", "Table 4"),
    "supervisor": Analysis("How much of the expert supervises", "Figure 6a"),
    "initialisation": Analysis("Where the coefficients start", "Figures 6b and E(c)"),
    "curves": Analysis("Accuracy on the way, and learning rates", "Figures E(a) and E(b)"),
    "sequential": Analysis("Updating task by task, or all tasks at once", "Appendix A.1"),
    "corruption": Analysis("Corrupted test images", "Figure 1, Tables A and D"),
    "cross_task": Analysis("Cross-task accuracy predicts merging", "Figure 2"),
    "pilot": Analysis("Heads trained on merged features", "Figures 3, A and H"),
    "discrepancy": Analysis("Where merged model and expert disagree", "Figure 7"),
    "sparsity": Analysis("Sparsity of the coefficients", "Figures F and G"),
    "tsne": Analysis("Features before and after entropy minimisation", "Figure D"),
    "disjoint": Analysis("Experts from different pre-trainings", "project page"),
    "dense": Analysis("Merging segmentation, depth and normals", "Table 2"),
    "language": Analysis("Merging eight text tasks", "Table 3, Figure B"),
    "proposition": Analysis("The bound on a merged pair's loss", "Proposition 1"),
}


class Beside(NamedTuple):
    """The paper's means that belong beside a record's, and where they are from.

    Attributes:
        source: the table or figure, with model and number of tasks.
        means: metric → method → mean over tasks; of texts also task → method → score.
    """

    source: str
    means: Means


def analysis(experiment: str) -> Analysis:
    """Returns how an experiment is called; one the paper does not have keeps its own name."""
    own = Analysis(experiment.replace("_", " ").capitalize(), "not in the paper")
    return ANALYSES.get(experiment, own)


def beside(record: Record) -> Beside | None:
    """Returns the paper's means of the record's methods, None where the paper has no such table.

    For another model than the paper's, those of ViT-B/32 with the task count nearest to the record.
    """
    experiment = record["experiment"]
    if experiment not in (*_MEANS, "language", "dense"):
        return None
    given = record["settings"].get("model")
    large = given == "ViT-L-14" and experiment in _BOTH_MODELS
    model = "ViT-L-14" if large else "ViT-B-32"
    if experiment == "language":
        return Beside(f"{ANALYSES[experiment].source}: RoBERTa-base, GLUE's 8 tasks", _language())
    if experiment == "dense":
        return Beside(f"{ANALYSES[experiment].source}: ResNet-50, NYUv2", _dense())
    tasks = len({r["task"] for r in record["results"]})
    count = min(_COUNTS, key=lambda size: abs(size - tasks))
    if experiment not in _EVERY_COUNT:
        count = 4 if experiment == "corruption" else 8
    name = model.replace("-14", "/14").replace("-32", "/32")
    means = _MEANS[experiment](model, count)
    return Beside(f"{ANALYSES[experiment].source}: {name}, {count} tasks", means)


def script(experiment: str) -> Any:
    """Returns the module of one of `ANALYSES`.

    Loaded when it is asked for: scripts load what runs an experiment, which prints tables itself.
    """
    assert experiment in ANALYSES, experiment
    return importlib.import_module(f"experiments.{experiment}")


def _plain(experiment: str) -> Callable[[str, int], Means]:
    return lambda model, count: {"accuracy": script(experiment).PAPER}


def _components(model: str, count: int) -> Means:
    return {"accuracy": script("components").PAPER[count]}


def _transfer(model: str, count: int) -> Means:
    rows = script("transfer").PAPER.items()
    titles = ("accuracy", "cross_accuracy")
    return {title: {method: pair[i] for method, pair in rows} for i, title in enumerate(titles)}


def _corruption(model: str, count: int) -> Means:
    module = script("corruption")
    titles = ("accuracy", *(f"accuracy_{name}" for name in module.CORRUPTIONS))
    rows = module.PAPER.items()
    found = {title: {method: row[i] for method, row in rows} for i, title in enumerate(titles)}
    return {**found, "corrupted_accuracy": CORRUPTED}


def _curves(model: str, count: int) -> Means:
    return {"accuracy": {"symerge": script("curves").PAPER[model][0]}}


def _sparsity(model: str, count: int) -> Means:
    rows = script("sparsity").PAPER[model].items()
    return {"accuracy": {method: pair[1] for method, pair in rows}}


def _language() -> Means:
    """Means under whichever metric a record's first task has, and two methods on each task."""
    metrics = ("matthews", "accuracy", "pearson_spearman")
    each = {one.name: {EXPERT: one.individual, "symerge": one.symerge[0]} for one in glue.TASKS}
    return {**dict.fromkeys(metrics, glue.MEANS), **each}


def _dense() -> Means:
    module = script("dense")
    return {
        metric: {method: row[i] for method, row in module.PAPER.items()}
        for i, metric in enumerate(module.METRICS)
    }


# Experiment → the paper's means for a model and a number of tasks.
_MEANS: dict[str, Callable[[str, int], Means]] = {
    "vision": lambda model, count: {"accuracy": VISION[model, count]},
    "components": _components,
    "layers": _plain("layers"),
    "losses": _plain("losses"),
    "sequential": _plain("sequential"),
    "supervisor": _plain("supervisor"),
    "transfer": _transfer,
    "corruption": _corruption,
    "curves": _curves,
    "sparsity": _sparsity,
}
_EVERY_COUNT = frozenset({"vision", "components"})
_BOTH_MODELS = frozenset({"vision", "curves", "sparsity"})
