"""What a SyMerge step must calculate and move, by hand and as XLA counts it.

Used by `benchmarks.floor`, which says what the counts are and are not.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.adaptation_step import CLASSES, EagerState, make_eager_step
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.fit import ADAM
from symerge_jax.adapt.merged import Constants, Trainables, encoder_loss
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.data.preprocess import normalise
from symerge_jax.models import clip
from symerge_jax.models.heads import normalised_head

BYTES = {"float32": 4, "bfloat16": 2}


class Machine(NamedTuple):
    """What a device does: bytes per second, and FLOPs per second of matrix products by dtype."""

    bandwidth: float
    rates: dict[str, float]


# NVIDIA H200 Tensor Core GPU datasheet (SXM): 4.8 TB/s; FP32 67 TFLOPS; BFLOAT16 Tensor Core 1,979
# TFLOPS with sparsity, so 989 dense.
DATA_SHEETS = {"H200": Machine(4.8e12, {"float32": 67e12, "bfloat16": 989e12})}


class Product(NamedTuple):
    """A kind of matrix product [rows, inner] @ [inner, columns] in a step.

    Attributes:
        rows: of the left operand.
        inner: contracted.
        columns: of the right operand.
        count: how many of them are in one forward.
        gradients: how many of the operands need a gradient.
        weight: whether the right operand is a parameter.
    """

    rows: int
    inner: int
    columns: int
    count: int
    gradients: int = 2
    weight: bool = True

    @property
    def flops(self) -> int:
        """Of all of them, forward and backward."""
        return 2 * self.rows * self.inner * self.columns * self.count * (1 + self.gradients)

    @property
    def numbers(self) -> int:
        """What they read and write: operands and result, forward and for each gradient."""
        one = self.rows * self.inner + self.inner * self.columns + self.rows * self.columns
        return one * self.count * (1 + self.gradients)


class Work(NamedTuple):
    """Of one phase."""

    flops: float
    bytes: float


def products(config: clip.VisionConfig, batch: int, classes: int = CLASSES) -> list[Product]:
    """Returns the matrix products of a tower and its head; the last block has one asking token."""
    width, hidden, tokens, depth = config.width, config.hidden, config.tokens, config.depth
    per_head = width // config.heads
    all_ = batch * tokens
    found = [
        Product(batch * config.grid**2, 3 * config.patch_size**2, width, 1, gradients=1),
        Product(all_, width, 3 * width, depth),
    ]
    for asking, blocks in ((tokens, depth - 1), (1, 1)):
        rows, pairs = batch * asking, batch * config.heads * blocks
        found += [
            Product(asking, per_head, tokens, pairs, weight=False),
            Product(asking, tokens, per_head, pairs, weight=False),
            Product(rows, width, width, blocks),
            Product(rows, width, hidden, blocks),
            Product(rows, hidden, width, blocks),
        ]
    if config.projection is not None:
        found.append(Product(batch, width, config.projection, 1))
    found.append(Product(batch, config.projection or width, classes, 1))
    return [product for product in found if product.count]


def parameters(config: clip.VisionConfig) -> int:
    """Returns how many numbers a tower has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(clip.param_shapes(config)))


def work(config: clip.VisionConfig, tasks: int, batch: int, dtype: str) -> dict[str, Work]:
    """Returns the phases of a step: what each calculates and moves.

    τ, θ and its gradient have the given dtype; θ₀ is float32. τ is read twice, to merge and for
    the gradient of λ.
    """
    size = BYTES[dtype]
    numbers = parameters(config)
    kinds = products(config, batch)
    sums = 2 * tasks * numbers  # FLOPs
    return {
        "merge": Work(sums, numbers * (tasks * size + 4 + size)),
        "tower": Work(sum(p.flops for p in kinds), size * sum(p.numbers for p in kinds)),
        "gradient": Work(sums, numbers * (tasks * size + size)),
    }


def seconds(phases: dict[str, Work], machine: Machine, dtype: str) -> dict[str, float]:
    """Returns the floor, its phases, and what is left when all overlaps."""
    rate, bandwidth = machine.rates[dtype], machine.bandwidth
    least = {name: max(w.flops / rate, w.bytes / bandwidth) for name, w in phases.items()}
    flops, moved = (sum(getattr(w, part) for w in phases.values()) for part in Work._fields)
    return {
        "floor": sum(least.values()),
        **least,
        "overlapped": max(flops / rate, moved / bandwidth),
    }


def compiled_step(config: clip.VisionConfig, tasks: int, batch: int, dtype: str = "float32") -> Any:
    """Compiles one step, without any numbers; returns what XLA made of it."""
    tower = clip.encode_image(config, dtype=None if dtype == "float32" else dtype)

    def encode(params: Any, images: jax.Array) -> jax.Array:
        return tower(params, normalise(images))

    def whole() -> tuple[EagerState, Constants]:
        pretrained = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), clip.param_shapes(config))
        stacked = jax.tree.map(lambda x: jnp.zeros((tasks, *x.shape), dtype), pretrained)
        d = config.projection or config.width
        heads = {
            "weight": jnp.zeros((tasks, CLASSES, d)),
            "bias": jnp.zeros((tasks, CLASSES)),
        }
        trainables = Trainables(per_leaf(stacked, 0.3), heads)
        state = EagerState(
            trainables,
            ADAM.init(trainables.coefficients),
            jax.vmap(ADAM.init)(heads),
            jnp.zeros(tasks, bool),
        )
        real = jnp.ones((tasks, CLASSES), bool)
        return state, Constants(pretrained, stacked, real, jnp.zeros(tasks, jnp.int32))

    state, constants = jax.eval_shape(whole)
    one = jax.ShapeDtypeStruct
    edge = config.image_size
    kinds: list[Any] = [one((batch,), kind) for kind in (jnp.int32, jnp.float32)]
    step = make_eager_step(encoder_loss(encode, normalised_head))
    lowered: Any = step
    return lowered.lower(
        state,
        constants,
        one((), jnp.int32),
        one((batch, edge, edge, 3), jnp.uint8),
        ExpertLabels(*kinds),
        one((batch,), jnp.bool_),
    ).compile()


def cost(compiled: Any) -> dict[str, float]:
    """Returns the FLOPs and bytes that XLA counts, and how its memory is split, in bytes."""
    counted, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": counted["flops"],
        "bytes": counted["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }
