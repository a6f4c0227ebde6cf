"""Decompositions of several matrices at a time on a CPU.

LAPACK gains little from threads: of 8 x ViT-B/32's block on two cores, TSV-M took 13.2 s with two
threads per matrix, 11.8 s with one, and 6.8 s with one and two matrices at a time (Iso-C 2.0, 1.9
and 1.2 s, Iso-CTS 6.1, 5.4 and 3.8 s). An accelerator takes them in turn.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

import jax

from symerge_jax.parallel import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8  # at a time: what they hold adds up


def at_a_time() -> int:
    """Returns how many matrices are worked on at a time: on a CPU several.

    One where a device was chosen (`jax.default_device`): other jobs then have the other cores.
    """
    if jax.default_backend() != "cpu" or _setting("jax_default_device") is not None:
        return 1
    return min(_MOST, cores())


def _setting(name: str) -> Any:
    """Returns an option of JAX as it holds in this thread."""
    return getattr(jax.config, name)


_lock = Lock()
_limits: list[Any] = []  # one entry per caller that is inside; the first can be undone


@contextlib.contextmanager
def _few_threads(count: int) -> Iterator[None]:
    """Limits the threads of LAPACK: by the first who comes, until the last has gone."""
    import scipy.linalg  # noqa: F401  (JAX takes its LAPACK; loaded now, so that the limit holds)
    from threadpoolctl import threadpool_limits

    with _lock:
        _limits.append(_limits[0] if _limits else threadpool_limits(count, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop()
            if not _limits:
                limit.restore_original_limits()


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with its result, in order; a few are worked on at a time.

    Args:
        function: runs in a thread; returns once its result is there.
        items: taken from the iterator when their turn comes, so that few exist at a time.
    """
    workers = at_a_time()
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    wide = _setting("jax_enable_x64")  # what a context manager set is not seen by threads

    def run(item: Item) -> Result:
        with jax.enable_x64(wide):
            return function(item)

    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with _few_threads(max(1, cores() // workers)), ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append((item, pool.submit(run, item)))
            if len(waiting) == workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
