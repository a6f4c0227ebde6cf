"""One run over several devices gives what one device gives, and sends little between them."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from symerge_jax.adapt.across import NOT_SPLIT, split_axes, stacked
from symerge_jax.adapt.merged import OBJECTIVES
from symerge_jax.errors import BadInput
from symerge_jax.parallel import join_processes

HERE = Path(__file__).parent
TASKS, LEAVES, WIDTH, CLASSES, PIXELS = 3, 2, 128, 5, 192  # of many_devices.py


def start(*words, **environment):
    """Starts many_devices.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, HERE / "many_devices.py", *words],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def eight():
    return answer(start("float64"))


PARTS = ("params", "coefficients", "heads", "layers", "losses")
# Gradients of λ and the heads; the sum and count of the loss, of which XLA has one of each for the
# four objectives, and runs one.
SMALL = TASKS * LEAVES + TASKS * WIDTH * CLASSES + 2 * len(OBJECTIVES)

VARIANTS = ["symerge", "shares", "int8 shares", "head only", "entropy", "odd batch", "own layer"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_eight_devices_give_what_one_gives(eight, variant):
    assert eight["devices"] == 8
    found = eight["found"][variant]
    assert found["kept"] == 0
    assert max(found[part] for part in PARTS) < 1e-9, found


def test_independent_runs_have_the_bits_of_one_device_on_any(eight):
    assert eight["found"]["independent runs"] is True


def numbers(shapes):
    """How many numbers XLA's shapes hold, such as `(f32[3,2]{1,0}, f32[])`."""
    each = re.findall(r"[a-z]+\d*\[([\d,]*)\]", " ".join(shapes))
    return sum(math.prod(int(n) for n in one.split(",") if n) for one in each)


def test_coefficients_and_heads_are_all_that_devices_send_each_other(eight):
    sent = eight["found"]["symerge"]["collectives"]
    assert numbers(sent["all-reduce"]) == SMALL
    # After the chunk, who was kept.
    assert all(shape.startswith("pred") for shape in sent["all-gather"])
    for name in ("reduce-scatter", "all-to-all", "collective-permute"):
        assert sent[name] == []


@pytest.mark.parametrize("variant", ["shares", "int8 shares"])
def test_shares_are_gathered_once_and_their_gradients_scattered_once(eight, variant):
    sent = eight["found"][variant]["collectives"]
    model = PIXELS * WIDTH + WIDTH * WIDTH
    floats = [shape for shape in sent["all-gather"] if not shape.startswith("pred")]
    assert len(floats) == len(sent["reduce-scatter"]) == LEAVES
    assert numbers(floats) == model
    assert numbers(sent["reduce-scatter"]) == model // 8
    assert numbers(sent["all-reduce"]) == SMALL


def test_single_precision_and_two_processes_agree_too():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    words = ("float32", "symerge", "shares")
    processes = [start(*words, **together, JAX_PROCESS_ID=str(i)) for i in range(2)]
    first, second = processes
    found = answer(first)
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert found["devices"] == 8
    for one in found["found"].values():
        assert one["kept"] == 0
        assert max(one[part] for part in PARTS) < 1e-6, one


def test_the_longest_axis_that_fits_is_split():
    params = {"a": jnp.zeros((96, 1024)), "b": jnp.zeros(1024), "c": jnp.zeros((129, 131))}
    assert split_axes(params, 8) == {"a": 1, "b": NOT_SPLIT, "c": NOT_SPLIT}
    assert split_axes(params, 96) == {"a": 0, "b": NOT_SPLIT, "c": NOT_SPLIT}
    assert stacked(1) == 2
    assert stacked(NOT_SPLIT) == NOT_SPLIT


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is not set, but JAX_PROCESS_ID is"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
         "JAX_NUM_PROCESSES must be a number from 0 upwards, got 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
         "JAX_PROCESS_ID is 2, but there are 2 processes"),
    ],
    ids=["some", "no number", "too high"],
)  # fmt: skip
def test_an_environment_that_names_no_processes_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=message):
        join_processes()


def test_without_such_an_environment_there_is_one_process():
    assert join_processes() == 0
