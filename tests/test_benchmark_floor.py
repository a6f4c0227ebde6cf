"""The floor's counts are those of a calculation by hand, and near to XLA's own."""

import json

import pytest

from benchmarks import floor, floor_counts
from benchmarks.floor import Settings
from benchmarks.floor_counts import Machine, Work
from symerge_jax.cli.errors import run
from symerge_jax.models import clip

CONFIG = clip.VisionConfig(image_size=16, patch_size=8, width=32, depth=2, heads=2, projection=16)
BATCH, CLASSES = 3, 10


@pytest.fixture(autouse=True)
def small(monkeypatch):
    text = clip.PRESETS["tiny-64x3"].text
    monkeypatch.setitem(clip.PRESETS, "small", clip.ClipConfig(CONFIG, text))
    own = floor.bandwidth
    monkeypatch.setattr(floor, "bandwidth", lambda: own(1e-4))


def command(*words):
    return run(floor.main, Settings, [*map(str, words)], prog="python -m benchmarks.floor")


def test_products_by_hand():
    # Four patches and the class token make 5 tokens, 15 rows. The last block asks with 3 rows.
    forward = {
        "patches": 12 * (8 * 8 * 3) * 32,
        "in_proj": 2 * 15 * 32 * 96,
        "attention": 3 * 2 * (5 * 5 + 1 * 5) * 16 * 2,  # scores and mixing, of 16 features a head
        "out": (15 + 3) * 32 * 32,
        "mlp": (15 + 3) * 2 * 32 * 128,
        "projection": 3 * 32 * 16,
        "head": 3 * 16 * CLASSES,
    }
    # A multiplication and an addition; forward and a gradient for each operand, pixels have none.
    whole = 2 * (3 * sum(forward.values()) - forward["patches"])
    assert sum(p.flops for p in floor_counts.products(CONFIG, BATCH, CLASSES)) == whole


def test_numbers_moved_by_a_product_by_hand():
    (product,) = [p for p in floor_counts.products(CONFIG, BATCH) if p.columns == 96]
    assert product.numbers == 2 * 3 * (15 * 32 + 32 * 96 + 15 * 96)


def test_merging_by_hand():
    numbers = floor_counts.parameters(CONFIG)
    block = 2 * 2 * 32 + 32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 128 + 128 + 32
    assert numbers == 32 + 5 * 32 + 192 * 32 + 2 * block + 2 * 2 * 32 + 32 * 16
    phases = floor_counts.work(CONFIG, 7, BATCH, "bfloat16")
    # τ of 7 tasks is read, θ₀ is float32, θ is written; then τ again, with the gradient of θ.
    assert phases["merge"] == Work(2 * 7 * numbers, (7 * 2 + 4 + 2) * numbers)
    assert phases["gradient"] == Work(2 * 7 * numbers, (7 * 2 + 2) * numbers)


def test_the_floor_is_the_sum_of_phases_that_wait_for_memory_or_for_products():
    phases = {"merge": Work(10, 400), "tower": Work(1000, 100), "gradient": Work(10, 300)}
    least = floor_counts.seconds(phases, Machine(100, {"float32": 50}), "float32")
    assert least == {"floor": 27, "merge": 4, "tower": 20, "gradient": 3, "overlapped": 20.4}


def test_xla_counts_about_the_same():
    xla = floor_counts.cost(floor_counts.compiled_step(CONFIG, 7, 32))
    phases = floor_counts.work(CONFIG, 7, 32, "float32")
    assert xla["flops"] == pytest.approx(sum(phase.flops for phase in phases.values()), rel=0.2)
    assert xla["argument_bytes"] > 8 * 4 * floor_counts.parameters(CONFIG)


def test_it_prints_tables_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = ["--models", "small", "--tasks", "2", "5", "--batch-size=2", "--no-xla"]
    assert command(*words, f"--json={file}") == 0
    found = json.loads(file.read_text())
    assert list(found) == [
        "benchmark", "settings", "bandwidth", "rates", "data_sheets", "rows", "environment",
    ]  # fmt: skip
    assert [row["tasks"] for row in found["rows"]] == [2, 5]
    for row in found["rows"]:
        for dtype in ("float32", "bfloat16"):
            assert set(row[dtype]["seconds"]) == {"here", "H200"}
            assert row[dtype]["seconds"]["here"]["floor"] > 0
    printed = capsys.readouterr().out
    assert "H200, calculated from its data sheet" in printed
    assert "measured here" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--models", "smal"], "did you mean small"),
        (["--models", "small", "--tasks", "0"], "tasks must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(words, expected, capsys):
    assert command(*words) == 2
    assert expected in capsys.readouterr().err
