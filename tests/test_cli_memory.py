"""Memory that ran out is one line with the size and the options that help."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.options import Options
from symerge_jax.cli import memory
from symerge_jax.cli.errors import run
from symerge_jax.cli.merge import Settings as Merge


def line(capsys, main, settings=Options, words=()):
    assert run(main, settings, words, prog="cake") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def too_much(settings):
    jnp.zeros(10**12).block_until_ready()


def test_jax_cannot_allocate(capsys):
    assert line(capsys, too_much) == (
        "symerge: error: out of memory: 4000 GB were asked for at once; try --dtype bfloat16, a "
        "smaller --limit or --parallel data --devices N to share the work, or a machine or device "
        "with more memory\n"
    )


def test_a_program_cannot_allocate(capsys):
    def main(settings):
        jax.jit(lambda: jnp.ones((300_000, 300_000), jnp.float32) * 2.0)().block_until_ready()

    assert "out of memory: 360 GB were asked for" in line(capsys, main)


def test_numpy_cannot_allocate(capsys):
    said = line(capsys, lambda settings: np.zeros(10**14))
    assert "out of memory: 800444 GB were asked for" in said


def test_python_cannot_allocate(capsys):
    said = line(capsys, lambda settings: bytearray(1 << 60))
    assert "error: out of memory; try --dtype" in said


def test_the_options_are_those_of_the_command(capsys):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        """Has no option that would help."""

    assert "try fewer inputs, smaller models or" in line(capsys, too_much, Plain)
    words = ["ties", "--pretrained", "p", "--experts", "e", "--output", "o"]
    said = line(capsys, too_much, Merge, words)
    assert "at once; try a lower --max-memory, or a machine" in said


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Out of memory while trying to allocate 17179869184 bytes.\nStats: 3 bytes", "17.2 GB"),
        ("Failed to allocate request for 2.99GiB (3206250496B) on device ordinal 0", "3.21 GB"),
        ("Out of memory while trying to allocate 1.50GiB.", "1.61 GB"),
        ("Ran out of memory in memory space hbm. Used 18.20G of 15.48G hbm.", "18.2 GB"),
    ],
)
def test_what_accelerators_say(text, size):
    error = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")
    assert memory.is_lack_of_memory(error)
    assert memory.explained(error).startswith(f"out of memory: {size} were asked for at once")


def test_other_things_run_out_too():
    for error in (
        RuntimeError("RESOURCE_EXHAUSTED: No space left on device"),
        RuntimeError("INVALID_ARGUMENT: shapes differ"),
        OSError(28, "No space left on device"),
        ValueError("out of memory of what was said"),
    ):
        assert not memory.is_lack_of_memory(error)
