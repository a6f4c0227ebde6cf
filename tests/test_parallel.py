"""Independent jobs on the devices: results in order, and the first failure ends the rest."""

import threading
import time

import jax
import pytest

from symerge_jax import parallel
from symerge_jax.errors import BadInput
from symerge_jax.parallel import run_jobs, use_devices


def test_results_keep_the_order_of_the_jobs():
    def job(i):
        time.sleep(0.02 * (5 - i))  # later jobs end earlier
        return i

    jobs = [lambda i=i: job(i) for i in range(5)]
    assert run_jobs(jobs, jax.devices()[:1] * 3) == [0, 1, 2, 3, 4]
    assert run_jobs([], jax.devices()) == []


def test_each_device_has_one_job_at_a_time():
    lock, running, most = threading.Lock(), 0, 0

    def job():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    run_jobs([job] * 6, jax.devices()[:1] * 2)
    assert most == 2


def test_a_job_works_on_its_device():
    device = jax.devices()[-1]
    assert run_jobs([lambda: jax.config.jax_default_device], [device]) == [device]


def test_the_first_exception_is_raised_and_the_rest_is_cancelled():
    begun = []

    def good(i):
        begun.append(i)
        time.sleep(0.05)

    def bad():
        raise BadInput("job 1")

    jobs = [lambda: good(0), bad, *[lambda i=i: good(i) for i in range(2, 30)]]
    with pytest.raises(BadInput, match="job 1"):
        run_jobs(jobs, jax.devices()[:1] * 2)
    assert len(begun) < 5


def test_ctrl_c_cancels_the_rest(monkeypatch):
    begun = []

    def job():
        begun.append(1)
        time.sleep(0.05)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job] * 30, jax.devices()[:1])
    assert len(begun) < 5


def test_devices():
    shown = jax.devices()
    assert use_devices(None) == shown
    assert use_devices(1) == shown[:1]
    with pytest.raises(BadInput, match=r"--devices 1000: this machine shows \d+ \(cpu\)"):
        use_devices(1000)
    with pytest.raises(BadInput, match="at least 1, got 0"):
        use_devices(0)
