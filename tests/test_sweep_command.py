"""Sweeps of an experiment: grids as they are typed, the record, the choice without labels."""

import io

import ablation_world
import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import grids, records, sweep, sweeping
from experiments.options import Options
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.sweep import Point, Swept
from symerge_jax.adapt.symerge import merged_encoder
from symerge_jax.errors import BadInput

GRID = ("--grid", "lr=0.01,0.1", "init=0.1,0.3")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def test_a_grid_is_the_cross_product_in_the_order_it_was_typed():
    grid = grids.parsed(["init=0.1,3e-1", "lr-heads=1e-2"])
    assert grid == {"init": (0.1, 0.3), "lr_heads": (0.01,)}
    cells = grids.cells(grid, ["symerge_head", "symerge"])
    assert [cell.name for cell in cells] == [
        "symerge_head@init=0.1,lr_heads=0.01",
        "symerge_head@init=0.3,lr_heads=0.01",
        "symerge@init=0.1,lr_heads=0.01",
        "symerge@init=0.3,lr_heads=0.01",
    ]


def test_what_a_grid_leaves_out_is_the_settings_own():
    constants = ablation_world.CONSTANTS._replace(rate=0.5, coefficient_rate=0.25, initial=0.75)

    def point(method, *words):
        (cell,) = grids.cells(grids.parsed(words), [method])
        return grids.point_of(cell, constants, 3)

    assert point("symerge", "init=0.1") == Point(0.5, 0.5, 0.1, 3)
    assert point("symerge", "lr=0.1") == Point(0.1, 0.1, 0.75, 3)
    assert point("symerge", "lr_heads=0.1") == Point(0.5, 0.1, 0.75, 3)
    assert point("symerge", "lr_coefficients=0.1") == Point(0.1, 0.5, 0.75, 3)
    assert point("symerge_coefficients", "init=0.1") == Point(0.25, 0.0, 0.1, 3)
    assert point("symerge_coefficients", "lr=0.1") == Point(0.1, 0.0, 0.75, 3)
    assert point("symerge_head", "lr=0.1") == Point(0.0, 0.1, 0.75, 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--grid lr", "--grid lr: expected KEY=VALUE,VALUE…"),
        ("--grid lr=", "--grid lr=: expected KEY=VALUE,VALUE…"),
        ("--grid rl=0.1", "unknown key 'rl' (did you mean lr?)"),
        ("--grid lr=0.1 lr=0.2", "--grid names lr twice"),
        ("--grid lr=0.1,1e-1", "0.1 is there twice"),
        ("--grid lr=0.1,", "--grid lr: expected numbers between commas, got ''"),
        ("--grid lr=fast", "--grid lr: expected numbers between commas, got 'fast'"),
        ("--grid lr=0", "--grid lr: expected numbers above 0, got 0"),
        ("--grid lr_heads=nan", "--grid lr_heads: expected numbers above 0, got nan"),
        ("--grid init=1.5", "--grid init: expected numbers from 0 to 1, got 1.5"),
        ("--grid lr=0.1 lr_heads=0.1", "lr sets the rates of both, so that lr_heads"),
        ("--grid lr_heads=0.1 --methods symerge-coefficients", "trains no heads"),
        ("--grid lr_coefficients=0.1 --methods symerge_head symerge", "trains no coefficients"),
        ("--methods ties", "unknown method 'ties'"),
        ("--parallel data", "a sweep gives devices runs of their own"),
    ],
)
def test_bad_grids_are_one_line_and_code_2(words, says, monkeypatch, capsys, out):
    ablation_world.refused(monkeypatch, capsys, sweep, out, *words.split(), says=says)


def test_too_many_points_are_refused():
    values = ",".join(f"{i / 200:g}" for i in range(1, 102))
    with pytest.raises(BadInput, match="10201 points are more than 10000"):
        grids.cells(grids.parsed([f"lr={values}", f"init={values}"]), ["symerge"])


def test_a_dry_run_says_how_many_points_and_writes_nothing(capsys, out):
    jax.devices()  # tests share the process's devices
    words = ["--dry-run", *GRID, "--out", str(out)]
    assert sweep.run(sweep.main, sweep.Settings, words, prog="trial") == 0
    printed = capsys.readouterr().out
    assert "grid: lr 0.01, 0.1; init 0.1, 0.3: 4 points per seed" in printed
    assert not out.exists()


def test_a_run_leaves_record_table_and_picture(monkeypatch, capsys, out):
    compiled = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        words = (*GRID, "--seeds", "0", "1", "--methods", "symerge", "symerge_head")
        record, folder = ablation_world.recorded(monkeypatch, capsys, sweep, out, *words)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # One program where the encoder is merged and one where only heads train, whatever the seed.
    assert compiled.count("jit(_fun)") == 2

    names = [
        f"{method}@lr={lr},init={init}"
        for method in ("symerge_head", "symerge")
        for lr in ("0.01", "0.1")
        for init in ("0.1", "0.3")
    ]
    assert records.methods(record) == ["individual", *names]
    assert (folder / "sweep.png").is_file()
    assert (folder / "table.csv").read_text().count("symerge") == 8
    data = record["data"]
    assert data["grid"] == {"lr": [0.01, 0.1], "init": [0.1, 0.3]}
    assert data["points"]["symerge@lr=0.1,init=0.3"] == {
        "method": "symerge", "lr": 0.1, "init": 0.3,
    }  # fmt: skip
    assert list(data["chosen"]) == ["symerge_head", "symerge"]
    for method, name in data["chosen"].items():
        means = {n: np.mean(data["agreement"][n]) for n in names if n.startswith(f"{method}@")}
        assert means[name] == pytest.approx(max(means.values()))
    assert all(data["diverged"][name] == [] for name in names)

    printed = io.StringIO()
    sweep.show(record, Console(file=printed, width=90))
    assert printed.getvalue().count("chosen\n") + printed.getvalue().count("chosen ") >= 2


def test_a_resumed_run_takes_its_points_from_the_cache(monkeypatch, capsys, out):
    record, _ = ablation_world.recorded(monkeypatch, capsys, sweep, out, "--grid", "lr=0.01,0.1")

    def never(*_, **__):
        raise AssertionError("adapted again")

    monkeypatch.setattr(sweeping, "sweep", never)
    words = ("--grid", "lr=0.01,0.1", "--resume")
    again, _ = ablation_world.recorded(monkeypatch, capsys, sweep, out, *words)
    assert again["results"] == record["results"]
    assert again["data"] == record["data"]


def test_points_that_diverge_are_not_scored_and_not_chosen(monkeypatch, capsys, out):
    words = ("--grid", "lr=0.01,3e38", "--methods", "symerge_head")
    record, folder = ablation_world.recorded(monkeypatch, capsys, sweep, out, *words)
    good, bad = "symerge_head@lr=0.01", "symerge_head@lr=3e+38"
    assert record["data"]["chosen"] == {"symerge_head": good}
    assert record["summary"][bad]["mean"] is None
    assert set(ablation_world.values(record, bad)) == {None}
    ((stop,),) = [record["data"]["diverged"][bad]]
    assert stop["task"] in ablation_world.TASKS
    assert record["notes"] == [f"{bad}, seed 0: diverged at step {stop['step']}, {stop['task']}"]
    printed = io.StringIO()
    sweep.show(record, Console(file=printed, width=90))
    assert "1 of 1" in printed.getvalue()
    assert (folder / "sweep.png").is_file()


def test_the_choice_reads_no_label(monkeypatch, tmp_path):
    scene = ablation_world.scene_of(Options(out=tmp_path))
    told = sweeping.held_out(scene, scene.seeds[0])
    wrong = [
        task._replace(validation=task.validation._replace(labels=task.validation.labels * 0 - 1))
        for task in scene.tasks
    ]
    again = sweeping.held_out(scene._replace(tasks=wrong), scene.seeds[0])
    for one, other, task in zip(told, again, scene.tasks, strict=True):
        np.testing.assert_array_equal(one.label, other.label)
        assert len(one.label) == len(task.validation.inputs)


def test_agreement_and_loss_by_hand(tmp_path):
    scene = ablation_world.scene_of(Options(out=tmp_path))
    seed, experts = scene.seeds[0], scene.seeds[0].experts
    (cell,) = grids.cells(grids.parsed(["lr=0.01"]), ["symerge"])
    lam = per_leaf(experts.task_vectors, 0.4)
    one = Swept(Point(), lam, experts.stacked, np.array([9, 9, 1, 2, 6], "f4"))
    said = sweeping.held_out(scene, seed)
    looked = sweeping.look(scene, seed, said, cell, one)
    theta = merged_encoder(scene.model.pretrained, experts.task_vectors, one.coefficients)
    agreement, loss = [], []
    for k, task in enumerate(scene.tasks):
        features = ablation_world.encode(theta, task.validation.inputs)
        head = jax.tree.map(lambda x, k=k: x[k], one.heads)
        logits = np.asarray(scene.model.classify(head, features))[:, : ablation_world.CLASSES[k]]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        agreement.append(100 * np.mean(logits.argmax(axis=1) == said[k].label))
        loss.append(-np.mean(np.log(p[np.arange(len(p)), said[k].label])))
    assert looked.agreement == pytest.approx(np.mean(agreement))
    assert looked.held_out_loss == pytest.approx(np.mean(loss), rel=1e-4)
    assert looked.final_loss == 3


def test_losses_of_a_chunk_are_averaged_over_runs_that_go_on():
    nan = np.nan
    losses = np.array([[1.0, 2.0, 3.0], [3.0, nan, nan], [nan, 4.0, nan]])
    np.testing.assert_array_equal(sweeping.over_runs(losses), [2.0, 3.0, 3.0])
    np.testing.assert_array_equal(sweeping.over_runs(losses[1:, 2:]), [nan])
