"""`symerge adapt`: what it writes, what it never looks at, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_experts
from commands import contents, symerge
from tiny_experts import CLASSES, LAYOUTS, TASKS, write_tasks, zero_shot

from experiments.tasks.images import probe
from experiments.tiny import base as tiny_base
from symerge_jax import adapt_files, adapt_settings
from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.clip_layouts import open_clip_config
from symerge_jax.checkpoints.heads import read_head, read_heads
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.classifier import encoder
from symerge_jax.cli.evaluate import Settings as Evaluation
from symerge_jax.cli.evaluate import score_task
from symerge_jax.data.images import read_task
from symerge_jax.data.tasks_file import read_tasks_file
from symerge_jax.evaluate import predict
from symerge_jax.finetune import Recipe, finetune
from symerge_jax.models.heads import normalised_head

pytestmark = pytest.mark.usefixtures("separate")

PACKS = Path(os.environ.get("SYMERGE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
WEIGHTS = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="session")
def adapted(tmp_path_factory, tiny):
    """Layout → the folder that an ordinary run wrote; made when asked for."""
    found = {}

    def of(layout="open_clip"):
        if layout not in found:
            folder = tmp_path_factory.mktemp(layout)
            file = write_tasks(folder / "tasks.toml", tiny, layout=layout)
            assert symerge("adapt", file, "--output", folder / "out") == 0
            found[layout] = folder / "out"
        return found[layout]

    return of


@pytest.fixture
def adapt(tmp_path, tiny):
    """Runs `symerge adapt` on a tasks.toml of `write_tasks`; returns the folder it wrote."""

    def run(*words, name="out", **options):
        file = write_tasks(tmp_path / "tasks.toml", tiny, **options)
        assert symerge("adapt", file, "--output", tmp_path / name, *words) == 0
        return tmp_path / name

    return run


def card(folder):
    return json.loads((folder / "merge_card.json").read_text())


def accuracies(folder, which="accuracy"):
    return {task: score[which] for task, score in card(folder)["scores"].items()}


def weights(folder):
    (path,) = (folder / name for name in WEIGHTS.values() if (folder / name).exists())
    return safetensors.numpy.load_file(path)


def coefficients(folder):
    with np.load(folder / "coefficients.npz", allow_pickle=False) as file:
        return dict(file)


def assert_same_result(folder, other):
    """The model, its heads and coefficients, bit by bit; the card holds the time and scores."""
    found, expected = contents(folder), contents(other)
    for files in (found, expected):
        files.pop("merge_card.json")
    assert found == expected


# --- what is written ----------------------------------------------------------------------------


@every_layout
def test_the_last_line_is_the_folder_and_it_is_complete(capsys, tmp_path, tiny, layout):
    file = write_tasks(tmp_path / "tasks.toml", tiny, layout=layout)
    assert symerge("adapt", file, "--output", tmp_path / "out") == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    config = "config.json" if layout == "hugging_face" else "open_clip_config.json"
    assert {path.name for path in out.iterdir()} == {
        WEIGHTS[layout], config, "heads", "coefficients.npz", "reference.npz", "merge_card.json",
    }  # fmt: skip
    assert sorted(path.stem for path in (out / "heads").iterdir()) == sorted(TASKS)
    assert {p.name for p in tmp_path.iterdir()} == {"tasks.toml", "out"}
    assert symerge("verify", out) == 0


@every_layout
def test_the_model_scores_what_the_card_says(capsys, tiny, adapted, layout):
    out = adapted(layout)
    capsys.readouterr()
    for kind in ("packs", "images"):
        folders = [tiny.folder / kind / task for task in TASKS]
        assert symerge("evaluate", out, "--task", *folders) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        printed = {row[0]: row[1] for row in rows}
        assert printed == {task: f"{value:.2f}" for task, value in accuracies(out).items()}
        for folder in folders:  # all digits
            found = score_task(Evaluation(out, (folder,)), folder).metrics["accuracy"]
            assert found == pytest.approx(accuracies(out)[folder.name], abs=1e-9)


def test_experts_are_better_than_chance_and_not_perfect(adapted):
    """Else the comparisons of accuracies here would say little."""
    found = accuracies(adapted(), "expert_accuracy")
    assert all(value > 100 / len(CLASSES[task]) + 20 for task, value in found.items())
    assert min(found.values()) < 100


@every_layout
def test_coefficients_are_those_of_the_model(tiny, adapted, layout):
    """θ₀ + Σ clip(λ) τ with row j of λ for tensor j is what was written."""
    out = adapted(layout)
    stored, found = coefficients(out), weights(out)
    assert list(stored["tasks"]) == list(TASKS)
    assert stored["coefficients"].shape == (len(stored["tensors"]), len(TASKS))
    assert sorted(stored["tensors"]) == sorted(found)  # every tensor of a vision tower moved
    assert stored["losses"].shape == (6 * len(TASKS),)
    base = weights(tiny.base[layout])
    experts = [weights(tiny.experts[layout][task]) for task in TASKS]
    for name, row in zip(stored["tensors"], stored["coefficients"], strict=True):
        moved = sum(
            lam * (expert[name] - base[name])
            for lam, expert in zip(row.clip(0, 1), experts, strict=True)
        )
        np.testing.assert_allclose(found[name], base[name] + moved, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("layout", "first", "last"),
    [
        (
            "open_clip",
            ["visual.class_embedding", "visual.positional_embedding", "visual.proj"],
            "visual.ln_post.bias",
        ),
        (
            "hugging_face",
            [
                "vision_model.embeddings.class_embedding",
                "vision_model.embeddings.patch_embedding.weight",
                "vision_model.embeddings.position_embedding.weight",
            ],
            "visual_projection.weight",
        ),
    ],
)
def test_coefficients_stand_in_the_order_of_the_network(adapted, layout, first, last):
    names = list(coefficients(adapted(layout))["tensors"])
    assert names[:3] == first
    assert names[-1] == last
    blocks = [name.split(".")[3] for name in names if ".resblocks." in name or ".layers." in name]
    assert blocks == sorted(blocks)


def test_the_card_says_how_and_from_what(tiny, adapted):
    found = card(adapted())
    assert found["method"] == "symerge"
    assert found["tasks"] == list(TASKS)
    assert found["settings"] == {
        "method": "symerge",
        "layer": "classifier",
        "iterations": 6,
        "batch_size": 4,
        "learning_rate": 0.01,
        "initial_coefficient": 0.3,
        "seed": 0,
    }
    paths = [entry["path"] for entry in found["inputs"]["experts"]]
    assert paths == [str(tiny.experts["open_clip"][task]) for task in TASKS]
    assert found["inputs"]["pretrained"]["path"] == str(tiny.base["open_clip"])


def test_heads_keep_their_class_names_and_move(tiny, adapted):
    for task, head in read_heads(adapted()).items():
        before = read_head(tiny.head(task))
        assert head.classes == CLASSES[task]
        assert head.head["weight"].shape == before.head["weight"].shape
        assert not np.array_equal(head.head["weight"], before.head["weight"])


def test_scores_are_those_of_the_stored_precision(monkeypatch, tmp_path, tiny, adapt):
    """A model kept in bfloat16 is scored after it was rounded."""
    change = {}
    for task in TASKS:
        rounded(tiny.experts["open_clip"][task], tmp_path / task)
        change[task] = {"expert": f"'{tmp_path / task}'"}
    rounded(tiny.base["open_clip"], tmp_path / "base")
    seen = []

    def recording(network, params, *rest):
        seen.append(params)
        return logits_on(network, params, *rest)

    logits_on = adapt_files.logits_on
    monkeypatch.setattr(adapt_files, "logits_on", recording)
    out = adapt(pretrained=tmp_path / "base", change=change)
    for leaf in jax.tree.leaves(seen[-1]):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, leaf.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert open_checkpoint(out).tensors["visual.proj"].dtype == ml_dtypes.bfloat16
    for task in TASKS:
        found = score_task(Evaluation(out, ()), tiny.folder / "packs" / task).metrics["accuracy"]
        assert found == pytest.approx(accuracies(out)[task], abs=1e-9)


def rounded(source, folder):
    folder.mkdir()
    shutil.copy(source / "open_clip_config.json", folder)
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights(source).items()}
    safetensors.numpy.save_file(tensors, folder / WEIGHTS["open_clip"])


def test_a_seed_says_it_all(adapt, adapted):
    assert_same_result(adapt(), adapted())
    other = adapt("--seed", 1, name="other")
    assert not np.array_equal(
        coefficients(other)["coefficients"], coefficients(adapted())["coefficients"]
    )


def test_overwrite_replaces_a_model(adapt):
    out = adapt("--seed", 5)
    (out / "left.txt").write_text("of before")
    assert adapt("--overwrite") == out
    assert card(out)["settings"]["seed"] == 0
    assert not (out / "left.txt").exists()


# --- inputs -------------------------------------------------------------------------------------


def relabelled(tiny, folder, *labels):
    """The packs again, with other labels, or none."""
    for task in TASKS:
        with np.load(tiny.folder / "packs" / task / "test.npz") as pack:
            arrays = dict(pack)
        arrays.pop("labels")
        (folder / task).mkdir(parents=True)
        np.savez(folder / task / "test.npz", **arrays, **{name: f(arrays) for name, f in labels})
    return {task: {"inputs": f"'{folder / task / 'test.npz'}'"} for task in TASKS}


def test_labels_never_reach_adaptation(tmp_path, tiny, adapt, adapted):
    wrong = ("labels", lambda arrays: np.zeros(len(arrays["images"]), np.int32))
    change = relabelled(tiny, tmp_path / "wrong", wrong)
    out = adapt(change=change)
    assert_same_result(out, adapted())
    assert accuracies(out) != accuracies(adapted())
    assert accuracies(out, "agreement") == accuracies(adapted(), "agreement")


def test_packs_without_labels(capsys, tmp_path, tiny, adapt, adapted):
    out = adapt(change=relabelled(tiny, tmp_path / "none"))
    assert_same_result(out, adapted())
    assert set(accuracies(out).values()) == {None}
    assert set(accuracies(out, "expert_accuracy").values()) == {None}
    assert accuracies(out, "agreement") == accuracies(adapted(), "agreement")
    assert "–" in capsys.readouterr().err


def test_a_folder_of_images_without_class_folders(adapt, adapted):
    out = adapt(inputs="unlabelled")  # the same pixels in the same order
    assert_same_result(out, adapted())
    assert set(accuracies(out).values()) == {None}


def test_class_folders_count_in_the_order_of_the_head(adapt, adapted):
    out = adapt(inputs="images")  # sorted folders are in another order than the head's classes
    assert accuracies(out, "expert_accuracy") == accuracies(adapted(), "expert_accuracy")


def test_meta_says_what_the_labels_of_a_pack_mean(tmp_path, tiny, adapt, adapted):
    order = CLASSES["fruit"][::-1]
    with np.load(tiny.folder / "packs" / "fruit" / "test.npz") as pack:
        images, labels = pack["images"], pack["labels"]
    (tmp_path / "fruit").mkdir()
    np.savez(tmp_path / "fruit" / "test.npz", images=images, labels=len(order) - 1 - labels)
    (tmp_path / "fruit" / "meta.json").write_text(json.dumps({"classes": order}))
    out = adapt(change={"fruit": {"inputs": f"'{tmp_path / 'fruit'}'"}})
    assert_same_result(out, adapted())
    assert accuracies(out) == accuracies(adapted())
    assert symerge("evaluate", out, "--task", tmp_path / "fruit") == 0
    found = score_task(Evaluation(out, ()), tmp_path / "fruit").metrics["accuracy"]
    assert found == pytest.approx(accuracies(out)["fruit"], abs=1e-9)


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch, tiny, adapted):
    shutil.copytree(tiny.folder, tmp_path / "all")
    lines = ["[model]", "pretrained = 'open_clip/base'", "[adapt]"]
    lines += ["iterations = 6", "batch_size = 4"]
    for task, inputs in zip(TASKS, ("test", "test.npz", ""), strict=True):
        lines += ["[[task]]", f"name = '{task}'", f"expert = 'open_clip/experts/{task}'"]
        lines += [f"head = 'open_clip/experts/{task}/heads/{task}.safetensors'"]
        lines += [f"inputs = 'packs/{task}/{inputs}'"]
    (tmp_path / "all" / "tasks.toml").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert symerge("adapt", "all/tasks.toml", "--output", "out") == 0
    assert_same_result(tmp_path / "out", adapted())


# --- methods and options ------------------------------------------------------------------------


# A program of its own each, which takes seconds to compile.
SLOW = ("adamerging_taskwise", "adamerging_sequential")


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in adapt_settings.METHODS],
)
def test_every_method(tiny, adapt, method):
    joint = method in adapt_settings.JOINT
    words = ("--iterations", 3, "--batch-size", 8) if joint else ()
    out = adapt("--method", method.replace("_", "-"), *words)
    assert card(out)["method"] == method
    assert card(out)["settings"]["learning_rate"] == (
        0.01 if method in ("symerge", "symerge_head") else 0.001
    )
    stored = coefficients(out)
    assert len(stored["losses"]) == 18
    lam = stored["coefficients"]
    assert lam.dtype == np.float32
    if method == "symerge_head":
        assert (lam == np.float32(0.3)).all()
    elif method == "adamerging_taskwise":
        assert (lam == lam[0]).all()
        assert len(set(lam[0])) == len(TASKS)
    else:
        assert len(np.unique(lam)) > len(TASKS)
    for task in TASKS:
        kept = np.array_equal(
            read_head(out / "heads" / f"{task}.safetensors").head["weight"],
            read_head(tiny.head(task)).head["weight"],
        )
        assert kept == (method not in ("symerge", "symerge_head"))


def test_options_win_over_the_file(adapt):
    lines = "iterations = 50\nseed = 7\nlearning_rate = 0.5\ninitial_coefficient = 0.9"
    words = ("--iterations", 6, "--seed", 8, "--learning-rate", 0.02, "--batch-size", 4)
    words += ("--initial-coefficient", 0.25, "--method", "symerge_coefficients")
    found = card(adapt(*words, adapt=lines + "\nmethod = 'symerge_head'"))
    assert found["settings"] == {
        "method": "symerge_coefficients",
        "layer": "classifier",
        "iterations": 6,
        "batch_size": 4,
        "learning_rate": 0.02,
        "initial_coefficient": 0.25,
        "seed": 8,
    }


def test_more_than_eight_tasks_start_lower(tiny, tmp_path):
    read = read_tasks_file(write_tasks(tmp_path / "tasks.toml", tiny))
    assert adapt_settings.settings_of(read).initial_coefficient == 0.3
    assert (
        adapt_settings.settings_of(read._replace(tasks=read.tasks * 3)).initial_coefficient == 0.1
    )


# --- zero-shot heads ----------------------------------------------------------------------------


def test_heads_from_class_names(tiny, adapt):
    found = {}
    for layout in LAYOUTS:
        out = adapt(
            "--method", "symerge_coefficients",
            name=layout,
            layout=layout,
            pretrained=tiny.full[layout],
            change={task: zero_shot(task) for task in TASKS},
        )  # fmt: skip
        found[layout] = read_heads(out)
        # The text tower and the vocabulary stay with the model.
        assert (out / "vocab.json").read_bytes() == (tiny.full[layout] / "vocab.json").read_bytes()
        before, after = weights(tiny.full[layout]), weights(out)
        assert set(before) == set(after)
        text = [name for name in before if not name.startswith(("visual", "vision_model"))]
        assert len(text) > 10
        for name in text:
            np.testing.assert_array_equal(before[name], after[name])
    for task in TASKS:
        one, other = (found[layout][task] for layout in LAYOUTS)
        assert one.classes == other.classes == CLASSES[task]
        weight = one.head["weight"]
        np.testing.assert_allclose(weight, other.head["weight"], rtol=1e-4, atol=1e-4)
        lengths = np.linalg.norm(weight, axis=1)
        np.testing.assert_allclose(lengths, np.exp(2.0), rtol=1e-5)  # the temperature
        assert not one.head["bias"].any()
        directions = weight / lengths[:, None]
        products = directions @ directions.T
        assert products[np.triu_indices(len(lengths), 1)].max() < 0.9999  # names tell them apart


@pytest.mark.skipif(not (PACKS / "bpe_clip").is_dir(), reason="needs CLIP's vocabulary")
def test_a_head_with_clips_own_vocabulary(tmp_path, tiny, adapt):
    name = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copytree(tiny.full["open_clip"], tmp_path / "full")
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / "full" / file).unlink()
    shutil.copy(PACKS / "bpe_clip" / name, tmp_path / "full")
    path = tmp_path / "full" / WEIGHTS["open_clip"]
    tensors = safetensors.numpy.load_file(path)
    rows = np.random.default_rng(0).normal(0, 0.2, (49408, tiny_experts.TEXT.width))
    tensors["token_embedding.weight"] = rows.astype(np.float32)
    safetensors.numpy.save_file(tensors, path)
    config = tmp_path / "full" / "open_clip_config.json"
    described = json.loads(config.read_text())
    described["model_cfg"]["text_cfg"]["vocab_size"] = 49408
    config.write_text(json.dumps(described))
    out = adapt(
        "--method", "symerge_coefficients",
        pretrained=tmp_path / "full",
        change={"sky": zero_shot("sky")},
    )  # fmt: skip
    assert read_head(out / "heads" / "sky.safetensors").head["weight"].shape == (2, 24)


def test_experts_may_lack_what_only_the_pretrained_model_has(tmp_path, tiny, adapt):
    """Image towers without projection, as `CLIPVisionModel` stores them, and a whole CLIP."""
    change = {}
    for task in TASKS:
        source = tiny.experts["hugging_face"][task]
        tensors = weights(source)
        tensors.pop("visual_projection.weight")
        (tmp_path / task).mkdir()
        safetensors.numpy.save_file(tensors, tmp_path / task / "model.safetensors")
        shutil.copy(source / "config.json", tmp_path / task)
        change[task] = {"expert": f"'{tmp_path / task}'"}
    full = tiny.full["hugging_face"]
    out = adapt("--method", "symerge_head", layout="hugging_face", pretrained=full, change=change)
    names = list(coefficients(out)["tensors"])
    assert "visual_projection.weight" not in names
    assert all(name.startswith("vision_model.") for name in names)
    before, after = weights(full), weights(out)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same >= set(before) - set(names)
    assert len(same & set(names)) <= 2  # a key's bias has no gradient but rounding
    assert symerge("verify", out) == 0


# --- real images --------------------------------------------------------------------------------

REAL = ("mnist", "eurosat", "fashion_mnist")


@pytest.mark.slow
@pytest.mark.skipif(not (PACKS / "eurosat").is_dir(), reason="needs the image packs")
def test_real_images(tmp_path):
    """The committed tiny CLIP, three experts of it, and one model of the three."""
    base = tiny_base.load()
    start, encode = base.params["vision"], encoder(base.config.vision)
    sizes = open_clip_config(base.config.vision, None)
    recipe = Recipe(steps=60, learning_rate=5e-4, head_rate=5e-3, weight_decay=0.02)
    lines = ["[model]", "pretrained = 'base'", "[adapt]", "iterations = 4"]
    tiny_experts.write(tmp_path / "base", "open_clip", {"vision": start}, sizes)
    for name in REAL:
        task = read_task(PACKS, name, size=32)
        images, labels = task.train.images[:600], task.train.labels[:600]
        head = probe(predict(encode, start, images), labels, len(task.classes), scale=20.0)
        expert = finetune(encode, normalised_head, start, head, images, labels, recipe)
        folder = tmp_path / "experts" / name
        tiny_experts.write(folder, "open_clip", {"vision": expert.params}, sizes)
        export.write_head(folder, name, expert.head, task.classes)
        lines += ["[[task]]", f"name = '{name}'", f"expert = 'experts/{name}'"]
        lines += [f"head = 'experts/{name}/heads/{name}.safetensors'"]
        lines += [f"inputs = '{PACKS / name / 'test'}'"]
    (tmp_path / "tasks.toml").write_text("\n".join(lines))
    words = (tmp_path / "tasks.toml", "--output", tmp_path / "out", "--limit", 200)
    assert symerge("adapt", *words) == 0
    for name in REAL:
        assert card(tmp_path / "out")["scores"][name]["expert_accuracy"] > 45
        assert accuracies(tmp_path / "out")[name] > 25
        settings = Evaluation(tmp_path / "out", (), limit=200)
        found = score_task(settings, PACKS / name)
        assert found.count == 200
        assert found.metrics["accuracy"] == pytest.approx(
            accuracies(tmp_path / "out")[name], abs=1e-9
        )
