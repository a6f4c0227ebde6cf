"""Runs `symerge` in this process as a person would, and checks how it refuses bad input."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from symerge_jax import cli
from symerge_jax.cli import programs

# Most of the time of these tests would go into compiling, and the commands compile some programs
# anew on each call: they are kept in a folder of the tests', and not optimised.
_QUICK = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.02,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@contextlib.contextmanager
def separate(folder: Path) -> Iterator[None]:
    """Keeps compiled programs below `folder` instead of the home folder, until the block ends."""
    wanted = {**_QUICK, "jax_compilation_cache_dir": str(folder / "compiled")}
    before = {name: jax.config.values[name] for name in wanted}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "keep_own_programs", lambda: None)
        for name, value in wanted.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def symerge(*words) -> int:
    """Runs a command; returns its exit code."""
    return cli.main([str(word) for word in words])


def refused(capsys, *words, among: Path, alone: bool = True) -> str:
    """Runs a command that must fail, and returns the one line that says why.

    Args:
        capsys: of the test.
        words: of the command.
        among: folder whose files and folders must be as before.
        alone: whether nothing but the error may stand on stderr.
    """
    capsys.readouterr()
    before = contents(among)
    code = symerge(*words)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.startswith("symerge: error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("symerge: error: ")
    assert len(lines) == 1 or not alone
    assert "Traceback" not in captured.err
    assert contents(among) == before
    return lines[-1]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder; hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
