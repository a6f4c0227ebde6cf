"""`symerge merge METHOD`: several experts into one model, files in and a folder out."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

import tyro

from symerge_jax.checkpoints.export import check_output
from symerge_jax.checkpoints.hashes import hashing, remember, start_hashing
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.checkpoints.source import Checkpoint, joined, open_safetensors
from symerge_jax.cli.errors import nearest
from symerge_jax.cli.programs import keep_own_programs, own_cache
from symerge_jax.errors import BadInput
from symerge_jax.inspect_files import FAR

if TYPE_CHECKING:  # JAX loads while the files are being hashed
    from symerge_jax.merge import Method
    from symerge_jax.merge_files import Merged
    from symerge_jax.merge_plan import Plan


@dataclasses.dataclass(frozen=True)
class Settings:
    """Merges experts fine-tuned from one pre-trained model, without their data.

    Any of: Hugging Face folders, open_clip and task-vector checkpoints (.pt), safetensors files,
    names on the hub. `symerge methods` lists the methods. The result has the layout of the
    pre-trained model. Of a RoBERTa the encoder is merged, of a ResNet the trunk; each expert's
    classifier or decoder becomes a file in heads/.
    """

    method: tyro.conf.Positional[str]
    """Name of the method, such as task_arithmetic."""
    pretrained: str
    """The model that all experts were fine-tuned from: file, folder, or owner/name[@revision]."""
    experts: tuple[str, ...]
    """The fine-tuned models, at least two."""
    output: Path
    """Folder to write."""
    names: tuple[str, ...] | None = None
    """Names of the tasks, one per expert; taken from the experts' paths otherwise."""
    moments: tuple[Path, ...] | None = None
    """Files of `symerge moments`, one per expert in their order; of lot, regmean and fisher."""
    scale: float | None = None
    """The λ in θ₀ + λ · τ*; the method's default otherwise."""
    max_memory: str | None = None
    """Most memory to use, such as 4GB; a method that needs more is refused before it starts."""
    overwrite: bool = False
    """Replace a model that is there already."""
    density: float | None = None
    """Fraction of entries that stay, in (0, 1]; of ties, pcb and dare."""
    aggregate: Literal["sum", "mean", "max"] | None = None
    """How agreeing entries are combined; of ties."""
    variant: str | None = None
    """Which released form; of pcb, breadcrumbs and slerp."""
    base: str | None = None
    """The method inside; of lines, dare, tall_masks and consensus."""
    beta: float | None = None
    """What the last block gets more than the first; of lines."""
    mask_scale: float | None = None
    """How much of the others a task's own entry must outweigh; of tall_masks and consensus."""
    threshold: int | None = None
    """Number of tasks that must use an entry; of consensus."""
    keep: float | None = None
    """Fraction of entries to keep, after the largest are removed; of breadcrumbs."""
    remove: float | None = None
    """Fraction of the largest entries to remove; of breadcrumbs."""
    common_fraction: float | None = None
    """Share of the rank that tasks have in common; of iso_cts."""
    rescale: Literal["leaf", "global"] | None = None
    """Whether every tensor or every number counts alike; of emr."""
    seed: int | None = None
    """Of the entries that are dropped; of dare."""
    fuse_qkv: bool = False
    """Take query, key and value as one matrix, as open_clip stores them; of tsv and iso methods."""
    conv_as_matrix: bool = False
    """Take convolutions as matrices too; of tsv and iso methods."""
    buffers: Literal["as_params", "mean", "pretrained"] = "as_params"
    """Running statistics of batch normalisation: merged like parameters, the experts' mean, or the
    pre-trained model's."""
    quantile_extra_zeros: int | None = None
    """Zeros that count in a quantile without being stored; of ties and pcb."""


_NOT_OF_A_METHOD = {
    "method", "pretrained", "experts", "output", "names", "scale", "max_memory", "overwrite",
    "buffers",
}  # fmt: skip


def main(settings: Settings) -> None:
    """Merges, and prints the folder's path last."""
    check_output(settings.output, overwrite=settings.overwrite)
    if settings.scale is not None and not abs(settings.scale) < 3e38:  # the most of float32
        raise BadInput(f"--scale must be a finite number, got {settings.scale}")
    limit = None if settings.max_memory is None else parse_size(settings.max_memory)
    sources = [open_checkpoint(path) for path in (settings.pretrained, *settings.experts)]
    files = [joined(path, [open_safetensors(path)]) for path in settings.moments or ()]
    with hashing() as pool:
        hashes = start_hashing([*sources, *files], pool, own_cache())
        from symerge_jax import merge_files, merge_plan

        name, method = find_method(settings.method)
        options = method_options(settings, name, method)
        plan = merge_plan.plan(sources[0], sources[1:], settings.names, buffers=settings.buffers)
        merge_plan.check_ranks(plan, name, options)
        report_left_out(plan)
        if plan.layout == "resnet":
            from symerge_jax.checkpoints.resnet_export import check_own_decoders

            check_own_decoders(plan.names, plan.experts)
        moments = None
        if "moments" in method.needs:
            from symerge_jax import merge_statistics

            merge_statistics.check_files(plan, name, files)
        check_memory(plan, name, method, options, limit, files)
        if "moments" in method.needs:
            moments = merge_statistics.read_statistics(plan, name, files)
        keep_own_programs()
        # The network, for the reference outputs, takes half a second to import: meanwhile.
        Thread(target=import_module, args=("symerge_jax.verify",), daemon=True).start()
        with _Bar(name, len(plan.leaves)) as bar:
            merged = merge_files.merge_files(
                plan,
                name,
                settings.output,
                scale=settings.scale,
                options=options,
                moments=moments,
                overwrite=settings.overwrite,
                progress=bar,
                finish=partial(_finish, plan),
                hashes=hashes,
            )
        remember(hashes, own_cache())
    report(plan, name, merged)
    if method.kind == "per_task":
        report_size(plan, name, options)
    print(settings.output.absolute())


def _finish(plan: Plan, folder: Path) -> None:
    from symerge_jax import verify
    from symerge_jax.checkpoints.heads import copy_heads

    copy_heads(plan.experts, folder)
    if plan.layout == "roberta":
        from symerge_jax.checkpoints.roberta_export import write_own_heads

        write_own_heads(plan.names, plan.experts, folder)
    elif plan.layout == "resnet":
        from symerge_jax.checkpoints.resnet_export import write_own_decoders

        write_own_decoders(plan.names, plan.experts, folder)
    verify.write_reference(folder)


def report_left_out(plan: Plan) -> None:
    """Names what the pre-trained model has beside the encoder that is merged."""
    from symerge_jax.checkpoints.layout import names_of
    from symerge_jax.cli.progress import say

    if left := names_of(plan.pretrained).left_out:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        say(f"{plan.pretrained.path}: left out, no part of the encoder: "
            f"{', '.join(left[:4])}{more}")  # fmt: skip


def find_method(name: str) -> tuple[str, Method]:
    """Returns the entry of `METHODS`; hyphens and underscores are the same.

    Raises:
        BadInput: there is none; the nearest one is named.
    """
    from symerge_jax.merge import METHODS

    key = name.replace("-", "_").lower()
    if key not in METHODS:
        raise BadInput(
            f"unknown method {name!r}{nearest(key, METHODS)}; `symerge methods` lists them"
        )
    return key, METHODS[key]


def method_options(settings: Settings, name: str, method: Method) -> dict[str, Any]:
    """Returns the options that were given, which must be the method's own.

    Raises:
        BadInput: one belongs to another method.
    """
    from symerge_jax.merge import METHODS

    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    given = {
        key: value
        for key, value in values.items()
        if key not in _NOT_OF_A_METHOD and value is not None and value is not False
    }
    known = set(_keywords(method.merge))
    if "base" in known and settings.base is not None:  # checked by the method
        base = METHODS.get(settings.base.replace("-", "_"))
        if base is not None and "moments" in base.needs:
            raise BadInput(
                f"--base {settings.base}: takes statistics of each expert, which {name} has no "
                "place for; choose another base"
            )
        known |= set() if base is None else set(_keywords(base.merge))
        given["base"] = settings.base.replace("-", "_")
    known &= set(values)
    for key in given:
        if key not in known:
            has = ", ".join(f"--{k.replace('_', '-')}" for k in sorted(known)) or "none but --scale"
            raise BadInput(f"--{key.replace('_', '-')} is no option of {name}; it has {has}")
    given.pop("moments", None)  # files, which become an option once they are read
    return given


def check_memory(
    plan: Plan,
    name: str,
    method: Method,
    options: dict[str, Any],
    limit: int | None,
    files: Sequence[Checkpoint] = (),
) -> None:
    """Says what the merge will need, with that of statistics in `files`, before it starts.

    Raises:
        BadInput: more than `limit` bytes.
    """
    from symerge_jax.cli.progress import say
    from symerge_jax.merge_plan import compiles_itself, forecast, takes_one_leaf

    need = forecast(plan, method, options)
    if files:
        from symerge_jax.merge_statistics import memory

        need += memory(plan, files)
    single = takes_one_leaf(method, options)
    tensors = "a few tensors" if compiles_itself(method) else "one tensor"
    how = f"{tensors} of all experts at a time" if single else "all task vectors at once"
    say(
        f"{name}: {len(plan.experts)} experts, {len(plan.leaves)} tensors, {how}: "
        f"about {size(need)} of memory"
    )
    other = "" if single else " or choose a method that takes one tensor at a time"
    if limit is not None and need > limit:
        raise BadInput(
            f"--max-memory {size(limit)}: {name} of these experts needs about {size(need)} "
            f"({how}); raise the limit{other}"
        )


def _keywords(function: Callable[..., Any]) -> list[str]:
    """Returns the options of a method that a person may give."""
    return [
        key
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Reads 4GB, 500 MiB or 1e9: bytes, in powers of 1024.

    Raises:
        BadInput: it is no size.
    """
    hit = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if hit is not None:
        with contextlib.suppress(ValueError, OverflowError):  # 1.2.3, 1e999
            return int(float(hit[1]) * _UNITS[hit[2].upper()])
    raise BadInput(f"--max-memory: expected a size such as 4GB, got {text!r}")


def size(count: int) -> str:
    """Writes bytes for people."""
    unit = next((u for u in "GMK" if count >= _UNITS[u]), "")
    return f"{count / _UNITS[unit]:.1f} {unit}B" if unit else f"{count} B"


def report(plan: Plan, name: str, merged: Merged) -> None:
    """Prints a row per expert, and warns of one that started elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task")
    table.add_column("‖τ‖/‖θ₀‖", justify="right")
    table.add_column("expert", overflow="fold")
    for task, distance, expert in zip(plan.names, merged.distances, plan.experts, strict=True):
        table.add_row(Text(task), f"{distance:.4f}", Text(str(expert.path)))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"{merged.merged} tensors merged, {merged.copied} copied", highlight=False)
    if merged.singular:
        console.print(
            f"warning: {len(merged.singular)} tensors lack full rank (first {merged.singular[0]}), "
            f"as after low-rank fine-tuning; what {name} makes of the missing directions is "
            "arbitrary and may differ between machines",
            style="yellow",
            highlight=False,
        )
    far = [
        task for task, distance in zip(plan.names, merged.distances, strict=True) if distance > FAR
    ]
    if far:
        console.print(
            f"warning: {', '.join(far)}: as far from the pre-trained model as one trained from "
            "another start; merging such experts rarely works",
            style="yellow",
            highlight=False,
        )


def report_size(plan: Plan, name: str, options: dict[str, Any]) -> None:
    """Says what one model per task takes, and what the method itself would have to store."""
    from symerge_jax.cli.progress import say
    from symerge_jax.merge_output import smallest_form

    one = sum(leaf.info.nbytes for leaf in plan.leaves)
    count = len(plan.experts)
    say(
        f"{name}: a model per task, {size(count * one)} in {count} folders; the pre-trained model "
        f"with {name}'s masks or factors would take {size(smallest_form(plan, name, options))}"
    )


class _Bar:
    """A progress bar on stderr, where that is a terminal."""

    def __init__(self, name: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._progress = Progress(console=console, disable=not sys.stderr.isatty())
        self._task = self._progress.add_task(name, total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)
