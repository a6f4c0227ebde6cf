"""`symerge methods`: the table of merging methods."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from symerge_jax.merge import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    """Lists the merging methods: name, kind, default scale and what they do."""

    markdown: bool = False
    """Print the whole page: formula, source, options, cost and departures of each."""


def main(settings: Settings) -> None:
    """Prints a row per entry of `METHODS`, or the page docs/methods.md."""
    if settings.markdown:
        print(page(), end="")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symerge_jax.merge import METHODS

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("scale", justify="right", no_wrap=True)
    table.add_column("what it does")
    for name, method in METHODS.items():
        cells = [name, method.kind, f"{method.scale:g}", summary(method.merge)]
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


def summary(function: Callable[..., object]) -> str:
    """Returns the idea in one line: the first of the module's docstring, or of the function's."""
    while isinstance(function, functools.partial):
        function = function.func
    module = inspect.getmodule(function)
    text = inspect.getdoc(module) or inspect.getdoc(function) or ""
    return text.partition("\n")[0]


_INTRO = """# Merging methods

Made by `symerge methods --markdown` from the docstrings; do not edit.

A method turns the task vectors τ_k = θ_k − θ₀ of K experts into τ*; the model is θ₀ + scale · τ*.
Floating tensors take part; integer buffers, and tensors that no expert changed, are those of θ₀.
`symerge merge NAME` runs a method on checkpoints, `METHODS["NAME"].merge` on trees in memory.
`docs/speed.md` has the time and memory that each takes.
"""


def page() -> str:
    """Returns docs/methods.md: every entry of `METHODS` in the words of its docstrings."""
    from symerge_jax.merge import METHODS

    rows = [
        f"| [{name}](#{name}) | {method.kind.replace('_', ' ')} | {method.scale:g}"
        f"{', tuned on validation data' if method.tunes_scale else ''} | {_held(method)} | "
        f"{_stored(method)} |"
        for name, method in METHODS.items()
    ]
    heading = "| name | encoders | scale | held in memory | stored for 8 tasks |"
    table = [heading, "|---|---|---|---|---|", *rows]
    sections = [_section(name, method) for name, method in METHODS.items()]
    return "\n".join([_INTRO, *table, "", *sections])


def _stored(method: Method) -> str:
    """What serves eight tasks, in models, of a network that is all matrices of one size."""
    import jax
    import numpy as np

    from symerge_jax.merge import stored_bytes

    matrices = {"matrix": jax.ShapeDtypeStruct((8, 768, 768), np.dtype("float32"))}
    models = stored_bytes(method, matrices) / (4 * 768**2)
    return "1 model" if models == 1 else f"{models:.2f} models"


def _held(method: Method) -> str:
    from symerge_jax.merge_plan import compiles_itself

    if compiles_itself(method):
        return "a few tensors of all experts"
    if method.streams or method.plan is not None or method.norms is not None:
        return "one tensor of all experts"
    return "all task vectors"


def _section(name: str, method: Method) -> str:
    function: Any = method.merge
    text = inspect.getdoc(inspect.getmodule(function)) or ""
    options = [
        f"`{key}={parameter.default!r}`"
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is not inspect.Parameter.empty
        and key not in ("leaves", "pretrained", "moments")
    ]
    lines = [f"## {name}", "", text, "", f"Options: {', '.join(options) or 'none'}."]
    needs = {
        "leaves": "which leaves are matrices and how deep they lie (known for CLIP)",
        "pretrained": "the pre-trained weights",
        "moments": "statistics of each expert on unlabelled inputs (`symerge moments`, or "
        "`second_moments` in memory)",
    }
    if method.needs:
        lines.append(f"Needs: {'; '.join(needs[need] for need in method.needs)}.")
    if method.kind == "per_task":
        lines.append(
            "Gives one encoder per task. `compress` keeps one vector with masks, or factors; "
            "`symerge merge` writes a whole model per task."
        )
    return "\n".join([*lines, ""])
