"""The adaptation loop against the published rule, step by step, on a tiny CLIP vision tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden

from symerge_jax.adapt.coefficients import as_matrix, clamp_all, interpolate, per_leaf
from symerge_jax.adapt.experts import expert_predictions
from symerge_jax.adapt.fit import fit, pool
from symerge_jax.adapt.merged import Constants, Trainables, encoder_loss, objective_ids
from symerge_jax.adapt.schedule import Schedule
from symerge_jax.checkpoints.clip import from_hugging_face, source_names
from symerge_jax.models.clip import VisionConfig, encode_image
from symerge_jax.models.heads import normalised_head, stack_heads, unstack_heads
from symerge_jax.task_vectors import subtract

CONFIG = VisionConfig(
    image_size=16,
    patch_size=8,
    width=16,
    depth=2,
    heads=2,
    mlp_width=32,
    projection=8,
    fused_qkv=False,
)
# objective, learning rates, idle heads
VARIANTS = {
    "symerge": ("code", Trainables(0.01, 0.01), "skip"),
    "symerge_zerograd": ("code", Trainables(0.01, 0.01), "zero"),
    "adamerging_seq": ("entropy", Trainables(0.001, 0.0), "skip"),
}
# The true gradient of these coefficients is zero: rounding noise decides where Adam moves them.
NOISE = "k_proj.bias"


def part(arrays, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


class Case:
    """The inputs of every variant, in one precision."""

    def __init__(self, arrays, facts, dtype):
        self.facts = facts
        self.names = facts["model"]["tensor_names_in_order"]
        load = lambda prefix: jax.tree.map(  # noqa: E731
            lambda x: jnp.asarray(x, dtype),
            from_hugging_face(part(arrays, prefix), CONFIG).params["vision"],
        )
        self.pretrained = load("pretrained")
        self.experts = [load(f"expert/task{k}") for k in range(3)]
        heads = [
            {n: jnp.asarray(v, dtype) for n, v in part(arrays, f"head/task{k}").items()}
            for k in range(3)
        ]
        self.own_heads = heads
        self.heads, self.classes = stack_heads(heads)
        images = np.moveaxis(arrays["images"], -3, -1).astype(dtype)
        self.inputs = [images[:, k].reshape(-1, 16, 16, 3) for k in range(3)]
        order = arrays["task_order"]
        rounds, tasks = order.shape
        rows = np.repeat(np.arange(rounds), tasks)[:, None] * 6 + np.arange(6)
        self.schedule = Schedule(
            order.reshape(-1).astype(np.int32),
            rows.astype(np.int32),
            np.ones(rows.shape, bool),
            np.ones(len(rows), bool),
        )
        layout = dict(source_names({"vision": self.pretrained}, "hugging_face"))
        self.paths = [layout[name].removeprefix("vision/") for name in self.names]


ENCODE = encode_image(CONFIG)


def logits_of(model, images):
    params, head = model
    return normalised_head(head, ENCODE(params, images))


def run(case, variant, **options):
    objective, rates, idle = VARIANTS[variant]
    tau = subtract(case.experts, case.pretrained)
    models = list(zip(case.experts, case.own_heads, strict=True))
    said = expert_predictions(logits_of, models, case.inputs)
    return fit(
        encoder_loss(ENCODE, normalised_head),
        Trainables(per_leaf(tau, 0.3), case.heads),
        pool(case.inputs, said),
        case.schedule,
        rates=rates,
        constants=Constants(case.pretrained, tau, case.classes, objective_ids([objective] * 3)),
        per_task=Trainables(False, True),
        idle=idle,
        **options,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [64, 32])
def test_every_step_agrees_with_the_published_rule(variant, bits):
    arrays, facts = golden("adaptive")
    expected = part(arrays, f"{variant}/f{bits}")
    with jax.enable_x64(bits == 64):
        case = Case(arrays, facts, f"float{bits}")
        steps = []
        fitted = run(
            case,
            variant,
            chunk_steps=1,
            on_chunk=lambda carry, _: steps.append(
                as_matrix(carry.trainables.coefficients, case.paths)
            ),
        )
        tolerance = 1e-9 if bits == 64 else 1e-5
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
        close(fitted.losses, expected["loss"])
        if "kept" in expected:
            np.testing.assert_array_equal(fitted.extra.kept, expected["kept"])
        quiet = np.array([NOISE not in name for name in case.names])
        close(np.stack(steps)[:, quiet], expected["coef_raw"][:, quiet])
        if bits == 64:
            np.testing.assert_allclose(
                np.stack(steps)[:, ~quiet], expected["coef_raw"][:, ~quiet], rtol=0, atol=1e-7
            )
        for k, head in enumerate(unstack_heads(fitted.trainables.heads, case.classes)):
            for name, leaf in head.items():
                if f"final_head/task{k}/{name}" in expected:
                    close(leaf, expected[f"final_head/task{k}/{name}"])
            if f"final_test_logits/task{k}" in expected and bits == 64:
                lam = clamp_all(fitted.trainables.coefficients)
                tau = subtract(case.experts, case.pretrained)
                theta = interpolate(case.pretrained, tau, lam)
                images = np.moveaxis(arrays["test_images"], -3, -1).astype(f"float{bits}")
                logits = logits_of((theta, head), jnp.asarray(images))
                # the noisy coefficients may be 1e-7 off
                np.testing.assert_allclose(
                    logits, expected[f"final_test_logits/task{k}"], rtol=0, atol=1e-6
                )


@pytest.mark.parametrize("variant", ["symerge"])
def test_one_chunk_or_many_is_one_run(variant):
    arrays, facts = golden("adaptive")
    with jax.enable_x64(True):
        case = Case(arrays, facts, "float64")
        whole, parts = run(case, variant), run(case, variant, chunk_steps=4)
    np.testing.assert_array_equal(whole.losses, parts.losses)
