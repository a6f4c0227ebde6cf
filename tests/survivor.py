"""A whole experiment on a world of a few images, in processes of their own that may be killed.

`python survivor.py PROGRAMS` imports everything, starts nothing of JAX, and forks a process for
each folder that it reads from standard input: its number, and when it has ended its exit code, go
to standard output. `life` is what such a process does: experts, predictions, training-free and
adaptive rows, record. Compiled programs are kept in PROGRAMS.
"""

import io
import os
import sys
import traceback
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import scene as scene_module
from experiments.experts import Model, make_experts
from experiments.methods import Run
from experiments.options import Options
from experiments.scene import Start, adapt, add, finish, fixed, staged
from experiments.tasks.task import Split, Task
from experiments.vision_start import GENERATED
from symerge_jax.classifier import encoder
from symerge_jax.cli.programs import keep_programs
from symerge_jax.finetune import Recipe
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import VisionConfig

CLASSES = {"digits": 3, "textures": 2}
VISION = VisionConfig(
    image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_width=16, projection=6
)
# Long enough that states are kept on the way.
CONSTANTS = GENERATED._replace(
    recipe=Recipe(steps=600, batch_size=4), iterations=1200, batch_size=4
)


def life(root: str) -> None:
    """Runs to the end, or to wherever it is killed."""
    sys.stdout = sys.stderr = io.StringIO()
    # Lives are short, and each of them needs all programs: they share one folder of them.
    scene_module.keep_programs = lambda _: keep_programs(Path(sys.argv[1]), seconds=0.0)
    folder = Path(root)
    settings = Options(out=folder / "runs", cache=folder / "cache", resume=True, devices=1)

    def make(record, devices, around):
        del record
        shapes = param_shapes(VISION)
        rng = np.random.default_rng(0)
        pretrained = jax.tree.map(
            lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes
        )
        model = Model(encoder(VISION), pretrained, "small", VISION)
        tasks = [task(name, count) for name, count in CLASSES.items()]
        experts = make_experts(
            model, tasks, CONSTANTS.recipe, settings.seeds,
            devices=devices, cache=around.cache, bars=around.bars,
        )  # fmt: skip
        return Start(model, VISION), tasks, experts

    with staged("vision", "tiny", settings, CONSTANTS, make) as scene:
        outcomes = fixed(scene, ["individual", "weight_average"])
        outcomes += adapt(scene, [Run("symerge")])
        add(scene, outcomes)
    finish(scene)


def task(name, count):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    means = rng.integers(60, 200, (count, 8, 8, 3))

    def split(n):
        labels = np.arange(n, dtype=np.int32) % count
        noise = rng.integers(-50, 50, (n, 8, 8, 3))
        return Split(np.clip(means[labels] + noise, 0, 255).astype(np.uint8), labels)

    weight = rng.normal(size=(count, VISION.projection)).astype(np.float32)
    head = {"weight": weight, "bias": np.zeros(count, np.float32)}
    return Task(name, tuple(map(str, range(count))), split(24), split(12), split(20), head)


def main():
    for folder in sys.stdin:
        process = os.fork()
        if not process:
            lived(folder.strip())
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def lived(folder):
    try:
        life(folder)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


if __name__ == "__main__":
    main()
