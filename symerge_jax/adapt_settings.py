"""Which methods `symerge adapt` has, and their hyper-parameters: [adapt] of a tasks.toml."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import NamedTuple, get_args

import numpy as np

from symerge_jax.adapt.dense import Statistics
from symerge_jax.data.tasks_file import TasksFile
from symerge_jax.errors import BadInput
from symerge_jax.merge import METHODS as MERGES

METHODS = (
    "symerge",
    "symerge_coefficients",
    "symerge_head",
    "adamerging",
    "adamerging_taskwise",
    "adamerging_sequential",
)
JOINT = ("adamerging", "adamerging_taskwise")
# Training-free methods whose scale the inputs can choose: `tune_files`.
TUNED = tuple(
    name
    for name, method in MERGES.items()
    if method.kind == "shared" and method.tunes_scale and "moments" not in method.needs
)


class Settings(NamedTuple):
    """The values of [adapt], defaults filled in.

    Attributes:
        method: one of `METHODS` or `TUNED`.
        layer: the task-specific layer that learns; "classifier".
        iterations: rounds over the tasks; of texts 1000 otherwise, of scenes 25.
        batch_size: inputs per task and round; of scenes 16 otherwise.
        learning_rate: Adam's; None for the method's default.
        initial_coefficient: None for 0.3 with up to 8 tasks, 0.1 with more.
        seed: of task order and batches.
        batch_norm: what becomes of a ResNet's running statistics, one of `adapt.dense.Statistics`;
            None for models without any.
    """

    method: str = "symerge"
    layer: str = "classifier"
    iterations: int = 500
    batch_size: int = 32
    learning_rate: float | None = None
    initial_coefficient: float | None = None
    seed: int = 0
    batch_norm: str | None = None


def draws(name: str) -> bool:
    """Whether a training-free method draws at random."""
    return "seed" in signature(MERGES[name].merge).parameters


def is_entropy(method: str) -> bool:
    """Whether a method minimises the entropy of predictions, which a regression has none of."""
    return method.startswith("adamerging")


def without_part(method: str, keys: Iterable[str]) -> list[str]:
    """Returns those keys of [adapt] that change nothing, which most do where nothing is trained."""
    if method not in TUNED:
        return []
    used = {"method", "layer"} | ({"seed"} if draws(method) else set())
    return [key for key in keys if key not in used]


def settings_of(file: TasksFile, *, texts: bool = False, scenes: bool = False) -> Settings:
    """Returns the settings of a tasks.toml over the defaults.

    Args:
        file: the tasks.toml.
        texts: whether its inputs are texts, which learn longer and in smaller steps (the paper's
            appendix B).
        scenes: whether they are scenes of dense prediction (its table 2).

    Raises:
        BadInput: a method, layer or number that cannot be.
    """
    usual = Settings(iterations=1000 if texts else 500)
    if scenes:
        usual = Settings(iterations=25, batch_size=16, batch_norm="recalibrate")
    settings = usual._replace(**file.adapt)
    settings = settings._replace(method=settings.method.replace("-", "_"))
    if settings.method not in (*METHODS, *TUNED):
        known = ", ".join((*METHODS, *TUNED))
        raise _unusable(file, "method", f"one of {known}", repr(settings.method))
    if settings.layer != "classifier":
        raise BadInput(f'{file.path}: [adapt] layer must be "classifier", got {settings.layer!r}')
    for key in ("iterations", "batch_size"):
        if getattr(settings, key) < 1:
            raise _unusable(file, key, "at least 1", getattr(settings, key))
    if not 0 <= settings.seed < 1 << 32:
        raise _unusable(file, "seed", f"from 0 to {(1 << 32) - 1}", settings.seed)
    rate, start = settings.learning_rate, settings.initial_coefficient
    if rate is not None and not 0 < rate < np.inf:
        raise _unusable(file, "learning_rate", "a number above 0", rate)
    if start is not None and not np.isfinite(start):
        raise _unusable(file, "initial_coefficient", "a finite number", start)
    if settings.batch_norm not in (None, *get_args(Statistics)):
        known = ", ".join(get_args(Statistics))
        raise _unusable(file, "batch_norm", f"one of {known}", repr(settings.batch_norm))
    if scenes and settings.batch_norm == "recalibrate" and settings.batch_size < 2:
        wanted = "at least 2 to recalibrate batch normalisation (one image has no variance)"
        raise _unusable(file, "batch_size", wanted, settings.batch_size)
    if settings.learning_rate is None:
        settings = settings._replace(learning_rate=_usual_rate(settings.method, texts, scenes))
    if settings.initial_coefficient is None:
        few = len(file.tasks) <= 8
        settings = settings._replace(initial_coefficient=0.3 if few else 0.1)
    return settings


def _usual_rate(method: str, texts: bool, scenes: bool) -> float:
    if scenes:
        return 1e-4
    if is_entropy(method) or (method == "symerge_coefficients" and not texts):
        return 1e-3
    return 5e-4 if texts else 1e-2


def _unusable(file: TasksFile, key: str, wanted: str, found: object) -> BadInput:
    option = key.replace("_", "-")
    return BadInput(
        f"{file.path}: {key} must be {wanted}, got {found}; change it in [adapt], or --{option}"
    )


def steps_of(settings: Settings, tasks: int) -> int:
    """Returns the number of mini-batches of a run."""
    return settings.iterations * tasks * (2 if settings.method in JOINT else 1)


def batch_size_of(settings: Settings) -> int:
    """Returns the inputs per mini-batch, of which joint methods take two per task and round."""
    return max(1, settings.batch_size // 2) if settings.method in JOINT else settings.batch_size
