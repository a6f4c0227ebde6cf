"""Where compiled programs are kept between runs."""

import os
import warnings
from pathlib import Path

from symerge_jax.errors import BadInput
from symerge_jax.files import make_folder


def keep_programs(folder: Path, *, seconds: float = 0.3) -> None:
    """Keeps compiled programs in `folder`, so that a second run need not compile them.

    Args:
        folder: made if it is not there.
        seconds: a program that compiled faster is not worth a file.

    Raises:
        BadInput: there can be no such folder.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(make_folder(folder)))
    # A program that cannot be stored is compiled again; what matters says so itself.
    warnings.filterwarnings("ignore", message=r"Error \w+ persistent compilation cache entry")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def own_cache() -> Path:
    """Returns where `symerge` keeps what saves time on the next run."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "symerge_jax"


def keep_own_programs() -> None:
    """Keeps the programs of `symerge` in the person's cache folder, if there can be one."""
    try:
        keep_programs(own_cache() / "compiled", seconds=0.02)
    except BadInput:  # a read-only home; compiling again costs a second
        return
