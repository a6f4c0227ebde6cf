"""Models from the Hugging Face hub, pinned to a commit.

Files come through `huggingface_hub` into its own cache; the commit that a name stood for is
returned, so that a record can say exactly what was read.
"""

from __future__ import annotations

from pathlib import Path

from symerge_jax.errors import BadInput

# Weights, configuration and vocabulary; not the copies for other frameworks.
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "merges.txt")
_PICKLES = ("pytorch_model*.bin", "open_clip_pytorch_model.bin")


def download(repository: str, revision: str | None = None) -> tuple[Path, str]:
    """Fetches a model, or finds it in the hub's local cache.

    Args:
        repository: owner/name.
        revision: branch, tag or commit; None for the default branch.

    Returns:
        The folder, and the commit it holds.

    Raises:
        BadInput: no such model, no network and not in the cache, or access is refused.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns)
            )
        )

    try:
        folder = fetch(_PATTERNS)
        if not any(folder.glob("*.safetensors")):  # older models have only pickles
            folder = fetch((*_PATTERNS, *_PICKLES))
    except (HTTPError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{repository}{at}: neither a file or folder here nor to be had from the hub "
            f"({reason}); give the path of a local copy"
        ) from error
    return folder, folder.name  # snapshots lie in a folder named after their commit
