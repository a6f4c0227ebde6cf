"""`python -m experiments.prepare language`, against a hub in memory."""

import huggingface_hub
import pytest
from test_prepare import Hub
from text_tasks import write

from experiments import prepare, prepare_language
from symerge_jax.cli.errors import run

FOLDER = "rte/roberta-base_lr1e-05/"


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    columns = {"sentence1": ["a"] * rows, "sentence2": ["b"] * rows, "label": [0, 1] * (rows // 2)}
    columns["label"] += [0] * (rows % 2)
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def hub(monkeypatch):
    base = {"config.json": b"{}", "model.safetensors": b"weights", "vocab.json": b"{}"}
    expert = {"config.json": b"{}", "pytorch_model.bin": b"pickled", "tokenizer.json": b"{}"}
    fake = Hub(
        {
            prepare_language.BASE: {**base, "merges.txt": b"", "rust_model.ot": b"large"},
            prepare_language.EXPERTS: {FOLDER + name: data for name, data in expert.items()},
            prepare_language.DATA: {
                "rte/train-00000-of-00001.parquet": parquet(20),
                "rte/validation-00000-of-00001.parquet": parquet(277),
                "rte/test-00000-of-00001.parquet": parquet(2),
            },
        }
    )
    monkeypatch.setattr(huggingface_hub, "repo_info", fake.repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def command(capsys):
    def command(*words):
        """Exit code, lines of stdout and all of stderr."""
        code = run(prepare.main, prepare.Settings, ["language", *map(str, words)], prog="prepare")
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return command


def test_models_and_texts_are_fetched_once_and_found_again(hub, command, tmp_path):
    words = ["--checkpoints", tmp_path / "c", "--data", tmp_path / "d", "--tasks", "rte"]
    code, out, err = command(*words)
    assert code == 0, err
    assert out == [f"everything is there: --checkpoints {tmp_path / 'c'} --data {tmp_path / 'd'}"]
    assert [(call[0], call[3]) for call in hub.fetched()] == [
        (prepare_language.BASE, ("config.json", "model.safetensors")),
        (prepare_language.BASE, ("vocab.json", "merges.txt")),
        (prepare_language.EXPERTS, (FOLDER + "config.json", FOLDER + "pytorch_model.bin")),
        (
            prepare_language.DATA,
            ("rte/train-00000-of-00001.parquet", "rte/validation-00000-of-00001.parquet"),
        ),
    ]
    hub.calls.clear()
    assert command(*words)[0] == 0
    assert not hub.fetched()


def test_what_is_missing_is_said_with_its_place(hub, command, tmp_path):
    code, out, _ = command("--checkpoints", tmp_path, "--tasks", "mrpc", "--check")
    assert code == 1
    assert not hub.calls
    assert f"{tmp_path}/mrpc/roberta-base_lr5e-05/model.safetensors" in " ".join(out)
    assert len(out) == 4  # heading, pre-trained model, vocabulary, expert


def test_another_number_of_texts_is_said(hub, command, tmp_path):
    hub.repositories[prepare_language.DATA]["rte/validation-00000-of-00001.parquet"] = parquet(5)
    code, out, _ = command("--data", tmp_path, "--tasks", "rte")
    assert code == 1
    assert "expected 277 dev texts, found 5" in out[-1]


def test_files_of_ones_own_are_never_fetched_over(hub, command, tmp_path):
    rows = [f"a\tb\t{('entailment', 'not_entailment')[i % 2]}" for i in range(4)]
    write(tmp_path / "RTE" / "dev.tsv", "sentence1\tsentence2\tlabel", *rows)
    code, out, _ = command("--data", tmp_path, "--tasks", "rte")
    assert code == 1
    assert "has no file train" in out[-1]
    write(tmp_path / "RTE" / "train.tsv", "sentence1\tsentence2\tlabel", *rows)
    code, out, _ = command("--data", tmp_path, "--tasks", "rte")
    assert code == 1
    assert "expected 277 dev texts, found 4" in out[-1]
    assert not hub.fetched()


def test_a_fetch_that_broke_off_goes_on(hub, command, tmp_path):
    (tmp_path / "rte").mkdir()
    name = "rte/validation-00000-of-00001.parquet"
    (tmp_path / name).write_bytes(hub.repositories[prepare_language.DATA][name])
    assert command("--data", tmp_path, "--tasks", "rte")[0] == 0
    assert len(hub.fetched()) == 1


def test_what_the_experiment_would_not_find_is_said(hub, command, tmp_path):
    words = ["--tasks", "rte", "--checkpoints"]
    assert command(*words, tmp_path / "c" / "deep")[0] == 0
    hub.calls.clear()
    code, out, _ = command(*words, tmp_path / "c")
    assert code == 1
    assert "expected the pre-trained model in roberta-base/" in out[-1]
    assert not hub.fetched()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "x", "--tasks", "rtf"), "did you mean rte"),
        (("--data", "x", "--model", "ViT-B-32"), "only roberta-base has public experts"),
        ((), "nothing to prepare"),
    ],
)
def test_bad_options_are_refused(command, words, says):
    code, _, err = command(*words)
    assert code == 2
    assert says in err
