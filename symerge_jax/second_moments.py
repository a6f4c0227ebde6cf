"""Statistics of an expert on unlabelled inputs: Gram matrices of activations, Fisher diagonals.

They come from `apply(params, inputs)` and batches alone. What enters a layer is seen by
intercepting the calls of Flax modules, so `apply` may be any function that runs Linen modules on
`params`.

One expert's statistics are one file (`save_moments`): they can be published and used again by
whoever has the same expert. `trees.stack` makes those of K experts what a merging method takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from symerge_jax import trees
from symerge_jax.cache import digest
from symerge_jax.errors import BadInput
from symerge_jax.files import write_atomically
from symerge_jax.notation import Array, Float, Params

Apply = Callable[[Any, Any], Any]
FORMAT = 1  # of the files


class Moment(NamedTuple):
    """Second moment of what a parameter multiplies.

    Attributes:
        mean: [in, in], the mean of x xᵀ over the rows x that enter a linear layer; or [d], the
            mean of x² over what enters the scale of a normalisation. With a leading task axis
            once stacked.
        rows: how many there were, float32 [].
    """

    mean: Array
    rows: Array


def gram_matrices(
    apply: Apply,
    params: Params,
    batches: Iterable[Any],
    *,
    patches: Sequence[str] = (),
    counts: Callable[[Any], Array] | None = None,
) -> Any:
    """Returns the second moments of the inputs of linear and normalisation layers.

    Covered are modules with a `kernel` [in, out] (their first argument, all leading axes as rows)
    and modules with a `scale` [d] (their normalised input, before the scale). One pass; memory is
    that of the sums, in² numbers per layer.

    Args:
        apply: (params, inputs) → anything; runs Linen modules, traced as one function. It should
            work out everything: a tower that skips positions it does not need has fewer rows.
        params: the expert's weights.
        batches: inputs, arrays or pytrees [batch, ...].
        patches: paths of kernels [height, width, channels, out] that multiply the patches of the
            inputs themselves, images [batch, H, W, channels] cut without overlap. Their `in` runs
            over (channel, row, column).
        counts: inputs → which rows that enter a layer count, bool [batch, position], such as those
            that are no padding; each layer must take one row per position. None for all.

    Returns:
        A pytree like `params` with a `Moment` in place of each covered leaf, None elsewhere.

    Raises:
        BadInput: no batch; a layer's path that `params` does not have; activations that are not
            finite.
    """
    from flax import linen  # takes half a second to import, and not every merge needs it

    known = dict(zip(trees.paths(params), jax.tree.leaves(params), strict=True))

    @jax.jit
    def sums(params: Params, inputs: Any) -> dict[str, Moment]:
        found: dict[str, Moment] = {path: _gram_of_patches(inputs, known[path]) for path in patches}
        counting = None if counts is None else counts(inputs).reshape(-1)
        with linen.intercept_methods(_Watch(found, counting)):
            apply(params, inputs)
        return found

    total: dict[str, Moment] | None = None
    for inputs in batches:
        found = sums(params, inputs)
        for path in found:
            if path not in known:
                raise BadInput(
                    f"gram_matrices: a layer has its weights at {path}, which the parameters lack; "
                    "give the parameters that the network itself takes"
                )
        total = found if total is None else _plus(total, found)
    if total is None:
        raise BadInput("gram_matrices: expected at least one batch of inputs, got none")
    means = {path: Moment(_over(m.mean, m.rows), m.rows) for path, m in total.items()}
    check_finite(means, "the inputs of {} are not finite; check the inputs and the expert")
    return _like(params, means)


class _Watch:
    """Called around each method of a module; adds up the moments of what enters its layers."""

    def __init__(self, found: dict[str, Moment], counting: Array | None = None) -> None:
        self._found, self._counting, self._busy = found, counting, False

    def __call__(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,  # of flax, like the module
    ) -> Any:
        if not self._busy and context.method_name == "__call__" and args:
            self._look(context.module, args, kwargs)
        return run(*args, **kwargs)

    def _look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = module.variables.get("params", {})
        kernel, scale = own.get("kernel"), own.get("scale")
        if kernel is not None and kernel.ndim == 2:
            self._add((*module.path, "kernel"), _gram(args[0], self._counting))
        elif scale is not None and scale.ndim == 1:
            # With scale 1 and shift 0 the module itself gives what its scale multiplies.
            plain = {name: jnp.full_like(leaf, name == "scale") for name, leaf in own.items()}
            self._busy = True
            variables = {**module.variables, "params": plain}
            x = cast(Array, module.clone(parent=None).apply(variables, *args, **kwargs))
            self._busy = False
            self._add((*module.path, "scale"), _squares(x, self._counting))

    def _add(self, path: tuple[str, ...], moment: Moment) -> None:
        name = "/".join(path)
        earlier = self._found.get(name)  # a layer may be called twice
        self._found[name] = moment if earlier is None else _plus(earlier, moment)


def _gram(x: Float[Array, ...], counting: Array | None = None) -> Moment:
    rows, count = _counted(x, counting)
    return Moment(jnp.matmul(rows.T, rows, precision="highest"), count)


def _squares(x: Float[Array, ...], counting: Array | None = None) -> Moment:
    rows, count = _counted(x, counting)
    return Moment(jnp.square(rows).sum(axis=0), count)


def _counted(x: Float[Array, ...], counting: Array | None) -> tuple[Array, Array]:
    """Returns rows [n, d] of x, zeros for those that do not count, and how many do."""
    rows = x.reshape(-1, x.shape[-1]).astype(trees.wide(x.dtype))
    if counting is None:
        return rows, jnp.asarray(rows.shape[0], jnp.float32)
    assert counting.shape == rows.shape[:1], (counting.shape, rows.shape)
    kept = jnp.where(counting[:, None], rows, jnp.zeros_like(rows))
    return kept, counting.sum(dtype=jnp.float32)


def _gram_of_patches(images: Float[Array, "batch H W channels"], kernel: Array) -> Moment:
    """Sums of a kernel [height, width, channels, out] on patches that do not overlap."""
    height, width, channels, _ = kernel.shape
    batch, rows, columns, _ = images.shape
    x = images.reshape(batch, rows // height, height, columns // width, width, channels)
    return _gram(x.transpose(0, 1, 3, 5, 2, 4).reshape(-1, channels * height * width))


@partial(jax.jit, donate_argnums=0)
def _plus(total: Any, found: Any) -> Any:
    return jax.tree.map(jnp.add, total, found)


def _over(total: Array, count: Array) -> Array:
    return total / count.astype(total.dtype)


def fisher_diagonal(
    apply: Apply,
    params: Params,
    batches: Iterable[Any],
    classify: Callable[[Any], Any],
    *,
    key: Array | None = None,
    at_once: int = 1,
) -> Any:
    """Returns the diagonal Fisher information: the mean over x of Σ_c p_c (∂ log p_c / ∂θ)².

    No labels are needed. Every example takes one backward pass per class, or one alone with `key`.

    Args:
        apply: (params, inputs [batch, ...]) → features [batch, ...].
        params: the expert's weights; integer leaves take no part (None in the result).
        batches: inputs, arrays or pytrees [batch, ...].
        classify: features → logits [batch, classes], with the expert's own head.
        key: draws one label per example from the expert's answer in place of the sum over classes;
            right on average.
        at_once: examples whose gradients are held at the same time.

    Returns:
        A pytree like `params`, leaves [...] in float32 (float64 where the weights are).

    Raises:
        BadInput: no batch; gradients that are not finite.
    """
    floating, rest = trees.split(params, trees.is_floating)

    def log_probabilities(floating: Params, example: Any) -> Array:
        features = apply(trees.combine(floating, rest), jax.tree.map(lambda x: x[None], example))
        logits = classify(features)[0]
        return jax.nn.log_softmax(logits.astype(trees.wide(logits.dtype)))

    def squares(example: Any, key: Array) -> Params:
        """Σ_c p_c g_c², or g_c² of one c drawn from p."""
        answers, pull = jax.vjp(lambda p: log_probabilities(p, example), floating)

        def add(total: Params, c: Array) -> tuple[Params, None]:
            (gradient,) = pull(jax.nn.one_hot(c, len(answers), dtype=answers.dtype))
            weight = jnp.ones_like(answers[0]) if sample else jnp.exp(answers[c])
            return _add_squares(total, gradient, weight), None

        one = jax.random.categorical(key, answers)[None]
        classes = one if sample else jnp.arange(len(answers))
        return jax.lax.scan(add, _zeros(floating), classes)[0]

    @partial(jax.jit, donate_argnums=0)
    def step(total: Params, examples: Any, keys: Array) -> Params:
        return jax.tree.map(
            lambda a, b: a + b.sum(axis=0), total, jax.vmap(squares)(examples, keys)
        )

    sample, count, total = key is not None, 0, _zeros(floating)
    key = jax.random.key(0) if key is None else key
    for inputs in batches:
        size = len(jax.tree.leaves(inputs)[0])
        for start in range(0, size, at_once):
            examples = jax.tree.map(lambda x, a=start: x[a : a + at_once], inputs)
            number = min(at_once, size - start)
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count, count + number))
            total = step(total, examples, keys)
            count += number
    if not count:
        raise BadInput("fisher_diagonal: expected at least one batch of inputs, got none")
    means = jax.tree.map(lambda x: x / count, total)
    found = dict(zip(trees.paths(means), jax.tree.leaves(means), strict=True))
    check_finite(found, "the gradients of {} are not finite; check the inputs and the expert")
    return means


def _zeros(params: Params) -> Params:
    return jax.tree.map(lambda p: jnp.zeros(p.shape, trees.wide(p.dtype)), params)


def _add_squares(total: Params, gradient: Params, weight: Array) -> Params:
    return jax.tree.map(
        lambda t, g: t + weight.astype(t.dtype) * jnp.square(g.astype(t.dtype)), total, gradient
    )


def check_finite(found: dict[str, Any], message: str) -> None:
    """Raises `BadInput` with the first path whose numbers are not finite put into `message`."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(found)
    for path, flags in finite.items():
        if not all(map(bool, jax.tree.leaves(flags))):
            raise BadInput(message.format(path))


def _like(params: Params, found: dict[str, Any]) -> Any:
    """Returns a pytree of the structure of `params`, None where nothing was found."""
    structure = jax.tree.structure(params)
    return structure.unflatten([found.get(path) for path in trees.paths(params)])


def save_moments(path: str | Path, moments: Any, params: Params) -> Path:
    """Writes one expert's statistics as safetensors, with a digest of the weights they belong to.

    Args:
        path: the file.
        moments: of `gram_matrices` or `fisher_diagonal`, without a task axis.
        params: the weights they were computed with.

    Raises:
        BadInput: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, moment in named(moments).items():
        parts = moment._asdict() if isinstance(moment, Moment) else {"diagonal": moment}
        arrays |= {f"{name}:{part}": np.asarray(x, order="C") for part, x in parts.items()}
    metadata = {"format": str(FORMAT), "kind": "second moments", "model": digest(params)}
    return write_atomically(path, safetensors.numpy.save(arrays, metadata=metadata))


def load_moments(path: str | Path, like: Params) -> Any:
    """Reads what `save_moments` wrote.

    Args:
        path: the file.
        like: the weights the statistics are for.

    Returns:
        A pytree of the structure of `like`: `Moment`, array or None at each leaf, as NumPy arrays.

    Raises:
        BadInput: no such file, one of another kind or format, or statistics of other weights.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except Exception as error:  # a damaged header can raise nearly anything
        raise BadInput(f"{path}: cannot be read as statistics ({error})") from error
    check_format(path, metadata)
    check_model(path, metadata, like)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        leaf, _, part = name.rpartition(":")
        found.setdefault(leaf, {})[part] = array
    return _like(
        like,
        {
            leaf: parts["diagonal"] if "diagonal" in parts else Moment(**parts)
            for leaf, parts in found.items()
        },
    )


def check_format(path: str | Path, metadata: Mapping[str, str]) -> None:
    """Raises `BadInput` unless a file's metadata are those that `save_moments` writes."""
    if metadata.get("kind") != "second moments" or metadata.get("format") != str(FORMAT):
        raise BadInput(
            f"{path}: expected statistics in format {FORMAT}, found "
            f"{metadata.get('kind', 'another kind of file')} in format "
            f"{metadata.get('format', 'unknown')}; compute them again"
        )


def check_model(path: str | Path, metadata: Mapping[str, str], params: Params) -> None:
    """Raises `BadInput` unless the statistics of a file are those of these weights."""
    if metadata.get("model") != digest(params):
        raise BadInput(
            f"{path}: holds the statistics of another model; compute them with this expert's "
            "weights"
        )


def named(moments: Any) -> dict[str, Any]:
    """Returns path → `Moment` or array, without the leaves that have none."""
    leaves = jax.tree_util.tree_leaves_with_path(moments, is_leaf=lambda x: isinstance(x, Moment))
    return {trees.path_name(path): leaf for path, leaf in leaves}
