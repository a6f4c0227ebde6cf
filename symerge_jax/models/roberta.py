"""RoBERTa's encoder and the classifier on it (architecture only; weights: `checkpoints.roberta`).

Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019
(https://arxiv.org/abs/1907.11692), with the blocks of Devlin et al. 2018
(https://arxiv.org/abs/1810.04805): post-norm, exact GELU, one leaf per tensor of the source.

A text is one row of token ids, padded at the end. Attention mask and position ids follow from which
ids are padding, and token types are all 0, so there are no other inputs. Positions count from
`pad_token` + 1, a peculiarity of the original code. Nothing is dropped out, in training neither.

Numbers: everything runs in `dtype` (default: that of the parameters), LayerNorm, softmax and what
is returned in float32 or wider. Padding changes nothing but the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from symerge_jax.errors import BadInput
from symerge_jax.models.roberta_config import PRESETS, RobertaConfig
from symerge_jax.models.transformer import (
    MLP,
    Attention,
    LayerNorm,
    Tree,
    apply_from_host,
    draw_params,
    repeat_block,
    unset,
)
from symerge_jax.notation import Array
from symerge_jax.trees import wide

__all__ = [
    "PRESETS",
    "Encoder",
    "RobertaConfig",
    "by_length",
    "classify",
    "encode_once",
    "encode_tokens",
    "hidden_states",
    "initial_head",
    "initial_params",
    "param_shapes",
]

Encode = Callable[[Any, Array], Array]

DEVIATION = 0.02  # of fresh weights


class Block(nn.Module):
    """Post-norm residual block; with `first_only` it returns the first position alone."""

    config: RobertaConfig
    first_only: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns [batch, t or 1, width] of x [batch, t, width] and mask bool [batch, 1, 1, t]."""
        config, width = self.config, x.shape[-1]
        y = Attention(config, self.first_only, name="attention")(x, mask)
        x = (x[:, :1] if self.first_only else x) + y
        flat = LayerNorm(config.layer_norm_eps, name="ln_1")(x.reshape(-1, width))
        flat = flat + MLP(config, name="mlp")(flat)
        return LayerNorm(config.layer_norm_eps, name="ln_2")(flat).reshape(x.shape)


class Encoder(nn.Module):
    """Token ids → features: the hidden state of the first position.

    The last block works out no other position. `every_position` returns the hidden states of all,
    `before_blocks` what enters the first block.
    """

    config: RobertaConfig
    dtype: Any = None
    every_position: bool = False
    before_blocks: bool = False

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Returns features [batch, width] of tokens int [batch, length], or [batch, length, width].

        They are float32, or float64 when computed in float64.
        """
        config, width = self.config, self.config.width
        tokens = jnp.asarray(tokens)
        batch, length = tokens.shape
        if length > config.length:
            raise BadInput(
                f"texts of {length} tokens, but the model has positions for {config.length}; cut "
                "them to that length"
            )
        words = nn.Embed(
            config.vocabulary, width, embedding_init=unset, name="token_embedding"
        ).embedding
        position = self.param("position_embedding", unset, (config.positions, width))
        kind = self.param("token_type_embedding", unset, (config.token_types, width))
        dtype = self.dtype or position.dtype
        x = jnp.asarray(words)[tokens].astype(dtype)
        x = x + jnp.asarray(position)[position_ids(tokens, config)].astype(dtype)
        x = x + jnp.asarray(kind).astype(dtype)[None, :1]
        norm = LayerNorm(config.layer_norm_eps, name="ln_embedding")
        x = norm(x.reshape(-1, width)).reshape(batch, length, width)
        if self.before_blocks:
            return x
        mask = attention_mask(tokens, config)
        for i in range(config.depth):
            first_only = i == config.depth - 1 and not self.every_position
            x = Block(config, first_only, name=f"blocks_{i}")(x, mask)
        x = x if self.every_position else x[:, 0]
        return x.astype(wide(x.dtype))


def position_ids(tokens: jax.Array, config: RobertaConfig) -> jax.Array:
    """Returns int [batch, length]: `pad_token` + 1, 2, … over what is no padding, else it."""
    seen = (tokens != config.pad_token).astype(tokens.dtype)
    return jnp.cumsum(seen, axis=1, dtype=tokens.dtype) * seen + config.pad_token


def attention_mask(tokens: jax.Array, config: RobertaConfig) -> jax.Array:
    """Returns bool [batch, 1, 1, length]: all positions look at what is no padding."""
    return (tokens != config.pad_token)[:, None, None]


def encode_tokens(config: RobertaConfig, *, dtype: Any = None) -> Encode:
    """Returns the pure function (params, tokens) → features; the same one for the same arguments.

    Args:
        config: sizes of the encoder.
        dtype: precision of the computation; None takes the parameters' own.

    Returns:
        A function of a nested dict of parameters and token ids, int [batch, length] padded at the
        end, giving features [batch, width]. It raises `BadInput` for texts longer than
        `config.length`.
    """
    return _function(config, None if dtype is None else jnp.dtype(dtype), False)


def hidden_states(config: RobertaConfig, *, dtype: Any = None) -> Encode:
    """Returns (params, tokens) → hidden states [batch, length, width]; see `encode_tokens`.

    At positions that hold padding they mean nothing.
    """
    return _function(config, None if dtype is None else jnp.dtype(dtype), True)


@cache
def _function(config: RobertaConfig, dtype: Any, every_position: bool) -> Encode:
    encoder = Encoder(config, dtype, every_position)

    def apply(params: Any, tokens: Array) -> Array:
        return cast(Array, encoder.apply({"params": params}, tokens))

    return apply


def encode_once(config: RobertaConfig, params: Any, tokens: Array) -> Array:
    """Returns what `encode_tokens` does, for an encoder that is used once and lies on the host.

    The blocks share one compiled program, which takes a fraction of the time to compile.
    """
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("blocks_")}
    x = apply_from_host(Encoder(config, before_blocks=True), rest, tokens)
    mask = attention_mask(jnp.asarray(tokens), config)
    for i in range(config.depth):
        x = apply_from_host(Block(config), params[f"blocks_{i}"], x, mask)
    return x[:, 0].astype(wide(x.dtype))


def by_length(encode: Encode, lengths: tuple[int, ...] = (16, 32, 64, 128), pad: int = 1) -> Encode:
    """Returns an encoder that leaves out what is padding in every row, as far as `lengths` allow.

    The longest row of a batch chooses a length at run time, so one compiled program serves batches
    of all lengths, inside loops too. Results are those of `encode` but for rounding. The same
    arguments give the same function object. Under `jax.vmap` every length is worked out.

    Args:
        encode: (params, tokens int [batch, length]) → features.
        lengths: to cut to; the length of the array itself always counts as one.
        pad: id of padding, which stands at the end of rows only.
    """
    return _by_length(encode, tuple(lengths), pad)


@cache
def _by_length(encode: Encode, lengths: tuple[int, ...], pad: int) -> Encode:
    def apply(params: Any, tokens: Array) -> Array:
        whole = tokens.shape[1]
        cuts = [*sorted({length for length in lengths if 0 < length < whole}), whole]
        place = jnp.arange(1, whole + 1, dtype=tokens.dtype)[None]
        longest = jnp.where(tokens == pad, 0, place).max()  # 1 + where the last token stands
        choice = (longest > jnp.asarray(cuts[:-1], tokens.dtype)).sum(dtype=jnp.int32)
        return jax.lax.switch(choice, [partial(_cut, encode, cut) for cut in cuts], params, tokens)

    return apply


def _cut(encode: Encode, length: int, params: Any, tokens: Array) -> Array:
    return encode(params, tokens[:, :length])


def classify(head: Tree, features: Array) -> Array:
    """Returns logits [batch, outputs] = W₂ tanh(W₁ h + b₁) + b₂.

    Args:
        head: {'dense': {'kernel' [width, width], 'bias'}, 'out_proj': {'kernel' [width, outputs],
            'bias'}}; a regression has one output.
        features: h, [batch, width].
    """
    dense, out = head["dense"], head["out_proj"]
    hidden = jnp.tanh(features @ dense["kernel"] + dense["bias"][None])
    return hidden @ out["kernel"] + out["bias"][None]


def initial_params(config: RobertaConfig, key: jax.Array) -> Tree:
    """Draws float32 parameters as for pre-training: normal with deviation 0.02."""
    return draw_params(param_shapes(config), key, lambda path: DEVIATION)


def initial_head(config: RobertaConfig, outputs: int, key: jax.Array) -> Tree:
    """Draws a float32 head with `outputs` outputs: normal with deviation 0.02, biases 0."""
    width = config.width
    sizes = {"dense": (width, width), "out_proj": (width, outputs)}
    shapes = {
        name: {
            "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
            "bias": jax.ShapeDtypeStruct(shape[1:], jnp.float32),
        }
        for name, shape in sizes.items()
    }
    return draw_params(shapes, key, lambda path: DEVIATION)


def param_shapes(config: RobertaConfig) -> Tree:
    """Returns the tree of `initial_params` with `jax.ShapeDtypeStruct` for leaves."""
    encoder = Encoder(replace(config, depth=1))  # blocks are alike; tracing one is quicker
    example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), example)["params"]
    return repeat_block(shapes, config.depth)
