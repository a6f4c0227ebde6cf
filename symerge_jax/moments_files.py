"""Makes the statistics of a person's expert: a checkpoint and unlabelled inputs in, a file out.

The job of `symerge moments`. The methods that merge with such files are LOT and RegMean (Gram
matrices) and Fisher merging (Fisher diagonals); `merge_statistics` reads them there. Of texts every
position counts that is no padding. Of ResNets there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax import trees
from symerge_jax.checkpoints.layout import check_same_layout
from symerge_jax.checkpoints.open import Loaded
from symerge_jax.checkpoints.roberta import LoadedRoberta
from symerge_jax.data.images import draw_images
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.inputs import find_inputs
from symerge_jax.merge_plan import check_same_description
from symerge_jax.models.clip import VisionTower
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import Head, normalised_head
from symerge_jax.models.roberta import classify, encode_tokens, hidden_states
from symerge_jax.models.roberta_config import RobertaConfig
from symerge_jax.networks import (
    SCENES,
    AnyHead,
    Network,
    check_width,
    load_network,
    outputs_of,
    own_text_head,
)
from symerge_jax.notation import Array, Params
from symerge_jax.score import computable
from symerge_jax.second_moments import fisher_diagonal, gram_matrices, save_moments
from symerge_jax.text_inputs import draw_texts, find_texts, find_vocabulary

Kind = Literal["gram", "fisher"]
# Inputs per expert: of LOT's paper, and of the experiments of Fisher merging.
IMAGES: dict[Kind, int] = {"gram": 64, "fisher": 256}
BATCH = 32
AT_ONCE = 8  # inputs whose gradients are held at the same time


def make_moments(
    expert: str | Path,
    inputs: str | Path,
    output: str | Path,
    *,
    kind: Kind = "gram",
    head: str | Path | None = None,
    pretrained: str | Path | None = None,
    vocabulary: str | Path | None = None,
    limit: int | None = None,
    report: Callable[[str], object] = print,
) -> Path:
    """Runs an expert on unlabelled inputs and writes what a merge will take of it.

    Args:
        expert: a CLIP or a RoBERTa.
        inputs: a pack or a folder of images, or a file of texts; of a task's folder, its train
            split, else test (dev of texts).
        output: the file.
        kind: 'gram' for LOT and RegMean, 'fisher' for Fisher merging.
        head: file of the expert's own head; 'fisher' needs it, but for a RoBERTa's classifier in
            the same weights.
        pretrained: the model whose parts the expert leaves out, such as its projection, or its
            vocabulary.
        vocabulary: folder of a RoBERTa's, where it lies beside neither.
        limit: inputs to draw, with seed 0; those of `IMAGES` otherwise.
        report: receives a line per step.

    Raises:
        BadInput: unreadable input, a ResNet, a head for other features, a regression for kind
            'fisher', or statistics that are not finite.
    """
    network = load_network(expert)
    _refuse_scenes(network)
    own = dict(network.params)
    for note in network.loaded.notes:
        report(f"{expert}: {note}")
    params, start = computable(own), None
    if pretrained is not None:
        start = load_network(pretrained)
        _refuse_scenes(start)
        params = _completed(params, network, start)
    whole = start or network
    stored = _head(network, kind, head)
    if stored is not None:
        check_width(stored, whole, more=_LACKING)
    place, drawn = _draw(network, start, Path(inputs), limit or IMAGES[kind], vocabulary)
    report(f"{expert}: {len(drawn)} {network.family.inputs} of {place}")
    own_head = None if stored is None else stored.head
    try:
        if isinstance(whole.loaded, Loaded):
            found = tower_moments(whole.loaded.vision, params, drawn, kind=kind, head=own_head)
        else:
            assert isinstance(whole.loaded, LoadedRoberta), "no ResNet comes here"
            found = encoder_moments(whole.loaded.config, params, drawn, kind=kind, head=own_head)
    except BadInput as error:
        raise BadInput(f"{expert}: {error}") from None
    # Of what is the expert's own: the file belongs to its weights, whatever they are merged with.
    return save_moments(output, {name: found[name] for name in own}, own)


_LACKING = (
    ", or the expert lacks its projection: name the model it was fine-tuned from with --pretrained"
)


def _refuse_scenes(network: Network) -> None:
    if network.family is SCENES:
        raise BadInput(
            f"{network.loaded.source.path}: a ResNet, of which no statistics can be made; merge it "
            "with a method that takes none (`symerge methods` lists them)"
        )


def _head(network: Network, kind: Kind, file: str | Path | None) -> AnyHead | None:
    """Returns the expert's own head, where the statistics take one."""
    if kind == "gram":
        return None
    path = network.loaded.source.path
    if file is not None:
        head = network.family.read_head(file)
    elif isinstance(network.loaded, Loaded):
        raise BadInput(
            "--head: statistics of kind fisher need the expert's head, as a file such as "
            "heads/TASK.safetensors beside its weights"
        )
    else:
        head = own_text_head(network.loaded.source, Path(path).name)
    if outputs_of(head.head) == 1:
        raise BadInput(
            f"{head.path}: has one output, as a regression has, which gives no class to draw, so "
            "there is no diagonal of kind fisher; take --kind gram, or a method without statistics"
        )
    return head


def _draw(
    network: Network, start: Network | None, inputs: Path, count: int, vocabulary: str | Path | None
) -> tuple[Path, np.ndarray]:
    """Returns where the inputs lie, and at most `count` of them, drawn with seed 0."""
    if isinstance(network.loaded, Loaded):
        if vocabulary is not None:
            raise BadInput(
                f"--vocabulary has no part in {network.loaded.source.path}, which takes images; "
                "leave it out"
            )
        sizes = (start or network).loaded
        assert isinstance(sizes, Loaded)
        place = find_inputs(inputs, splits=("train", "test"))
        return place, draw_images(place, count, size=sizes.vision.image_size)
    models = [one.loaded.source for one in (network, start) if one is not None]
    given = None if vocabulary is None else Path(vocabulary)
    assert isinstance(network.loaded, LoadedRoberta), "no ResNet comes here"
    tokenizer = find_vocabulary(given, models, network.loaded.config)
    place = find_texts(inputs, train=True)
    return place, draw_texts(place, tokenizer, network.loaded.config, count)


def _completed(params: Params, expert: Network, start: Network) -> Params:
    """Returns the expert's tower, with the pre-trained projection if it has none of its own."""
    models = [start.loaded, expert.loaded]
    layout = check_same_layout((str(one.source.path), one.names) for one in models)
    check_same_description([one.source for one in models], layout)
    tower = computable(start.params)
    whole = {**{name: tower[name] for name in tower if name == "projection"}, **params}
    names = [str(one.source.path) for one in models]
    trees.check_same(whole, tower, name=names[1], reference_name=names[0])
    return whole


def tower_moments(
    config: VisionConfig,
    params: Params,
    images: np.ndarray,
    *,
    kind: Kind,
    head: Head | None = None,
    seed: int = 0,
) -> Any:
    """Returns the statistics of one image tower on images.

    Args:
        config: sizes of the tower.
        params: its weights.
        images: uint8 [n, height, width, 3].
        kind: 'gram' for `gram_matrices`, 'fisher' for `fisher_diagonal` with one label per image
            drawn from the expert's answer.
        head: the expert's own; for 'fisher'.
        seed: of the labels that are drawn.

    Raises:
        BadInput: activations or gradients that are not finite.
    """
    batches = (normalise(images[begin : begin + BATCH]) for begin in range(0, len(images), BATCH))
    params = jax.tree.map(jnp.asarray, params)
    apply = _every_token(config)
    if kind == "gram":
        return gram_matrices(apply, params, batches, patches=("patch_embedding/kernel",))
    assert head is not None, "the answers, whose gradients are taken, are those of a head"
    rows: Head = {name: jnp.asarray(value) for name, value in head.items()}
    return fisher_diagonal(
        apply,
        params,
        batches,
        lambda features: normalised_head(rows, features),
        key=jax.random.key(seed),
        at_once=AT_ONCE,
    )


@cache
def _every_token(config: VisionConfig) -> Any:
    """Returns (θ, normalised images) → features, with every token worked out in the last block."""
    tower = VisionTower(config, every_token=True)

    def apply(params: Any, images: Any) -> Any:
        return tower.apply({"params": params}, images)

    return apply


def encoder_moments(
    config: RobertaConfig,
    params: Params,
    tokens: np.ndarray,
    *,
    kind: Kind,
    head: Params | None = None,
    seed: int = 0,
) -> Any:
    """Returns the statistics of one encoder of texts.

    Args:
        config: sizes of the encoder.
        params: its weights.
        tokens: int32 [n, length], padded at the end.
        kind: as for `tower_moments`.
        head: the expert's own, of `models.roberta.classify`; for 'fisher'.
        seed: of the labels that are drawn.

    Raises:
        BadInput: activations or gradients that are not finite.
    """
    batches = (jnp.asarray(tokens[k : k + BATCH]) for k in range(0, len(tokens), BATCH))
    params = jax.tree.map(jnp.asarray, params)

    def real(tokens: Array) -> Array:
        return tokens != config.pad_token

    if kind == "gram":
        return gram_matrices(hidden_states(config), params, batches, counts=real)
    assert head is not None, "the answers, whose gradients are taken, are those of a head"
    own = jax.tree.map(jnp.asarray, head)
    return fisher_diagonal(
        encode_tokens(config),
        params,
        batches,
        lambda features: classify(own, features),
        key=jax.random.key(seed),
        at_once=AT_ONCE // 2,  # RoBERTa's table of words makes gradients larger
    )
