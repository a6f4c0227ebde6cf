"""Files of the Hugging Face hub, each pinned to a commit and entered with its hash.

`<folder>/sources.json` says where the files of a folder come from:

    {"format": 1, "sources": {"owner/name": {"kind": "model", "revision": commit,
        "files": {"path below the folder": {"bytes": n, "sha256": hex}}}}}

A repository that is in it is fetched at the same commit again. Nothing that is fetched is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from symerge_jax.checkpoints.hashes import sha256
from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder, write_atomically

FORMAT = 1
SOURCES = "sources.json"

Kind = Literal["model", "dataset"]


class Listing(NamedTuple):
    """What a repository holds at one commit."""

    repository: str
    kind: Kind
    revision: str  # the commit
    files: tuple[str, ...]


class Unreachable(Exception):
    """The hub does not give what was asked for; the message says why, in one line."""


def look(repository: str, kind: Kind, revision: str | None) -> Listing:
    """Asks the hub for the files of a repository.

    Args:
        repository: owner/name.
        kind: what it is.
        revision: branch, tag or commit; None for the default branch.

    Raises:
        Unreachable: no network, no such repository, or access is refused.
    """
    import huggingface_hub

    try:
        info: Any = huggingface_hub.repo_info(repository, repo_type=kind, revision=revision)
    except _hub_errors() as error:
        raise Unreachable(_line(error)) from error
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    return Listing(repository, kind, info.sha or revision or "main", files)


def fetch(listing: Listing, files: Sequence[str], folder: Path, *, root: Path) -> None:
    """Downloads files of a repository and enters them in `root/sources.json`.

    Args:
        listing: the repository.
        files: some of its files.
        folder: where its root goes: `root` or a folder below it.
        root: the folder whose sources.json is kept.

    Raises:
        Unreachable: the download fails; what has come stays, and is not fetched again.
        BadInput: the folder cannot be written.
    """
    import huggingface_hub

    make_folder(folder)
    try:
        huggingface_hub.snapshot_download(
            listing.repository,
            repo_type=listing.kind,
            revision=listing.revision,
            local_dir=folder,
            allow_patterns=list(files),
        )
    except _hub_errors() as error:
        raise Unreachable(_line(error)) from error
    come = [folder / name for name in files if (folder / name).is_file()]
    if len(come) < len(files):
        raise Unreachable(f"only {len(come)} of {len(files)} files came")
    entries = {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in come
    }
    sources = read_sources(root)
    before = sources.get(listing.repository, {})
    kept = before.get("files", {}) if before.get("revision") == listing.revision else {}
    sources[listing.repository] = {
        "kind": listing.kind,
        "revision": listing.revision,
        "files": dict(sorted((kept | entries).items())),
    }
    content = {"format": FORMAT, "sources": dict(sorted(sources.items()))}
    write_atomically(root / SOURCES, json.dumps(content, indent=1) + "\n")


def read_sources(root: Path) -> dict[str, dict[str, Any]]:
    """Returns repository → its entry; empty where there is no sources.json.

    Raises:
        BadInput: the file is not what `fetch` writes.
    """
    path = root / SOURCES
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sources = content["sources"]
        for entry in sources.values():
            _ = (
                entry["revision"],
                [(one["bytes"], one["sha256"]) for one in entry["files"].values()],
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: is not a list of sources ({_line(error)}); remove it, and run again"
        ) from error
    if content.get("format") != FORMAT:
        raise BadInput(
            f"{path}: format {content.get('format')!r} is not known to this version, which writes "
            f"{FORMAT}; remove it, and run again"
        )
    return sources


def changed(root: Path) -> list[tuple[str, str]]:
    """Files that are not as they were fetched: path below the folder, and in what they differ.

    Files that are gone are not among them.
    """
    found = []
    for repository, entry in read_sources(root).items():
        for name, stated in entry["files"].items():
            path = root / name
            if not path.is_file():
                continue
            size = path.stat().st_size
            if size != stated["bytes"]:
                found.append((name, f"{size:,} bytes, {repository} has {stated['bytes']:,}"))
            elif sha256(path) != stated["sha256"]:
                found.append((name, f"its sha256 is not that of the file of {repository}"))
    return found


def _hub_errors() -> tuple[type[Exception], ...]:
    # HTTPError is that of the hub's HTTP library, whose name differs between its versions.
    from huggingface_hub.errors import HFValidationError, HTTPError

    return (OSError, HTTPError, HFValidationError)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
