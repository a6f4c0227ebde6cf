"""Scripts that reproduce one figure: they refuse options that would have no effect."""

import jax
import pytest

from experiments import curves, discrepancy, initialisation, proxy_loss, sparsity, tsne
from symerge_jax.cli.errors import run

SCRIPTS = [curves, discrepancy, initialisation, proxy_loss, sparsity, tsne]


def command(module, *words):
    jax.devices()  # tests share the process's devices
    return run(module.main, module.Settings, [str(word) for word in words], prog="script")


@pytest.mark.parametrize("module", [m for m in SCRIPTS if m is not discrepancy])
def test_a_method_is_refused_where_runs_are_fixed(module, capsys, tmp_path):
    assert command(module, "--methods", "ties", "--out", tmp_path / "runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("symerge: error: --methods ties: this experiment has runs of its own (")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", SCRIPTS)
def test_a_dry_run_says_what_it_would_do_and_writes_nothing(module, capsys, tmp_path):
    words = ("--dry-run", "--tasks", "signs", "runes", "--out", tmp_path / "runs")
    assert command(module, *words) == 0
    said = capsys.readouterr().out
    assert "tasks: signs, runes" in said
    assert "individual" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        (curves, "--rates 0", "--rates must be numbers above 0, got [0.0]"),
        (curves, "--points 0", "--points must be at least 1, got 0"),
        (initialisation, "--coefficients 0.3 1.2", "--coefficients must be numbers from 0 to 1"),
        (initialisation, "--every 0", "--every must be at least 1, got 0"),
        (tsne, "--task sines", "unknown task 'sines' (did you mean signs?)"),
        (tsne, "--points 3", "--points must be at least 4, got 3"),
        (tsne, "--limit 2", "--limit must be at least 4 here, got 2"),
        (discrepancy, "--methods symrge", "unknown method 'symrge' (did you mean symerge?)"),
        (discrepancy, "--methods symerge_block_9", "has blocks 1 to 3"),
    ],
)
def test_a_bad_option_is_one_line_and_code_2(module, words, says, capsys, tmp_path):
    assert command(module, *words.split(), "--out", tmp_path / "runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []
