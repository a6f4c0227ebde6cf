"""`symerge moments EXPERT`: the statistics that lot, regmean and fisher merge with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from symerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Settings:
    """Makes the statistics of one expert on unlabelled images or texts, for `symerge merge`.

    lot and regmean take those of kind gram, fisher takes those of kind fisher. The file belongs to
    the expert's weights and can be used in any merge of it. Of ResNets no statistics are made.
    """

    expert: tyro.conf.Positional[str]
    """The fine-tuned model: file, folder, or owner/name[@revision]."""
    inputs: Path
    """Images the expert was made for: a folder, an npz pack, or a task's folder (its train); for a
    RoBERTa texts, a file or a task's folder."""
    output: Path
    """File to write; its name ends with .safetensors."""
    kind: Literal["gram", "fisher"] = "gram"
    """What to work out: gram for lot and regmean, fisher for fisher."""
    head: Path | None = None
    """The expert's head, a file; of kind fisher. A RoBERTa has one in its weights."""
    pretrained: str | None = None
    """The model it was fine-tuned from, for an expert that lacks a part such as its projection or
    its vocabulary."""
    vocabulary: Path | None = None
    """Folder with RoBERTa's vocabulary, where it lies beside neither of the two."""
    limit: int | None = None
    """Inputs to draw at random, with seed 0; 64 for gram and 256 for fisher otherwise."""
    overwrite: bool = False
    """Replace a file that is there already."""


def main(settings: Settings) -> None:
    """Works out and writes the statistics, and prints the file's path last."""
    check_file(settings.output, overwrite=settings.overwrite)
    if settings.limit is not None and settings.limit < 1:
        raise BadInput(f"--limit must be at least 1, got {settings.limit}")
    if settings.kind == "gram" and settings.head is not None:
        raise BadInput("--head is no option of kind gram; leave it out, or add --kind fisher")

    from symerge_jax.cli.programs import keep_own_programs
    from symerge_jax.cli.progress import say
    from symerge_jax.moments_files import make_moments

    keep_own_programs()
    make_moments(
        settings.expert,
        settings.inputs,
        settings.output,
        kind=settings.kind,
        head=settings.head,
        pretrained=settings.pretrained,
        vocabulary=settings.vocabulary,
        limit=settings.limit,
        report=say,
    )
    print(settings.output.absolute())


def _check_replaceable(output: Path) -> None:
    """Raises `BadInput` if the file was not written by this command: if it is a model, say."""
    import safetensors

    try:
        with safetensors.safe_open(output, framework="np") as file:
            kind = (file.metadata() or {}).get("kind")
    except (OSError, safetensors.SafetensorError):
        kind = None
    if kind != "second moments":
        raise BadInput(
            f"{output}: holds something else than statistics, which --overwrite does not replace; "
            "choose another name"
        )


def check_file(output: Path, *, overwrite: bool) -> None:
    """Raises `BadInput` if the file may not be written; called before any work."""
    if output.suffix != ".safetensors":
        raise BadInput(f"{output}: expected a name that ends with .safetensors")
    if output.is_dir():
        raise BadInput(f"{output}: expected a file to write, found a folder; choose another name")
    if output.exists() and not overwrite:
        raise BadInput(f"{output}: is there already; choose another name or add --overwrite")
    if output.exists():
        _check_replaceable(output)
    blocking = next((p for p in output.absolute().parents if p.exists()), None)
    if blocking is not None and not blocking.is_dir():
        raise BadInput(f"{output}: cannot be written, because {blocking} is a file")
