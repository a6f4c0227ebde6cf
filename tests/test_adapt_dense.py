"""SyMerge and Surgery for dense prediction, on a network small enough to be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symerge_jax.adapt.coefficients import interpolate
from symerge_jax.adapt.dense import KINDS, Network, symerge_dense
from symerge_jax.adapt.dense_surgery import dense_surgery
from symerge_jax.adapt.schedule import sequential
from symerge_jax.adapt.surgery import correct
from symerge_jax.dense_losses import self_depth, self_normal, self_segmentation
from symerge_jax.errors import BadInput

CLASSES, CHANNELS, SIZE, COUNT = 4, 3, (4, 6), 7
OUTPUTS = (CLASSES, 1, 3)
LAMBDA = 0.3


def centred(x, stats):
    return (x - stats["mean"][None, None, None]) * (stats["var"] + 1e-5)[None, None, None] ** -0.5


def batch_stats(x, mask):
    weight = mask[:, None, None, None].astype(x.dtype)
    count = weight.sum() * x.shape[1] * x.shape[2]
    mean = (x * weight).sum((0, 1, 2)) / count
    return {
        "mean": mean,
        "var": (weight * (x - mean[None, None, None]) ** 2).sum((0, 1, 2)) / count,
    }


def moved(old, new):
    return jax.tree.map(lambda a, b: a + 0.1 * (b - a), old, new)


def linear(variables, x):
    return x @ variables["params"]["kernel"]


def encode(variables, images):
    return centred(linear(variables, images.astype(jnp.float32) / 255), variables["batch_stats"])


def encode_in_training(variables, images, mask):
    x = linear(variables, images.astype(jnp.float32) / 255)
    own = batch_stats(x, mask)
    return centred(x, own), moved(variables["batch_stats"], own)


def decode(variables, features):
    return centred(features, variables["batch_stats"]) @ variables["params"]["kernel"]


def decode_in_training(variables, features, mask, key):
    del key
    own = batch_stats(features, mask)
    maps = centred(features, own) @ variables["params"]["kernel"]
    return maps, moved(variables["batch_stats"], own)


NETWORK = Network(encode, decode, encode_in_training, decode_in_training)


class World:
    """θ₀, three experts with decoders, images, and what the experts say of them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)

        def draw(*shape):
            return jnp.asarray(rng.standard_normal(shape), jnp.float32)

        def stats(*shape):
            return {"mean": draw(*shape), "var": jnp.abs(draw(*shape)) + 0.5}

        self.start = {"params": {"kernel": draw(3, CHANNELS)}, "batch_stats": stats(CHANNELS)}
        self.tau = jax.tree.map(lambda x: 0.3 * draw(3, *x.shape), self.start)
        kernel = draw(3, CHANNELS, CLASSES)
        exists = np.arange(CLASSES)[None] < np.array(OUTPUTS)[:, None]
        self.decoders = {
            "params": {"kernel": kernel * exists[:, None]},
            "batch_stats": stats(3, CHANNELS),
        }
        self.images = rng.integers(0, 256, (COUNT, *SIZE, 3), np.uint8)
        self.labels = rng.integers(0, CLASSES, (COUNT, *SIZE)).astype(np.int8)
        self.experts = [
            self.labels, np.asarray(draw(COUNT, *SIZE, 1)), np.asarray(draw(COUNT, *SIZE, 3))
        ]  # fmt: skip

    def run(self, **options):
        return symerge_dense(
            NETWORK, self.start, self.tau, self.decoders, OUTPUTS, [self.images] * 3, self.experts,
            KINDS, **({"iterations": 2, "batch_size": 4} | options),
        )  # fmt: skip

    def merged(self):
        return interpolate(self.start, self.tau, jnp.full(3, LAMBDA))

    def decoder(self, k):
        return jax.tree.map(lambda x: x[k], self.decoders)


@pytest.fixture(scope="module")
def world():
    return World()


SCHEDULE = sequential([COUNT] * 3, iterations=2, batch_size=4, seed=0)


def equal(ours, expected, tolerance=1e-6):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def loss_of(world, maps, task, rows):
    maps = maps[..., : OUTPUTS[task]]
    expert = jnp.asarray(world.experts[task][rows])
    return (self_segmentation, self_depth, self_normal)[task](maps, expert).mean()


def test_without_learning_rates_merged_statistics_give_task_arithmetic(world):
    found = world.run(statistics="merge_stats", head_rate=0.0, coefficient_rate=0.0)
    merged = world.merged()
    floored = jnp.maximum(merged["batch_stats"]["var"], jnp.float32(1e-5))
    equal(found.encoder["params"], merged["params"])
    equal(found.encoder["batch_stats"]["var"], floored)
    equal(found.decoders, world.decoders)


def test_first_losses_are_the_distances_to_the_experts(world):
    found = world.run(statistics="merge_stats", head_rate=0.0, coefficient_rate=0.0,
                      schedule=SCHEDULE)  # fmt: skip
    merged = world.merged()
    for step in range(SCHEDULE.steps):
        task, rows = int(SCHEDULE.task_ids[step]), SCHEDULE.sample_indices[step]
        rows = rows[SCHEDULE.sample_mask[step]]
        maps = decode(world.decoder(task), encode(merged, world.images[rows]))
        np.testing.assert_allclose(found.losses[step], loss_of(world, maps, task, rows), rtol=1e-5)


def test_recalibration_moves_shared_statistics_at_every_step_and_a_decoders_own_at_its_own(world):
    found = world.run(head_rate=0.0, coefficient_rate=0.0, schedule=SCHEDULE)
    merged, decoders = world.merged(), world.decoders["batch_stats"]
    trunk = merged["batch_stats"]
    for step in range(SCHEDULE.steps):
        task, rows = int(SCHEDULE.task_ids[step]), SCHEDULE.sample_indices[step]
        mask = jnp.asarray(SCHEDULE.sample_mask[step])
        features, trunk = encode_in_training(
            {**merged, "batch_stats": trunk}, world.images[rows], mask
        )
        own = world.decoder(task)
        own["batch_stats"] = jax.tree.map(lambda x, k=task: x[k], decoders)
        maps, after = decode_in_training(own, features, mask, None)
        decoders = jax.tree.map(lambda x, new, k=task: x.at[k].set(new), decoders, after)
        kept = np.asarray(mask)
        ours = loss_of(world, maps[kept], task, rows[kept])
        np.testing.assert_allclose(found.losses[step], ours, rtol=1e-5)
    equal(found.encoder["params"], merged["params"])
    equal(found.encoder["batch_stats"], trunk)
    equal(found.decoders["batch_stats"], decoders)


def test_only_merged_statistics_have_coefficients(world):
    for statistics, parts in (
        ("recalibrate", {"params"}),
        ("merge_stats", {"params", "batch_stats"}),
        ("pretrained_stats", {"params"}),
    ):
        found = world.run(statistics=statistics)
        assert set(found.coefficients) == parts, statistics
        assert set(found.encoder) == {"params", "batch_stats"}
    equal(found.encoder["batch_stats"], world.start["batch_stats"])


def test_learning_lowers_the_loss_and_moves_coefficients_and_decoders(world):
    found = world.run(iterations=60, head_rate=0.02, coefficient_rate=0.02)
    assert found.losses[-9:].mean() < 0.9 * found.losses[:9].mean()
    assert (np.asarray(found.coefficients["params"]["kernel"]) != LAMBDA).all()
    assert (found.decoders["params"]["kernel"] != world.decoders["params"]["kernel"]).any()


def test_maps_that_pad_a_decoder_stay_zero(world):
    found = world.run(iterations=5, head_rate=0.02)
    kernel = np.asarray(found.decoders["params"]["kernel"])
    assert (kernel[1, :, 1:] == 0).all()
    assert (kernel[2, :, 3:] == 0).all()


def test_tasks_may_have_images_of_their_own(world):
    images = [world.images, world.images.copy(), world.images.copy()]
    together = world.run(schedule=SCHEDULE, head_rate=0.01)
    apart = symerge_dense(
        NETWORK, world.start, world.tau, world.decoders, OUTPUTS, images, world.experts, KINDS,
        schedule=SCHEDULE, head_rate=0.01,
    )  # fmt: skip
    equal(apart.decoders, together.decoders)
    equal(apart.losses, together.losses)


def test_the_length_of_normals_does_not_matter_unless_it_is_asked_to(world):
    longer = [*world.experts[:2], 3 * world.experts[2]]

    def losses(experts, normalise):
        return symerge_dense(
            NETWORK, world.start, world.tau, world.decoders, OUTPUTS, [world.images] * 3, experts,
            KINDS, schedule=SCHEDULE, statistics="merge_stats", normalise=normalise,
        ).losses  # fmt: skip

    np.testing.assert_allclose(losses(longer, True), losses(world.experts, True), rtol=1e-5)
    assert (losses(longer, False) != losses(world.experts, False)).any()


def test_entropy_is_refused_where_there_are_no_classes(world):
    with pytest.raises(BadInput, match="depth has no classes"):
        world.run(objective="entropy")
    only = symerge_dense(
        NETWORK, world.start, jax.tree.map(lambda x: x[:2], world.tau),
        {"params": {"kernel": world.decoders["params"]["kernel"][jnp.zeros(2, int)]},
         "batch_stats": jax.tree.map(lambda x: x[:2], world.decoders["batch_stats"])},
        (CLASSES,) * 2, [world.images] * 2, [world.labels] * 2, ("segmentation",) * 2,
        objective="entropy", iterations=1, batch_size=4,
    )  # fmt: skip
    assert ((only.losses > 0) & (only.losses <= np.log(CLASSES) + 1e-6)).all()


def test_batches_of_one_image_are_refused_where_statistics_move(world):
    with pytest.raises(BadInput, match="batches of one image have no variance"):
        world.run(batch_size=1)


def test_one_image_is_enough_where_statistics_are_merged(world):
    assert np.isfinite(world.run(batch_size=1, statistics="merge_stats").losses).all()


def test_what_does_not_fit_together_is_refused(world):
    def run(**changed):
        given = {
            "outputs": OUTPUTS, "images": [world.images] * 3, "experts": world.experts,
            "kinds": KINDS,
        } | changed  # fmt: skip
        symerge_dense(NETWORK, world.start, world.tau, world.decoders, *given.values())

    for changed, message in (
        ({"images": [world.images] * 2}, "3 task vectors, but 2 sets of images"),
        ({"kinds": ("segmentation", "depth", "edges")}, "kind must be one of"),
        ({"experts": world.experts[::-1]}, r"task 0, segmentation: expected the expert's maps"),
        ({"experts": [x[:-1] for x in world.experts]}, "of shape"),
    ):
        with pytest.raises(BadInput, match=message):
            run(**changed)


@pytest.mark.parametrize("probabilistic", [False, True])
def test_a_correction_brings_merged_features_closer_to_the_experts(world, probabilistic):
    merged = world.merged()
    found = dense_surgery(
        encode, merged, world.start, world.tau, [world.images] * 3,
        probabilistic=probabilistic, width=8, iterations=80, batch_size=4, learning_rate=0.02,
        beta=0.0,
    )  # fmt: skip
    assert found.losses[-9:].mean() < 0.9 * found.losses[:9].mean()
    assert found.module.down.shape == (3, 8, CHANNELS)


def test_a_correction_begins_as_the_distance_between_both_encoders(world):
    merged, schedule = world.merged(), sequential([COUNT] * 3, iterations=1, batch_size=4, seed=1)
    found = dense_surgery(
        encode, merged, world.start, world.tau, [world.images] * 3, schedule=schedule
    )
    task, rows = int(schedule.task_ids[0]), schedule.sample_indices[0]
    expert = jax.tree.map(lambda a, b: a + b[task], world.start, world.tau)
    h, g = (encode(one, world.images[rows]) for one in (merged, expert))
    np.testing.assert_allclose(found.losses[0], jnp.abs(h - g).mean(), rtol=1e-5)
    part = jax.tree.map(lambda x: x[0], found.module)
    assert correct(part, h).shape == h.shape
