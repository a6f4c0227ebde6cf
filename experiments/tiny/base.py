"""Pre-trains the tiny CLIP of the embedded world from nothing, on generated pictures with captions.

    python -m experiments.tiny.base --steps 40000 --out experiments/tiny

The result is committed (`base.safetensors`, card `base.json`), so the default experiments only
fine-tune and merge. Objective: CLIP's symmetric cross-entropy over deduplicated captions. Every
caption is a negative in each step, and all pictures of one caption are positives; a plain CLIP loss
would call them negatives, because some hundred captions repeat within a batch. Radford et al.,
2021, section 2.3.

Cost of the committed file: see its card.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax import Array

from experiments.tiny import broad, world
from symerge_jax import interrupt
from symerge_jax.cache import digest, flatten, unflatten
from symerge_jax.cli.errors import run
from symerge_jax.data.preprocess import normalise
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.kept_run import Saver, kept_run
from symerge_jax.models import clip
from symerge_jax.models.tokenizer import WordTokenizer

HOME = Path(__file__).parent
MAX_SCALE = 50.0  # of the logits in pre-training; CLIP caps at 100


@dataclass(frozen=True)
class Settings:
    """How the base is made."""

    model: str = "tiny-64x3"
    """Preset of symerge_jax.models.clip."""
    steps: int = 20_000
    """Optimiser steps of the schedule."""
    stop: int = 16_000
    """Step after which to stop; the committed file was stopped before the end of its schedule."""
    batch_size: int = 256
    """Pictures per step, over all devices."""
    learning_rate: float = 1.5e-3
    """Peak of the warm-up and cosine schedule."""
    weight_decay: float = 0.05
    """Of AdamW, on matrices only."""
    easy: int = 3000
    """Pictures of each world family at the easy level."""
    hard: int = 3000
    """Pictures of each world family at the hard level."""
    broad: int = 8000
    """Pictures of each broad family."""
    devices: int = 2
    """CPU devices that share each batch."""
    seed: int = 0
    """Of pictures, weights and batches."""
    resume: bool = False
    """Go on from what an interrupted equal run left beside the files."""
    out: Path = HOME
    """Folder of base.safetensors and base.json."""


class Captions(NamedTuple):
    """Every caption the base may see, without repetition."""

    names: tuple[str, ...]
    tokenizer: WordTokenizer
    tokens: np.ndarray  # int32 [template, caption, length]


def captions(length: int) -> Captions:
    """Collects the class names of all families; words of the unseen ones are in the vocabulary."""
    names: list[str] = []
    for name in world.PRETRAINING:
        names += world.FAMILIES[name].classes
    for family in broad.BROAD.values():
        names += family.classes
    unique = tuple(dict.fromkeys(names))
    unseen = [c for n in world.TASKS for c in world.FAMILIES[n].classes]
    texts = [t.format(name) for t in world.TEMPLATES for name in (*unique, *unseen)]
    tokenizer = WordTokenizer(texts, length=length)
    tokens = np.stack([tokenizer([t.format(n) for n in unique]) for t in world.TEMPLATES])
    return Captions(unique, tokenizer, tokens)


# What to draw: "broad" or a split of the world, family, count, seed.
Job: TypeAlias = tuple[Literal["broad"] | world.Split, str, int, int]


def _make(job: Job) -> tuple[np.ndarray, tuple[str, ...]]:
    """Draws one set; returns images and the class name of each."""
    kind, name, count, seed = job
    if kind == "broad":
        images, labels = broad.broad_images(name, count=count, seed=seed)
        classes = broad.BROAD[name].classes
    else:
        images, labels = world.images(name, split=kind, count=count, seed=seed)
        classes = world.FAMILIES[name].classes
    return images, tuple(classes[i] for i in labels)


def pictures(settings: Settings, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [n, 32, 32, 3] and the caption of each, int32 [n]."""
    seed = settings.seed
    jobs: list[Job] = [("easy", n, settings.easy, seed) for n in world.PRETRAINING]
    for name in world.PRETRAINING:
        jobs.append(("hard", name, settings.hard, seed))
    # Broad families with more classes get more pictures, in the square root of their number.
    for name, family in broad.BROAD.items():
        count = int(settings.broad * (len(family.classes) / 16) ** 0.5)
        jobs.append(("broad", name, count, seed))
    index = {name: i for i, name in enumerate(names)}
    with ProcessPoolExecutor(settings.devices) as pool:
        sets = list(pool.map(_make, sorted(jobs, key=lambda j: -j[2])))
    images = np.concatenate([s[0] for s in sets])
    labels = np.array([index[c] for s in sets for c in s[1]], np.int32)
    return images, labels


def shifted(images: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns `images[rows]`, each shifted by up to 2 pixels; uint8 [*rows, 32, 32, 3].

    `images` are padded, [n, 36, 36, 3]. On the host: XLA's gather is slow on a CPU.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (32, 32), axis=(1, 2))
    y, x = rng.integers(0, 5, (2, *rows.shape))
    return np.moveaxis(windows[rows, y, x], -3, -1)


def augment(images: Array, key: Array) -> Array:
    """Changes the exposure; uint8 [batch, 32, 32, 3] → float32 pixels on the scale 0..255."""
    n = images.shape[0]
    gain_key, offset_key, grey_key = jax.random.split(key, 3)
    x = images.astype(jnp.float32) / 255.0
    gain = jnp.exp(jax.random.normal(gain_key, (n, 1, 1, 1)) * 0.25)
    offset = jax.random.normal(offset_key, (n, 1, 1, 3)) * 0.06
    grey = jax.random.bernoulli(grey_key, 0.1, (n, 1, 1, 1))
    x = jnp.where(grey, x.mean(axis=-1, keepdims=True), x)
    return 255.0 * jnp.clip((x - 0.5) * gain + 0.5 + offset, 0.0, 1.0)


def contrastive(image: Array, text: Array, labels: Array, scale: Array) -> Array:
    """Symmetric cross-entropy between pictures [batch, d] and all captions [caption, d]."""
    image = image / jnp.linalg.norm(image, axis=-1, keepdims=True)
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    logits = scale * image @ text.T
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    positive = jax.nn.one_hot(labels, text.shape[0])
    counts = positive.sum(axis=0, keepdims=True)
    weight = positive / jnp.maximum(counts, 1.0)
    columns = -(weight * jax.nn.log_softmax(logits, axis=0)).sum()
    shown = (counts > 0).sum(dtype=columns.dtype)
    return 0.5 * (rows + columns / jnp.maximum(shown, 1.0))


def make_step(config: clip.ClipConfig, tx: optax.GradientTransformation, tokens: Array):
    """Returns the pmapped program (state, images, labels, progress…) → (state, losses)."""
    see, read = clip.encode_image(config.vision), clip.encode_text(config.text)

    def loss_fn(params, images, labels, key):
        pixel_key, template_key = jax.random.split(key)
        x = normalise(augment(images, pixel_key))
        template = jax.random.randint(template_key, (tokens.shape[1],), 0, tokens.shape[0])
        words = tokens[template, jnp.arange(tokens.shape[1])]
        scale = jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(MAX_SCALE)))
        return contrastive(see(params["vision"], x), read(params["text"], words), labels, scale)

    def step(carry, batch):
        params, opt, average, key = carry
        images, labels, rate = batch
        key, here = jax.random.split(key)
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels, here)
        grads = jax.lax.pmean(grads, "devices")
        updates, opt = tx.update(grads, opt, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        average = jax.tree.map(lambda a, p: 0.999 * a + 0.001 * p, average, params)
        return (params, opt, average, key), loss

    def chunk(carry, images, labels, rates):
        return jax.lax.scan(step, carry, (images, labels, rates))

    return jax.pmap(chunk, axis_name="devices", in_axes=(0, 0, 0, None), donate_argnums=0)


def rates(settings: Settings, fractions: np.ndarray) -> np.ndarray:
    """Learning rates for fractions of the whole schedule: 2 % warm-up, cosine to 1 %."""
    warm = np.minimum(fractions / 0.02, 1.0)
    cosine = 0.5 * (1 + np.cos(np.pi * np.clip(fractions, 0, 1)))
    return (settings.learning_rate * warm * (0.01 + 0.99 * cosine)).astype(np.float32)


def train(
    settings: Settings,
    images: np.ndarray,
    labels: np.ndarray,
    text: Captions,
    report: Callable[[str], None],
    keep: Callable[[clip.ClipConfig, Any], None],
    saver: Saver | None = None,
) -> tuple[clip.ClipConfig, Any, list[float]]:
    """Runs the schedule, handing the weights so far to `keep` at each tenth.

    The saver keeps all that an interrupted run needs to go on.

    Returns the sizes, the averaged parameters and the mean loss of each 50 steps.
    """
    preset = clip.PRESETS[settings.model]
    config = clip.ClipConfig(
        preset.vision, dataclasses.replace(preset.text, vocabulary=text.tokenizer.vocabulary)
    )
    key = jax.random.key(settings.seed)
    vision_key, text_key, key = jax.random.split(key, 3)
    params = {
        "vision": clip.initial_params(config.vision, vision_key),
        "text": clip.initial_params(config.text, text_key),
        "logit_scale": jnp.log(jnp.float32(20.0)),
    }
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(
            settings.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim >= 2, p)
        ),
    )
    n, per = settings.devices, settings.batch_size // settings.devices
    copies = lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), tree)  # noqa: E731
    carry = (copies(params), copies(tx.init(params)), copies(params), jax.random.split(key, n))
    program = make_step(config, tx, jnp.asarray(text.tokens))
    rng = np.random.default_rng(settings.seed)
    size, start, losses = 50, time.monotonic(), []
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    table = rates(settings, np.arange(settings.steps) / settings.steps)
    saver, begin = saver or Saver(None), 0
    if (found := saver.found(carry)) is not None:
        begin, carry, meta = found
        rng.bit_generator.state, losses = meta["rng"], meta["losses"]
        report(f"going on from step {begin}")
    with interrupt.deferred():
        for first in range(begin, min(settings.stop, settings.steps), size):
            rows = rng.integers(0, len(images), (n, min(size, settings.steps - first), per))
            batch = shifted(padded, rows, rng)
            carry, loss = program(carry, batch, labels[rows], table[first : first + size])
            losses.append(float(loss.mean()))
            if (first + size) % (settings.steps // 10) < size:
                keep(config, jax.tree.map(lambda x: np.asarray(x[0]), carry[2]))
            if (first // size) % 10 == 9:
                speed = (first + size - begin) * settings.batch_size / (time.monotonic() - start)
                report(f"step {first + size} loss {np.mean(losses[-10:]):.3f} {speed:.0f} images/s")
            saver.chunk_done(
                first + size, carry, lambda: {"rng": rng.bit_generator.state, "losses": losses}
            )
    return config, jax.tree.map(lambda x: np.asarray(x[0]), carry[2]), losses


def zero_shot(
    config: clip.ClipConfig, params: Any, tokenizer: WordTokenizer, seed: int
) -> dict[str, float]:
    """Returns the zero-shot accuracy in percent on training pictures of each task."""
    see, read = jax.jit(clip.encode_image(config.vision)), jax.jit(clip.encode_text(config.text))
    scores = {}
    for name in world.TASKS:
        images, labels = world.images(name, split="train", count=400, seed=seed)
        classes = world.FAMILIES[name].classes
        tokens = [tokenizer([t.format(c) for c in classes]) for t in world.TEMPLATES]
        text = np.asarray(read(params["text"], np.concatenate(tokens)))
        text = text.reshape(len(world.TEMPLATES), len(classes), -1)
        text = (text / np.linalg.norm(text, axis=-1, keepdims=True)).mean(axis=0)
        text = text / np.linalg.norm(text, axis=-1, keepdims=True)
        features = np.asarray(see(params["vision"], normalise(images)))
        scores[name] = 100.0 * float(((features @ text.T).argmax(axis=1) == labels).mean())
    return scores


def save(
    config: clip.ClipConfig, params: Any, tokenizer: WordTokenizer, card: dict, folder: Path
) -> None:
    """Writes `base.safetensors` (float32) and its card `base.json`, each whole or not at all."""
    tensors = {k: np.asarray(v, order="C") for k, v in flatten(params).items()}
    write_atomically(folder / "base.safetensors", safetensors.numpy.save(tensors))
    card = card | {
        "format": 1,
        "vision": dataclasses.asdict(config.vision),
        "text": dataclasses.asdict(config.text),
        "words": tokenizer.words[1:],
        "sha256": hashlib.sha256((folder / "base.safetensors").read_bytes()).hexdigest(),
    }
    write_atomically(folder / "base.json", json.dumps(card, indent=1) + "\n")


class Base(NamedTuple):
    """The pre-trained tiny CLIP.

    Attributes:
        config: sizes of both towers.
        params: 'vision', 'text' and 'logit_scale' (its log), NumPy float32.
        tokenizer: of captions.
        card: how it was made.
    """

    config: clip.ClipConfig
    params: Any
    tokenizer: WordTokenizer
    card: dict[str, Any]

    def scale(self) -> float:
        """The factor of the logits, exp(logit_scale)."""
        return float(min(np.exp(self.params["logit_scale"]), MAX_SCALE))


def load(folder: Path = HOME) -> Base:
    """Reads what `save` wrote.

    Raises:
        BadInput: a file is missing or does not fit its card.
    """
    advice = "restore base.safetensors and base.json from the repository, or use --retrain"
    try:
        card = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        raw = (folder / "base.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: cannot read the pre-trained base ({error}); {advice}") from None
    if not isinstance(card, dict) or card.get("sha256") != hashlib.sha256(raw).hexdigest():
        raise BadInput(
            f"{folder / 'base.safetensors'}: its content is not what base.json describes; {advice}"
        )
    try:
        config = clip.ClipConfig(
            clip.VisionConfig(**card["vision"]), clip.TextConfig(**card["text"])
        )
        tokenizer = WordTokenizer(card["words"], length=config.text.length)
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"{folder / 'base.json'}: is not the card of a base ({error}); {advice}"
        ) from None
    return Base(config, unflatten(safetensors.numpy.load(raw)), tokenizer, card)


def main(settings: Settings) -> None:
    """Draws the pictures, trains, scores and saves."""
    text = captions(clip.PRESETS[settings.model].text.length)
    worlds = digest(world.worlds_digest(), broad.broad_digest())
    start = time.monotonic()
    images, labels = pictures(settings, text.names)
    drawn = time.monotonic()
    counted = f"{len(images)} pictures of {len(text.names)} captions"
    print(f"{counted} in {drawn - start:.0f} s", flush=True)
    so_far = partial(save, tokenizer=text.tokenizer, card={"unfinished": True}, folder=settings.out)
    same = {k: str(v) for k, v in vars(settings).items() if k not in ("out", "resume")}
    identity = {"settings": same, "worlds": worlds}
    with kept_run(settings.out / "unfinished", identity, resume=settings.resume) as state:
        config, params, losses = train(
            settings, images, labels, text, partial(print, flush=True), so_far, Saver(state)
        )
        trained = time.monotonic()
        scores = zero_shot(config, params, text.tokenizer, settings.seed)
        print(
            {k: round(v, 1) for k, v in scores.items()},
            round(float(np.mean([*scores.values()])), 1),
        )
        card = {
            "settings": {
                k: str(v) if isinstance(v, Path) else v
                for k, v in vars(settings).items()
                if k != "resume"
            },
            "pictures": len(images),
            "captions": len(text.names),
            "worlds": worlds,
            "seconds": {"pictures": drawn - start, "training": trained - drawn},
            "zero_shot_train_accuracy": scores,
            "loss": {
                50 * (i + 10): round(float(np.mean(losses[i : i + 10])), 3)
                for i in range(0, len(losses) - 9, 10)
            },
        }
        save(config, params, text.tokenizer, card, settings.out)


def command(settings: Settings) -> None:
    """Makes the base in a process that has as many devices as were asked for."""
    jax.config.update("jax_num_cpu_devices", settings.devices)
    main(settings)


if __name__ == "__main__":
    sys.exit(run(command, Settings, None, prog="python -m experiments.tiny.base"))
