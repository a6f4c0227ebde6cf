"""`symerge inspect FILE …`: what is in there, and does it belong together?"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import tyro

from symerge_jax.checkpoints.open import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from symerge_jax.inspect_files import Content, Relation


@dataclasses.dataclass(frozen=True)
class Settings:
    """Says what checkpoints hold, and how several are related.

    With several files: which one the others descend from, how far each has moved, the cosines of
    the task vectors, and a warning where two models do not come from the same start.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders, or names on the hub."""
    json: bool = False
    """Print JSON instead of tables."""


def main(settings: Settings) -> int:
    """Prints the findings; exit code 1 if a tensor holds NaN or infinity."""
    from symerge_jax.errors import BadInput
    from symerge_jax.inspect_files import as_json, describe, relate

    if not settings.files:
        raise BadInput("name at least one checkpoint to inspect")
    checkpoints = [open_checkpoint(path) for path in settings.files]
    contents = [describe(one) for one in checkpoints]
    relation = relate(checkpoints) if len(checkpoints) > 1 else None
    if settings.json:
        print(json.dumps(as_json(contents, relation), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        console = Console()
        for content in contents:
            _print_content(console, content)
        if relation is not None:
            _print_relation(console, contents, relation)
    return int(any(content.not_finite for content in contents))


def _print_content(console: Console, content: Content) -> None:
    from rich.table import Table
    from rich.text import Text

    # A path on one line, however long: people copy it.
    console.print(Text(content.path, "bold"), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in content.dtypes.items())
    rows = [
        ("file", content.container),
        ("layout", content.layout),
        ("class", content.class_name),
        ("architecture", content.architecture or "not known"),
        ("activation", content.activation),
        ("tensors", f"{content.tensors} ({dtypes}), {content.numbers / 1e6:.2f} million numbers"),
        ("dead", _some(content.dead)),
        ("buffers", _some(content.aside)),
        ("left out of merges", _some(content.left_out)),
        ("NaN or infinity", _some(content.not_finite) or "none"),
    ]
    for name, value in rows:
        if value:
            table.add_row(Text(name), Text(value))
    console.print(table)
    console.print()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _print_relation(console: Console, contents: Sequence[Content], relation: Relation) -> None:
    from rich.table import Table
    from rich.text import Text

    start = relation.pretrained
    line = f"pre-trained (closest to all others): {contents[start].path}"
    console.print(Text(line), soft_wrap=True)
    others = [k for k in range(len(contents)) if k != start]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("expert", "‖τ‖/‖θ₀‖", "unchanged", "left-overs", "descends from it"):
        table.add_column(name, overflow="fold")
    for k in others:
        dead = relation.dead_identical[k]
        table.add_row(
            Text(contents[k].path),
            f"{relation.norms[0, k]:.4f}",
            str(relation.unchanged[k]),
            "–" if dead is None else "identical" if dead else "differ",
            "yes" if relation.same_start[k] else Text("no: different initialisation", "yellow"),
        )
    console.print(table)
    _print_blocks(console, relation, others)
    if relation.left_out:
        console.print(
            Text(f"not compared, as not in all files or not finite: {_some(relation.left_out)}")
        )


def _print_blocks(console: Console, relation: Relation, others: Sequence[int]) -> None:
    """Norm of each task vector per block, and the mean and largest cosine between two."""
    import numpy as np
    from rich.table import Table

    pairs = [(i, j) for i in others for j in others if i < j]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("block")
    for k in others:
        table.add_column(f"‖τ{k + 1}‖/‖θ₀‖", justify="right")
    if pairs:
        table.add_column("mean cosine", justify="right")
        table.add_column("largest", justify="right")
    for b, block in enumerate(relation.blocks):
        row = [block, *(f"{relation.norms[b, k]:.4f}" for k in others)]
        if pairs:
            found = np.array([relation.cosines[b, i, j] for i, j in pairs])
            known = found[~np.isnan(found)]
            row += [f"{known.mean():.3f}", f"{known.max():.3f}"] if len(known) else ["–", "–"]
        table.add_row(*row)
    console.print(table)
