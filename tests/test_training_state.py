"""The saved state of a run: it comes back as it was, to that run alone."""

import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from symerge_jax.checkpoints.training_state import TrainingState, discard
from symerge_jax.errors import BadInput

IDENTITY = {"rate": 1e-5, "task": "eurosat", "shape": (2, 3)}


def state(seed=0):
    """Parameters with a gap, the optimiser's containers, a step count and a random key."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "elsewhere": None,
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.identity())
    return params, tx.init(params), jax.random.key(seed), jnp.int32(7)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def saved(tmp_path):
    """A folder with the states of the steps 3 and 8."""
    with TrainingState(tmp_path / "run", IDENTITY) as store:
        store.save(3, state(3), {"losses": [1.0]})
        store.save(8, state(8), {"losses": [1.0, 0.1], "position": {"next_index": 4}})
        assert store.latest() == 8
    return tmp_path / "run"


@pytest.mark.parametrize("template", [state(), jax.eval_shape(state)], ids=["arrays", "shapes"])
def test_the_newest_step_comes_back_bit_for_bit(saved, template):
    with TrainingState(saved, IDENTITY) as store:
        step, tree, meta = store.restore(template)
    assert (step, meta) == (8, {"losses": [1.0, 0.1], "position": {"next_index": 4}})
    assert_same(tree, state(8))


def test_old_steps_are_removed(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["8", "identity.json"]


def test_arrays_come_back_where_the_template_is(tmp_path):
    device = jax.devices()[-1]
    with TrainingState(tmp_path, {}) as store:
        store.save(1, jnp.arange(3.0))
        found = store.restore(jax.device_put(jnp.zeros(3), device)).tree
    assert found.devices() == {device}


def test_memory_may_be_used_again_at_once(tmp_path):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(300_000)
    with TrainingState(tmp_path, {}) as store:
        store.save(1, x)
        for _ in range(20):
            x = add(x)
        assert not store.restore(jnp.zeros(300_000)).tree.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": 1e-4}, r"another rate \(1e-05, now 0.0001\); repeat that run's settings"),
        ({"more": True}, r"another more \(null, now true\)"),
    ],
)
def test_the_state_of_another_run_is_refused(saved, change, says):
    with pytest.raises(BadInput, match=says):
        TrainingState(saved, IDENTITY | change)


def test_a_folder_without_a_saved_step_takes_any_run(tmp_path):
    with TrainingState(tmp_path, IDENTITY) as store:
        assert store.latest() is None
    with TrainingState(tmp_path, {"rate": 1.0}) as store, pytest.raises(BadInput, match="no saved"):
        store.restore(state())


def test_another_tree_is_refused_with_the_leaf(saved):
    params, *rest = state()
    wide = {**params, "kernel": jnp.zeros((4, 5))}
    with TrainingState(saved, IDENTITY) as store:
        with pytest.raises(BadInput, match=r"0/kernel is .*4, 3\], expected float32\[4, 5"):
            store.restore((wide, *rest))
        with pytest.raises(BadInput, match=r"3 is int32\[\], expected no such array"):
            store.restore((params, *rest[:-1]))
        with pytest.raises(BadInput, match=r"0/half is bfloat16\[5\], expected float32\[5\]"):
            store.restore(({**params, "half": jnp.zeros(5)}, *rest))


def test_damage_is_told(saved):
    for path in (saved / "8").rglob("*"):
        if path.is_file() and path.stat().st_size > 20:
            path.write_bytes(path.read_bytes()[:20])
    with (
        TrainingState(saved, IDENTITY) as store,
        pytest.raises(BadInput, match="state of step 8 cannot be read .* remove the folder"),
    ):
        store.restore(state())
    (saved / "identity.json").write_text("{")
    with pytest.raises(BadInput, match="whose state this is cannot be told"):
        TrainingState(saved, IDENTITY)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file where a folder is needed"):
        TrainingState(tmp_path / "file" / "run", IDENTITY)


def test_discarding_removes_all_and_may_be_done_twice(saved):
    discard(saved)
    assert not saved.exists()
    discard(saved)


KILLED = """
import os, sys, jax.numpy as jnp
from symerge_jax.checkpoints.training_state import TrainingState
store = TrainingState(sys.argv[1], {})
store.save(1, jnp.ones(4))
store._manager.wait_until_finished()
store.save(2, jnp.full(2_000_000, 2.0))
os._exit(9)  # as kill -9 would: nothing is finished, nothing closed
"""


def test_a_killed_process_leaves_a_whole_step(tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    done = subprocess.run(words, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    with TrainingState(tmp_path / "run", {}) as store:
        if store.latest() == 1:
            np.testing.assert_array_equal(store.restore(jnp.zeros(4)).tree, np.ones(4))
        else:  # the write was quicker than the end
            assert (store.restore(jnp.zeros(2_000_000)).tree == 2).all()
        store.save(3, jnp.zeros(2))
        assert store.restore(jnp.ones(2)).step == 3
    assert json.loads((tmp_path / "run" / "identity.json").read_text()) == {"format": 1}


# --- a disk that is full ------------------------------------------------------------------------

FULL = """
import resource, signal, sys
import jax.numpy as jnp, numpy as np
from symerge_jax import interrupt
from symerge_jax.checkpoints.training_state import TrainingState
from symerge_jax.cli.errors import fail

def main():
    with TrainingState(sys.argv[1], {}) as store:
        store.save(1, jnp.arange(4.0))
        store._manager.wait_until_finished()
        # No file may grow beyond this any more, as if the disk were full.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        noise = jnp.asarray(np.random.default_rng(0).normal(size=200_000), jnp.float32)
        for step in map(int, sys.argv[2:]):
            store.save(step, noise)
        if len(sys.argv) == 3:
            raise KeyboardInterrupt  # saved, as far as it knows
try:
    main()
except Exception as error:
    sys.exit(fail(error))
"""


@pytest.mark.parametrize("steps", [("2",), ("2", "3")], ids=["at the end", "at the next save"])
def test_a_full_disk_is_one_sentence_and_the_step_before_is_still_there(tmp_path, steps):
    pytest.importorskip("resource")
    words = [sys.executable, "-c", FULL, str(tmp_path / "run"), *steps]
    done = subprocess.run(words, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        f"symerge: error: {tmp_path}/run: the state of the run cannot be written (File too large); "
        "free some space, or choose another folder; what was saved before is still there\n"
    )
    with TrainingState(tmp_path / "run", {}) as store:
        assert store.latest() == 1
        np.testing.assert_array_equal(store.restore(jnp.zeros(4)).tree, np.arange(4))
        store.save(2, jnp.ones(4))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "identity.json"]


def test_a_disk_without_space_is_named(tmp_path, monkeypatch):
    """What tensorstore says then, raised where orbax raises it."""
    text = (
        'RESOURCE_EXHAUSTED: Error writing "000000/0": Failed writing: "/a/d/42": Failed to write '
        "9 bytes to file 4: No space left on device [os_error_code='28'] [source locations='…']"
    )
    store = TrainingState(tmp_path, {})

    def close():
        raise ValueError(text)

    real = store._manager.close
    with monkeypatch.context() as patch:
        patch.setattr(store._manager, "close", close)
        with pytest.raises(BadInput, match=r"be written \(No space left on device\); free [^;]*$"):
            store.__exit__(None, None, None)
    real()
    with TrainingState(tmp_path, {}), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(tmp_path, monkeypatch):
    store = TrainingState(tmp_path, {})
    real = store._manager.close
    monkeypatch.setattr(store._manager, "close", lambda: [real(), 1 // 0])
    with pytest.raises(LookupError, match="of the run"), store:
        raise LookupError("of the run")


@pytest.mark.parametrize("content", ["[]", "3", '"text"', "{", "\x00", "[" * 100_000])
def test_damage_of_the_identity_is_told(saved, content):
    (saved / "identity.json").write_text(content)
    with pytest.raises(BadInput, match="whose state this is cannot be told"):
        TrainingState(saved, IDENTITY)


def test_folders_of_one_process_are_written_side_by_side(tmp_path):
    failures = []

    def work(i):
        try:
            with TrainingState(tmp_path / str(i), {}) as state:
                for step in range(1, 8):
                    state.save(step, {"a": np.full(1000, step + i, np.float32)})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for i in range(3):
        with TrainingState(tmp_path / str(i), {}) as state:
            found = state.restore({"a": np.zeros(1000, np.float32)})
        assert found.step == 7
        np.testing.assert_array_equal(found.tree["a"], np.full(1000, 7 + i))
