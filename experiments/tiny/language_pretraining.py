"""Pre-trains a small RoBERTa on texts, as one compiled loop on all devices.

Devlin et al., "BERT", 2018 (https://arxiv.org/abs/1810.04805), section 3.1: some of the tokens are
to be guessed; of these 80 % are masked, 10 % replaced by any other and 10 % left as they are. Masks
are drawn anew each time, as in Liu et al. 2019 (https://arxiv.org/abs/1907.11692). Where texts come
with the word whether they make sense, that is to be told from the first position, as BERT tells
whether a sentence follows another. RoBERTa does without, but reads ten thousand times as much.

Large vocabularies: guesses are compared with a sample of the tokens that texts contain (Jean et
al., "On Using Very Large Target Vocabulary for Neural Machine Translation", 2015, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from symerge_jax import interrupt
from symerge_jax.data.text_lengths import text_lengths
from symerge_jax.kept_run import Saver
from symerge_jax.models.roberta import by_length, hidden_states, param_shapes
from symerge_jax.models.roberta_config import RobertaConfig
from symerge_jax.models.transformer import draw_params
from symerge_jax.notation import Array

SPECIAL = 4  # ids below are marks, never guessed
CHUNK = 50  # steps per call of the compiled program
WARMUP = 100  # steps with a rising rate, or a twentieth of few


class Schedule(NamedTuple):
    """Hyper-parameters of pre-training.

    Attributes:
        steps: of the optimiser.
        batch_size: texts per step, over all devices.
        learning_rate: peak, after at most 100 steps; then a cosine to a hundredth.
        weight_decay: of AdamW, on matrices.
        lengths: batches hold texts of about one length, up to one of these.
        share: of the tokens that are guessed; twice BERT's, as short texts leave few.
        sampled: tokens that guesses are compared with; 0 for the whole vocabulary.
        easy_steps: steps at the beginning that see the first `easy_texts` alone.
        easy_texts: how many texts stand in front for that.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    lengths: tuple[int, ...] = (16, 24)
    share: float = 0.3
    sampled: int = 0
    easy_steps: int = 0
    easy_texts: int = 0


class Hidden(NamedTuple):
    """What to guess in a batch: inputs int [batch, length]; the rest [batch, guesses].

    Attributes:
        inputs: tokens, masked.
        places: positions of the guesses.
        targets: what stood there.
        counts: bool, False for guesses beyond a short text's share.
    """

    inputs: Array
    places: Array
    targets: Array
    counts: Array


def hide(tokens: Array, key: Array, *, mask: int, share: float = 0.15) -> Hidden:
    """Chooses tokens to guess and hides them.

    Args:
        tokens: int [batch, length], padded at the end.
        key: of the choice.
        mask: id of <mask>, the last of the vocabulary.
        share: of the tokens, at least one per text.
    """
    score_key, how_key, other_key = jax.random.split(key, 3)
    words = (tokens >= SPECIAL) & (tokens < mask)
    score = jnp.where(words, jax.random.uniform(score_key, tokens.shape), -1.0)
    most = max(1, round(share * tokens.shape[1]))
    _, places = jax.lax.top_k(score, most)
    allowed = jnp.maximum(jnp.round(share * words.sum(axis=1, dtype=jnp.float32)), 1.0)
    rank = jnp.arange(most, dtype=jnp.float32)[None]
    counts = (rank < allowed[:, None]) & jnp.take_along_axis(words, places, axis=1)
    targets = jnp.take_along_axis(tokens, places, axis=1)
    how = jax.random.uniform(how_key, places.shape)
    others = jax.random.randint(other_key, places.shape, SPECIAL, mask, tokens.dtype)
    shown = jnp.where(how < 0.8, jnp.full_like(targets, mask), targets)
    shown = jnp.where(how >= 0.9, others, shown)
    rows = jnp.arange(tokens.shape[0])[:, None]
    inputs = jnp.asarray(tokens).at[rows, places].set(jnp.where(counts, shown, targets))
    return Hidden(inputs, places, targets, counts)


def initial(config: RobertaConfig, key: Array) -> dict[str, Any]:
    """Draws an encoder, and the layers that guess words and tell sense from hidden states.

    Deviations are larger than RoBERTa's 0.02, as the encoder is narrower. Half of the heads begin
    with equal query and key, so that each token looks at its like: whether a word comes again is
    what a comparison of sentences needs first, and is slow to be found otherwise.
    """
    encoder_key, guess_key = jax.random.split(key)
    width = config.width

    def deviation(path: str) -> float:
        return {"token_embedding/embedding": 0.1, "position_embedding": 0.05}.get(
            path, 0.01 if "embedding" in path else width**-0.5
        )

    encoder = draw_params(param_shapes(config), encoder_key, deviation)
    for i in range(config.depth - 1):
        attention = encoder[f"blocks_{i}"]["attention"]
        query, kernel = attention["query"]["kernel"], attention["key"]["kernel"]
        half = width // 2
        attention["key"]["kernel"] = jnp.concatenate([query[:, :half], kernel[:, half:]], axis=1)
    return {
        "encoder": encoder,
        "guess": {
            "kernel": width**-0.5 * jax.random.normal(guess_key, (width, width)),
            "bias": jnp.zeros(width),
            "scale": jnp.ones(width),
            "words": jnp.zeros(config.vocabulary),
            "sense": jnp.zeros(width),
        },
    }


def make_loss(config: RobertaConfig, schedule: Schedule) -> Callable[..., tuple[Array, Array]]:
    """Returns (parameters, tokens, sense, sample, key) → the loss of a batch, and its two parts.

    `sense` is int [batch]: 1 for texts that make sense, 0 for others, -1 where that is not known.
    Words are guessed in the unknown texts and in half of those that make sense; of the rest, which
    is read as it stands, the sense is told.
    """
    states = hidden_states(config)

    def at_places(model: tuple[Any, Array], tokens: Array) -> Array:
        params, places = model
        return jnp.take_along_axis(states(params, tokens), places[..., None], axis=1)

    read = by_length(at_places, schedule.lengths)

    def loss(
        params: Any, tokens: Array, sense: Array, sample: Array, key: Array
    ) -> tuple[Array, Array]:
        hide_key, coin_key = jax.random.split(key)
        hidden = hide(tokens, hide_key, mask=config.vocabulary - 1, share=schedule.share)
        guessed = (sense < 0) | ((sense > 0) & jax.random.bernoulli(coin_key, 0.5, sense.shape))
        inputs = jnp.where(guessed[:, None], hidden.inputs, tokens)
        guess, table = params["guess"], params["encoder"]["token_embedding"]["embedding"]
        places = jnp.pad(hidden.places, ((0, 0), (1, 0)))  # the first position, then the guesses
        x = read((params["encoder"], places), inputs)
        first, x = x[:, 0], x[:, 1:]
        x = jax.nn.gelu(x @ guess["kernel"] + guess["bias"][None, None])
        x = (x - x.mean(axis=-1, keepdims=True)) / (x.std(axis=-1, keepdims=True) + 1e-3)
        x = x * guess["scale"][None, None]
        if schedule.sampled:
            each = _against_sample(x, table, guess["words"], hidden.targets, sample)
        else:
            logits = x @ table.T + guess["words"][None, None]
            each = optax.softmax_cross_entropy_with_integer_labels(logits, hidden.targets)
        words = _mean(each, hidden.counts & guessed[:, None])
        logit = first @ guess["sense"]
        told = _mean(optax.sigmoid_binary_cross_entropy(logit, sense.astype(jnp.float32)), ~guessed)
        return words + told, jnp.stack([words, told])

    return loss


def _mean(values: Array, mask: Array) -> Array:
    """Returns the mean over what the mask keeps, 0 if that is nothing."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(dtype=values.dtype), 1.0)


def _against_sample(x: Array, table: Array, bias: Array, targets: Array, sample: Array) -> Array:
    """Cross-entropy of the target among a sample of tokens, drawn as often as texts contain them.

    What is learned is how much likelier a token is here than elsewhere: without the correction for
    the sample that a language model would need.
    """
    right = (x * table[targets]).sum(axis=-1) + bias[targets]
    wrong = x @ table[sample].T + bias[sample][None, None]
    wrong = jnp.where(sample[None, None] == targets[..., None], -1e9, wrong)
    logits = jnp.concatenate([right[..., None], wrong], axis=-1)
    return -jax.nn.log_softmax(logits, axis=-1)[..., 0]


def pretrain(
    config: RobertaConfig,
    tokens: np.ndarray,
    schedule: Schedule,
    *,
    sense: np.ndarray | None = None,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
    on_chunk: Callable[[np.ndarray], None] | None = None,
    saver: Saver | None = None,
) -> dict[str, Any]:
    """Trains an encoder on texts.

    Args:
        config: its sizes; the last id of the vocabulary is <mask>.
        tokens: int32 [n, length], padded at the end.
        schedule: hyper-parameters.
        sense: bool [n], whether each text makes sense; None where that is not known.
        seed: of weights, batches and masks.
        devices: that share each batch; their number has to divide it. All by default.
        on_chunk: called with the losses of each chunk; first with those of a run that continues.
        saver: keeps the state, and finds that of an interrupted run.

    Returns:
        On the host: the 'encoder', the layers that 'guess' words and tell sense, and 'losses'
        [step, 2] of the two.
    """
    devices = list(devices or jax.local_devices())
    count = len(devices)
    assert schedule.batch_size % count == 0, "the devices cannot share a batch equally"
    key, weights_key = jax.random.split(jax.random.key(seed))
    params = initial(config, weights_key)
    tx = _optimiser(schedule)
    carry = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (count, *x.shape)), (params, tx.init(params))
    )
    program = _program(make_loss(config, schedule), tx, devices)
    rng = np.random.default_rng(seed)
    easy = _batches(tokens[: schedule.easy_texts or None], schedule, rng)
    mixed = _batches(tokens, schedule, rng)
    seen = tokens[tokens >= SPECIAL]
    known = np.full(len(tokens), -1, np.int32) if sense is None else sense.astype(np.int32)
    saver = saver or Saver(None)
    begin, losses = 0, []
    if (found := saver.found(carry)) is not None:
        begin, carry, meta = found
        rng.bit_generator.state = meta["rng"]
        losses = [np.asarray(meta["losses"], np.float32)]
        if on_chunk is not None:
            on_chunk(losses[0].sum(axis=1))
    with interrupt.deferred():
        for first in range(begin, schedule.steps, CHUNK):
            steps = min(CHUNK, schedule.steps - first)
            choose = easy if first < schedule.easy_steps else mixed
            rows = choose(steps).reshape(steps, count, -1).swapaxes(0, 1)
            sample = rng.choice(seen, (steps, schedule.sampled)).astype(np.int32)
            keys = jax.random.split(jax.random.fold_in(key, first), (count, steps))
            carry, values = program(carry, tokens[rows], known[rows], sample, keys)
            losses.append(np.asarray(values[0]))
            if on_chunk is not None:
                on_chunk(losses[-1].sum(axis=1))
            saver.chunk_done(first + steps, carry, lambda: {
                "rng": rng.bit_generator.state, "losses": np.concatenate(losses).tolist()
            })  # fmt: skip
    params = jax.tree.map(lambda x: np.asarray(x[0]), carry[0])
    return params | {"losses": np.concatenate(losses)}


def _optimiser(schedule: Schedule) -> optax.GradientTransformation:
    rates = optax.warmup_cosine_decay_schedule(
        0.0, schedule.learning_rate, max(1, min(WARMUP, schedule.steps // 20)), schedule.steps,
        schedule.learning_rate / 100,
    )  # fmt: skip

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rates, b2=0.98, weight_decay=schedule.weight_decay, mask=matrices),
    )


def _program(loss: Callable[..., Any], tx: optax.GradientTransformation, devices: list) -> Any:
    """Returns the program of a chunk: (state, tokens, sense, samples, keys) → (state, losses)."""

    def step(carry: Any, batch: Any) -> tuple[Any, Array]:
        params, state = carry
        (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        parts, gradients = jax.lax.pmean((parts, gradients), "devices")
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), parts

    def chunk(carry: Any, *batches: Array) -> tuple[Any, Array]:
        return jax.lax.scan(step, carry, batches)

    return jax.pmap(
        chunk, axis_name="devices", in_axes=(0, 0, 0, None, 0), devices=devices, donate_argnums=0
    )


def _batches(
    tokens: np.ndarray, schedule: Schedule, rng: np.random.Generator
) -> Callable[[int], np.ndarray]:
    """Returns steps → rows [step, batch], the rows of a batch of about one length."""
    place = np.searchsorted(np.array(schedule.lengths), text_lengths(tokens))
    groups = [np.flatnonzero(place == i) for i in range(len(schedule.lengths) + 1)]
    groups = [group for group in groups if len(group)]
    shares = np.array([len(group) for group in groups]) / len(tokens)

    def choose(steps: int) -> np.ndarray:
        kinds = rng.choice(len(groups), steps, p=shares)
        return np.stack([rng.choice(groups[kind], schedule.batch_size) for kind in kinds])

    return choose
