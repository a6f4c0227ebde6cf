"""GLUE's eight tasks of the paper's language experiments: names, sizes, metrics, printed numbers.

Wang et al., "GLUE", 2018 (https://arxiv.org/abs/1804.07461). Columns, classes and metrics are those
of `symerge_jax.data.text_columns.GLUE`. Numbers in percent: Jung et al., "SyMerge: From
Non-Interference to Synergistic Merging via Single-Layer Adaptation", Table 3 (RoBERTa-base). The
experts are public: huggingface.co/vanillaOVO/roberta_base_glue_ckpts (Yu et al., "Language Models
are Super Mario", 2024, https://arxiv.org/abs/2311.03099, appendix).
"""

from __future__ import annotations

from typing import NamedTuple

from symerge_jax.recipes import Recipe


class GlueTask(NamedTuple):
    """One task of GLUE.

    Attributes:
        name: on the hub, and in our records.
        title: in print and of GLUE's own folders.
        test: examples of the official validation split, which is the test set here.
        rate: learning rate of the public expert.
        individual: the paper's score of the expert.
        symerge: the paper's score of SyMerge, and its deviation over seeds.
    """

    name: str
    title: str
    test: int
    rate: float
    individual: float
    symerge: tuple[float, float]


TASKS = (
    GlueTask("cola", "CoLA", 1043, 1e-5, 60.2, (60.0, 0.1)),
    GlueTask("sst2", "SST-2", 872, 1e-5, 94.0, (93.8, 0.3)),
    GlueTask("mrpc", "MRPC", 408, 5e-5, 89.2, (89.2, 0.0)),
    GlueTask("stsb", "STS-B", 1500, 1e-5, 90.6, (90.4, 0.2)),
    GlueTask("qqp", "QQP", 40430, 1e-5, 91.4, (85.2, 1.1)),
    GlueTask("mnli", "MNLI", 9815, 1e-5, 87.2, (84.0, 0.4)),  # the matched half
    GlueTask("qnli", "QNLI", 5463, 1e-5, 92.7, (89.2, 0.5)),
    GlueTask("rte", "RTE", 277, 1e-5, 79.1, (79.1, 0.0)),
)
ORDER = tuple(task.name for task in TASKS)
TITLES = {task.name: task.title for task in TASKS}
INDIVIDUAL = {task.name: task.individual for task in TASKS}
SYMERGE = {task.name: task.symerge[0] for task in TASKS}

# Table 3's last column, the mean over the eight tasks; tsv_m and iso_c from the project page, which
# says "ISO" without its variant.
MEANS = {
    "individual": 85.6,
    "weight_average": 51.3,
    "task_arithmetic": 66.7,
    "magmax": 62.0,
    "ties": 64.0,
    "lines": 67.4,
    "tsv_m": 68.2,
    "iso_c": 71.9,
    "emr": 80.2,
    "surgery_on_task_arithmetic": 80.5,
    "probsurgery_on_task_arithmetic": 81.6,
    "symerge": 83.9,
}


def recipe(texts: int, rate: float = 1e-5, *, epochs: int = 10, batch_size: int = 16) -> Recipe:
    """Returns the recipe of the public experts, of which the best epoch was kept; here the last is.

    Args:
        texts: in the training split, without those held out for validation.
        rate: learning rate; see `GlueTask`.
        epochs: passes over them.
        batch_size: texts per step.
    """
    return Recipe(
        steps=epochs * -(-texts // batch_size),
        batch_size=batch_size,
        learning_rate=rate,
        head_rate=rate,
        weight_decay=0.01,
        warmup=0.06,
        decay="linear",
        clip=1.0,
        whole_passes=True,
    )
