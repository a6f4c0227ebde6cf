"""`symerge adapt` that is interrupted, and over several devices."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from commands import symerge
from tiny_experts import write_tasks

from symerge_jax import adapt_files
from symerge_jax.adapt import keeping

pytestmark = pytest.mark.usefixtures("separate")
WORDS = ("--iterations", "30")


def weights(folder):
    return safetensors.numpy.load_file(folder / "open_clip_model.safetensors")


@pytest.fixture
def tasks(tmp_path, tiny):
    return write_tasks(tmp_path / "tasks.toml", tiny)


def test_an_interrupted_run_goes_on_to_the_same_weights(tasks, tmp_path, monkeypatch, capsys):
    assert symerge("adapt", tasks, "--output", tmp_path / "whole", *WORDS) == 0
    run, unfinished = adapt_files.run, tmp_path / "out.unfinished"

    def disturbed(*args, keep, on_chunk, **options):
        seen = []

        def counting(carry, losses):
            on_chunk(carry, losses)
            seen.append(len(losses))
            if sum(seen) > 20:
                signal.raise_signal(signal.SIGTERM)

        return run(*args, keep=keep._replace(every=10), on_chunk=counting, **options)

    with monkeypatch.context() as patch:
        patch.setattr(adapt_files, "run", disturbed)
        assert symerge("adapt", tasks, "--output", tmp_path / "out", *WORDS) == 130
    err = capsys.readouterr().err
    assert "stopping after this chunk" in err
    assert "interrupted; what was done is kept" in err
    assert "Traceback" not in err
    assert unfinished.is_dir()
    assert not (tmp_path / "out").exists()

    # Other settings are another run.
    other = ("--iterations", "31", "--resume")
    assert symerge("adapt", tasks, "--output", tmp_path / "out", *other) == 2
    assert "holds the state of a run with another settings" in capsys.readouterr().err

    assert symerge("adapt", tasks, "--output", tmp_path / "out", *WORDS, "--resume") == 0
    assert not unfinished.exists()
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_the_state_is_kept_every_so_many_steps():
    assert keeping.Keep(None).every == keeping.EVERY
    assert keeping.SECONDS > 10


def test_two_devices_give_what_one_gives(tasks, tmp_path):
    assert symerge("adapt", tasks, "--output", tmp_path / "one", *WORDS) == 0
    words = ["adapt", tasks, "--output", tmp_path / "two", *WORDS, "--devices", "2"]
    words.append("--split-task-vectors")
    done = subprocess.run(
        [sys.executable, "-m", "symerge_jax", *map(str, words)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--split-task-vectors",), "give --devices of 2 or more"),
        (("--devices", "1000"), "--devices 1000: this machine shows"),
        (("--devices", "0"), "--devices must be at least 1"),
    ],
)
def test_devices_that_cannot_be(tasks, tmp_path, capsys, words, says):
    assert symerge("adapt", tasks, "--output", tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
