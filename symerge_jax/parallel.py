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
    Where the environment names several processes (`join_processes`), they are those of all.

    Raises:
        BadInput: there are fewer devices than asked for.
    """
    if count is not None and count < 1:
        raise BadInput(f"--devices must be at least 1, got {count}")
    join_processes()
    with contextlib.suppress(RuntimeError):  # JAX has started already: take what it shows
        shown = min(cores(), 8) if count is None else min(count, max(cores(), 8))
        # In processes that joined, each shows its own.
        jax.config.update("jax_num_cpu_devices", -(-shown // _processes()))
    devices, processes = jax.devices(), jax.process_count()
    if count is None:
        return devices
    each = [[d for d in devices if d.process_index == i] for i in range(processes)]
    if count % processes:
        raise BadInput(
            f"--devices {count}: {processes} processes take part, and each needs as many as the "
            f"others; ask for a multiple of {processes}"
        )
    own = count // processes
    if min(map(len, each)) < own:
        raise BadInput(
            f"--devices {count}: this machine shows {len(devices)} ({devices[0].platform}); ask "
            "for fewer, or leave the option out"
        )
    return [device for several in each for device in several[:own]]


def _processes() -> int:
    return int(os.environ.get("JAX_NUM_PROCESSES", "1")) if jax.distributed.is_initialized() else 1


def join_processes() -> int:
    """Joins the processes of one run, on one host or many, and returns this one's number from 0.

    The environment names them, each process with its own number: `JAX_COORDINATOR_ADDRESS`
    (host:port of the first), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Without these it does
    nothing. Call it before anything else of JAX; `jax.devices()` then shows those of all processes.

    Raises:
        BadInput: some of the three are missing, or are no numbers, or the others do not come.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given or jax.distributed.is_initialized():
        return jax.process_index() if given else 0
    missing = [name for name in names if name not in given]
    if missing:
        raise BadInput(f"{missing[0]} is not set, but {next(iter(given))} is; set all of {names}")
    address, *numbers = (given[name] for name in names)
    for name, text in zip(names[1:], numbers, strict=True):
        if not text.isdecimal():
            raise BadInput(f"{name} must be a number from 0 upwards, got {text!r}")
    count, own = map(int, numbers)
    if own >= count:
        raise BadInput(
            f"JAX_PROCESS_ID is {own}, but there are {count} processes (0 to {count - 1})"
        )
    try:
        jax.distributed.initialize(address, count, own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"the {count} processes of {address} did not come together ({reason}); start all of "
            "them with the same address, each with its own JAX_PROCESS_ID"
        ) from error
    return own


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
