"""Writes surgery.npz and probsurgery.npz, and what is in them as JSON: the golden runs.

    python tests/golden/make_surgery.py     (needs PyTorch and NumPy; takes a second)

Independent of the library: the published loops of Surgery (Yang et al. 2024) and ProbSurgery
(Wei et al. 2025) as PyTorch layers, PyTorch's Adam and L1 loss, on drawn features, fixed batches
and fixed noise. The encoders are left out, because both methods only see their features.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
SIZES = (11, 9, 10)
# An odd number of features: after Adam's first step all entries of U have one magnitude, and of an
# even number the signs can cancel; then D's gradient is rounding, of which Adam makes a step.
FEATURES, RANK, HIDDEN, BATCH, ITERATIONS = 7, 3, 5, 4, 6
RATE, BETA = 0.01, 0.05  # larger than in the papers, so that a few steps say much
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


def draw(rng, *shape):
    """Normal numbers that float32 has exactly, so that both precisions start alike."""
    return rng.normal(size=shape).astype(np.float32)


def inputs(rng):
    """Merged features, and experts' that differ by a rectified map and by noise."""
    arrays = {}
    for k, n in enumerate(SIZES):
        merged = draw(rng, n, FEATURES)
        bias = np.maximum(merged @ draw(rng, FEATURES, 2), 0) @ draw(rng, 2, FEATURES)
        arrays[f"features/task{k}"] = merged
        arrays[f"expert/task{k}"] = merged - 0.3 * bias + 0.1 * draw(rng, n, FEATURES)
    arrays["expert/task0"][:, :2] = arrays["features/task0"][:, :2]  # |x| at x = 0
    return arrays


def schedule(rng, *, batches, shuffled):
    """Fixed mini-batches; every third is short, as at the end of a pass."""
    tasks, indices, masks = [], [], []
    for _ in range(ITERATIONS):
        order = rng.permutation(len(SIZES)) if shuffled else range(len(SIZES))
        for k in order:
            for _ in range(batches):
                count = BATCH // 2 if len(tasks) % 3 == 2 else BATCH
                rows = rng.permutation(SIZES[k])[:count]
                tasks.append(k)
                indices.append(np.concatenate([rows, np.zeros(BATCH - count, np.int64)]))
                masks.append(np.arange(BATCH) < count)
    return {
        "task_ids": np.array(tasks, np.int32),
        "sample_indices": np.stack(indices).astype(np.int32),
        "sample_mask": np.stack(masks),
    }


def start(rng, shape):
    """Kaiming-uniform with a = sqrt(5)."""
    bound = 1 / math.sqrt(shape[-1])
    return rng.uniform(-bound, bound, size=shape).astype(np.float32)


class Surgery(torch.nn.Module):
    """h - U relu(D h)."""

    names = ("down", "up")

    def __init__(self, down):
        super().__init__()
        self.down = torch.nn.Linear(FEATURES, len(down), bias=False)
        self.up = torch.nn.Linear(len(down), FEATURES, bias=False)
        self.down.weight.data = torch.tensor(down)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, h, noise):
        return h - self.up(torch.relu(self.down(h))), 0.0


class ProbSurgery(torch.nn.Module):
    """h - (mu + exp(v / 2) noise), and the divergence times beta."""

    names = ("down", "mean", "log_variance")

    def __init__(self, down):
        super().__init__()
        self.down = torch.nn.Linear(FEATURES, len(down), bias=False)
        self.mean = torch.nn.Linear(len(down), FEATURES, bias=False)
        self.log_variance = torch.nn.Linear(len(down), FEATURES, bias=False)
        self.down.weight.data = torch.tensor(down)
        torch.nn.init.zeros_(self.mean.weight)
        torch.nn.init.zeros_(self.log_variance.weight)

    def forward(self, h, noise):
        hidden = torch.relu(self.down(h))
        mu, v = self.mean(hidden), self.log_variance(hidden)
        kl = (-0.5 * (1 + v - mu**2 - v.exp()).sum(dim=1)).mean(dim=0)
        return h - (mu + (v / 2).exp() * noise), BETA * kl


def run(kind, down, steps, data, dtype, *, noise=None, masked=False):
    """Runs a loop; `down` has one row per module, and a single one serves all tasks."""
    modules = [kind(own).to(dtype) for own in down]
    adam = torch.optim.Adam(
        [p for module in modules for p in module.parameters()],
        lr=RATE, betas=(0.9, 0.999), weight_decay=0.0,
    )  # fmt: skip
    l1 = torch.nn.L1Loss()
    losses = []
    for step, (k, rows, mask) in enumerate(zip(*steps.values(), strict=True)):
        h, g = (
            torch.tensor(data[f"{name}/task{k}"][rows[mask]], dtype=dtype)
            for name in ("features", "expert")
        )
        eps = None if noise is None else torch.tensor(noise[step][mask], dtype=dtype)
        corrected, extra = modules[k % len(modules)](h, eps)
        loss = l1(corrected, g) + extra
        # None leaves a parameter alone; zeros, once it has had a gradient, move it by momentum.
        adam.zero_grad(set_to_none=masked)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    found = {"loss": np.array(losses, np.float64)}
    for name in kind.names:
        weights = [getattr(module, name).weight.detach().numpy() for module in modules]
        found[f"final/{name}"] = np.stack(weights)
    return found


def write(name, title, arrays, variants, extra):
    """Runs each variant in both precisions and writes all."""
    worst = {}
    for variant, options in variants.items():
        both = {bits: run(dtype=dtype, **options) for bits, dtype in PRECISIONS.items()}
        for bits, found in both.items():
            arrays |= {f"{variant}/{bits}/{key}": value for key, value in found.items()}
        worst[variant] = {
            key: float(np.abs(both["f32"][key] - both["f64"][key]).max()) for key in both["f64"]
        }
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    facts = {
        "title": title,
        "made_by": "make_surgery.py, beside this file",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "inputs": {
            "features/task<t>": "[n, 7] float32, the merged encoder's features",
            "expert/task<t>": "[n, 7] float32, the expert's",
            "initial/down": "[module, out, in] float32, PyTorch's layout; other weights start at 0",
            "schedule/<s>/task_ids|sample_indices|sample_mask": "one row per step; short batches "
            "are padded where the mask is False",
        },
        "outputs": {
            "<variant>/<f64|f32>/loss": "[step] before each step",
            "<variant>/<f64|f32>/final/<name>": "[module, out, in] after the last step",
        },
        "max_abs_diff_f32_vs_f64": worst,
        "tolerance": "float64 1e-9, float32 1e-5, absolute",
        **extra,
    }
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return worst


def main():
    rng = np.random.default_rng(20240511)
    data = inputs(rng)
    one = schedule(rng, batches=1, shuffled=True)
    two = schedule(rng, batches=2, shuffled=False)
    tasks = len(SIZES)

    down = start(rng, (tasks, RANK, FEATURES))
    arrays = data | {"initial/down": down}
    arrays |= {f"schedule/one/{key}": value for key, value in one.items()}
    arrays |= {f"schedule/two/{key}": value for key, value in two.items()}
    same = {"kind": Surgery, "down": down, "data": data}
    variants = {
        "dense": same | {"steps": one},
        "masked": same | {"steps": one, "masked": True},
        "authors": same | {"steps": two},
    }
    print(write("surgery", "Representation Surgery", arrays, variants, {
        "settings": {"learning_rate": RATE},
        "variants": {
            "dense": "schedule one (tasks in random order); idle modules see zero gradients",
            "masked": "schedule one; idle modules are left alone",
            "authors": "schedule two (fixed order, two steps per task); idle see zero gradients",
        },
    }))  # fmt: skip

    down = start(rng, (tasks, HIDDEN, FEATURES))
    noise = draw(rng, len(one["task_ids"]), BATCH, FEATURES)
    arrays = data | {"initial/down": down, "noise": noise}
    arrays |= {f"schedule/one/{key}": value for key, value in one.items()}
    same = {"kind": ProbSurgery, "data": data, "steps": one, "noise": noise}
    variants = {
        "dense": same | {"down": down},
        "masked": same | {"down": down, "masked": True},
        "shared": same | {"down": down[:1]},
    }
    print(write("probsurgery", "ProbSurgery", arrays, variants, {
        "settings": {"learning_rate": RATE, "beta": BETA},
        "noise": "[step, batch, 7] float32, what each step draws",
        "variants": {
            "dense": "schedule one; idle modules see zero gradients",
            "masked": "schedule one; idle modules are left alone",
            "shared": "schedule one; the first module serves all tasks",
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main()
