"""The command `python -m experiments.prepare`: what it fetches, pins, checks and says."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from experiments import prepare
from experiments.fetch import read_sources
from experiments.prepare_needs import checkpoint_needs, data_need
from experiments.tasks.clip_sets import SETS
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
BASE, EXPERT = "openai/clip-vit-base-patch32", "tanganke/clip-vit-base-patch32_"


class Hub:
    """Stands in for the hub: repositories with files, and a note of each call."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.calls = []

    def repo_info(self, repository, *, repo_type, revision):
        self.calls.append(("info", repository, repo_type, revision))
        if repository not in self.repositories:
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no network\n for {repository}")
        names = [SimpleNamespace(rfilename=name) for name in self.repositories[repository]]
        commit = revision if revision and len(revision) == 40 else "c" * 40
        return SimpleNamespace(sha=commit, siblings=names)

    def snapshot_download(self, repository, *, repo_type, revision, local_dir, allow_patterns):
        self.calls.append(("fetch", repository, repo_type, revision, tuple(allow_patterns)))
        for name in allow_patterns:
            path = Path(local_dir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.repositories[repository][name])
        return str(local_dir)

    def fetched(self):
        return [call[1:] for call in self.calls if call[0] == "fetch"]


@pytest.fixture
def hub(monkeypatch):
    weights = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"# Model"}
    text = {"vocab.json": b"{}", "merges.txt": b"", "pytorch_model.bin": b"pickled"}
    fake = Hub(
        {
            BASE: {"config.json": b"{}", **text, "flax_model.msgpack": b"large"},
            **{EXPERT + name: dict(weights) for name in ("eurosat", "rendered-sst2")},
        }
    )
    monkeypatch.setattr(huggingface_hub, "repo_info", fake.repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def command(capsys):
    def command(*words):
        """Exit code, lines of stdout and all of stderr."""
        code = run(prepare.main, prepare.Settings, ["vision", *map(str, words)], prog="prepare")
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return command


def parquet(labels):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [b"x"] * len(labels), "label": labels}), sink)
    return sink.getvalue().to_pybytes()


def whole_set(hub, *, test=1_821):
    """Puts RenderedSST2 on the hub as its converter would."""
    hub.repositories["nateraw/rendered-sst2"] = {
        "default/train/0000.parquet": parquet([0, 1] * 3_460),
        "default/test/0000.parquet": parquet([i % 2 for i in range(test)]),
        "default/validation/0000.parquet": parquet([0, 1]),
    }


# --- checkpoints --------------------------------------------------------------------------------


def test_checkpoints_are_fetched_pinned_and_entered_with_their_hash(hub, command, tmp_path):
    code, out, err = command("--checkpoints", tmp_path, "--tasks", "eurosat")
    assert code == 0, err
    assert out == [f"everything is there: --checkpoints {tmp_path}"]
    commit = "c" * 40
    assert hub.fetched() == [
        (BASE, "model", commit, ("config.json", "pytorch_model.bin")),
        (BASE, "model", commit, ("vocab.json", "merges.txt")),
        (EXPERT + "eurosat", "model", commit, ("config.json", "model.safetensors")),
    ]
    assert (tmp_path / "clip-vit-base-patch32_eurosat" / "model.safetensors").is_file()
    sources = json.loads((tmp_path / "sources.json").read_text())
    assert sources["format"] == 1
    assert set(sources["sources"]) == {BASE, EXPERT + "eurosat"}
    assert sources["sources"][EXPERT + "eurosat"] == {
        "kind": "model",
        "revision": commit,
        "files": {
            f"clip-vit-base-patch32_eurosat/{name}": {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights"))
        },
    }
    assert len(sources["sources"][BASE]["files"]) == 4


def test_what_is_there_is_not_fetched_again(hub, command, tmp_path):
    words = ("--checkpoints", tmp_path, "--tasks", "eurosat")
    command(*words)
    hub.calls.clear()
    assert command(*words)[0] == 0
    assert hub.calls == []


def test_a_repository_stays_at_its_commit_until_another_is_asked_for(hub, command, tmp_path):
    words = ("--checkpoints", tmp_path, "--tasks", "eurosat")
    first, second = "a" * 40, "b" * 40
    command(*words, "--revision", f"{EXPERT}eurosat={first}")
    (tmp_path / "clip-vit-base-patch32_eurosat" / "model.safetensors").unlink()
    command(*words)
    assert hub.fetched()[-1][2] == first
    command(*words, "--revision", f"{EXPERT}eurosat={second}")
    assert hub.fetched()[-1][2] == second
    assert read_sources(tmp_path)[EXPERT + "eurosat"]["revision"] == second
    assert read_sources(tmp_path)[BASE]["revision"] == "c" * 40


def test_files_that_a_repository_lacks_are_named_with_their_place(hub, command, tmp_path):
    del hub.repositories[EXPERT + "eurosat"]["model.safetensors"]
    code, out, err = command("--checkpoints", tmp_path, "--tasks", "eurosat", "rendered_sst2")
    assert code == 1
    assert out[0].split() == [
        "what",
        "file",
        "or",
        "folder",
        "where",
        "to",
        "get",
        "it,",
        "or",
        "what",
        "is",
        "wrong",
    ]
    assert len(out) == 2
    assert out[1].split() == [
        "eurosat",
        "expert",
        f"{tmp_path}/clip-vit-base-patch32_eurosat/model.safetensors",
        f"https://huggingface.co/{EXPERT}eurosat",
    ]
    assert f"{EXPERT}eurosat has no config.json and model.safetensors or" in err


def test_a_folder_inside_the_repository_is_found_and_named(hub, command, tmp_path):
    hub.repositories["kasurashan/checkpoints_tint"] = {
        f"checkpoints/{model}/{name}": f"{model} {name}".encode()
        for model in ("ViT-B-32", "ViT-L-14")
        for name in ("zeroshot.pt", "EuroSAT/finetuned.pt", "head_EuroSAT.pt", "head_DTD.pt")
    }
    words = ("--checkpoints", tmp_path, "--tasks", "eurosat", "--source", "tint")
    code, out, _ = command(*words)
    assert (code, out) == (0, [f"everything is there: --checkpoints {tmp_path / 'checkpoints'}"])
    assert [call[3] for call in hub.fetched()] == [
        ("checkpoints/ViT-B-32/zeroshot.pt",),
        ("checkpoints/ViT-B-32/EuroSAT/finetuned.pt",),
        ("checkpoints/ViT-B-32/head_EuroSAT.pt",),
    ]
    assert len([call for call in hub.calls if call[0] == "info"]) == 1


def test_layouts_of_each_source():
    rows = [SETS["cars"]]

    def files(source):
        return [need.alternatives for need in checkpoint_needs(source, "ViT-L-14", rows)]

    names = ("zeroshot.pt", "Cars/finetuned.pt", "head_Cars.pt")
    assert files("task_vectors") == files("tint") == [((f"ViT-L-14/{n}",),) for n in names]
    assert files("tall_masks") == [
        (("ViT-L-14/CarsVal/nonlinear_zeroshot.pt",), ("ViT-L-14/zeroshot.pt",)),
        (("ViT-L-14/CarsVal/nonlinear_finetuned.pt",),),
        (("ViT-L-14/head_CarsVal.pt",), ("ViT-L-14/head_Cars.pt",)),
    ]
    folders = [need.folder for need in checkpoint_needs("tanganke", "ViT-L-14", rows)]
    assert folders == [
        "clip-vit-large-patch14",
        "clip-vit-large-patch14",
        "clip-vit-large-patch14_stanford-cars",
    ]


def test_what_only_a_browser_gets_is_listed_and_never_asked_for(hub, command, tmp_path):
    words = ("--checkpoints", tmp_path, "--tasks", "dtd", "stl10", "--source", "task_vectors")
    code, out, err = command(*words)
    assert code == 1
    assert len(out) == 6
    assert all("Google Drive" in line for line in out[1:])
    assert f"{tmp_path}/ViT-B-32/DTD/finetuned.pt" in out[2]
    assert "first eight sets only, not stl10" in err
    assert hub.calls == []


def test_experts_that_saw_the_test_images_or_know_other_classes_are_warned_of(
    hub, command, tmp_path
):
    words = ("--checkpoints", tmp_path, "--dry-run", "--tasks", "dtd", "emnist", "--source")
    assert "dtd was trained on the test images" in command(*words, "tall_masks")[2]
    assert "emnist is one for the 26 letters" in command(*words, "tanganke")[2]
    assert "warning" not in command(*words, "tint")[2]


# --- data ---------------------------------------------------------------------------------------


def test_data_is_fetched_from_the_converted_branch_and_counted(hub, command, tmp_path):
    whole_set(hub)
    code, out, err = command("--data", tmp_path, "--tasks", "rendered_sst2")
    assert code == 0, err
    assert out == [f"everything is there: --data {tmp_path}"]
    assert "6,920 train" in err
    (call,) = hub.fetched()
    assert call == (
        "nateraw/rendered-sst2",
        "dataset",
        "c" * 40,
        ("default/train/0000.parquet", "default/test/0000.parquet"),
    )
    assert ("info", "nateraw/rendered-sst2", "dataset", "refs/convert/parquet") in hub.calls
    entry = read_sources(tmp_path)["nateraw/rendered-sst2"]
    assert "rendered_sst2/default/test/0000.parquet" in entry["files"]


def test_another_number_of_images_is_an_error_of_the_check(hub, command, tmp_path):
    whole_set(hub, test=1_820)
    command("--data", tmp_path, "--tasks", "rendered_sst2")
    hub.calls.clear()
    code, out, _ = command("--data", tmp_path, "--tasks", "rendered_sst2", "--check")
    assert code == 1
    assert len(out) == 2
    assert out[1].endswith("expected 1,821 test images, found 1,820")
    assert hub.calls == []


def test_a_subset_of_ones_own_is_listed_as_such(hub, command, tmp_path):
    (tmp_path / "rendered_sst2").mkdir()
    for split in ("train", "test"):
        np.savez(
            tmp_path / "rendered_sst2" / f"{split}.npz",
            images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2,
        )  # fmt: skip
    code, out, _ = command("--data", tmp_path, "--tasks", "rendered_sst2")
    assert code == 1
    assert [line.split("  ")[-1] for line in out[1:]] == [
        "expected 1,821 test images, found 4",
        "expected 6,920 training images, found 4",
    ]
    assert hub.calls == []


def test_data_that_is_not_on_the_hub_is_listed_with_its_other_sources(hub, command, tmp_path):
    code, out, err = command("--data", tmp_path, "--tasks", "emnist", "svhn")
    assert code == 1
    assert out[1].split()[:2] == ["emnist", f"{tmp_path}/emnist"]
    assert 'tfds.builder("emnist/digits", data_dir="DIR", file_format="array_record")' in out[1]
    assert "datasets/ufldl-stanford/svhn" in out[2]
    assert "warning: ufldl-stanford/svhn is not to be had now: no network for" in err


def test_only_the_wanted_shards_are_chosen():
    files = [
        "README.md",
        "cropped_digits/extra-00000-of-00001.parquet",
        "cropped_digits/test-00000-of-00001.parquet",
        "cropped_digits/train-00000-of-00001.parquet",
        "full_numbers/test-00000-of-00001.parquet",
        "full_numbers/train-00000-of-00001.parquet",
    ]
    assert data_need(SETS["svhn"]).choose(files) == [files[2], files[3], files[0]]
    assert data_need(SETS["svhn"]).choose(files[:3]) == []
    shards = [f"data/{name}-00000-of-00001.parquet" for name in ("train", "validation", "contrast")]
    test = "data/test-00000-of-00001.parquet"
    assert data_need(SETS["eurosat"]).choose([*shards, test]) == [*shards[:2], test]
    assert data_need(SETS["dtd"]).choose([*shards, test]) == [shards[0], test]
    assert data_need(SETS["food101"]).choose(shards) == shards[:2]


# --- checking -----------------------------------------------------------------------------------


def test_the_check_never_asks_the_hub(hub, command, tmp_path):
    code, out, _ = command("--checkpoints", tmp_path, "--data", tmp_path / "data", "--check")
    assert code == 1
    assert len(out) == 1 + 2 + 8 + 8  # heading, pre-trained model and vocabulary, experts, sets
    assert hub.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [b"weightz", b"weights and more"])
def test_a_file_that_is_not_as_it_was_fetched_fails_the_check(hub, command, tmp_path, change):
    words = ("--checkpoints", tmp_path, "--tasks", "eurosat")
    command(*words)
    assert command(*words, "--check")[0] == 0
    path = tmp_path / "clip-vit-base-patch32_eurosat" / "model.safetensors"
    path.write_bytes(change)
    code, out, _ = command(*words, "--check")
    assert code == 1
    assert out[1].startswith("changed")
    assert str(path) in out[1]


def test_a_damaged_list_of_sources_is_refused(hub, command, tmp_path):
    for text in (
        "{",
        "[]",
        '{"format": 1, "sources": {"a/b": {}}}',
        '{"format": 9, "sources": {}}',
    ):
        (tmp_path / "sources.json").write_text(text)
        code, _, err = command("--checkpoints", tmp_path, "--check")
        assert code == 2
        assert f"symerge: error: {tmp_path}/sources.json" in err


def test_a_dry_run_fetches_nothing(hub, command, tmp_path):
    words = ("--checkpoints", tmp_path, "--data", tmp_path / "data", "--tasks", "eurosat", "emnist")
    code, out, _ = command(*words, "--dry-run")
    assert code == 0
    assert len(out) == 2 + 2 + 2
    assert out[4].startswith("eurosat: parquet files of train and test of tanganke/eurosat to ")
    assert out[5].startswith(f"emnist: {tmp_path / 'data' / 'emnist'} from tensorflow-datasets")
    assert hub.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "nothing to prepare: give --checkpoints DIR, --data DIR or both"),
        (("--data", "x", "--model", "ViT-B-23"), "did you mean ViT-B-32"),
        (("--data", "x", "--tasks", "eurosta"), "did you mean eurosat"),
        (("--data", "x", "--revision", "abc"), "--revision abc: expected OWNER/NAME=COMMIT"),
        (("--data", __file__), "expected a folder, found a file"),
        (("--data", "x", "--dat", "y"), "unknown option --dat"),
    ],
)
def test_bad_options_are_refused_in_one_line(command, words, says):
    code, out, err = command(*words)
    assert (code, out) == (2, [])
    assert len(err.splitlines()) == 1
    assert says in err


def test_models_may_be_written_as_in_the_paper():
    settings = prepare.Settings("vision", model="ViT-B/32", data=Path("x"))
    assert prepare.check_settings(settings).model == "ViT-B-32"
    with pytest.raises(BadInput, match="unknown model 'RN50'"):
        prepare.check_settings(prepare.Settings("vision", model="RN50", data=Path("x")))


def test_without_a_network_the_table_says_what_belongs_where(tmp_path):
    words = ["vision", "--checkpoints", tmp_path, "--data", tmp_path, "--tasks", "eurosat"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.prepare", *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "pre-trained",
        "vocabulary",
        "eurosat expert",
        "eurosat",
    ]
    assert "offline mode is enabled" in done.stderr
    assert "Traceback" not in done.stderr
