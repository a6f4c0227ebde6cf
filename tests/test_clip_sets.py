"""The 20 sets of the CLIP benchmark: prompts, class names, label orders, heads."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments.tasks import clip_names
from experiments.tasks.clip_heads import build_head
from experiments.tasks.clip_labels import order, prompt_names
from experiments.tasks.clip_sets import (
    INDIVIDUAL,
    INDIVIDUAL_TANGANKE,
    ORDER8,
    ORDER14,
    ORDER20,
    SETS,
    ZERO_SHOT,
    ZERO_SHOT_TANGANKE,
    clip_set,
)
from symerge_jax.checkpoints.clip import split_qkv, to_hugging_face
from symerge_jax.checkpoints.clip_layouts import hugging_face_config
from symerge_jax.errors import BadInput
from symerge_jax.models import tokenizer
from symerge_jax.models.clip import initial_params
from symerge_jax.models.clip_config import TextConfig, VisionConfig
from symerge_jax.models.tokenizer import clip_tokenizer

DATA = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
VOCABULARY = DATA / "bpe_clip" / "bpe_simple_vocab_16e6.txt.gz"
PUBLISHED = DATA / "clip_prompts" / "datasets20.json"
needs_vocabulary = pytest.mark.skipif(
    not VOCABULARY.is_file(), reason=f"no CLIP vocabulary at {VOCABULARY}"
)
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"no prompts at {PUBLISHED}")
every_set = pytest.mark.parametrize("row", SETS.values(), ids=SETS)


def published(row):
    return json.loads(PUBLISHED.read_text("utf-8"))[row.name]


def no_warning(line):
    raise AssertionError(line)


# --- the table ----------------------------------------------------------------------------------


def test_the_first_eight_and_fourteen_are_the_benchmarks():
    assert ORDER8 == ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
    assert ORDER14[8:] == ("cifar100", "fer2013", "flowers102", "oxford_iiit_pet", "pcam", "stl10")
    assert len(ORDER20) == 20
    for names in zip(*((row.key, row.name, row.suffix) for row in SETS.values()), strict=True):
        assert len(set(names)) == 20


def test_numbers_of_templates():
    expected = [2, 8, 18, 3, 1, 3, 1, 8, 18, 6, 1, 1, 1, 2, 18, 1, 2, 1, 1, 1]
    assert [len(row.templates) for row in SETS.values()] == expected
    assert all(t.count("{}") == 1 for row in SETS.values() for t in row.templates)


def test_published_accuracies_belong_to_known_sets():
    for table in (*INDIVIDUAL.values(), INDIVIDUAL_TANGANKE):
        assert set(table) == set(ORDER20)
    assert tuple(ZERO_SHOT) == tuple(ZERO_SHOT_TANGANKE) == ORDER14
    # the mean over the first eight that the task-arithmetic literature prints for ViT-B/32
    assert np.mean([INDIVIDUAL["ViT-B-32"][key] for key in ORDER8]) == pytest.approx(90.5, abs=0.05)
    # no two implementations of the zero-shot heads are further apart than by Pets' class names
    gaps = {key: abs(ZERO_SHOT[key] - ZERO_SHOT_TANGANKE[key]) for key in ORDER14}
    assert max(gaps, key=gaps.__getitem__) == "oxford_iiit_pet"


def test_a_set_has_three_names_and_a_misspelt_one_is_guessed():
    assert clip_set("cars") is clip_set("Cars") is clip_set("stanford-cars")
    with pytest.raises(BadInput, match="unknown task 'eurosta' .did you mean eurosat"):
        clip_set("eurosta")


# --- prompts ------------------------------------------------------------------------------------


@needs_published
@every_set
def test_templates_are_the_published_ones(row):
    assert list(row.templates) == published(row)["task_templates"]


@needs_published
@pytest.mark.parametrize("key", clip_names.PROMPTS)
def test_names_for_prompts_are_the_published_ones(key):
    names = [list(n) if isinstance(n, tuple) else n for n in clip_names.PROMPTS[key]]
    theirs = published(SETS[key])["classes"]
    if key in ("eurosat", "fer2013"):  # published in another order than that of the labels
        assert names != theirs
        names, theirs = sorted(names), sorted(theirs)
    assert names == theirs


@needs_published
@every_set
def test_the_number_of_classes_is_the_published_one(row):
    assert len(published(row)["classes"]) == row.classes


@needs_published
@pytest.mark.parametrize("key", ["sun397", "resisc45", "dtd", "cifar100", "food101"])
def test_sets_that_count_as_sorted_are(key):
    assert SETS[key].sorted_labels
    assert order(SETS[key], published(SETS[key])["classes"], "x", report=no_warning) is None


def test_names_of_the_data_are_cleaned_for_prompts():
    assert prompt_names(SETS["sun397"], ["/a/airplane_cabin", "church/outdoor", "zoo"]) == (
        "airplane cabin",
        "church outdoor",
        "zoo",
    )
    assert prompt_names(SETS["cars"], ["Ram C/V Cargo Van Minivan 2012"]) == (
        "Ram C/V Cargo Van Minivan 2012",
    )
    assert prompt_names(SETS["oxford_iiit_pet"], ["great_pyrenees"]) == ("great pyrenees",)
    assert prompt_names(SETS["cifar100"], ["aquarium_fish"]) == ("aquarium_fish",)
    assert prompt_names(SETS["eurosat"], ["AnnualCrop"])[0] == "annual crop land"


def test_data_without_names_gives_no_prompts():
    for names in (None, ["0", "1"]):
        with pytest.raises(BadInput, match="does not name its 47 classes"):
            prompt_names(SETS["dtd"], names)


def test_fer2013_can_be_named_as_in_the_released_heads():
    assert clip_names.FER2013_PRINTED[3:5] == ("['happy', 'smiling']", "['sad', 'depressed']")
    assert clip_names.FER2013_PRINTED[6] == "['neutral', 'bored']"


# --- label orders -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", clip_names.LABELS)
def test_every_list_of_names_is_in_the_benchmarks_order(key):
    for names in clip_names.LABELS[key]:
        assert len(names) == SETS[key].classes
        assert order(SETS[key], names, "x", report=no_warning) is None


def test_labels_in_another_order_are_put_right():
    csv_order = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    places = order(SETS["fer2013"], csv_order, "x", report=no_warning)
    assert places == (0, 1, 2, 3, 5, 6, 4)
    assert order(SETS["rendered_sst2"], ["positive", "negative"], "x", report=no_warning) == (1, 0)
    names = [f"{i:03}" for i in range(1, 103)]  # folders numbered from 1
    assert order(SETS["flowers102"], names, "x", report=no_warning) is None
    text_order = sorted(str(i) for i in range(43))  # "0", "1", "10", …
    places = order(SETS["gtsrb"], text_order, "x", report=no_warning)
    assert places is not None
    assert places[:4] == (0, 1, 10, 11)


def test_sorted_sets_are_sorted_by_their_clean_names():
    names = [f"{chr(97 + i % 26)}_{i:03}" for i in range(397)]
    places = order(SETS["sun397"], names, "x", report=no_warning)
    assert places is not None
    assert [names[places.index(i)] for i in range(397)] == sorted(names)


def test_a_spelling_that_is_not_known_does_not_hide_the_order():
    names = list(clip_names.FASHION_MNIST)
    names[0] = "Tee"
    assert order(SETS["fashion_mnist"], names, "x", report=no_warning) is None


def test_cars_in_sorted_order_are_refused():
    names = [f"car {i:03}" for i in range(196)]
    names[0], names[5] = "Acura Integra Type R 2001", "Acura ZDX Hatchback 2012"
    with pytest.raises(BadInput, match="x: the labels of cars .* not the order of the benchmark"):
        order(SETS["cars"], names, "x", report=no_warning)


def test_names_in_another_language_are_taken_as_they_are_with_a_warning():
    lines = []
    names = ["negativ", "positiv"]
    assert order(SETS["rendered_sst2"], names, "here", report=lines.append) is None
    assert lines == [
        "here: the names of its classes (negativ, positiv, …) are not known for rendered_sst2; "
        "taking them to be in the benchmark's order"
    ]


# --- heads --------------------------------------------------------------------------------------


def write_vocabulary(folder):
    """Writes the vocabulary as Hugging Face's two files."""
    vocabulary, merges = tokenizer._read_vocabulary(VOCABULARY)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return vocabulary, merges


@needs_vocabulary
@needs_published
def test_all_prompts_have_the_token_ids_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_vocabulary(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, model_max_length=77)
    prompts = [
        template.replace("{}", name)
        for row in SETS.values()
        for entry in published(row)["classes"]
        for name in ([entry] if isinstance(entry, str) else [*entry, str(entry)])
        for template in row.templates
    ]
    assert len(prompts) > 6000
    ours = clip_tokenizer(VOCABULARY, pad_with_end=True)(prompts)
    expected = theirs(prompts, padding="max_length", truncation=True, return_tensors="np")
    np.testing.assert_array_equal(ours, expected["input_ids"])


@needs_vocabulary
def test_a_vocabulary_is_found_in_a_folder_in_each_of_its_forms(tmp_path):
    expected = clip_tokenizer(VOCABULARY)(["a photo of a forest, naïve."])
    for form in ("two", "whole", "openai"):
        (tmp_path / form).mkdir()
    vocabulary, merges = write_vocabulary(tmp_path / "two")
    for pairs in ([" ".join(pair) for pair in merges], [list(pair) for pair in merges]):
        whole = {"model": {"type": "BPE", "vocab": vocabulary, "merges": pairs}}
        (tmp_path / "whole" / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
        found = clip_tokenizer(tmp_path / "whole")(["a photo of a forest, naïve."])
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "openai" / VOCABULARY.name).write_bytes(VOCABULARY.read_bytes())
    for form in ("two", "openai"):
        found = clip_tokenizer(tmp_path / form)(["a photo of a forest, naïve."])
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "whole" / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(BadInput, match="tokenizer.json: expected a byte-pair model"):
        clip_tokenizer(tmp_path / "whole")


@pytest.fixture
def model(tmp_path):
    """A folder with a small random CLIP and the real vocabulary."""
    sizes = {"width": 64, "depth": 1, "heads": 1, "activation": "quick_gelu", "projection": 8}
    vision = VisionConfig(image_size=8, patch_size=4, **sizes)
    text = TextConfig(vocabulary=49408, length=77, **sizes)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "vision": split_qkv(initial_params(vision, keys[0])),
        "text": split_qkv(initial_params(text, keys[1])),
        "logit_scale": np.float32(np.log(100)),
    }
    write_vocabulary(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(vision, text)))
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in to_hugging_face(params).items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@needs_vocabulary
def test_rows_of_a_head_have_the_length_of_the_logit_scale(model):
    head = build_head(SETS["eurosat"], None, model)
    assert head["weight"].shape == (10, 8)
    np.testing.assert_allclose(np.linalg.norm(head["weight"], axis=1), 100, rtol=1e-4)
    np.testing.assert_array_equal(head["bias"], np.zeros(10))


@needs_vocabulary
def test_printed_lists_make_another_head_of_fer2013_and_of_nothing_else(model):
    plain, printed = (
        np.asarray(build_head(SETS["fer2013"], None, model, printed_lists=flag)["weight"])
        for flag in (False, True)
    )
    assert np.abs(plain - printed).max() > 1
    np.testing.assert_allclose(np.linalg.norm(printed, axis=1), 100, rtol=1e-4)
    for flag in (False, True):
        same = build_head(SETS["rendered_sst2"], None, model, printed_lists=flag)
        np.testing.assert_array_equal(
            same["weight"], build_head(SETS["rendered_sst2"], None, model)["weight"]
        )


@needs_vocabulary
def test_a_model_without_a_text_tower_writes_no_head(model):
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if name.startswith("vis")}
    safetensors.numpy.save_file(kept, model / "model.safetensors")
    with pytest.raises(BadInput, match="has no text tower"):
        build_head(SETS["eurosat"], None, model)
