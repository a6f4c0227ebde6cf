"""A tiny RoBERTa, experts made from it, and texts of theirs, as the files a person would have.

Three tasks: sentences in GLUE's own form, pairs with a score, and three classes by name. Experts
are the pre-trained model with noise, and the truth is what they say but for every fifth text, so
nothing is trained.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from clip_checkpoints import save
from text_tasks import write

from symerge_jax.checkpoints.roberta import to_hugging_face
from symerge_jax.checkpoints.roberta_layout import config_json
from symerge_jax.data.roberta_tokenizer import train_tokenizer
from symerge_jax.models.roberta import encode_tokens, param_shapes
from symerge_jax.models.roberta_config import RobertaConfig

WORDS = ("the", "cat", "dog", "bird", "runs", "sees", "eats", "red", "blue", "old", "never", "an")
OUTPUTS = {"cola": 2, "close": 1, "topic": 3}
TASKS = tuple(OUTPUTS)
FILES = {"cola": "dev.tsv", "close": "dev.jsonl", "topic": "dev.csv"}
CLASSES = ("sport", "food", "art")  # of topic, in the order of the head
COUNT = 20


class Texts(NamedTuple):
    """Where everything is.

    Attributes:
        folder: `texts/<task>/dev.*` with labels, `plain/<task>.txt` or .jsonl without.
        base: of the pre-trained model, with the vocabulary.
        experts: task → folder, whose weights hold the classifier.
        config: sizes.
    """

    folder: Path
    base: Path
    experts: dict[str, Path]
    config: RobertaConfig

    def inputs(self, task: str) -> Path:
        """The labelled file of a task."""
        return self.folder / "texts" / task / FILES[task]


@functools.cache
def made(folder: Path) -> Texts:
    """Makes everything below `folder`, once per test process."""
    folder = folder / "tiny_texts"
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(2, 6))) for _ in range(4 * COUNT)]
    tokenizer = train_tokenizer(sentences, vocab_size=300, min_frequency=1)
    config = RobertaConfig(
        vocabulary=tokenizer.rows, positions=18, width=16, depth=1, heads=2, mlp_width=24
    )
    start = _drawn(rng, param_shapes(config), 0.4)
    base = save(folder / "base", to_hugging_face(start), config_json(config))
    tokenizer.save(base)
    own = {
        "cola": [sentences[:COUNT]],
        "close": [sentences[COUNT : 2 * COUNT], sentences[2 * COUNT : 3 * COUNT]],
        "topic": [sentences[3 * COUNT :]],
    }
    experts = {}
    for task, outputs in OUTPUTS.items():
        noise = _drawn(rng, param_shapes(config), 0.1)
        params = jax.tree.map(np.add, start, noise)
        head = _drawn(rng, _head_shapes(config.width, outputs), 0.7)
        names = CLASSES if task == "topic" else None
        described = config_json(config, outputs=outputs, classes=names)
        tokens = tokenizer(*own[task], max_length=16)
        # Around 0 for each output, so that every class is said of some texts.
        head["out_proj"]["bias"] -= outputs_of(config, params, head, tokens).mean(axis=0)
        logits = outputs_of(config, params, head, tokens)
        experts[task] = save(folder / task, to_hugging_face(params, head=head), described)
        _write(folder, task, own[task], _truth(rng, logits))
    return Texts(folder, base, experts, config)


def _head_shapes(width, outputs):
    sizes = {"dense": (width, width), "out_proj": (width, outputs)}
    return {
        name: {"kernel": np.zeros(shape), "bias": np.zeros(shape[1])}
        for name, shape in sizes.items()
    }


def outputs_of(config, params, head, tokens):
    """Logits [n, outputs] of tokens [n, up to 16], the head in plain NumPy."""
    padded = np.pad(tokens, ((0, 0), (0, 16 - tokens.shape[1])), constant_values=1)
    features = np.asarray(_encoder(config)(params, padded))
    dense, out = head["dense"], head["out_proj"]
    hidden = np.tanh(features @ dense["kernel"] + dense["bias"])
    return hidden @ out["kernel"] + out["bias"]


@functools.cache
def _encoder(config):
    return jax.jit(encode_tokens(config))


def _drawn(rng, shapes, scale):
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), shapes)


def _truth(rng, logits):
    """What the expert says, but for every fifth text."""
    if logits.shape[1] == 1:
        return logits[:, 0] + rng.normal(0, 0.3 * logits.std(), len(logits))
    said = logits.argmax(axis=1)
    return np.where(np.arange(len(said)) % 5 == 0, (said + 1) % logits.shape[1], said)


def _write(folder, task, texts, truth):
    place = folder / "texts" / task / FILES[task]
    rows = list(zip(*texts, truth, strict=True))
    if task == "cola":  # GLUE's has no header
        write(place, *(f"gj04\t{label}\t\t{text}" for text, label in rows))
    elif task == "topic":
        write(place, "text,label", *(f"{text},{CLASSES[label]}" for text, label in rows))
    else:
        pairs = ((f'"sentence1": "{a}", "sentence2": "{b}"', score) for a, b, score in rows)
        pairs = list(pairs)
        write(place, *(f'{{{both}, "score": {score}}}' for both, score in pairs))
        write(folder / "plain" / f"{task}.jsonl", *(f"{{{both}}}" for both, _ in pairs))
        return
    write(folder / "plain" / f"{task}.txt", *texts[0])


def write_tasks(path: Path, texts: Texts, *, adapt="iterations = 6\nbatch_size = 4", **change):
    """Writes a tasks.toml over `texts` with absolute paths.

    Args:
        path: the file.
        texts: what it names.
        adapt: lines of [adapt].
        change: task → key → TOML value to add or replace, None to leave the task out; `model` →
            likewise for [model].
    """
    model = {"pretrained": f"'{texts.base}'"} | change.pop("model", {})
    lines = ["[model]", *(f"{key} = {value}" for key, value in model.items()), "[adapt]", adapt]
    for task in TASKS:
        if task in change and change[task] is None:
            continue
        entry = {
            "name": f"'{task}'",
            "expert": f"'{texts.experts[task]}'",
            "inputs": f"'{texts.inputs(task)}'",
        } | change.get(task, {})
        lines += ["[[task]]", *(f"{key} = {value}" for key, value in entry.items())]
    path.write_text("\n".join(lines) + "\n")
    return path
