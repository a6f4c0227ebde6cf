"""Test-time adaptive rows of a vision table: adapt on unlabelled test images, then score.

What adapts receives images and what experts say about them; labels are read by `scoring` at the
end. All methods see the same number of images per task: those that take half batches, joint ones
and corrections of features, take twice as many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import merging
from experiments.expert_outputs import outputs
from experiments.experts import Model
from experiments.methods import (
    ENTROPY,
    JOINT,
    PARTS,
    Constants,
    Protocol,
    Run,
    Seed,
    base_of,
    part_of,
)
from experiments.scoring import Scored, halves, score
from experiments.tasks.task import Task
from symerge_jax import __version__
from symerge_jax.adapt import schedule as schedules
from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.coefficients import stored
from symerge_jax.adapt.fit import Carry, Keep
from symerge_jax.adapt.merged import OUTPUT_OBJECTIVES, Trainables, with_layers
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.adapt.symerge import Adapted, merged_encoder, symerge
from symerge_jax.cache import cached, digest
from symerge_jax.cli.progress import Bars, say
from symerge_jax.errors import Diverged
from symerge_jax.kept_run import kept_run
from symerge_jax.leaf_facts import tower_leaves
from symerge_jax.merge.leaves import Leaf
from symerge_jax.merge.ties import elected
from symerge_jax.notation import Params
from symerge_jax.parallel import Device


class Around(NamedTuple):
    """What surrounds the runs of one script.

    Attributes:
        dtype: of the computation.
        cache: folder of what is made once.
        resume: whether an adapted model of an earlier equal run will do.
        bars: that show the progress.
        tune: how the scale of a training-free base is chosen.
        together: devices that share every mini-batch of a run, where the method can; None for one.
    """

    dtype: str
    cache: Path
    resume: bool
    bars: Bars
    tune: merging.Tune = "labels"
    together: Sequence[Device] | None = None


def made(
    around: Around,
    kind: str,
    key: Mapping[str, object],
    make: Callable[[Keep | None], dict[str, Any]],
) -> dict[str, Any]:
    """Returns what an adaptation gives: from the cache, or made, from where one was interrupted.

    Args:
        around: with the cache, and whether an earlier run will do.
        kind: of result.
        key: all that it depends on.
        make: makes it, and keeps its state.
    """

    devices = 1 if around.together is None else len(around.together)
    with ExitStack() as until_stored:

        def run() -> dict[str, Any]:
            if jax.process_count() > 1:  # which would have to save and stop at the same step
                return make(None)
            name = digest(kind, key, devices)
            state = kept_run(
                around.cache / "unfinished" / name, {"key": name}, resume=around.resume
            )
            return make(until_stored.enter_context(state))

        return cached(around.cache, kind, key, run, report=say, renew=not around.resume)


def learned(
    model: Model,
    seed: Seed,
    tasks: Sequence[Task],
    run: Run,
    constants: Constants,
    around: Around,
) -> tuple[Adapted, np.ndarray | None]:
    """Returns what SyMerge or AdaMerging learns, and the accuracies [point, task] on the way."""
    inputs, labels = chosen(tasks, seed.labels, run.protocol)
    schedule = schedule_of(run, [len(x) for x in inputs], constants, seed.number)
    experts, curve = seed.experts, []

    def on_chunk(carry: Carry, losses: np.ndarray, follow: Callable[[np.ndarray], None]) -> None:
        follow(losses)
        if run.every is not None:
            curve.append([one.score for one in look(carry.trainables)])

    def look(trained: Trainables) -> list[Scored]:
        task_vectors = without(experts.task_vectors, trained.coefficients)
        if around.dtype != "float32":
            task_vectors = stored(task_vectors, around.dtype)
        shared = merged_encoder(model.pretrained, task_vectors, trained.coefficients)
        encoders = (with_layers(shared, trained.layers, k) for k in range(len(tasks)))
        return score(model, encoders, trained.heads, experts.classes, tasks)

    def make(keep: Keep | None) -> dict[str, Any]:
        follow = around.bars.follow(name_of(run, seed), schedule.steps, schedule.batch_size)
        targets: Sequence[Any] = labels
        if constants.objective in OUTPUT_OBJECTIVES:
            targets = outputs(model, experts, tasks, around.cache)
            rows = [which(task, run.protocol) for task in tasks]
            targets = [jax.tree.map(lambda x, r=r: x[r], t)
                       for t, r in zip(targets, rows, strict=True)]  # fmt: skip
        steps = None if run.every is None else run.every * schedule.steps // constants.iterations
        # A curve is looked at on the way, and its points are not part of the state.
        more = {"keep": keep} if steps is None else {"chunk_steps": steps}
        try:
            adapted = run_method(model, seed, inputs, targets, run, constants, schedule,
                                 on_chunk=partial(on_chunk, follow=follow),
                                 devices=around.together, stored_as=around.dtype,
                                 **more)  # fmt: skip
        except Diverged as error:
            raise error.named([f"{name_of(run, seed)}, {task.name}" for task in tasks]) from error
        lam = adapted.coefficients
        found = {
            "params": adapted.params,
            "coefficients": present(lam) if isinstance(lam, dict) else {"all": lam},
            "heads": adapted.heads,
            "losses": adapted.losses,
            "kept": adapted.kept,
        }
        if adapted.layers:
            found["layers"] = present(adapted.layers)
        if curve:
            found["curve"] = np.array(curve)
        return found

    key = key_of(model, seed, run, constants, around, inputs, labels)
    found = made(around, "adapted", key, make)
    points = found.pop("curve", None)
    layers = found.pop("layers", None)
    if layers is not None:
        found["layers"] = spread(layers, found["params"])
    return Adapted(**found), points


def key_of(
    model: Model,
    seed: Seed,
    run: Run,
    constants: Constants,
    around: Around,
    inputs: Sequence[np.ndarray],
    labels: Sequence[ExpertLabels],
) -> dict[str, Any]:
    """Returns all that the result of an adaptation depends on."""
    experts = seed.experts
    key = {
        "method": run.method, "version": __version__, "seed": seed.number, "model": model.name,
        "experts": digest(experts.task_vectors, experts.stacked), "inputs": digest(inputs),
        "labels": digest(*(tuple(x) for x in labels)), "constants": str(constants),
        "dtype": around.dtype, "protocol": run.protocol, "every": run.every,
    }  # fmt: skip
    if around.dtype != "float32":  # passes in less see no more of τ than that
        key["task vectors"] = around.dtype
    return key if run.start is None else key | {"start": digest(run.start)}


def name_of(run: Run, seed: Seed) -> str:
    """Returns what the progress bar calls a run."""
    protocol = "" if run.protocol == "transductive" else f", {run.protocol}"
    return f"{run.name or run.method}, seed {seed.number}{protocol}"


def which(task: Task, protocol: Protocol) -> np.ndarray:
    """Returns the rows of the test images that a method sees."""
    count = len(task.test.labels)
    return halves(count)[0] if protocol == "held_out" else np.arange(count)


def chosen(
    tasks: Sequence[Task], labels: Sequence[ExpertLabels], protocol: Protocol
) -> tuple[list[np.ndarray], list[ExpertLabels]]:
    """Returns the test images that a method sees, and what the experts say of them."""
    rows = [which(task, protocol) for task in tasks]
    inputs = [task.test.inputs[r] for task, r in zip(tasks, rows, strict=True)]
    return inputs, [ExpertLabels(*(y[r] for y in x)) for x, r in zip(labels, rows, strict=True)]


def schedule_of(run: Run, sizes: Sequence[int], constants: Constants, seed: int) -> Schedule:
    """Returns the micro-steps of a method, so that all see equally many inputs of each task."""
    joint = run.method in JOINT
    halved = joint or base_of(run.method) is not None
    batch = max(1, constants.batch_size // 2) if halved else constants.batch_size
    if run.protocol == "online":
        return schedules.one_pass(sizes, batch_size=batch, seed=seed, joint=joint)
    if joint:
        batches, rounds = (1, 2) if run.method == "wemoe" else (2, 1)
        return schedules.joint(
            sizes, iterations=rounds * constants.iterations, batch_size=batch, seed=seed,
            batches=batches,
        )  # fmt: skip
    iterations = constants.iterations * (2 if halved else 1)
    return schedules.sequential(sizes, iterations=iterations, batch_size=batch, seed=seed)


def run_method(
    model: Model,
    seed: Seed,
    inputs: Sequence[np.ndarray],
    targets: Sequence[Any],
    run: Run,
    constants: Constants,
    schedule: Schedule,
    **more: Any,
) -> Adapted:
    """Runs SyMerge or AdaMerging with its settings."""
    experts, method = seed.experts, run.method
    task_vectors = experts.task_vectors
    if method == "adamerging_plus_plus":
        task_vectors = elected(task_vectors)
    shared = {
        "classes": experts.classes,
        "initial_coefficient": constants.initial,
        "coefficients": run.start,
        "seed": seed.number,
        "schedule": schedule,
        **more,
    }
    start = (model.encode, model.classify, model.pretrained, task_vectors, experts.stacked, inputs)
    if method in ENTROPY:
        return adamerging(
            *start,
            granularity="task" if method == "adamerging_taskwise" else "leaf",
            learning_rate=constants.entropy_rate,
            **shared,
        )
    rates = {
        "symerge": (constants.rate, constants.rate),
        "symerge_head": (0.0, constants.rate),
    }
    coefficient_rate, head_rate = rates.get(method, (constants.coefficient_rate, 0.0))
    part = part_of(method)
    return symerge(
        *start, targets,
        objective=objectives(constants, experts.classes),
        coefficient_rate=coefficient_rate,
        head_rate=head_rate,
        layer=None if part is None else blocks(model.pretrained, part),
        layer_rate=constants.block_rate,
        **shared,
    )  # fmt: skip


def objectives(constants: Constants, classes: Any) -> str | list[str]:
    """Returns the objective of all tasks, or of each where some are regressions: L1 for those.

    Args:
        constants: with the objective; one that compares outputs, where there are regressions.
        classes: bool [task, classes], which head rows exist.
    """
    single = np.asarray(classes).sum(axis=1) == 1
    if not single.any():
        return constants.objective
    return ["l1" if one else constants.objective for one in single]


def blocks(params: Params, part: str) -> Any:
    """Returns which leaves lie in block `part` (from 1), or in the early, late or all blocks."""
    facts = tower_leaves(params)
    leaves = jax.tree.leaves(facts, is_leaf=lambda x: isinstance(x, Leaf))
    depth = 1 + max(leaf.depth for leaf in leaves if leaf.depth is not None)
    ranges = {
        "early": range(depth // 2),
        "late": range(depth // 2, depth),
        "all": range(depth),
    }
    here = ranges[part] if part in PARTS else (int(part) - 1,)

    def inside(leaf: Leaf) -> bool:
        return leaf.depth in here

    return jax.tree.map(inside, facts, is_leaf=lambda x: isinstance(x, Leaf))


def without(task_vectors: Params, coefficients: Any) -> Params:
    """Returns τ with None for the leaves that have no coefficient."""
    if not isinstance(coefficients, dict):
        return task_vectors
    return jax.tree.map(
        lambda lam, tau: None if lam is None else tau,
        coefficients, task_vectors, is_leaf=lambda x: x is None,
    )  # fmt: skip


def present(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns a nested dict without what is None, and without the dicts that this empties."""
    kept = {name: present(x) if isinstance(x, dict) else x for name, x in tree.items()}
    return {name: x for name, x in kept.items() if jax.tree.leaves(x)}


def spread(part: dict[str, Any], like: Params) -> Params:
    """Returns the inverse of `present`: the structure of `like`, None where `part` has nothing."""
    return {
        name: (spread(part.get(name, {}), own) if isinstance(own, dict) else part.get(name))
        for name, own in like.items()
    }


def share(part: Any, whole: Params) -> float:
    """Returns how many times the numbers of `whole` there are in `part`."""
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(part))
    return count / sum(np.size(leaf) for leaf in jax.tree.leaves(whole))
