"""Makes, or finds in the cache, an expert per task and seed, and all that merging needs of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.images import probe
from experiments.tasks.task import Task
from symerge_jax.adapt.dense import Network
from symerge_jax.cache import cached, digest
from symerge_jax.cli.progress import Bars, say
from symerge_jax.evaluate import predict
from symerge_jax.finetune import SAVE_EVERY, Recipe, finetune
from symerge_jax.kept_run import discard, unfinished
from symerge_jax.models.clip_config import VisionConfig
from symerge_jax.models.heads import Head, normalised_head, stack_heads
from symerge_jax.notation import Array, Params, TaskVectors
from symerge_jax.parallel import Device, run_jobs
from symerge_jax.task_vectors import subtract

PROBE_SCALE = 20.0


OnLosses = Callable[[np.ndarray], None]


class Model(NamedTuple):
    """The encoder all experts start from.

    Attributes:
        encode: (θ, inputs) → features.
        pretrained: θ₀.
        name: tells encoder and weights apart in cache keys.
        vision: sizes of the image tower, for methods that look inside.
        classify: (head, features) → logits; of dense prediction (decoder, features) → maps.
        family: of models, such as "CLIP".
        dense: the functions of a network for dense prediction; None of others.
    """

    encode: Callable[[Params, Any], Array]
    pretrained: Params
    name: str
    vision: VisionConfig | None = None
    classify: Callable[[Any, Array], Array] = normalised_head
    family: str = "CLIP"
    dense: Network | None = None

    @property
    def program(self) -> str:
        """What it computes, for keys of what is kept."""
        return f"{self.family}, {self.name}"


class Experts(NamedTuple):
    """All experts of one seed.

    Attributes:
        params: θ_k, one encoder per task.
        heads: the heads they were trained with, unpadded.
        first_heads: the heads before fine-tuning, unpadded (zero-shot, or a probe on θ₀).
        task_vectors: τ.
        stacked: all heads in one pytree, leaves [task, ...].
        classes: bool [task, classes], which rows of `stacked` exist.
    """

    params: Sequence[Params]
    heads: list[Any]
    first_heads: list[Any]
    task_vectors: TaskVectors
    stacked: Any
    classes: Array


def first_heads(model: Model, tasks: Sequence[Task]) -> list[Head]:
    """Returns each task's zero-shot head, or a linear probe on θ₀'s features where it has none."""
    heads = []
    for task in tasks:
        head = task.head
        if head is None:
            assert task.train is not None, "only tasks with training images lack a head"
            features = predict(model.encode, model.pretrained, task.train.inputs)
            head = probe(features, task.train.labels, len(task.classes), scale=PROBE_SCALE)
        heads.append(head)
    return heads


def make_experts(
    model: Model,
    tasks: Sequence[Task],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    devices: Sequence[Device],
    cache: Path,
    bars: Bars,
) -> dict[int, Experts]:
    """Fine-tunes what the cache does not hold, one expert per device at a time."""
    heads = first_heads(model, tasks)
    return fine_tuned(
        model, tasks, dict.fromkeys(seeds, heads), recipe, stack_heads,
        devices=devices, cache=cache, bars=bars,
    )  # fmt: skip


# (model, task, head, recipe, seed, on_chunk, state folder) → {"params": θ, "head": its head}
Train = Callable[..., dict[str, Any]]


def trained(
    model: Model,
    task: Task,
    head: Any,
    recipe: Recipe,
    seed: int,
    on_chunk: OnLosses,
    state_folder: Path | None,
) -> dict[str, Any]:
    """Fine-tunes one expert of a classifier or, where the task's labels are numbers, regressor."""
    train = task.train
    assert train is not None, "an expert is made from training inputs"
    expert = finetune(
        model.encode, model.classify, model.pretrained, head, train.inputs, train.labels, recipe,
        seed=seed,
        loss="squared_error" if task.regression else "cross_entropy",
        on_chunk=on_chunk,
        state_folder=state_folder,
    )  # fmt: skip
    return {"params": expert.params, "head": expert.head}


def fine_tuned(
    model: Model,
    tasks: Sequence[Task],
    heads: Mapping[int, list[Any]],
    recipe: Recipe,
    stack: Callable[[Sequence[Any]], tuple[Any, Array]],
    *,
    train: Train = trained,
    devices: Sequence[Device],
    cache: Path | None,
    bars: Bars,
) -> dict[int, Experts]:
    """Fine-tunes experts from given heads, whatever the family of the model.

    Args:
        model: to start from.
        tasks: with training inputs.
        heads: seed → the head of each task to begin with.
        recipe: of the training.
        stack: heads → one pytree, and which rows of it exist.
        train: makes one expert.
        devices: that share the work, one expert at a time each.
        cache: where experts are kept; None keeps none.
        bars: to show progress on.
    """
    jobs = [
        partial(_expert, train, model, task, head, recipe, seed, cache, bars)
        for seed, first in heads.items()
        for task, head in zip(tasks, first, strict=True)
    ]
    made = iter(run_jobs(jobs, devices))
    return {
        seed: _together(model, [next(made) for _ in tasks], first, stack)
        for seed, first in heads.items()
    }


class Stored(Sequence[Params]):
    """Experts' encoders, each read from its file when it is asked for.

    Task vectors are held; a second copy of K models would double the memory.
    """

    def __init__(self, files: Sequence[Any], read: Callable[[Any], Params]) -> None:
        self._files, self._read = files, read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, k: Any) -> Params:
        return self._read(self._files[k])

    def __iter__(self) -> Iterator[Params]:
        return map(self._read, self._files)


def differences(
    experts: Sequence[Params], start: Params, on_read: Callable[[int], Any]
) -> TaskVectors:
    """Returns τ, leaves [task, ...], with one expert in memory at a time.

    Args:
        experts: read one after the other.
        start: θ₀.
        on_read: called with the number of each expert.
    """
    starts, structure = jax.tree.flatten(start)
    leaves: list[Any] = [np.zeros((len(experts), *x.shape), x.dtype) for x in starts]
    for k, theta in enumerate(experts):
        for out, a, b in zip(leaves, jax.tree.leaves(theta), starts, strict=True):
            np.subtract(a, b, out=out[k])
        on_read(k)
    for i, leaf in enumerate(leaves):  # one by one: never a second copy of all task vectors
        leaves[i] = jnp.asarray(leaf)
    return structure.unflatten(leaves)


def _expert(
    train: Train,
    model: Model,
    task: Task,
    head: Any,
    recipe: Recipe,
    seed: int,
    cache: Path | None,
    bars: Bars,
) -> dict[str, Any]:
    assert task.train is not None, "an expert is made from training inputs"

    def make() -> dict[str, Any]:
        name = f"expert {task.name}, seed {seed}"
        follow = bars.follow(name, recipe.steps, recipe.batch_size)
        return train(model, task, head, recipe, seed, follow, folder)

    key = {
        "model": model.name,
        "task": task.name,
        "train": digest(*task.train),
        "head": digest(head),
        "recipe": recipe._asdict(),
        "seed": seed,
    }
    folder = None
    if cache is not None and recipe.steps > SAVE_EVERY:  # else it is sooner trained again
        folder = unfinished(cache, "expert", key)
    made = cached(cache, "experts", key, make, report=say)
    if folder is not None and folder.is_dir():
        discard(folder)
    return made


def _together(
    model: Model,
    made: Sequence[dict[str, Any]],
    first: list[Any],
    stack: Callable[[Sequence[Any]], tuple[Any, Array]] = stack_heads,
) -> Experts:
    params = [one["params"] for one in made]
    heads = [one["head"] for one in made]
    stacked, classes = stack(heads)
    like = jax.tree.map(np.asarray, model.pretrained)
    return Experts(params, heads, first, subtract(params, like), stacked, classes)
