"""Checks an exported model: the hash of every file, and what the model makes of a few inputs.

`reference.npz` holds pseudo-random images (uint8) or texts (token ids), their features and, for
each head, the logits; of a decoder its maps, not resized. It is written together with the model;
`verify` computes them again, here or on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.decoders import read_decoders
from symerge_jax.checkpoints.hashes import sha256
from symerge_jax.checkpoints.heads import read_heads
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.open import Loaded, load_clip, open_checkpoint, read_json
from symerge_jax.checkpoints.resnet import LoadedResNet, load_resnet
from symerge_jax.checkpoints.roberta import LoadedRoberta, load_roberta
from symerge_jax.checkpoints.roberta_heads import read_text_heads
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.models import dense_heads, resnet, roberta
from symerge_jax.models.clip import encode_once
from symerge_jax.models.heads import normalised_head
from symerge_jax.score import computable

IMAGES = 2
TOKENS = 16  # of each of as many texts
PIXELS = (32, 48)  # of images for a network that takes any size
# Relative to the largest number; float32 on another machine differs by about 1e-5.
TOLERANCE = 1e-3


class Finding(NamedTuple):
    """One check: what was looked at, whether it holds, and the sentence to print."""

    what: str
    holds: bool
    says: str


def write_reference(folder: Path) -> None:
    """Computes and writes `reference.npz` of the model in `folder`, if its network is known."""
    loaded = _load(folder)
    if loaded is None:
        return
    inputs = _texts(loaded) if isinstance(loaded, LoadedRoberta) else _images(loaded)
    outputs = _outputs(folder, loaded, inputs)
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise BadInput(f"the new model gives {name} that are not finite; nothing was written")
    export.write_reference(folder, {"inputs": inputs, **outputs})


def _images(loaded: Loaded | LoadedResNet) -> np.ndarray:
    """Returns uint8 [IMAGES, height, width, 3]."""
    size = PIXELS if isinstance(loaded, LoadedResNet) else (loaded.vision.image_size,) * 2
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *size, 3), np.uint8)


def _texts(loaded: LoadedRoberta) -> np.ndarray:
    """Returns token ids, int32 [IMAGES, length]; the last text is half padding."""
    length, pad = min(TOKENS, loaded.config.length), loaded.config.pad_token
    drawn = np.random.default_rng(0).integers(
        0, loaded.config.vocabulary, (IMAGES, length), np.int32
    )
    tokens = np.where(drawn == pad, 0, drawn)
    tokens[-1, (length + 1) // 2 :] = pad
    return tokens


def verify(folder: str | Path) -> Iterator[Finding]:
    """Yields one finding per check of a model, or of the models of a per-task merge.

    Raises:
        BadInput: there is no card, or one of another format.
    """
    folder = Path(folder)
    if not (folder / export.CARD).exists():
        raise BadInput(
            f"{folder}: no {export.CARD} here; expected the folder of a model that symerge wrote"
        )
    try:
        card = read_json(folder / export.CARD)
    except BadInput as error:
        yield Finding(export.CARD, False, str(error))
        return
    if card.get("sha256") != export.card_digest(card):
        yield Finding(export.CARD, False, f"{export.CARD} was changed after it was written")
        return
    if card.get("format") != export.FORMAT:
        raise BadInput(
            f"{folder / export.CARD}: format {card.get('format')}, expected {export.FORMAT}; read "
            "it with the version of symerge_jax that it names"
        )
    broken = False
    for name, expected in card["files"].items():
        finding = _check_file(folder, name, expected)
        broken = broken or not finding.holds
        yield finding
    if broken:  # numbers of a damaged file say nothing more
        return
    for place in [folder, *sorted(folder.glob("[0-9][0-9]_*"))]:
        if (place / export.REFERENCE).exists():
            yield from _check_reference(place)


def _check_file(folder: Path, name: str, expected: str) -> Finding:
    path = folder / name
    if not path.is_file():
        return Finding(name, False, f"{name} is missing")
    if sha256(path) != expected:
        return Finding(name, False, f"{name} is not the file that was written (SHA-256 differs)")
    return Finding(name, True, "SHA-256 as written")


def _check_reference(folder: Path) -> Iterator[Finding]:
    with open(folder / export.REFERENCE, "rb") as file, np.load(file, allow_pickle=False) as data:
        stored = {name: data[name] for name in data.files}
    loaded = _load(folder)
    assert loaded is not None, "a reference is only written for models that can be computed"
    for name, value in _outputs(folder, loaded, stored["inputs"]).items():
        if name not in stored:  # a head that was put there later
            continue
        expected = stored[name]
        error = float(np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30))
        holds = error <= TOLERANCE
        yield Finding(
            f"{name} of the reference inputs", holds,
            f"largest relative difference {error:.1e}, at most {TOLERANCE:.0e} expected",
        )  # fmt: skip


def _load(folder: Path) -> Loaded | LoadedRoberta | LoadedResNet | None:
    """Reads the model, or None if its network is not known or its sizes are not."""
    checkpoint = open_checkpoint(folder)
    names = names_of(checkpoint)
    if names.layout == "plain":
        return None
    load = {"roberta": load_roberta, "resnet": load_resnet}.get(names.layout, load_clip)
    if checkpoint.config is None:
        try:
            return load(checkpoint)
        except BadInput:
            return None
    return load(checkpoint)


def _outputs(
    folder: Path, loaded: Loaded | LoadedRoberta | LoadedResNet, inputs: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the features, and the logits of each head, in float32 or wider."""
    if isinstance(loaded, LoadedRoberta):
        return _text_outputs(folder, loaded, inputs)
    if isinstance(loaded, LoadedResNet):
        return _dense_outputs(folder, loaded, inputs)
    tower = computable(loaded.params["vision"])
    features = encode_once(loaded.vision, tower, jax.jit(normalise)(inputs))
    found = {"features": np.asarray(features)}
    for name, one in read_heads(folder).items():
        if one.head["weight"].shape[1] == features.shape[1]:
            found[f"logits/{name}"] = np.asarray(normalised_head(one.head, features))
    return found


def _text_outputs(folder: Path, loaded: LoadedRoberta, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the features, the logits of the head in the weights, and of each in `heads/`."""
    features = roberta.encode_once(loaded.config, computable(loaded.params), tokens)
    found = {"features": np.asarray(features)}
    heads = {f"logits/{name}": one.head for name, one in read_text_heads(folder).items()}
    if loaded.head is not None:
        heads["logits"] = loaded.head
    for name, head in heads.items():
        if len(head["dense"]["bias"]) == features.shape[1]:
            head = jax.tree.map(lambda leaf: jnp.asarray(leaf, features.dtype), head)
            found[name] = np.asarray(roberta.classify(head, features))
    return found


def _dense_outputs(folder: Path, loaded: LoadedResNet, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the features, and what each decoder in `heads/` and the classifier make of them."""
    encode = jax.jit(resnet.encode_images(loaded.config))
    features = encode(computable(loaded.variables), images)
    found = {"features": np.asarray(features)}
    for name, one in read_decoders(folder).items():
        if one.config.features == features.shape[-1]:
            maps = jax.jit(dense_heads.decode(one.config))(computable(one.variables), features)
            found[f"logits/{name}"] = np.asarray(maps)
    if loaded.classifier is not None:
        found["logits"] = np.asarray(resnet.classify(computable(loaded.classifier), features))
    return found
