"""`symerge adapt`: what it refuses, and that nothing half-written is left."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
from commands import contents, refused, symerge
from tiny_experts import LAYOUTS, write_tasks, zero_shot

from symerge_jax import adapt_files
from symerge_jax.cli.progress import Bars

pytestmark = pytest.mark.usefixtures("separate")

WEIGHTS = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}


@pytest.fixture
def refusal(capsys, tmp_path, tiny):
    def of(*words, alone=False, **options):
        file = write_tasks(tmp_path / "tasks.toml", tiny, **options)
        words = ("adapt", file, "--output", tmp_path / "out", *words)
        return refused(capsys, *words, among=tmp_path, alone=alone)

    return of


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "symrge"), "method must be one of symerge, symerge_coefficients"),
        (("--iterations", 0), "iterations must be at least 1, got 0"),
        (("--batch-size", -1), "batch_size must be at least 1, got -1"),
        (("--seed", -1), "seed must be from 0 to 4294967295, got -1"),
        (("--learning-rate", "nan"), "learning_rate must be a number above 0, got nan"),
        (("--learning-rate", 0), "learning_rate must be a number above 0, got 0.0"),
        (("--initial-coefficient", "inf"), "initial_coefficient must be a finite number"),
        (("--limit", 0), "--limit must be at least 1, got 0"),
        (("--limit", -3), "--limit must be at least 1, got -3"),
        (("--iterations", "many"), "many"),
        (("--itertions", 3), "unknown option --itertions (did you mean --iterations?)"),
    ],
)
def test_a_bad_option(refusal, words, says):
    assert says in refusal(*words, alone=True)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("method = 'fisher'", "method must be one of"),
        ("layer = 'last'", "[adapt] layer must be \"classifier\", got 'last'"),
        ("iterations = 0", "iterations must be at least 1, got 0; change it in [adapt]"),
        ("iteration = 5", "unknown key 'iteration' in [adapt] (did you mean iterations?)"),
        ("batch_norm = 'merge_stats'", "batch_norm has no part in"),
    ],
)
def test_a_bad_setting_in_the_file(refusal, lines, says):
    assert says in refusal(adapt=lines, alone=True)


def test_a_missing_tasks_file(capsys, tmp_path):
    words = ("adapt", tmp_path / "tasks.toml", "--output", tmp_path / "out")
    assert "tasks.toml: cannot be read" in refused(capsys, *words, among=tmp_path)


def test_an_output_that_is_there(capsys, tmp_path, tiny):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    words = ("adapt", file, "--output", tmp_path / "out")
    assert "is there already" in refused(capsys, *words, among=tmp_path)
    says = refused(capsys, *words, "--overwrite", among=tmp_path)
    assert "--overwrite replaces only models with a merge_card.json" in says


def test_an_output_beneath_a_file(capsys, tmp_path, tiny):
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    words = ("adapt", file, "--output", file / "out")
    assert f"because {file} is a file" in refused(capsys, *words, among=tmp_path)


def test_missing_pieces_are_named(refusal, tmp_path, tiny):
    gone = tmp_path / "gone"
    assert f"{gone}: there is no such file or folder" in refusal(pretrained=gone)
    for key, says in (
        ("expert", "there is no such file or folder"),
        ("head", "there is no such file; expected a classification head"),
        ("inputs", "does not exist"),
    ):
        assert f"{gone}: {says}" in refusal(change={"sky": {key: f"'{gone}'"}})


def test_a_head_for_other_features(refusal, tmp_path):
    path = tmp_path / "wide.safetensors"
    head = {"weight": np.ones((3, 48), np.float32), "bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(head, path)
    says = refusal(change={"fruit": {"head": f"'{path}'"}})
    assert f"{path}: the head takes features of width 48, but" in says
    assert "gives 24" in says


@pytest.mark.parametrize("inputs", ["packs", "images"])
def test_a_head_for_fewer_classes(refusal, tiny, inputs):
    says = refusal(inputs=inputs, change={"fruit": {"head": f"'{tiny.head('sky')}'"}})
    found = "labels up to 2" if inputs == "packs" else "3 classes"
    assert f"has {found}, but {tiny.head('sky')} has 2" in says


def test_an_expert_in_place_of_a_head(refusal, tiny):
    path = tiny.experts["open_clip"]["sky"] / WEIGHTS["open_clip"]
    says = refusal(change={"sky": {"head": f"'{path}'"}})
    assert f"{path}: expected a head with the tensors weight and bias" in says


def test_an_image_task_without_a_head(refusal, tmp_path):
    says = refusal(change={"fruit": {"head": None}})
    assert (
        f"{tmp_path / 'tasks.toml'}: [[task]] fruit needs either head, a file, or classes" in says
    )


def test_class_names_without_a_text_tower(refusal, tiny):
    says = refusal(change={"fruit": zero_shot("fruit")})
    assert f"task fruit: {tiny.base['open_clip']}: has no text tower, which a head from" in says
    assert "give a whole CLIP model as the pre-trained one, or the head as a file" in says


def test_class_names_without_a_vocabulary(refusal, tmp_path, tiny):
    shutil.copytree(tiny.full["open_clip"], tmp_path / "full")
    (tmp_path / "full" / "merges.txt").unlink()
    says = refusal(pretrained=tmp_path / "full", change={"fruit": zero_shot("fruit")})
    assert f"{tmp_path / 'full' / 'merges.txt'}: cannot be read as a CLIP vocabulary" in says


def test_a_template_without_a_place_for_the_name(refusal, tiny):
    change = {"fruit": zero_shot("fruit") | {"templates": "['a photo']"}}
    says = refusal(pretrained=tiny.full["open_clip"], change=change)
    assert "template 'a photo': expected {} where the class name goes" in says


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_expert_that_is_the_pretrained_model(refusal, tiny, layout):
    change = {"sky": {"expert": f"'{tiny.base[layout]}'"}}
    says = refusal(layout=layout, change=change)
    assert f"{tiny.base[layout]}: its image tower equals the pre-trained one" in says


def test_an_expert_with_a_number_that_is_none(refusal, tmp_path, tiny):
    shutil.copytree(tiny.experts["open_clip"]["sky"], tmp_path / "broken")
    path = tmp_path / "broken" / WEIGHTS["open_clip"]
    tensors = safetensors.numpy.load_file(path)
    tensors["visual.transformer.resblocks.1.mlp.c_fc.bias"][3] = np.nan
    safetensors.numpy.save_file(tensors, path)
    says = refusal(change={"sky": {"expert": f"'{tmp_path / 'broken'}'"}})
    assert f"{tmp_path / 'broken'}: gives logits that are not finite on sky's images" in says
    assert "tensor visual.transformer.resblocks.1.mlp.c_fc.bias holds NaN or infinity" in says


def test_an_expert_in_another_layout(refusal, tiny):
    other = tiny.experts["hugging_face"]["sky"]
    says = refusal(change={"sky": {"expert": f"'{other}'"}}, alone=True)
    assert f"{other} has the hugging_face layout" in says
    assert "symerge convert" in says


def test_an_expert_of_another_size(refusal, tmp_path, tiny):
    shutil.copytree(tiny.experts["open_clip"]["sky"], tmp_path / "wide")
    path = tmp_path / "wide" / WEIGHTS["open_clip"]
    tensors = safetensors.numpy.load_file(path)
    tensors["visual.proj"] = np.ones((32, 30), np.float32)
    safetensors.numpy.save_file(tensors, path)
    says = refusal(change={"sky": {"expert": f"'{tmp_path / 'wide'}'"}}, alone=True)
    assert "tensor visual.proj has shape (32, 30)" in says


@pytest.mark.parametrize("when", ["adapting", "writing"])
def test_an_interrupted_run_leaves_nothing(capsys, monkeypatch, tmp_path, tiny, when):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    if when == "adapting":
        monkeypatch.setattr(Bars, "follow", lambda self, *args: interrupt)
    else:
        monkeypatch.setattr(adapt_files, "write_reference", interrupt)
    file = write_tasks(tmp_path / "tasks.toml", tiny)
    before = contents(tmp_path)
    assert symerge("adapt", file, "--output", tmp_path / "out") == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "symerge: interrupted"
    assert captured.out == ""
    assert contents(tmp_path) == before
