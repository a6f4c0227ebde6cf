"""For experiments whose runs are those of the figure they reproduce."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.options import Options
from symerge_jax.errors import BadInput


def refuse_methods(settings: Options, runs: Sequence[str]) -> None:
    """Raises `BadInput` if methods were chosen, which would have no effect."""
    if settings.methods is not None:
        raise BadInput(
            f"--methods {' '.join(settings.methods)}: this experiment has runs of its own "
            f"({', '.join(runs)}); leave the option out"
        )
