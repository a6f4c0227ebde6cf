"""`python -m experiments.prepare dense`, against a hub in memory."""

import huggingface_hub
import pytest
import resnet_checkpoints as nets
from clip_checkpoints import write_safetensors
from test_data_dense import drawn, save_mtan, save_parquet
from test_prepare import Hub

from experiments import prepare, prepare_dense
from symerge_jax.checkpoints.resnet_export import save_resnet
from symerge_jax.cli.errors import run

SHARDS = ("data/train-00000-of-00001.parquet", "data/val-00000-of-00001.parquet")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A trunk, and a set of two and one scenes of 6 x 8 pixels."""
    monkeypatch.setattr(prepare_dense, "SCENES", {"train": 2, "test": 1})
    monkeypatch.setattr(prepare_dense, "SIZE", (6, 8))
    monkeypatch.setattr(prepare_dense, "_SHARDS", {"train": 1, "val": 1})
    made = tmp_path / "made"
    save_resnet(made, nets.variables(), nets.SIZES)
    for name, count in zip(SHARDS, (2, 1), strict=True):
        save_parquet(made / name, drawn(count))
    weights = {name: (made / name).read_bytes() for name in ("config.json", "model.safetensors")}
    fake = Hub(
        {
            prepare_dense.BASE: {**weights, "pytorch_model.bin": b"pickled"},
            prepare_dense.DATA: {
                **{name: (made / name).read_bytes() for name in SHARDS}, "README.md": b"# NYUv2",
            },
        }
    )  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "repo_info", fake.repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def command(capsys):
    def command(*words):
        """Exit code, lines of stdout and all of stderr."""
        code = run(prepare.main, prepare.Settings, ["dense", *map(str, words)], prog="prepare")
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return command


def test_trunk_and_scenes_are_fetched_and_experts_are_to_be_trained(hub, command, tmp_path):
    root, data = tmp_path / "c", tmp_path / "d"
    words = ["--checkpoints", root, "--data", data]
    code, out, err = command(*words)
    assert code == 1, err
    assert [(call[0], call[3]) for call in hub.fetched()] == [
        (prepare_dense.BASE, ("config.json", "model.safetensors")),
        (prepare_dense.DATA, SHARDS),
    ]
    assert [line.split("  ")[0] for line in out[1:]] == [
        "segmentation expert", "depth expert", "normal expert",
    ]  # fmt: skip
    assert f"--task depth --pretrained {root / 'resnet50'} --data {data}" in out[2]
    for name in ("segmentation", "depth", "normal"):
        save_resnet(root / name, nets.variables(), nets.SIZES)
    hub.calls.clear()
    assert command(*words)[:2] == (0, [f"everything is there: --checkpoints {root} --data {data}"])
    assert not hub.calls


def test_torchvisions_own_file_and_mtans_folders_do_too(hub, command, tmp_path):
    root, data = tmp_path / "c", tmp_path / "d"
    root.mkdir()
    write_safetensors(root / "resnet50-19c8e357.pth", nets.torchvision())
    write_safetensors(root / "normal.ckpt", nets.torchvision())
    save_mtan(data / "train", drawn(2))
    save_mtan(data / "val", drawn(1))
    code, out, _ = command("--checkpoints", root, "--data", data, "--tasks", "normal")
    assert (code, len(out)) == (0, 1)
    assert not hub.calls


def test_what_is_missing_is_said_without_the_hub(hub, command, tmp_path):
    words = ["--checkpoints", tmp_path / "c", "--data", tmp_path / "d", "--tasks", "depth"]
    code, out, _ = command(*words, "--check")
    assert code == 1
    assert [line.split("  ")[0] for line in out[1:]] == [
        "pre-trained", "depth expert", "NYUv2 train", "NYUv2 test",
    ]  # fmt: skip
    assert "https://download.pytorch.org/models/resnet50-19c8e357.pth" in out[1]
    assert f"{tmp_path / 'c' / 'depth'}" in out[2]
    assert "tanganke/nyuv2" in out[3]
    code, out, _ = command(*words, "--dry-run")
    assert (code, len(out)) == (0, 3)
    assert not hub.calls


def test_other_scenes_are_said_to_be_others_and_damaged_files_to_be_damaged(hub, command, tmp_path):
    root, data = tmp_path / "c", tmp_path / "d"
    save_mtan(data / "train", drawn(3))
    save_mtan(data / "val", drawn(1, size=(4, 8)))
    for file in (data / "val" / "depth").iterdir():
        file.unlink()
    (data / "val" / "depth").rmdir()
    code, out, _ = command("--data", data)
    assert code == 1
    assert [line.split("  ")[-1] for line in out[1:]] == [
        "expected 2 scenes, found 3", "expected 6 x 8 pixels, found 4 x 8", "has no depth maps",
    ]  # fmt: skip
    assert not hub.fetched()
    root.mkdir()
    (root / "resnet50-19c8e357.pth").write_bytes(b"not whole")
    code, out, _ = command("--checkpoints", root, "--tasks", "depth", "--check")
    assert code == 1
    assert f"{root / 'resnet50-19c8e357.pth'}: " in out[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "x", "--tasks", "dept"), "did you mean depth"),
        (("--data", "x", "--model", "resnet101"), "the dense experiment has resnet50 alone"),
        ((), "nothing to prepare"),
    ],
)
def test_bad_options_are_refused(command, words, says):
    code, _, err = command(*words)
    assert code == 2
    assert says in err
