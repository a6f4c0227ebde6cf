"""Independent jobs over the devices of one process: one job at a time per device.

Each job is a compiled run of its own (an expert, a seed, a method), so devices never wait for each other.
On a CPU this beats one device with many threads: small matrices do not split well.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TypeVar

import jax

from symerge_jax.errors import BadInput

T = TypeVar("T")


def use_devices(count: int | None) -> list[jax.Device]:
    """Returns the devices to work on; call it before anything else of JAX.

    On a CPU it sets how many devices JAX shows, by default one per core that this process may use.

    Raises:
        BadInput: there are fewer devices than asked for.
    """
    import os

    if count is not None and count < 1:
        raise BadInput(f"--devices must be at least 1, got {count}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", count or min(cores or 1, 8))
    except RuntimeError:  # JAX has started already; take what it shows
        pass
    devices = jax.devices()
    if count is not None and len(devices) < count:
        raise BadInput(f"--devices {count}: this machine shows {len(devices)} ({devices[0].platform})")
    return devices[:count]


def run_jobs(jobs: Sequence[Callable[[], T]], devices: Sequence[jax.Device]) -> list[T]:
    """Runs jobs, each with one of the devices as JAX's default, and returns their results in order.

    The first job that raises ends the rest that have not begun, and its exception is raised.
    """
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in devices:
        free.put(device)

    def work(job: Callable[[], T]) -> T:
        device = free.get()
        try:
            with jax.default_device(device):
                return job()
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices), thread_name_prefix="job") as pool:
        futures = [pool.submit(work, job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and not future.cancelled() and future.exception():
                for other in futures:
                    other.cancel()
                raise future.exception()  # type: ignore[misc]
        return [future.result() for future in futures]
