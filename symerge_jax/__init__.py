"""Merge fine-tuned models into one, and adapt the merge to unlabelled inputs.

The public names below load their module on first use (PEP 562), so `import symerge_jax` is quick.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from symerge_jax.adapt.adamerging import adamerging
    from symerge_jax.adapt.coefficients import interpolate
    from symerge_jax.adapt.experts import expert_predictions
    from symerge_jax.adapt.probsurgery import probsurgery
    from symerge_jax.adapt.surgery import surgery
    from symerge_jax.adapt.sweep import Point, sweep
    from symerge_jax.adapt.symerge import symerge
    from symerge_jax.adapt.wemoe import wemoe
    from symerge_jax.errors import BadInput
    from symerge_jax.evaluate import evaluate
    from symerge_jax.merge import METHODS
    from symerge_jax.models.heads import normalised_head, stack_heads, zero_shot_head
    from symerge_jax.task_vectors import add, subtract

__all__ = [
    "METHODS",
    "BadInput",
    "Point",
    "__version__",
    "adamerging",
    "add",
    "evaluate",
    "expert_predictions",
    "interpolate",
    "normalised_head",
    "probsurgery",
    "stack_heads",
    "subtract",
    "surgery",
    "sweep",
    "symerge",
    "wemoe",
    "zero_shot_head",
]

_HOMES = {
    "METHODS": "merge",
    "BadInput": "errors",
    "Point": "adapt.sweep",
    "adamerging": "adapt.adamerging",
    "add": "task_vectors",
    "evaluate": "evaluate",
    "expert_predictions": "adapt.experts",
    "interpolate": "adapt.coefficients",
    "normalised_head": "models.heads",
    "probsurgery": "adapt.probsurgery",
    "stack_heads": "models.heads",
    "subtract": "task_vectors",
    "surgery": "adapt.surgery",
    "sweep": "adapt.sweep",
    "symerge": "adapt.symerge",
    "wemoe": "adapt.wemoe",
    "zero_shot_head": "models.heads",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `evaluate` the function: importing the module of that name would rebind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
