"""WEMoE: laws on a linear world, and every step of a run against PyTorch on a tiny CLIP."""

import functools
import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import linear_world
import numpy as np
import pytest
from linear_world import classify
from trees_close import assert_trees_close, assert_trees_equal

from symerge_jax.adapt.adamerging import adamerging
from symerge_jax.adapt.coefficients import interpolate, per_leaf
from symerge_jax.adapt.objectives import entropy
from symerge_jax.adapt.schedule import Schedule, joint
from symerge_jax.adapt.wemoe import cosine_adam, mixture, wemoe
from symerge_jax.checkpoints.clip import from_hugging_face
from symerge_jax.errors import BadInput
from symerge_jax.models.clip import VisionConfig
from symerge_jax.models.clip_moe import encode_image_moe, mlp_leaves
from symerge_jax.models.heads import normalised_head, stack_heads
from symerge_jax.task_vectors import subtract

# Compiling is what takes time here: no optimisations.
pytestmark = pytest.mark.usefixtures("separate")

unchecked = inspect.unwrap(wemoe)  # without the tests' own checks of types and shapes


# On the linear world the kernel is mixed, and the router is one coefficient per task.
ROUTED = {"bias": False, "kernel": True}
GATE = jnp.full(3, 0.3, jnp.float32)


def encode(params, task_vectors, router, inputs, mask):
    del mask
    return linear_world.encode(interpolate(params, task_vectors, router), inputs)


@pytest.fixture(scope="module")
def world():
    return linear_world.make()


def run(world, *, router=GATE, encode=encode, **options):
    parts = mixture(world.pretrained, world.task_vectors, ROUTED)
    options = {"iterations": 8, "batch_size": 4, "learning_rate": 0.03} | options
    return wemoe(encode, classify, *parts, router, world.heads, world.inputs, **options)


def test_it_gets_surer_and_only_the_router_moves(world):
    before = jax.tree.map(np.array, world)
    trained = run(world)
    assert trained.losses.shape == (8 * 3,)
    assert trained.losses[-9:].mean() < trained.losses[:9].mean()
    assert trained.router.shape == GATE.shape
    assert (trained.router != GATE).all()
    assert_trees_equal(world, before)


def test_a_run_depends_on_its_seed_alone(world):
    assert_trees_equal(run(world, seed=1), run(world, seed=1))
    assert not np.array_equal(run(world, seed=1).losses, run(world, seed=2).losses)


def test_at_a_constant_rate_one_gate_for_all_inputs_is_adamerging(world):
    world = world._replace(task_vectors=world.task_vectors | {"bias": None})
    schedule = joint(linear_world.SIZES, iterations=8, batch_size=4, seed=0)
    options = {"learning_rate": 0.03, "schedule": schedule}
    ours = run(world, **options, schedule_kind="constant")
    theirs = adamerging(
        linear_world.encode, classify, *world[:-1], **options, granularity="task", clamp=False
    )
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
    np.testing.assert_allclose(ours.router, theirs.coefficients, rtol=1e-5)


def test_the_rate_is_a_cosine_over_the_updates(world):
    adam = cosine_adam(4)
    state, update, sizes = adam.init(jnp.zeros(1)), jax.jit(adam.update), []
    for _ in range(6):  # of a constant gradient Adam makes steps of its rate
        updates, state = update(jnp.ones(1), state)
        sizes.append(-float(updates[0]))
    cosine = (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    np.testing.assert_allclose(sizes, [*cosine, 0.0], rtol=1e-4, atol=1e-6)
    assert cosine_adam(4) is adam
    # one update, of three micro-steps: the first rate is the whole one
    np.testing.assert_allclose(abs(run(world, iterations=1).router - 0.3), 0.03, rtol=1e-3)


def test_a_rate_of_zero_keeps_the_router(world):
    np.testing.assert_array_equal(run(world, learning_rate=0.0).router, GATE)


def test_padded_classes_change_nothing(world):
    wide = {
        "bias": jnp.pad(world.heads["bias"], ((0, 0), (0, 2)), constant_values=50.0),
        "weight": jnp.pad(world.heads["weight"], ((0, 0), (0, 0), (0, 2)), constant_values=9.0),
    }
    exists = jnp.tile(jnp.arange(5) < 3, (3, 1))
    plain, padded = run(world), run(world._replace(heads=wide), classes=exists)
    np.testing.assert_allclose(padded.losses, plain.losses, rtol=1e-4)
    np.testing.assert_allclose(padded.router, plain.router, rtol=1e-4)


def counting(params, task_vectors, router, inputs, mask):
    """Features times the number of inputs that are no padding."""
    assert mask is None or mask.shape == inputs.shape[:1]
    count = 1 if mask is None else mask.sum(dtype=jnp.float32)
    return count * encode(params, task_vectors, router, inputs, mask)


def test_the_encoder_is_told_what_is_padding(world):
    schedule = joint(linear_world.SIZES, iterations=3, batch_size=4, seed=0)
    assert not schedule.sample_mask.all()
    found = run(world, encode=counting, schedule=schedule, learning_rate=0.0)
    parts = mixture(world.pretrained, world.task_vectors, ROUTED)

    @jax.jit
    def entropies(head, images, count):
        return entropy(classify(head, count * encode(*parts, GATE, images, None)))

    expected = []
    for task, rows, mask, _ in zip(*schedule, strict=True):
        head = jax.tree.map(lambda x, k=task: np.asarray(x[k]), world.heads)
        count = np.float32(mask.sum())
        expected.append(np.asarray(entropies(head, world.inputs[task][rows], count))[mask].mean())
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)


def test_what_no_router_mixes_is_task_arithmetic(world):
    parts = mixture(world.pretrained, world.task_vectors, ROUTED, coefficient=0.2)
    merged = jax.jit(interpolate)(
        world.pretrained, world.task_vectors, per_leaf(world.task_vectors, 0.2)
    )
    np.testing.assert_array_equal(parts.params["kernel"], world.pretrained["kernel"])
    np.testing.assert_allclose(parts.params["bias"], merged["bias"], rtol=1e-6)
    assert parts.task_vectors["bias"] is None
    np.testing.assert_array_equal(parts.task_vectors["kernel"], world.task_vectors["kernel"])


def test_leaves_that_no_expert_changed_stay(world):
    frozen = {"bias": world.task_vectors["bias"], "kernel": None}
    parts = mixture(world.pretrained, frozen, ROUTED)
    np.testing.assert_array_equal(parts.task_vectors["kernel"], np.zeros((3, 4, 3), np.float32))
    parts = mixture(world.pretrained, world.task_vectors | {"bias": None}, ROUTED)
    np.testing.assert_array_equal(parts.params["bias"], world.pretrained["bias"])


@pytest.mark.parametrize(
    ("routed", "message"),
    [({"kernel": True}, "another structure"), ({"bias": False, "kernel": False}, "got none")],
)
def test_marks_that_do_not_fit_are_refused(world, routed, message):
    with pytest.raises(BadInput, match=message):
        mixture(world.pretrained, world.task_vectors, routed)


def test_counts_that_do_not_fit_are_refused(world):
    with pytest.raises(BadInput, match="3 task vectors, 3 heads and inputs of 2 tasks"):
        run(world._replace(inputs=world.inputs[:2]))


def test_options_that_do_not_fit_are_refused(world):
    parts = mixture(world.pretrained, world.task_vectors, ROUTED)
    arguments = (encode, classify, *parts, GATE, world.heads, world.inputs)
    with pytest.raises(BadInput, match="schedule_kind must be one of cosine, constant"):
        unchecked(*arguments, schedule_kind="linear")
    with pytest.raises(BadInput, match=r"classes: expected .* shape \(3, 3\) .* got \(3, 5\)"):
        unchecked(*arguments, classes=jnp.ones((3, 5), bool))
    schedule = joint(linear_world.SIZES, iterations=1, batch_size=4, seed=0)
    with pytest.raises(BadInput, match="the last step has apply_update False"):
        unchecked(*arguments, schedule=schedule._replace(apply_update=np.zeros(3, bool)))


@functools.cache
class Case:
    """A tiny CLIP, three experts and what PyTorch made of them, in one precision."""

    def __init__(self, dtype):
        path = Path(__file__).parent / "golden" / "wemoe.npz"
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        sizes = self.facts["config"]
        self.config = VisionConfig(
            image_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            width=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            heads=sizes["num_attention_heads"],
            mlp_width=sizes["intermediate_size"],
            projection=sizes["projection_dim"],
            fused_qkv=False,
        )
        self.dtype = dtype
        pretrained = self.encoder("pretrained")
        tau = subtract([self.encoder(f"expert/task{k}") for k in range(3)], pretrained)
        coefficient = self.facts["coefficient"]
        self.parts = mixture(pretrained, tau, mlp_leaves(pretrained), coefficient=coefficient)
        self.heads, self.classes = stack_heads([self.part(f"head/task{k}") for k in range(3)])
        # [iteration, task, batch, 3, height, width] → one array [iteration · batch, ...] per task
        images = np.moveaxis(self.arrays["images"], 3, -1).astype(dtype)
        self.first = jnp.asarray(images[0].reshape(-1, *images.shape[3:]))
        self.inputs = [images[:, k].reshape(-1, *images.shape[3:]) for k in range(3)]

    def part(self, prefix):
        start = f"{prefix}/"
        return {
            name.removeprefix(start): array.astype(self.dtype)
            for name, array in self.arrays.items()
            if name.startswith(start)
        }

    def encoder(self, prefix):
        return from_hugging_face(self.part(prefix), self.config).params["vision"]

    def router(self, prefix):
        """PyTorch's matrices are [out, in]."""
        found = {f"blocks_{i}": {} for i in range(self.config.depth)}
        for name, array in self.part(prefix).items():
            _, block, layer, *leaf = name.split(".")
            own = found[f"blocks_{block}"]
            if leaf == ["weight"]:
                own.setdefault(layer, {})["kernel"] = array.T
            elif leaf:
                own.setdefault(layer, {})["bias"] = array
            else:
                own[layer] = array
        return found


@pytest.mark.parametrize(
    ("name", "mixing", "bits"),
    [
        ("depth0", "weights", 64),
        ("depth1", "outputs", 64),
        ("depth2", "weights", 64),
        ("depth2_reduced", "weights", 64),
        ("depth2", "weights", 32),
    ],
)
def test_features_agree_with_pytorch(name, mixing, bits):
    depth, batch_reduce = int(name[5]), name.endswith("reduced")
    with jax.enable_x64(bits == 64):
        case = Case(f"float{bits}")
        encode = encode_image_moe(
            case.config, depth=depth, mixing=mixing, batch_reduce=batch_reduce
        )
        router = case.router(f"router/depth{depth}")
        features = np.asarray(jax.jit(encode)(*case.parts, router, case.first))
    expected = case.arrays[f"features/{name}"]
    tolerance = 1e-9 if bits == 64 else 1e-5
    assert features.dtype == f"float{bits}"
    assert abs(features - expected).max() <= tolerance * abs(expected).max()
    # The images and the ways to route must differ for agreement to mean something.
    assert abs(expected[0] - expected[1]).max() > 0.1
    assert name == "depth2" or abs(expected - case.arrays["features/depth2"]).max() > 0.1


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-9), (32, 1e-5)])
def test_every_step_of_a_run_agrees_with_pytorch(bits, tolerance):
    with jax.enable_x64(bits == 64):
        case = Case(f"float{bits}")
        losses = case.arrays["train/loss"]
        rounds, tasks = losses.shape
        batch = len(case.inputs[0]) // rounds
        rows = np.repeat(np.arange(rounds), tasks)[:, None] * batch + np.arange(batch)
        schedule = Schedule(
            np.tile(np.arange(tasks, dtype=np.int32), rounds),
            rows.astype(np.int32),
            np.ones(rows.shape, bool),
            np.tile(np.arange(tasks) == tasks - 1, rounds),
        )
        start, after = case.router("router/depth2"), []
        trained = wemoe(
            encode_image_moe(case.config), normalised_head, *case.parts, start, case.heads,
            case.inputs,
            classes=case.classes,
            learning_rate=case.facts["learning_rate"],
            schedule=schedule,
            chunk_steps=tasks,
            on_chunk=lambda carry, _: after.append(jax.tree.map(np.array, carry.trainables)),
        )  # fmt: skip
        np.testing.assert_allclose(
            trained.losses.reshape(losses.shape), losses, rtol=0, atol=tolerance
        )
        for step, router in enumerate(after, start=1):
            expected = case.router(f"train/router/after{step}")
            assert_trees_close(router, expected, rtol=0, atol=tolerance)
        assert len(after) == rounds
        assert_trees_equal(trained.router, after[-1])
        moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), trained.router, start)
        assert min(jax.tree.leaves(moved)) > 100 * tolerance
