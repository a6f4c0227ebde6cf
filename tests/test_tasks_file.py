"""tasks.toml: every key, and what is wrong with a file that cannot be used."""

from pathlib import Path

import pytest

from symerge_jax.data.tasks_file import ADAPT_KEYS, TaskEntry, read_tasks_file
from symerge_jax.errors import BadInput

WHOLE = """
[model]
pretrained = "base"

[adapt]
method = "symerge"
layer = "classifier"
iterations = 20
batch_size = 8
learning_rate = 0.02
initial_coefficient = 1
seed = 3
batch_norm = "merge_stats"

[[task]]
name = "eurosat"
expert = "experts/eurosat"
head = "heads/eurosat.safetensors"
inputs = "images/eurosat/test"

[[task]]
name = "pets"
expert = "/elsewhere/pets.pt"
classes = ["cat", "dog"]
templates = ["a photo of a {}.", "my {}"]
inputs = "/elsewhere/pets.npz"
"""


@pytest.fixture
def file(tmp_path):
    """Writes a tasks.toml from text and returns its path."""
    (tmp_path / "base").mkdir()
    (tmp_path / "experts" / "eurosat").mkdir(parents=True)

    def write(text=WHOLE, *replaced):
        for old, new in replaced:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "tasks.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path):
    with pytest.raises(BadInput) as error:
        read_tasks_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    return message


def test_every_key_is_read(file, tmp_path):
    found = read_tasks_file(file())
    assert found.path == tmp_path / "tasks.toml"
    assert found.pretrained == str(tmp_path / "base")
    assert found.adapt == {
        "method": "symerge",
        "layer": "classifier",
        "iterations": 20,
        "batch_size": 8,
        "learning_rate": 0.02,
        "initial_coefficient": 1,
        "seed": 3,
        "batch_norm": "merge_stats",
    }
    assert set(found.adapt) == set(ADAPT_KEYS)
    assert found.tasks == (
        TaskEntry(
            "eurosat",
            str(tmp_path / "experts" / "eurosat"),
            tmp_path / "images" / "eurosat" / "test",
            tmp_path / "heads" / "eurosat.safetensors",
            None,
            None,
        ),
        TaskEntry(
            "pets",
            "/elsewhere/pets.pt",
            Path("/elsewhere/pets.npz"),
            None,
            ("cat", "dog"),
            ("a photo of a {}.", "my {}"),
        ),
    )


def test_adapt_may_be_absent(file):
    text = WHOLE[: WHOLE.index("[adapt]")] + WHOLE[WHOLE.index("[[task]]") :]
    assert read_tasks_file(file(text)).adapt == {}


def test_a_vocabulary_lies_relative_to_the_file(file, tmp_path):
    assert read_tasks_file(file()).vocabulary is None
    changed = file(WHOLE, ('pretrained = "base"', 'pretrained = "base"\nvocabulary = "words"'))
    assert read_tasks_file(changed).vocabulary == tmp_path / "words"


def test_a_head_may_be_left_out(file):
    """It is the expert's own classifier then, if the expert has one."""
    found = read_tasks_file(file(WHOLE, ('head = "heads/eurosat.safetensors"', ""))).tasks[0]
    assert (found.head, found.classes, found.templates) == (None, None, None)


def test_a_byte_order_mark_is_no_part_of_the_file(file):
    assert read_tasks_file(file("\ufeff" + WHOLE)) == read_tasks_file(file())


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[adapt]", "[adpat]", "unknown key 'adpat' in the file (did you mean adapt?)"),
        ("[adapt]", "[data]\n[adapt]", "unknown key 'data' in the file"),
        ("pretrained =", "pretraind =", "'pretraind' in [model] (did you mean pretrained?)"),
        ("iterations =", "iteration =", "'iteration' in [adapt] (did you mean iterations?)"),
        ("batch_size =", "batch-size =", "'batch-size' in [adapt] (did you mean batch_size?)"),
        ("seed =", "zzz =", "unknown key 'zzz' in [adapt]; known: method, layer, iterations"),
        (
            'inputs = "images/eurosat/test"',
            'input = "a"',
            "'input' in [[task]] 1 (did you mean inputs?)",
        ),
        ("templates =", "prompts =", "unknown key 'prompts' in [[task]] 2"),
    ],
)
def test_an_unknown_key_names_the_nearest(file, old, new, says):
    assert says in refusal(file(WHOLE, (old, new)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("iterations = 20", "iterations = 20.0", "[adapt] iterations must be int, got 20.0"),
        ("iterations = 20", 'iterations = "20"', "[adapt] iterations must be int, got '20'"),
        ("iterations = 20", "iterations = true", "[adapt] iterations must be int, got True"),
        ("learning_rate = 0.02", 'learning_rate = "fast"', "learning_rate must be float or int"),
        ("learning_rate = 0.02", "learning_rate = false", "learning_rate must be float or int"),
        ('method = "symerge"', "method = 1", "[adapt] method must be str, got 1"),
        ('pretrained = "base"', "pretrained = 3", "[model] needs pretrained, a text; found 3"),
        (
            'pretrained = "base"',
            'pretrained = "b"\nvocabulary = 1',
            "[model] needs vocabulary, a text",
        ),
        ('pretrained = "base"', 'pretrained = ""', "[model] needs pretrained, a text; found ''"),
        ('name = "pets"', "name = 4", "[[task]] 2 needs name, a text; found 4"),
        ('"/elsewhere/pets.pt"', "['a']", "[[task]] pets needs expert, a text; found ['a']"),
        ('"heads/eurosat.safetensors"', "1", "[[task]] eurosat needs head, a text; found 1"),
        ('["cat", "dog"]', '"cat, dog"', "pets classes must be a list of texts, got 'cat, dog'"),
        ('["cat", "dog"]', "[]", "pets classes must be a list of texts, got []"),
        ('["cat", "dog"]', '["cat", 2]', "pets classes must be a list of texts, got ['cat', 2]"),
        ('["a photo of a {}.", "my {}"]', '"a {}"', "pets templates must be a list of texts"),
        ("[model]", "model = 1\n[other]", "unknown key 'other'"),
    ],
)
def test_a_value_of_another_type(file, old, new, says):
    assert says in refusal(file(WHOLE, (old, new)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('pretrained = "base"', "", "[model] needs pretrained, a text; found nothing"),
        ('name = "pets"', "", "[[task]] 2 needs name, a text; found nothing"),
        ('expert = "experts/eurosat"', "", "[[task]] eurosat needs expert"),
        ('inputs = "images/eurosat/test"', "", "[[task]] eurosat needs inputs"),
        ('classes = ["cat", "dog"]', "", "pets lacks classes"),
        ('templates = ["a photo of a {}.", "my {}"]', "", "pets lacks templates"),
        (
            'classes = ["cat", "dog"]',
            'classes = ["cat", "dog"]\nhead = "h"',
            "pets needs either head, a file, or classes",
        ),
        (
            'head = "heads/eurosat.safetensors"',
            'head = "h"\ntemplates = ["{}"]',
            "eurosat lacks classes; a zero-shot head needs both classes and templates",
        ),
    ],
)
def test_a_key_that_is_missing_or_one_too_many(file, old, new, says):
    assert says in refusal(file(WHOLE, (old, new)))


def test_a_file_without_a_model(file):
    assert "expected a table [model]" in refusal(file(WHOLE[WHOLE.index("[adapt]") :]))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_tasks(file, count):
    parts = WHOLE.split("[[task]]")
    assert "at least two [[task]] entries" in refusal(file("[[task]]".join(parts[: count + 1])))


def test_one_table_in_place_of_a_list_of_tasks(file):
    text = WHOLE[: WHOLE.rindex("[[task]]")].replace("[[task]]", "[task]")
    assert "at least two [[task]] entries" in refusal(file(text))


def test_a_task_that_is_no_table(file):
    text = "task = [1, 2]\n" + WHOLE[: WHOLE.index("[[task]]")]
    assert "[[task]] 1 must be a table" in refusal(file(text))


def test_two_tasks_of_one_name(file):
    message = refusal(file(WHOLE, ('"pets"', '"eurosat"')))
    assert "two [[task]] entries have the same name: eurosat, eurosat" in message


@pytest.mark.parametrize("name", ["a/b", "..", ".", "pets/", "/pets"])
def test_a_name_that_is_no_file_name(file, name):
    says = f"[[task]] 2 name must be usable as a file's name, got {name!r}"
    assert says in refusal(file(WHOLE, ('"pets"', f'"{name}"')))


@pytest.mark.parametrize(
    "text", ["[model\n", "pretrained = base", '[model]\na = "', "a = 1\na = 2"]
)
def test_a_file_that_is_no_toml_says_where(file, text):
    message = refusal(file(text))
    assert "not a TOML file" in message
    assert "line" in message or "end of document" in message


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "tasks.toml").write_bytes(b'[model]\npretrained = "\xff\xfe"\n')
    assert "not a TOML file" in refusal(tmp_path / "tasks.toml")


def test_a_missing_file(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "task.toml")


def test_a_folder_in_place_of_the_file(tmp_path):
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "openai/clip-vit-base-patch32",
        "openai/clip-vit-base-patch32@main",
        "openai/clip-vit-base-patch32@refs/pr/7",
    ],
)
def test_a_name_on_the_hub_is_kept(file, name):
    assert read_tasks_file(file(WHOLE, ('"base"', f'"{name}"'))).pretrained == name


@pytest.mark.parametrize("name", ["bases", "./base", "../here/base", "a/b/c", "/somewhere/base"])
def test_what_is_no_name_on_the_hub_is_a_path_beside_the_file(file, tmp_path, name):
    found = read_tasks_file(file(WHOLE, ('"base"', f'"{name}"')))
    assert Path(found.pretrained) == tmp_path / name


def test_a_path_is_never_one_of_the_working_folder(file, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "models" / "pets").mkdir(parents=True)
    monkeypatch.chdir(here)
    found = read_tasks_file(file(WHOLE, ("/elsewhere/pets.pt", "models/pets")))
    assert Path(found.tasks[1].expert) == tmp_path / "models" / "pets"
