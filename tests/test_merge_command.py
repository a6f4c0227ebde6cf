"""`symerge merge`: its options, what it prints, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from commands import contents, refused, symerge
from tiny_experts import CLASSES, LAYOUTS, TASKS

from symerge_jax.checkpoints.heads import read_heads
from symerge_jax.cli.merge import parse_size, size
from symerge_jax.errors import BadInput
from symerge_jax.merge import METHODS

pytestmark = pytest.mark.usefixtures("separate")

FILES = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}


@pytest.fixture
def words(tmp_path, tiny):
    """Words of a merge of two experts, of a layout."""

    def of(method, *rest, layout="open_clip", tasks=TASKS[:2]):
        experts = [tiny.experts[layout][task] for task in tasks]
        models = ("--pretrained", tiny.base[layout], "--experts", *experts)
        return ("merge", method, *models, "--output", tmp_path / "out", *rest)

    return of


@pytest.fixture
def merge(tmp_path, words):
    """Runs a merge; returns its tensors and card."""

    def run(method, *rest, **options):
        assert symerge(*words(method, *rest, **options)) == 0
        file = tmp_path / "out" / FILES[options.get("layout", "open_clip")]
        card = json.loads((tmp_path / "out" / "merge_card.json").read_text())
        return safetensors.numpy.load_file(file), card

    return run


def tensors(folder):
    (path,) = (folder / name for name in FILES.values() if (folder / name).exists())
    return safetensors.numpy.load_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_task_arithmetic_by_hand(capsys, tmp_path, tiny, merge, layout):
    found, card = merge("task_arithmetic", "--scale", 0.5, layout=layout)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == str(tmp_path / "out")
    assert "32 tensors" in captured.err if layout == "open_clip" else "40 tensors" in captured.err
    base = tensors(tiny.base[layout])
    one, two = (tensors(tiny.experts[layout][task]) for task in TASKS[:2])
    assert set(found) == set(base)
    for name, theta in base.items():
        expected = theta + 0.5 * ((one[name] - theta) + (two[name] - theta))
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
    assert card["method"] == "task_arithmetic"
    assert card["settings"] == {"scale": 0.5}
    assert card["layout"] == layout
    assert card["tasks"] == list(TASKS[:2])


@pytest.mark.parametrize("name", ["weight-average", "weight_average", "Weight_Average"])
def test_hyphens_and_underscores_are_the_same_in_methods(merge, name):
    assert merge(name)[1]["method"] == "weight_average"


def test_the_default_scale_is_that_of_the_method(merge):
    found, card = merge("ties")
    assert card["settings"]["scale"] == METHODS["ties"].scale


def test_a_scale_below_zero_takes_tasks_away(tiny, merge):
    found, _ = merge("task_arithmetic", "--scale", "-1")
    base = tensors(tiny.base["open_clip"])
    one, two = (tensors(tiny.experts["open_clip"][task]) for task in TASKS[:2])
    np.testing.assert_allclose(
        found["visual.proj"], 3 * base["visual.proj"] - one["visual.proj"] - two["visual.proj"],
        atol=1e-6,
    )  # fmt: skip


def test_options_of_the_method_reach_it(tmp_path, merge):
    words = ("--density", 0.5, "--aggregate", "sum", "--quantile_extra_zeros", 10)
    found, card = merge("ties", *words)
    assert card["settings"] == {
        "scale": 1.0, "density": 0.5, "aggregate": "sum", "quantile_extra_zeros": 10,
    }  # fmt: skip
    shutil.rmtree(tmp_path / "out")
    other, _ = merge("ties", "--density", 0.1)
    assert not np.array_equal(found["visual.proj"], other["visual.proj"])


def test_names_of_tasks(merge):
    assert merge("ties", "--names", "a", "b")[1]["tasks"] == ["a", "b"]


def test_heads_of_the_experts_come_along(tmp_path, merge):
    merge("weight_average", tasks=TASKS)
    heads = read_heads(tmp_path / "out")
    assert {name: head.classes for name, head in heads.items()} == CLASSES


def test_overwrite_replaces_a_model(tmp_path, merge):
    merge("weight_average")
    (tmp_path / "out" / "left.txt").write_text("of before")
    _, card = merge("ties", "--overwrite")
    assert card["method"] == "ties"
    assert not (tmp_path / "out" / "left.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_limit_of_memory_that_suffices(merge):
    merge("weight_average", "--max-memory", "4GB")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 << 30),
        ("4G", 4 << 30),
        ("4 GiB", 4 << 30),
        ("500mb", 500 << 20),
        ("1.5k", 1536),
        ("2T", 2 << 40),
        ("123", 123),
        ("1e9", 10**9),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "four", "4XB", "-4GB", "4 GB!", ".", "1.2.3", "1e999", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(BadInput, match="--max-memory: expected a size such as 4GB, got"):
        parse_size(text)


def test_sizes_are_written_for_people():
    assert [size(n) for n in (12, 2048, 3 << 20, 5 << 29)] == ["12 B", "2.0 KB", "3.0 MB", "2.5 GB"]


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys, tmp_path, words):
    def of(*given, alone=False, **options):
        return refused(capsys, *words(*given, **options), among=tmp_path, alone=alone)

    return of


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("tise",), "unknown method 'tise' (did you mean ties?); `symerge methods` lists them"),
        (("task-arithmatic",), "(did you mean task_arithmetic?)"),
        (("zzz",), "unknown method 'zzz'; `symerge methods` lists them"),
        (
            ("weight_average", "--density", 0.2),
            "--density is no option of weight_average; it has none but --scale",
        ),
        (("task_arithmetic", "--aggregate", "sum"), "--aggregate is no option of task_arithmetic"),
        (("ties", "--aggregate", "median"), "median"),
        (("lot",), "--moments: lot takes statistics of each expert on unlabelled inputs"),
        (("ties", "--densty", 0.2), "unknown option --densty (did you mean --density?)"),
        (("ties", "--density", "half"), "half"),
        (("ties", "--names", "a"), "--names: expected 2 different names, one per expert, got a"),
        (("ties", "--names", "a", "a"), "expected 2 different names, one per expert, got a, a"),
        (("ties", "--max-memory", "lots"), "--max-memory: expected a size such as 4GB, got 'lots'"),
    ],
)
def test_a_bad_option(refusal, given, says):
    assert says in refusal(*given, alone=True)


@pytest.mark.parametrize("density", [0, 1.5, -0.2, "nan"])
def test_a_value_that_the_method_refuses(refusal, density):
    assert "density must lie in (0, 1]" in refusal("ties", "--density", density)


@pytest.mark.parametrize("scale", ["nan", "inf", "1e+40"])
def test_a_scale_that_is_no_number(refusal, scale):
    says = refusal("task_arithmetic", "--scale", scale, alone=True)
    assert f"--scale must be a finite number, got {scale}" in says


def test_more_memory_than_allowed(refusal):
    says = refusal("ties", "--max-memory", "10MB")
    assert "--max-memory 10.0 MB: ties of these experts needs about" in says
    assert "one tensor of all experts at a time); raise the limit" in says
    assert "about 451." in says


def test_one_expert_is_no_merge(refusal):
    says = refusal("ties", tasks=TASKS[:1], alone=True)
    assert "merging needs at least two experts, got 1" in says


def test_missing_options_are_named(capsys, tmp_path):
    says = refused(capsys, "merge", "ties", "--output", tmp_path / "out", among=tmp_path)
    assert "--pretrained" in says
    assert "--experts" in says


def test_an_expert_that_is_not_there(capsys, tmp_path, tiny):
    gone = tmp_path / "gone"
    words = ("merge", "ties", "--pretrained", tiny.base["open_clip"], "--experts")
    words += (tiny.experts["open_clip"]["sky"], gone, "--output", tmp_path / "out")
    assert f"{gone}: there is no such file or folder" in refused(capsys, *words, among=tmp_path)


def test_experts_of_two_layouts(capsys, tmp_path, tiny):
    words = ("merge", "ties", "--pretrained", tiny.base["open_clip"], "--output", tmp_path / "out")
    words += ("--experts", *(tiny.experts[layout]["sky"] for layout in LAYOUTS))
    says = refused(capsys, *words, among=tmp_path)
    assert "has the hugging_face layout" in says
    assert "symerge convert" in says


def test_an_output_that_is_there(refusal, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "is there already" in refusal("ties", alone=True)
    assert "--overwrite replaces only models" in refusal("ties", "--overwrite", alone=True)


def test_an_output_beneath_a_file(capsys, tmp_path, words):
    (tmp_path / "out").write_text("a file")
    given = [tmp_path / "out" / "x" if w == tmp_path / "out" else w for w in words("ties")]
    says = refused(capsys, *given, among=tmp_path)
    assert f"because {tmp_path / 'out'} is a file" in says


def test_two_different_heads_of_one_name(capsys, tmp_path, tiny):
    folders = []
    for task in ("fruit", "sky"):
        folder = shutil.copytree(tiny.experts["open_clip"][task], tmp_path / task)
        (folder / "heads" / f"{task}.safetensors").rename(folder / "heads" / "own.safetensors")
        folders.append(folder)
    words = ("merge", "ties", "--pretrained", tiny.base["open_clip"], "--experts", *folders)
    says = refused(capsys, *words, "--output", tmp_path / "out", among=tmp_path, alone=False)
    assert "another model has a different head of this name" in says
    assert str(tmp_path / "fruit" / "heads" / "own.safetensors") in says


def test_an_interrupted_merge_leaves_nothing(capsys, monkeypatch, tmp_path, words):
    from symerge_jax import verify

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "write_reference", interrupt)
    before = contents(tmp_path)
    assert symerge(*words("ties")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "symerge: interrupted"
    assert contents(tmp_path) == before
