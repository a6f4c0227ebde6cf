"""The state of a run that was interrupted: kept in a folder, and found again only by that run.

Orbax writes it in the background (https://orbax.readthedocs.io); a step that was not written whole
when the process died, or the disk was full, is not seen afterwards, and the step before it is still
there. Any pytree of arrays can be kept, beside a JSON value.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from symerge_jax import interrupt, trees
from symerge_jax.errors import BadInput
from symerge_jax.files import explained, removed, write_atomically
from symerge_jax.lock import only_one

FORMAT = 1
_IDENTITY = "identity.json"


_one_at_a_time = threading.RLock()
_at_work: set[TrainingState] = set()  # the one that may be writing in the background


class Restored(NamedTuple):
    """What `TrainingState.restore` found."""

    step: int
    tree: Any
    meta: Any


class TrainingState:
    """The folder of one run's state; use it in a `with` block, which waits for the last write.

    The folder is locked until the end of the block. A state that is there counts as `saved` for a
    command that is interrupted.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, object], *, keep: int = 1):
        """Opens the folder, or makes it.

        Args:
            folder: for this run alone.
            identity: what the run is: settings and digests of its inputs, as JSON has them. Who
                opens a state that was saved under another identity is refused.
            keep: how many of the newest steps stay.

        Raises:
            BadInput: the folder cannot be made or written, another run is at work in it, or it
                holds the state of another run.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(only_one(folder))
            _check_identity(self._folder, {"format": FORMAT, **identity})
            stack.enter_context(_orbax_silent())
            self._writing, self._failure = False, None
            with self._alone():
                try:
                    self._manager = ocp.CheckpointManager(self._folder, options=options)
                except OSError as error:
                    raise BadInput(explained(self._folder, error)) from error
            self._held = stack.pop_all()
        if self.latest() is not None:
            interrupt.saved()

    def __enter__(self) -> TrainingState:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Waits until everything is written.

        Raises:
            BadInput: it cannot be; unless the block ended with an error that says more.
        """
        with self._held, self._alone():
            failure = self._failure
            try:
                self._manager.close()
            except Exception as last:  # of the last write, in the words of tensorstore
                failure = failure or last
                with contextlib.suppress(Exception):
                    self._manager.close()  # what the failure left undone
            _at_work.clear()
            if failure is not None:
                if error is None or isinstance(error, KeyboardInterrupt):
                    raise self._unwritten(failure) from failure
                return
            if self._writing:
                interrupt.saved()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other folder of this process is being written, and lets none begin.

        Orbax counts what it does in the background per process: two that write at the same time
        take each other's files.
        """
        with _one_at_a_time:
            for other in _at_work - {self}:
                other._finish()
            _at_work.clear()
            _at_work.add(self)
            yield

    def _finish(self) -> None:
        """Waits for the last write; what fails is said by this folder's own next call."""
        try:
            self._manager.wait_until_finished()
        except Exception as failure:
            self._failure = failure

    def latest(self) -> int | None:
        """Returns the newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, meta: Any = None) -> None:
        """Starts writing a step; the arrays may be changed or donated as soon as it returns.

        Args:
            step: higher than any before.
            tree: pytree of arrays, random keys included.
            meta: what JSON can hold.

        Raises:
            BadInput: this step, or the one before it, cannot be written.
        """
        # On a CPU orbax may look at the arrays' own memory while it writes in the background.
        leaves = trees.copied(_named(tree))
        about = {"leaves": _described(tree), "meta": meta}
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(about)
        )
        with self._alone():
            if self._failure is not None:
                raise self._unwritten(self._failure) from self._failure
            try:
                done = self._manager.save(step, args=parts)  # which waits for the one before
            except Exception as error:
                raise self._unwritten(error) from error
        assert done, f"step {step} is not newer than step {self.latest()}"
        if self._writing:
            interrupt.saved()
        self._writing = True

    def restore(self, template: Any) -> Restored:
        """Reads the newest step.

        Args:
            template: pytree of arrays, or of `jax.ShapeDtypeStruct`, like the one that was saved;
                the arrays come back with its structure and sharding.

        Raises:
            BadInput: there is no step, it is damaged, or it holds another tree.
        """
        step = self.latest()
        if step is None:
            raise BadInput(
                f"{self._folder}: holds no saved state; start the run from its beginning"
            )
        about = self._read(step, about=ocp.args.JsonRestore())["about"]
        if not isinstance(about, dict) or not {"leaves", "meta"} <= about.keys():
            raise self._unreadable(step, "it does not say what it holds")
        _check_leaves(about["leaves"], _described(template), f"{self._folder}: step {step}")
        shapes = jax.tree.map(_shape, _named(template))
        found = self._read(step, state=ocp.args.StandardRestore(shapes))["state"]
        return Restored(step, _unnamed(found, template), about["meta"])

    def _read(self, step: int, **parts: Any) -> Any:
        with self._alone():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**parts))
            except Exception as error:  # orbax and tensorstore raise nearly anything
                raise self._unreadable(step, " ".join(str(error).split())[:200]) from error

    def _unreadable(self, step: int, reason: str) -> BadInput:
        return BadInput(
            f"{self._folder}: the state of step {step} cannot be read ({reason}); remove the "
            "folder to start the run from its beginning"
        )

    def _unwritten(self, error: Exception) -> BadInput:
        before = "; what was saved before is still there" if _has_steps(self._folder) else ""
        return BadInput(
            f"{self._folder}: the state of the run cannot be written ({_reason(error)}); free some "
            f"space, or choose another folder{before}"
        )


def discard(folder: str | Path) -> None:
    """Removes a state folder and all in it; one that is absent is fine.

    Raises:
        BadInput: a run is at work in it.
    """
    if Path(folder).is_dir():
        with only_one(folder):
            removed(Path(folder).absolute())


@contextlib.contextmanager
def _orbax_silent() -> Iterator[None]:
    """Drops what orbax's threads log when a write fails: the same error is raised here later."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _reason(error: Exception) -> str:
    """What the system said, out of the long sentence of tensorstore."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    found = re.search(r": ([^:\[\]]+) \[os_error_code=", text)
    return found[1] if found else text[:200] or type(error).__name__


def _has_steps(folder: Path) -> bool:
    return any(entry.name.isdigit() for entry in folder.iterdir())


def _check_identity(folder: Path, identity: Mapping[str, object]) -> None:
    """Compares with what the folder says its state belongs to, or writes it down."""
    path = folder / _IDENTITY
    ours = json.loads(json.dumps(identity))  # tuples become lists, as they are in the file
    if _has_steps(folder):
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(theirs, dict):
                raise ValueError(f"expected a JSON object, found a {type(theirs).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}: cannot be read ({error}), so whose state this is cannot be told; remove "
                "the folder to start the run from its beginning"
            ) from error
        for name in dict.fromkeys([*theirs, *ours]):
            if theirs.get(name) != ours.get(name):
                raise BadInput(
                    f"{folder}: holds the state of a run with another {name} "
                    f"({_brief(theirs.get(name))}, now {_brief(ours.get(name))}); repeat that "
                    "run's settings and data, or remove the folder to start from the beginning"
                )
    write_atomically(path, json.dumps(ours, indent=1) + "\n")


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_leaves(saved: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    for path in dict.fromkeys([*saved, *expected]):
        here, there = saved.get(path), expected.get(path)
        if here != there:
            raise BadInput(
                f"{where}: {path or 'the array'} is {here or 'absent'}, expected "
                f"{there or 'no such array'}; the state belongs to another model or version, "
                "remove the folder to start the run from its beginning"
            )


def _named(tree: Any) -> dict[str, Any]:
    """The leaves, numbered in their order; random keys as their data. Orbax needs no more."""
    return {f"{i:06d}": _data(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _unnamed(named: Mapping[str, Any], template: Any) -> Any:
    leaves, structure = jax.tree.flatten(template)
    found = [_like(named[f"{i:06d}"], leaf) for i, leaf in enumerate(leaves)]
    return structure.unflatten(found)


def _described(tree: Any) -> dict[str, str]:
    """Path of each leaf → its dtype and shape."""
    return {
        trees.path_name(path): f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _like(found: Any, leaf: Any) -> Any:
    if not _is_key(leaf):
        return found
    kind = jax.random.key_impl(leaf) if isinstance(leaf, jax.Array) else None
    key = jax.random.wrap_key_data(found, impl=kind)
    assert key.dtype == leaf.dtype, "a shape cannot say which generator; give a key as template"
    return key


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of a leaf; where it says nothing of a place, JAX's default device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jnp.zeros(()).sharding
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=sharding)
