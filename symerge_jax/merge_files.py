"""Merges checkpoints: files in, a folder out.

Methods that look at one leaf at a time (`Method.streams`) hold one leaf of all K experts, or a few
where they decompose matrices; with `fuse_qkv` all task vectors. Tensors keep the names and the
layout of the pre-trained checkpoint, so a leaf is a tensor of the source; what no expert changed
(text towers, frozen layers, integer buffers) is copied from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.hashes import hash_files, hashing, start_hashing
from symerge_jax.checkpoints.source import TensorInfo
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves
from symerge_jax.merge import METHODS, Method
from symerge_jax.merge.side_by_side import side_by_side
from symerge_jax.merge_output import Writers, allowed, averaged, card_of
from symerge_jax.merge_plan import Leaf, Plan, compiles_itself, takes_one_leaf
from symerge_jax.merge_steps import (
    Distances,
    Step,
    Steps,
    check_finite,
    check_numbers,
    noting_rank,
    sample,
)
from symerge_jax.notation import Array
from symerge_jax.task_vectors import widen
from symerge_jax.trees import wide

if TYPE_CHECKING:  # it imports the network, which other merges need not wait for
    from symerge_jax.merge_statistics import Statistics


class Merged(NamedTuple):
    """What a merge did.

    Attributes:
        merged: number of tensors.
        copied: number of tensors.
        distances: ‖τ_k‖ / ‖θ₀‖, estimated from a sample.
        singular: tensors in which a method that needs full rank did not find it.
    """

    merged: int
    copied: int
    distances: tuple[float, ...]
    singular: tuple[str, ...] = ()


def merge_files(
    plan: Plan,
    name: str,
    output: str | Path,
    *,
    scale: float | None = None,
    options: Mapping[str, Any] | None = None,
    moments: Statistics | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
    finish: Callable[[Path], object] | None = None,
    hashes: Mapping[Path, Any] | None = None,
) -> Merged:
    """Merges and writes the model: `output`, or one folder per task beneath it.

    Args:
        plan: what to read.
        name: of the method, an entry of `METHODS`.
        output: the folder to make.
        scale: λ in θ₀ + λ · τ*; None takes the method's default.
        options: keyword arguments of the method.
        moments: of `merge_statistics.read_statistics`, for a method that takes some.
        overwrite: whether to replace a model that is there.
        progress: called with leaves done and in all.
        finish: called with each model's temporary folder before its card is written.
        hashes: of `start_hashing`, if it was called earlier.

    Raises:
        BadInput: an expert that equals θ₀, NaN or infinity, files that change while they are read,
            an output that cannot be written, a method without the statistics it takes.
    """
    method = METHODS[name]
    if "moments" in method.needs and moments is None:
        from symerge_jax.merge_statistics import absent

        raise absent(name)
    scale = method.scale if scale is None else scale
    settings = {"scale": scale, **(options or {})}
    options = dict(options or {}) | ({} if moments is None else {"moments": moments})
    files = () if moments is None else moments.files
    everyone = (plan.pretrained, *plan.experts, *files)
    with (
        export.new_folder(output, overwrite=overwrite) as folder,
        hashing() as pool,
    ):
        hashes = hashes or start_hashing(everyone, pool)
        folders = (
            [folder]
            if method.kind == "shared"
            else [folder / f"{k:02d}_{task}" for k, task in enumerate(plan.names)]
        )
        changed, distances = len(plan.averaged), Distances(len(plan.experts))
        singular: list[str] = []
        with (
            Writers(plan, folders) as writers,
            jax.enable_x64(_has_float64(plan)),
            noting_rank(singular),
        ):
            for source in plan.rest:
                writers.write_all(source, plan.pretrained.read(source))
            for source, value in averaged(plan):
                writers.write_all(source, value)
            for done, step in enumerate(_steps(plan, method, options, scale)):
                check_finite(plan, step)
                writers.write_each(step.leaf.source, allowed(step.leaf, step.values))
                changed += step.thetas is not None
                distances.add(step)
                if progress is not None:
                    progress(done + 1, len(plan.leaves))
        for one in everyone:
            one.check_unchanged()
        written = hash_files((one / export.weights_name(plan.layout) for one in folders), pool)
        for one in folders:  # while the files are still being hashed
            export.write_description(plan.pretrained, one, plan.experts)
            if finish is not None:
                finish(one)
        found = {path: future.result() for path, future in hashes.items()}
        for one in everyone:  # hashing reads them too
            one.check_unchanged()
        card = card_of(
            plan, name, settings, statistics=files, hashes=found,
            changed=changed, copied=_total(plan) - changed,
        )  # fmt: skip
        known = {path: future.result() for path, future in written.items()}
        for k, one in enumerate(folders):
            own = card if method.kind == "shared" else {**card, "task": plan.names[k]}
            export.write_card(one, own, known)
        if method.kind == "per_task":
            export.write_card(folder, card, known)
    names = {leaf.name: leaf.source for leaf in plan.leaves}
    lacking = tuple(names.get(name, name) for name in singular)
    return Merged(changed, _total(plan) - changed, distances.ratios(), lacking)


def _has_float64(plan: Plan) -> bool:
    """Whether to compute in float64, which JAX does not unless it is told to."""
    return any(leaf.info.dtype == np.float64 for leaf in plan.leaves)


def _total(plan: Plan) -> int:
    return len(plan.leaves) + len(plan.averaged) + len(plan.rest)


def _steps(plan: Plan, method: Method, options: Mapping[str, Any], scale: float) -> Steps:
    """Chooses how to go over the leaves: the way that holds least."""
    if not takes_one_leaf(method, options):
        return _at_once(plan, method, options, scale)
    if method.plan is not None:
        return _planned(plan, method, options, scale)
    return (_several if compiles_itself(method) else _streamed)(plan, method, options, scale)


def _streamed(plan: Plan, method: Method, options: Mapping[str, Any], scale: float) -> Steps:
    """Merges leaf by leaf; one program per shape."""
    facts = _facts(plan, method)
    options = dict(options)
    moments = options.pop("moments", None)
    norms = {} if method.norms is None else {"norms": method.norms(moments.values())}
    for leaf, theta, thetas in _leaves(plan, _arena(plan)):
        if thetas is None:
            yield Step(leaf, [theta], theta, None)
            continue
        if method.drops:
            check_numbers(plan, leaf, theta, thetas)
        own = dict(options)
        if "leaves" in method.needs:  # depth and name have no part in it; fewer programs without
            own["leaves"] = replace(facts[leaf.name], depth=None, group=None, part=0)
        given = {} if moments is None else {"moments": {"leaf": moments.of(leaf)}, **norms}
        factor = np.asarray(scale, wide(leaf.info.dtype))
        found = _merge_leaf(
            theta, thetas, factor, given,
            merge=_hashable(method.merge, own), with_theta="pretrained" in method.needs,
        )  # fmt: skip
        yield Step(leaf, _per_folder(found, theta), theta, thetas)


def _several(plan: Plan, method: Method, options: Mapping[str, Any], scale: float) -> Steps:
    """Merges a few leaves at a time, by a method that has programs of its own and may warn."""
    facts = _facts(plan, method)

    def merge(read: tuple[Leaf, np.ndarray, np.ndarray | None]) -> list[np.ndarray]:
        leaf, theta, thetas = read
        if thetas is None:
            return [theta]
        check_numbers(plan, leaf, theta, thetas)
        own = {leaf.name: replace(facts[leaf.name], depth=None, group=None, part=0)}
        tau = {leaf.name: _task_vector(theta, thetas)}
        merged = method.merge(tau, leaves=own, **options)[leaf.name]
        return _per_folder(_moved(theta, merged, np.asarray(scale, wide(theta.dtype))), theta)

    # Fresh memory for each: several are held.
    for (leaf, theta, thetas), values in side_by_side(merge, _leaves(plan, np.empty)):
        yield Step(leaf, values, theta, thetas)


@partial(jax.jit, static_argnames=("merge", "with_theta"))
def _merge_leaf(
    theta: Array,
    thetas: Array,
    scale: Array,
    given: Mapping[str, Any],
    *,
    merge: Callable[..., Any],
    with_theta: bool,
) -> Array:
    """θ₀ + λ · τ* of one leaf; `given` are options with numbers, which statistics are."""
    start = widen(theta)
    more = {"pretrained": {"leaf": start}} if with_theta else {}
    tau = merge({"leaf": widen(thetas) - start[None]}, **given, **more)["leaf"]
    return _moved(theta, tau, scale)


@jax.jit
def _moved(theta: Array, tau: Array, scale: Array) -> Array:
    start = widen(theta)
    start = start if tau.ndim == start.ndim else start[None]  # one per task
    return (start + scale * tau).astype(theta.dtype)


@jax.jit
def _task_vector(theta: Array, thetas: Array) -> Array:
    return widen(thetas) - widen(theta)[None]


def _planned(plan: Plan, method: Method, options: Mapping[str, Any], scale: float) -> Steps:
    """Goes over the files as often as the method asks; holds one leaf of all experts."""
    assert method.plan is not None
    own = dict(options)
    if "leaves" in method.needs:
        own["leaves"] = _facts(plan, method)
    checked: set[str] = set()  # once is enough, however many passes there are

    def check(leaf: Leaf, theta: np.ndarray, thetas: np.ndarray) -> None:
        if leaf.name not in checked:
            check_numbers(plan, leaf, theta, thetas)
            checked.add(leaf.name)

    def passes() -> Iterator[tuple[str, Array]]:
        for leaf, theta, thetas in _leaves(plan, _arena(plan)):
            if thetas is not None:
                check(leaf, theta, thetas)
                tau = _task_vector(theta, thetas)
                # The memory of `thetas` is used again; on a CPU the device may read it in place.
                yield leaf.name, jax.block_until_ready(tau)

    merge = method.plan(passes, **own)
    for leaf, theta, thetas in _leaves(plan, _arena(plan)):
        if thetas is None:
            yield Step(leaf, [theta], theta, None)
            continue
        check(leaf, theta, thetas)
        factor = np.asarray(scale, wide(leaf.info.dtype))
        found = _moved(theta, merge(leaf.name, _task_vector(theta, thetas)), factor)
        yield Step(leaf, _per_folder(found, theta), theta, thetas)


def _per_folder(found: Array, theta: np.ndarray) -> list[np.ndarray]:
    merged = np.asarray(found)
    return [merged] if merged.ndim == theta.ndim else list(map(np.asarray, merged))


def _facts(plan: Plan, method: Method) -> dict[str, Any]:
    """Returns what is known of each leaf by its name, for methods that ask."""
    if "leaves" not in method.needs:
        return {}
    shapes = {leaf.name: leaf.info.shape for leaf in plan.leaves}
    return named_leaves(shapes, plan.layout)


def _at_once(plan: Plan, method: Method, options: Mapping[str, Any], scale: float) -> Steps:
    """Reads all task vectors, merges them in one program, and gives the leaves one by one."""
    tau: dict[str, Any] = {}
    for leaf, theta, thetas in _leaves(plan, np.empty):
        if thetas is not None:
            tau[leaf.name] = thetas.astype(wide(thetas.dtype), copy=False)
            with np.errstate(invalid="ignore"):  # infinity less infinity; said below
                tau[leaf.name] -= theta.astype(tau[leaf.name].dtype)[None]
            check_numbers(plan, leaf, theta, tau[leaf.name])
    own = dict(options)
    if "leaves" in method.needs:
        own["leaves"] = {name: fact for name, fact in _facts(plan, method).items() if name in tau}
    run = partial(method.merge, **own)
    merged = (run if compiles_itself(method) else jax.jit(run))(tau) if tau else {}
    samples = {name: sample(array).copy() for name, array in tau.items()}
    tau.clear()
    for leaf in plan.leaves:
        theta = plan.pretrained.read(leaf.source)
        if leaf.name not in merged:
            yield Step(leaf, [theta], theta, None)
            continue
        start = theta.astype(wide(theta.dtype))
        found = np.asarray(merged.pop(leaf.name))
        results = [found] if found.ndim == theta.ndim else list(found)
        with np.errstate(over="ignore"):  # said by the caller
            scaled = [start + start.dtype.type(scale) * one for one in results]
            values = [np.asarray(one, theta.dtype) for one in scaled]
        first = sample(start[None])
        yield Step(leaf, values, first[0], first + samples.pop(leaf.name))


def _leaves(
    plan: Plan, allocate: Callable[..., np.ndarray]
) -> Iterator[tuple[Leaf, np.ndarray, np.ndarray | None]]:
    """Yields θ₀ and θ_k [task, ...] of each leaf; None for the latter where none differs.

    Raises:
        BadInput: at the end, if an expert differs from θ₀ nowhere.
    """
    moved = np.zeros(len(plan.experts), bool)

    def read(leaf: Leaf) -> tuple[np.ndarray, np.ndarray, list[bool]]:
        theta = plan.pretrained.read(leaf.source)
        thetas = allocate((len(plan.experts), *leaf.info.shape), leaf.info.dtype)
        differs = []
        for k, expert in enumerate(plan.experts):
            row = thetas[k, ...]  # a view even of a scalar, which thetas[k] would copy
            expert.read(leaf.experts[k], row)
            differs.append(not _equal_bytes(row, theta))
        return theta, thetas, differs

    with ThreadPoolExecutor(max_workers=1) as reader:  # reads the next leaf while one is merged
        coming = reader.submit(read, plan.leaves[0])
        for leaf, following in zip(plan.leaves, [*plan.leaves[1:], None], strict=True):
            theta, thetas, differs = coming.result()
            if following is not None:
                coming = reader.submit(read, following)
            moved |= differs
            yield leaf, theta, thetas if any(differs) else None
    if not moved.all():
        raise BadInput(
            f"{plan.experts[int(np.argmin(moved))].path}: equals the pre-trained model in every "
            "tensor, so there is nothing to merge; expected a fine-tuned expert"
        )


def _arena(plan: Plan) -> Callable[..., np.ndarray]:
    """Returns an allocator that gives two pieces of memory in turn: one is read, one is merged.

    They are aligned so that JAX reads them in place on a CPU; fresh pages would cost as much as the
    sum.
    """
    most = max(leaf.info.nbytes for leaf in plan.leaves) * len(plan.experts)
    raw = [np.empty(most + 64, np.uint8) for _ in range(2)]
    turns = itertools.cycle([one[-one.ctypes.data % 64 :] for one in raw])

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return next(turns)[: TensorInfo(shape, dtype).nbytes].view(dtype).reshape(shape)

    return allocate


def _equal_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = (x.reshape(-1).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(a[:4096], b[:4096]) and np.array_equal(a, b))


@cache
def _partial(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Any:
    given = dict(options)
    if "leaves" in given:
        given["leaves"] = {"leaf": given["leaves"]}
    return partial(function, **given)


def _hashable(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Returns a method with its options, the same object for the same options."""
    return _partial(function, tuple(options.items()))
