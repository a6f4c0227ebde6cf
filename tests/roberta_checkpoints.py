"""Tiny RoBERTa checkpoints with random weights, in the forms in which the public ones come."""

import functools

import jax
import numpy as np
from clip_checkpoints import save

from symerge_jax.checkpoints.roberta import to_hugging_face
from symerge_jax.checkpoints.roberta_layout import config_json
from symerge_jax.models.roberta import initial_head, param_shapes
from symerge_jax.models.roberta_config import RobertaConfig

SIZES = RobertaConfig(vocabulary=23, positions=14, width=8, depth=2, heads=2, mlp_width=12)
LEAVES = 5 + 16 * SIZES.depth


_shapes = functools.cache(param_shapes)


def params(seed=0, config=SIZES):
    """An encoder with every leaf away from zero and one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0.2, 0.9, leaf.shape).astype(np.float32), _shapes(config)
    )


def head(outputs=3, seed=0, config=SIZES):
    """A classifier with every leaf away from zero."""
    rng = np.random.default_rng([seed, 1])
    return jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(np.float32),
        initial_head(config, outputs, jax.random.key(0)),
    )


def tensors(outputs=3, *, seed=0, prefix="roberta."):
    """The state dict of a classifier, or of an encoder for no outputs."""
    own = None if outputs is None else head(outputs, seed)
    return to_hugging_face(params(seed), head=own, prefix=prefix)


def config(outputs=3, classes=None, **changes):
    """The config.json beside `tensors`."""
    return config_json(SIZES, outputs=outputs, classes=classes) | changes


def old_names(state):
    """LayerNorm's weight and bias as gamma and beta."""
    swap = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    found = {}
    for name, value in state.items():
        for new, old in swap.items():
            name = name.replace(new, old)
        found[name] = value
    return found


def language_model(seed=0):
    """The state dict of RobertaForMaskedLM with a pooler and a position counter."""
    width, vocabulary = SIZES.width, SIZES.vocabulary
    rng = np.random.default_rng([seed, 2])
    extra = {
        "roberta.embeddings.position_ids": np.arange(SIZES.positions)[None],
        "roberta.pooler.dense.weight": rng.normal(size=(width, width)).astype(np.float32),
        "roberta.pooler.dense.bias": rng.normal(size=width).astype(np.float32),
        "lm_head.bias": rng.normal(size=vocabulary).astype(np.float32),
        "lm_head.dense.weight": rng.normal(size=(width, width)).astype(np.float32),
        "lm_head.layer_norm.weight": np.ones(width, np.float32),
    }
    return tensors(None, seed=seed) | extra


def tokens(rows=3, length=10, seed=0):
    """Token ids int32 [rows, length]; the first row is full, the others end in padding."""
    rng = np.random.default_rng([seed, 3])
    ids = rng.integers(2, SIZES.vocabulary, (rows, length), np.int32)
    ids[:, 0] = 0
    for row in range(1, rows):
        ids[row, length - 3 * row :] = SIZES.pad_token
    return ids


def family(folder, outputs=(3, 2, 1)):
    """Writes a pre-trained language model and an expert per entry of `outputs`; their folders."""
    base = save(
        folder / "base", language_model(), config(None, architectures=["RobertaForMaskedLM"])
    )
    (base / "vocab.json").write_text('{"<s>": 0}')
    (base / "merges.txt").write_text("#version: 0.2\n")
    experts = []
    start = tensors(None)
    for k, count in enumerate(outputs):
        rng = np.random.default_rng([k, 4])
        moved = {
            name: (value + rng.normal(0, 0.02, value.shape)).astype(np.float32)
            for name, value in start.items()
        }
        own = {n: v for n, v in tensors(count, seed=k).items() if n.startswith("classifier.")}
        names = None if count == 1 else [f"class {i}" for i in range(count)]
        experts.append(save(folder / f"task{k}", moved | own, config(count, names)))
    return base, experts
