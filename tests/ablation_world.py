"""A world small enough for whole experiments: a linear encoder, three tasks of tiny images.

The labels of all images are what the expert of their task says, so that experts are always right.
"""

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import experts, records
from experiments.adapting import Around
from experiments.expert_outputs import label
from experiments.experts import Model
from experiments.methods import Outcome, Seed
from experiments.scene import Scene, Start
from experiments.scoring import Scored, logits_on, padded
from experiments.tasks.task import Split, Task
from experiments.vision_start import GENERATED
from symerge_jax.cli.errors import run
from symerge_jax.cli.progress import Bars
from symerge_jax.files import make_folder

TASKS, CLASSES, COUNTS = ("first", "second", "third"), (3, 2, 3), (9, 8, 10)
SIDE, FEATURES = 4, 5
CONSTANTS = GENERATED._replace(iterations=3, batch_size=4)


def encode(params, images):
    pixels = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255 - 0.5
    return jnp.tanh(pixels @ params["kernel"] + params["bias"][None])


def scene_of(settings, experiment="trial", constants=CONSTANTS):
    """All that an experiment works with, made in no time."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def tower():
        return {"kernel": normal(3 * SIDE * SIDE, FEATURES), "bias": normal(FEATURES)}

    model = Model(encode, tower(), "linear")
    heads = [{"weight": 9 * normal(n, FEATURES), "bias": normal(n)} for n in CLASSES]
    made = [
        {"params": jax.tree.map(lambda a, b: a + 0.5 * b, model.pretrained, tower()), "head": head}
        for head in heads
    ]
    together = experts._together(model, made, heads)

    def split(k, count):
        images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        own = padded(together.stacked, together.classes, k)
        return Split(images, logits_on(model, made[k]["params"], *own, images).argmax(axis=1))

    tasks = [
        Task(name, tuple("abc"[:n]), split(k, 6), split(k, 5), split(k, COUNTS[k]), heads[k])
        for k, (name, n) in enumerate(zip(TASKS, CLASSES, strict=True))
    ]
    cache = make_folder(settings.cache_folder())
    seeds = {
        number: Seed(number, together, label(model, together, tasks, cache))
        for number in settings.seeds
    }
    record = records.new_record(experiment, "tiny", settings)
    around = Around("float32", cache, settings.resume, Bars())
    start = Start(model, None, together.classes)
    return Scene(record, settings, constants, start, tasks, seeds, jax.devices()[:1], around)


@contextmanager
def begin(experiment, settings, **_):
    """Stands for `vision_run.begin`."""
    yield scene_of(settings, experiment)


def recorded(monkeypatch, capsys, module, out, *words):
    """Runs an experiment's command in this world; returns its record and the run's folder."""
    monkeypatch.setattr(module, "begin", begin)
    code = run(module.main, module.Settings, ["--out", str(out), *words], prog="trial")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    path = Path(captured.out.splitlines()[-1])
    return records.read(path), path.parent


def told(runs, scene):
    """Outcomes of runs that were not made: SyMerge and its kin get all but one image right."""
    return [
        Outcome(run.name or run.method, number, False, [all_but(1, n) for n in COUNTS])
        for run in runs
        for number in scene.seeds
    ]


def all_but(wrong, count):
    return Scored(np.arange(count) >= wrong, 0.0)


def refused(monkeypatch, capsys, module, out, *words, says):
    """Exit code 2 and one line that says why, before any work."""
    monkeypatch.setattr(module, "begin", partial(_never, module.__name__))
    code = run(module.main, module.Settings, ["--out", str(out), *words], prog="trial")
    captured = capsys.readouterr()
    assert code == 2, captured.err
    (line,) = captured.err.splitlines()
    assert line.startswith("symerge: error: ")
    assert says in line
    assert captured.out == ""
    assert not out.exists()


def _never(name, *_, **__):
    raise AssertionError(f"{name} began to work")


def values(record, method, metric="accuracy"):
    """A method's values of a metric, in the tasks' order, of the first seed."""
    seed = record["results"][0]["seed"]
    return [
        result["value"]
        for result in record["results"]
        if (result["method"], result["metric"], result["seed"]) == (method, metric, seed)
    ]
