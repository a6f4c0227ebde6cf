"""What a run will need, against hand counts and against what compiled programs say."""

import json

import jax
import jax.numpy as jnp
import linear_world
import pytest

from experiments import forecasting
from experiments.options import Options
from symerge_jax import forecast
from symerge_jax.adapt.fit import FEED_BYTES, RESIDENT_BYTES


@pytest.fixture(scope="module")
def cost():
    """Of a product [4, 6] @ [6, 5] and a head [5, 3]."""
    shape = jax.ShapeDtypeStruct
    theta = {"kernel": shape((6, 5), jnp.float32), "bias": shape((5,), jnp.float32)}
    head = {"weight": shape((5, 3), jnp.float32), "bias": shape((3,), jnp.float32)}
    inputs = shape((4, 6), jnp.float32)
    return forecast.cost_of(linear_world.encode, linear_world.classify, theta, head, inputs)


def test_a_small_network_counted_by_hand(cost):
    products = 2 * 4 * 6 * 5 + 2 * 4 * 5 * 3
    assert products <= cost.forward <= 1.5 * products
    # Each product has two of its size in the gradient; that of the inputs is not asked for.
    assert cost.both >= products + 2 * 4 * 6 * 5 + 2 * (2 * 4 * 5 * 3)
    assert cost.parameters == 6 * 5 + 5
    assert cost.head == 5 * 3 + 3
    assert cost.inputs == 6 * 4


def test_memory_counted_by_hand(cost):
    found = forecast.memory(cost, tasks=3, samples=100)
    assert found["task vectors"] == 3 * 35 * 4
    assert found["pre-trained model"] == 35 * 4
    assert found["inputs"] == 100 * 24
    assert found["total"] == sum(n for name, n in found.items() if name != "total")
    shares = forecast.memory(cost, tasks=3, samples=100, devices=5, shared=True, stored_as="int8")
    assert shares["task vectors"] == 3 * 35 // 5
    assert shares["merged model and its gradient"] == found["merged model and its gradient"]


def test_inputs_that_do_not_stay_come_in_two_chunks(cost):
    many = forecast.memory(cost, tasks=3, samples=RESIDENT_BYTES // 24 + 1)
    assert many["inputs"] == 2 * FEED_BYTES


def test_activations_are_what_the_compiled_gradient_keeps():
    shape = jax.ShapeDtypeStruct
    width, batch = 64, 512
    theta = {"kernel": shape((width, width), jnp.float32), "bias": shape((width,), jnp.float32)}
    head = {"weight": shape((width, 3), jnp.float32), "bias": shape((3,), jnp.float32)}
    inputs = shape((batch, width), jnp.float32)
    one = forecast.cost_of(linear_world.encode, linear_world.classify, theta, head, inputs)
    features = batch * width * 4
    assert features <= one.activations <= 3 * features


def test_rates_are_measured_once():
    rates = forecast.measured_rates()
    assert rates.flops > 1e8
    assert rates.bandwidth > 1e8
    assert forecast.measured_rates() is rates
    assert forecast.peak_memory(jax.devices())["peak_bytes"] > 1e6


def test_the_embedded_world_is_counted_without_drawing_it(tmp_path):
    options = Options(limit=60)
    assert forecasting.test_counts(options, ["digits", "runes"]) == {"digits": 60, "runes": 60}
    missing = Options(data=tmp_path)
    assert forecasting.test_counts(missing, ["digits"]) is None


def test_a_forecast_reads_as_sentences_and_fits_into_a_record():
    from experiments.vision_start import GENERATED
    from symerge_jax.models.clip_config import VisionConfig

    config = VisionConfig(
        image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_width=16, projection=6
    )
    one = forecasting.cost(config, 32, "float32")
    found = forecasting.forecast(
        one, GENERATED, ["individual", "symerge"], Options(seeds=(0, 1)), {"a": 10, "b": 12},
        jax.devices(),
    )  # fmt: skip
    json.dumps(found)
    assert list(found["seconds"]) == ["experts", "predictions", "adaptation", "scoring"]
    memory, time = forecasting.lines(found)
    assert memory.startswith("memory per device while adapting: about ")
    assert "task vectors" in memory
    assert time.startswith("time, once compiled: about ")


@pytest.mark.parametrize(
    ("seconds", "says"), [(3.4, "3 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_have_a_unit_that_fits(seconds, says):
    assert forecasting.duration(seconds) == says


def test_sizes_have_a_unit_that_fits():
    assert forecasting.gigabytes(2.04e9) == "2.0 GB"
    assert forecasting.gigabytes(58e6) == "58 MB"


def test_working_activations_out_again_keeps_less_and_changes_nothing():
    from symerge_jax.classifier import encoder
    from symerge_jax.models.clip import PRESETS, initial_params

    config = PRESETS["tiny-64x3"].vision
    params = initial_params(config, jax.random.key(0))
    images = jax.random.randint(jax.random.key(1), (4, 32, 32, 3), 0, 256).astype(jnp.uint8)

    def of(remat):
        encode = encoder(config, remat=remat)
        gradient = jax.jit(jax.grad(lambda p: (encode(p, images) ** 2).sum()))(params)
        head = {"weight": jnp.zeros((3, 64)), "bias": jnp.zeros(3)}
        cost = forecast.cost_of(
            encode, lambda h, f: f[:, :1] * h["bias"].sum(), params, head, images
        )
        return gradient, cost

    (plain, kept), (again, less) = of(False), of(True)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert jnp.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert less.activations < kept.activations / 3
    assert less.both > kept.both


@pytest.mark.parametrize("name", ["language", "dense"])
def test_texts_and_scenes_have_forecasts_too(capsys, tmp_path, name):
    from importlib import import_module

    script = import_module(f"experiments.{name}")
    settings = script.Settings if name == "language" else script.DenseOptions
    assert script.main(settings(dry_run=True, limit=10, out=tmp_path, devices=1)) == 0
    memory, time = capsys.readouterr().out.splitlines()[-2:]
    assert "task vectors" in memory
    assert time.startswith("time, once compiled: about ")
    assert list(tmp_path.iterdir()) == []
