"""Independent jobs over the devices of one process: one job at a time per device.

Each job is a compiled run of its own (an expert, a seed, a method), so devices never wait for each
other. On a CPU this beats one device with many threads: small matrices do not split well.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import jax

from symerge_jax.errors import BadInput

T = TypeVar("T")
Device: TypeAlias = Any  # a jax.Device, of which type checkers see only a variable


def use_devices(count: int | None) -> list[Device]:
    """Returns the devices to work on; call it before anything else of JAX.

    On a CPU it sets how many devices JAX shows, by default one per core that this process may use.

    Raises:
        BadInput: there are fewer devices than asked for.
    """
    if count is not None and count < 1:
        raise BadInput(f"--devices must be at least 1, got {count}")
    shown = min(cores(), 8) if count is None else min(count, max(cores(), 8))
    with contextlib.suppress(RuntimeError):  # JAX has started already: take what it shows
        jax.config.update("jax_num_cpu_devices", shown)
    devices = jax.devices()
    if count is not None and len(devices) < count:
        raise BadInput(
            f"--devices {count}: this machine shows {len(devices)} ({devices[0].platform}); ask "
            "for fewer, or leave the option out"
        )
    return devices[:count]


def cores() -> int:
    """The processors this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(jobs: Sequence[Callable[[], T]], devices: Sequence[Device]) -> list[T]:
    """Runs jobs, each with one of the devices as JAX's default, and returns their results in order.

    The first job that raises, like Ctrl-C, ends the rest that have not begun, and its exception is
    raised.
    """
    free: SimpleQueue[Device] = SimpleQueue()
    for device in devices:
        free.put(device)

    def work(job: Callable[[], T]) -> T:
        device = free.get()
        try:
            with jax.default_device(device):
                return job()
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(len(devices), thread_name_prefix="job")
    try:
        futures = [pool.submit(work, job) for job in jobs]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        # All are done unless one failed, and then its `result` raises.
        return [future.result() for future in futures if future in done]
    finally:
        pool.shutdown(cancel_futures=True)
