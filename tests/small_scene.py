"""A scene small enough to run a script's `main`: a tiny image tower, three tasks, noisy experts.

`install` puts it, and adaptation without a single step, in the place of what a script imports.
"""

import contextlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments import experts, records
from experiments.adapting import Around
from experiments.expert_outputs import label
from experiments.experts import Model
from experiments.methods import Constants, Outcome, Seed, base_of
from experiments.scene import Scene, Start
from experiments.scoring import Scored, score
from experiments.tasks.task import Split, Task
from experiments.vision_start import GENERATED
from symerge_jax.adapt.coefficients import per_leaf
from symerge_jax.adapt.symerge import Adapted, merged_encoder
from symerge_jax.classifier import encoder
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import VisionConfig

CLASSES = {"digits": 3, "textures": 2, "signs": 3}
IMAGES = 12
VISION = VisionConfig(
    image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_width=16, projection=6
)


def install(monkeypatch, module, **changes):
    """Lets a script run in the small scene; `changes` are constants."""

    @contextlib.contextmanager
    def begin(experiment, settings, **_):
        yield scene(experiment, settings, **changes)

    monkeypatch.setattr(module, "begin", begin)
    monkeypatch.setattr(module, "adapt", adapt)


def scene(experiment, settings, **changes):
    """Returns the scene with an expert per task and seed."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(VISION)
    pretrained = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)
    model = Model(encoder(VISION), pretrained, "small", VISION)
    tasks = [
        Task(name, tuple(map(str, range(count))), None, split(rng, count), split(rng, count), None)
        for name, count in CLASSES.items()
    ]
    cache = settings.cache_folder()
    seeds = {number: seed_of(model, tasks, number, cache) for number in settings.seeds}
    return Scene(
        record=records.new_record(experiment, "tiny", settings),
        settings=settings,
        constants=GENERATED._replace(iterations=4)._replace(**changes),
        start=Start(model, VISION, seeds[settings.seeds[0]].experts.classes),
        tasks=tasks,
        seeds=seeds,
        devices=jax.devices(),
        around=Around("float32", cache, False, None, "none"),
    )


def split(rng, classes):
    images = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    return Split(images, (np.arange(IMAGES) % classes).astype(np.int32))


def seed_of(model, tasks, number, cache):
    rng = np.random.default_rng([number, 1])

    def expert(task):
        moved = jax.tree.map(
            lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), model.pretrained
        )
        weight = rng.normal(size=(len(task.classes), VISION.projection)).astype(np.float32)
        return {"params": moved, "head": {"weight": weight, "bias": np.zeros(len(weight), "f4")}}

    made = [expert(task) for task in tasks]
    found = experts._together(model, made, [one["head"] for one in made])
    return Seed(number, found, label(model, found, tasks, cache))


def adapt(scene, runs, constants=None):
    """As the real one, but coefficients move by noise and heads not at all."""
    given = scene.constants if constants is None else constants
    each = [given] * len(runs) if isinstance(given, Constants) else given
    return [
        moved(scene, seed, run, own)
        for run, own in zip(runs, each, strict=True)
        for seed in scene.seeds.values()
    ]


def moved(scene, seed, run, constants):
    name, found = run.name or run.method, seed.experts
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed.number])
    start = run.start or per_leaf(found.task_vectors, constants.initial)
    lam = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), start)
    params = merged_encoder(scene.model.pretrained, found.task_vectors, lam)
    encoders = [params] * len(scene.tasks)
    scores = score(scene.model, encoders, found.stacked, found.classes, scene.tasks)
    if base_of(run.method) or run.method == "wemoe":
        return Outcome(name, seed.number, False, scores)
    looks = None if run.every is None else -(-constants.iterations // run.every)
    curve = None if looks is None else np.array([[s.accuracy for s in scores]] * looks)
    none = np.zeros((0, 1))
    adapted = Adapted(params, lam, found.stacked, none, none)
    return Outcome(name, seed.number, False, scores, adapted, curve=curve)


def outcome(method, correct, *, seed=0, curve=None):
    """An outcome of which only the scores matter: per task, which images are right, as 0 and 1."""
    scores = [Scored(np.array(one, bool), 0.0) for one in correct]
    return Outcome(method, seed, False, scores, curve=None if curve is None else np.array(curve))
