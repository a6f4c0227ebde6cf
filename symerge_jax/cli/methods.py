"""`symerge methods`: the table of merging methods."""

import dataclasses
import functools
import inspect
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Settings:
    """Lists the merging methods: name, kind, default scale and what they do."""


def main(settings: Settings) -> None:
    """Prints a row per entry of `METHODS`."""
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
