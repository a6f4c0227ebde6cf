"""CLIP's image tower with weight-ensembling mixtures of experts where its MLPs were (WEMoE).

Tang et al., "Merging Multi-Task Models via Weight-Ensembling Mixture of Experts", ICML 2024
(https://arxiv.org/abs/2402.00433). In every block a router reads what the MLP reads and says how
much of each task's MLP goes into the MLP of this image: φ_i = φ₀ + Σ_k g_ik (φ_k − φ₀), with
g_i = mean over tokens of R(x). No softmax, no top-k, no clamp.

Two forms of one function: `mixing="weights"` makes φ_i, [batch, in, out] per matrix, and multiplies
once; `mixing="outputs"` multiplies with φ₀ and every φ_k − φ₀ and never makes φ_i. With K tasks and
t tokens they take K + t and (K + 1) · t times as many multiplications as φ has numbers.

Numbers: as in `symerge_jax.models.clip`; the router and what it mixes are float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from symerge_jax import trees
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import VisionTower, _Ending
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.transformer import (
    ACTIVATIONS,
    Attention,
    Dense,
    LayerNorm,
    Tree,
    unset,
)

__all__ = ["Router", "encode_image_moe", "initial_router", "mixture_mlp", "mlp_leaves"]

# (params, τ of the MLPs, router, images, mask bool [batch] or None) → features [batch, d]
RoutedEncode = Callable[..., Array]
Mixing = Literal["weights", "outputs"]

DEVIATION = 0.01  # of the router's matrices at first


class Router(nn.Module):
    """Tokens → g, one coefficient per task: the mean over tokens of R(x).

    R is W₂ relu(W₁ x + b₁) + b₂ at depth 2 ('hidden', 'out'), W₂ x + b₂ at depth 1 ('out'), and at
    depth 0 a vector that no input changes ('gate').
    """

    tasks: int
    depth: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns g [batch, task] of x [batch, t, width]; [1, task] at depth 0."""
        if self.depth == 0:
            return self.param("gate", unset, (self.tasks,)).astype(x.dtype)[None]
        if self.depth == 2:
            width = x.shape[-1]
            x = jax.nn.relu(Dense(width, name="hidden")(x.reshape(-1, width))).reshape(x.shape)
        # What follows is linear, so the mean over tokens can come first.
        return Dense(self.tasks, name="out")(x.mean(axis=1))


def mixture_mlp(
    mlp: Tree,
    task_vectors: Tree,
    gate: Array,
    x: Array,
    *,
    activation: Callable[[Array], Array],
    mixing: Mixing,
) -> Array:
    """Returns y_i = MLP(x_i; φ₀ + Σ_k g_ik τ_k), [batch, t, width].

    Args:
        mlp: φ₀, {'fc', 'proj'} with 'kernel' [in, out] and 'bias' [out].
        task_vectors: τ, the same with leaves [task, ...].
        gate: g, [batch, task], or [1, task] for one φ for the whole batch.
        x: [batch, t, width].
        activation: between the two layers.
        mixing: 'weights' or 'outputs'.
    """
    y = x.reshape(gate.shape[0], -1, x.shape[-1])  # rows that share a φ, side by side
    # For a single row both forms multiply equally often, and outputs are smaller than weights.
    layer = _by_weights if mixing == "weights" and y.shape[1] > 1 else _by_outputs
    y = activation(layer(mlp["fc"], task_vectors["fc"], gate, y))
    return layer(mlp["proj"], task_vectors["proj"], gate, y).reshape(x.shape)


def _mixed(leaf: Array, tau: Array, gate: Array) -> Array:
    """Returns φ₀ + Σ_k g_k τ_k of one leaf [...] for each row of the gate, [batch, ...]."""
    # Accelerators would otherwise round τ to 10 bits (TensorFloat-32).
    moved = jnp.tensordot(gate, tau.astype(gate.dtype), axes=1, precision="highest")
    return leaf.astype(gate.dtype)[None] + moved


def _by_weights(dense: Tree, tau: Tree, gate: Array, x: Array) -> Array:
    """A dense layer on x [batch, t, in], with a kernel of its own for each row of the batch."""
    kernel, bias = (_mixed(dense[n], tau[n], gate).astype(x.dtype) for n in ("kernel", "bias"))
    return jnp.einsum("bti,bio->bto", x, kernel) + bias[:, None]


def _by_outputs(dense: Tree, tau: Tree, gate: Array, x: Array) -> Array:
    """The same without those kernels: Σ_k g_k (x τ_k) is the product of (g_k x)_k with (τ_k)_k."""
    batch, rows, width = x.shape
    scaled = gate.astype(x.dtype)[:, None, :, None] * x[:, :, None, :]
    kernel, experts = (leaf.astype(x.dtype) for leaf in (dense["kernel"], tau["kernel"]))
    y = x.reshape(-1, width) @ kernel
    y = y + scaled.reshape(batch * rows, -1) @ experts.reshape(-1, kernel.shape[-1])
    bias = _mixed(dense["bias"], tau["bias"], gate).astype(x.dtype)
    return y.reshape(batch, rows, -1) + bias[:, None]


class MixtureBlock(nn.Module):
    """A pre-norm residual block with a mixture for an MLP.

    The router reads all tokens. With `first_only` the block returns the first position alone.
    """

    config: VisionConfig
    tasks: int
    depth: int
    mixing: Mixing
    batch_reduce: bool
    first_only: bool

    @nn.compact
    def __call__(self, x: Array, mlp: Tree, task_vectors: Tree, mask: Array | None) -> Array:
        """Returns [batch, t or 1, width] of x [batch, t, width]; see `mixture_mlp`."""
        config, width = self.config, self.config.width
        y = LayerNorm(config.layer_norm_eps, name="ln_1")(x.reshape(-1, width)).reshape(x.shape)
        x = x + Attention(config, name="attention")(y, None)
        y = LayerNorm(config.layer_norm_eps, name="ln_2")(x.reshape(-1, width)).reshape(x.shape)
        gate = Router(self.tasks, self.depth, name="router")(y.astype(trees.wide(y.dtype)))
        if self.batch_reduce:
            gate = _batch_mean(gate, mask)
        if self.first_only:
            x, y = x[:, :1], y[:, :1]
        activation = ACTIVATIONS[config.activation]
        return x + mixture_mlp(
            mlp, task_vectors, gate, y, activation=activation, mixing=self.mixing
        )


def _batch_mean(gate: Array, mask: Array | None) -> Array:
    """Returns the mean over the rows in `mask`, [1, task]."""
    if mask is None or gate.shape[0] == 1:
        return gate.mean(axis=0, keepdims=True)
    weights = mask.astype(gate.dtype)[:, None]
    return (weights * gate).sum(axis=0, keepdims=True) / jnp.maximum(weights.sum(), 1)


@cache
def encode_image_moe(
    config: VisionConfig,
    *,
    depth: int = 2,
    mixing: Mixing = "weights",
    batch_reduce: bool = False,
    dtype: Any = None,
) -> RoutedEncode:
    """Returns (params, τ of the MLPs, router, images, mask=None) → features.

    The same arguments give the same function object, whose compiled program is found again.

    Args:
        config: sizes of the tower.
        depth: of the routers; 2, 1 or 0.
        mixing: 'weights' is quicker; 'outputs' needs less memory, since training keeps no φ_i.
        batch_reduce: whether g is averaged over the batch too: one φ for all of its images.
        dtype: precision of the computation; None takes the parameters' own.

    Returns:
        A function of the tower's parameters with the MLPs at φ₀, a tree with
        {'blocks_<i>': {'mlp': leaves [task, ...]}}, the routers {'blocks_<i>': …} (see
        `initial_router`), normalised images [batch, height, width, 3], and which of them are no
        padding, bool [batch] (only `batch_reduce` reads it; None for all). It gives features
        [batch, d] that are not L2-normalised, and raises `BadInput` for a router of other sizes.

    Raises:
        BadInput: an unknown depth or mixing.
    """
    if depth not in (0, 1, 2):
        raise BadInput(f"the depth of a router must be 0, 1 or 2, got {depth}")
    if mixing not in ("weights", "outputs"):
        raise BadInput(f"mixing must be one of weights, outputs, got {mixing!r}")
    begin, end = VisionTower(config, dtype, before_blocks=True), _Ending(config)

    def apply(
        params: Tree, task_vectors: Tree, router: Tree, images: Array, mask: Array | None = None
    ) -> Array:
        tasks = task_vectors["blocks_0"]["mlp"]["fc"]["kernel"].shape[0]
        _check_router(router, config, tasks, depth)
        block = partial(MixtureBlock, config, tasks, depth, mixing, batch_reduce)
        rest = {name: leaf for name, leaf in params.items() if not name.startswith("blocks_")}
        x = begin.apply({"params": rest}, images)
        for i in range(config.depth):
            name = f"blocks_{i}"
            own = {"params": {**params[name], "router": router[name]}}
            mlps = params[name]["mlp"], task_vectors[name]["mlp"]
            x = block(i == config.depth - 1).apply(own, x, *mlps, mask)
        return cast(Array, end.apply({"params": rest}, x))

    return apply


def _check_router(router: Tree, config: VisionConfig, tasks: int, depth: int) -> None:
    draw = partial(_draw, width=config.width, tasks=tasks, depth=depth, coefficient=0.0)
    expected = jax.tree.map(jnp.shape, jax.eval_shape(draw, jax.random.key(0)))
    for i in range(config.depth):
        found = jax.tree.map(jnp.shape, router.get(f"blocks_{i}"))
        if found != expected:
            raise BadInput(
                f"router of blocks_{i}: expected shapes {expected} for depth {depth} and {tasks} "
                f"task vectors, got {found}"
            )


def initial_router(
    config: VisionConfig, tasks: int, key: Array, *, depth: int = 2, coefficient: float = 0.3
) -> Tree:
    """Draws a float32 router per block, {'blocks_<i>': …}, which starts near task arithmetic.

    Matrices are N(0, 0.01²), so g is `coefficient` up to about 0.01; at depth 0 it is exact.

    Args:
        config: sizes of the tower.
        tasks: number of task vectors.
        key: of the matrices.
        depth: 2, 1 or 0; see `Router`.
        coefficient: λ, which the last bias (or the gate) starts from.
    """
    keys = jax.random.split(key, config.depth)
    return {
        f"blocks_{i}": _draw(keys[i], config.width, tasks, depth, coefficient)
        for i in range(config.depth)
    }


def _draw(key: Array, width: int, tasks: int, depth: int, coefficient: float) -> Tree:
    """Returns one block's router."""
    if depth == 0:
        return {"gate": jnp.full((tasks,), coefficient, jnp.float32)}

    def dense(key: Array, features: int, bias: float) -> Tree:
        kernel = DEVIATION * jax.random.normal(key, (width, features), jnp.float32)
        return {"kernel": kernel, "bias": jnp.full((features,), bias, jnp.float32)}

    hidden_key, out_key = jax.random.split(key)
    router = {"out": dense(out_key, tasks, coefficient)}
    if depth == 2:
        router["hidden"] = dense(hidden_key, width, 0.0)
    return router


def mlp_leaves(params: Tree) -> Tree:
    """Returns a tree like the image tower's parameters, True where a leaf belongs to an MLP."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/mlp/" in trees.path_name(path), params
    )
