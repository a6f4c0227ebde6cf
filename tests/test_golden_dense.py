"""SyMerge for dense prediction against PyTorch, step by step, on a tiny ResNet with decoders."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from trees_close import assert_trees_close

from symerge_jax import dense
from symerge_jax.adapt.coefficients import as_matrix
from symerge_jax.adapt.dense import KINDS, symerge_dense
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.checkpoints.resnet import from_torchvision, source_names
from symerge_jax.models.dense_heads import stack_decoders, unstack_decoders
from symerge_jax.task_vectors import subtract

GOLDEN = Path(__file__).parent / "golden" / "dense_symerge.npz"
FACTS = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
TASKS = tuple(FACTS["config"]["outputs"])
# Adam divides a gradient by its size, or by 1e-8 where that is more: at worst an error of 1e-15 in
# a gradient is 1e-7 of a step of 0.01. No gradient is as small as that here.
TOLERANCE = 1e-10


@functools.cache
def arrays():
    with np.load(GOLDEN) as file:
        return {key: file[key] for key in file.files}


def cut(flat, shapes, prefix):
    """Tensors that lie end to end, by name."""
    sizes = {name: tuple(map(int, text.split("x"))) for name, text in shapes.items()}
    parts = np.split(flat, np.cumsum([np.prod(shape) for shape in sizes.values()]))
    assert parts.pop().size == 0
    return {
        prefix + name: part.reshape(shape).astype(np.float64)
        for (name, shape), part in zip(sizes.items(), parts, strict=True)
    }


def read(trunk, below=""):
    """Returns a trunk, and decoders below `below`, as a checkpoint of both is converted."""
    state = cut(arrays()[trunk], FACTS["tensors"]["trunk"], "encoder.")
    for task, shapes in FACTS["tensors"]["decoder"].items():
        state |= cut(arrays()[f"{below}decoder/{task}"], shapes, f"decoders.{task}.")
    return from_torchvision(state, rates=FACTS["config"]["decoder_rates"])


@functools.cache
def network(config, decoder, size):
    """One whose decoders drop nothing in training: PyTorch draws other numbers."""
    own = dense.network(config, decoder, size)

    def decode_in_training(variables, features, mask, key):
        del key
        return own.decode_in_training(variables, features, mask)

    return own._replace(decode_in_training=decode_in_training)


def run(statistics, initial_coefficient):
    """Returns what was adapted, λ after each step, and the decoders without padding."""
    start, given = read("pretrained"), arrays()
    experts = [read(f"expert/{task}").variables for task in TASKS]
    decoders, outputs = stack_decoders([start.decoders[task].variables for task in TASKS])
    rows = given["schedule/sample_indices"]
    said = [given[f"said/{task}"] for task in TASKS]
    # in the order of PyTorch; weights alone where statistics have no coefficients
    tree = start.variables if statistics == "merge_stats" else {"params": start.variables["params"]}
    order = dict(source_names(tree))
    paths = [order[name] for name in FACTS["tensors"]["trunk"] if name in order]
    steps = []
    found = symerge_dense(
        network(start.config, start.decoders[TASKS[0]].config, given["images"].shape[1:3]),
        start.variables,
        subtract(experts, start.variables),
        decoders,
        outputs,
        [given["images"]] * len(TASKS),
        [x if x.dtype == np.int8 else x.astype(np.float64) for x in said],
        KINDS,
        statistics=statistics,
        initial_coefficient=initial_coefficient,
        coefficient_rate=FACTS["rates"]["coefficients"],
        head_rate=FACTS["rates"]["decoders"],
        idle_heads="masked",
        schedule=Schedule(
            given["schedule/task_ids"], rows, np.ones(rows.shape, bool), np.ones(len(rows), bool)
        ),
        chunk_steps=1,
        on_chunk=lambda carry, _: steps.append(as_matrix(carry.trainables.coefficients, paths)),
    )
    return found, np.stack(steps), unstack_decoders(found.decoders, outputs)


@pytest.mark.parametrize("name", FACTS["runs"])
def test_every_step_agrees_with_pytorch(name):
    assert TASKS == KINDS
    given = arrays()
    with jax.enable_x64(True):
        found, steps, decoders = run(**FACTS["runs"][name])
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)
        close(found.losses, given[f"{name}/loss"])
        close(steps, given[f"{name}/coefficients"])
        expected = read(f"{name}/trunk", f"{name}/")
        assert_trees_close(found.encoder, expected.variables, rtol=0, atol=TOLERANCE)
        for task, one in zip(TASKS, decoders, strict=True):
            own = expected.decoders[task].variables
            assert_trees_close(one, own, rtol=0, atol=TOLERANCE)


def test_the_runs_differ_in_more_than_rounding():
    given = arrays()
    for name in FACTS["runs"]:
        path = given[f"{name}/coefficients"]
        assert (np.ptp(path, axis=0) > 0).mean() > 0.9  # nearly all of them move
    apart = [given[f"{name}/loss"] for name in FACTS["runs"]]
    for i, one in enumerate(apart):
        for other in apart[:i]:
            assert np.abs(one - other).max() > 1e-3
    bound = given["at_the_bound/coefficients"]
    assert (bound > 0).mean() > 0.2
    assert (bound < 0).mean() > 0.2
