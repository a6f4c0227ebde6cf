"""A thousand malformed inputs: whatever is read works or is refused in a sentence, soon and small.

Everything is drawn from fixed seeds. What was found here once has a test of its own in
test_malformed.py, which takes no time.
"""

import contextlib
import shutil
import signal
import tracemalloc

import malformed
import pytest
from damage import damaged

from experiments import finetune, vision
from symerge_jax import cli
from symerge_jax.cli.errors import parse
from symerge_jax.errors import BadInput

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.slow

SECONDS = 5
MEGABYTES = 400  # the largest picture that is read has 90 million pixels


def examples(count):
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@contextlib.contextmanager
def soon_and_small():
    """Fails where the block hangs, or asks for memory that no small file needs."""

    def late(number, frame):
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    tracemalloc.start(1)
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert peak < MEGABYTES * 1e6, f"asked for {peak / 1e6:.0f} MB"


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    found = malformed.cases(tmp_path_factory.mktemp("valid"))
    assert tuple(found) == malformed.NAMES
    return found


# Reading a whole model takes its time: fewer of those.
COUNTS = dict.fromkeys(malformed.NAMES, 38) | {
    "clip config": 12, "preprocessor": 6, "roberta config": 12
}  # fmt: skip


@pytest.mark.parametrize("name", malformed.NAMES)
def test_a_damaged_file_is_read_or_refused(name, cases, tmp_path):
    case, folder = cases[name], tmp_path / "it"

    @examples(COUNTS[name])
    @given(st.randoms(use_true_random=False))
    def check(rng):
        shutil.rmtree(folder, ignore_errors=True)
        content = damaged(case.files[case.damage], case.form, rng)
        malformed.write(folder, {**case.files, case.damage: content})
        with soon_and_small(), contextlib.suppress(BadInput):
            case.read(folder)

    check()


WORDS = (
    "", "-", "--", "---", "-1", "0", "1e999", "nan", "x" * 3000, "é", "no/such/place.pt", ".", "..",
    "/dev/null", "ties", "symerge", "all", "float32", "4GB", "--help", "--no", "--version", "[]",
    "--methods", "--tasks", "--seeds", "--output", "--pretrained", "--experts", "--limit", "--head",
    "--scale", "--density", "--max-memory", "--to", "--task", "--data", "--dtype", "--quick",
    "--dry-run", "--iterations", "--resume", "--overwrite", "--json", "--devices", "--scale=",
    "--SCALE=1", "--task_count=8", "--learning-rate", "--kind", "{1: 2}", "'", "None", "True",
)  # fmt: skip
COMMANDS = (*cli.COMMANDS, "", "merg", "--debug", "no-such-command")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, without the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_commands_end_in_one_line(elsewhere, capsys):
    @examples(30)
    @given(st.sampled_from(COMMANDS), st.lists(st.sampled_from(WORDS), max_size=6))
    def check(command, words):
        capsys.readouterr()
        words = [command, *words]
        with soon_and_small():
            code = cli.main(words)
        error = capsys.readouterr().err
        assert code in (0, 1, 2), words
        assert error.count("\n") == (code != 0) or "--debug" in words, (words, error)
        assert "unexpected" not in error, (words, error)

    check()


def code_of(settings_class, words):
    """0 where the words are parsed, or ask for help; else what the parser wants to end with."""
    try:
        parse(settings_class, words, prog="it")
    except SystemExit as stop:
        return stop.code
    return 0


def test_options_of_experiments_are_parsed_or_refused(capsys):
    @examples(30)
    @given(st.sampled_from([vision, finetune]), st.lists(st.sampled_from(WORDS), max_size=6))
    def check(module, words):
        with soon_and_small(), contextlib.suppress(BadInput):
            assert not code_of(module.Settings, words)

    check()
