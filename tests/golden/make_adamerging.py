"""Writes adamerging.npz, and what is in it as JSON: golden runs of joint AdaMerging.

    python tests/golden/make_adamerging.py     (needs PyTorch and NumPy; takes a second)

Independent of the library: the loop of Yang et al. 2024 in PyTorch, its tensors added up one by
one, its Adam and autograd, on a small drawn encoder and fixed batches. Of every task two
mini-batches are forwarded, and the sum of their mean entropies makes one step. "++" trims and
elects by sorting all entries in float64.
"""

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
SIZES, PIXELS, HIDDEN, FEATURES, CLASSES = (11, 9, 10), 6, 8, 5, 4
SHAPES = {"a.weight": (HIDDEN, PIXELS), "a.bias": (HIDDEN,), "b.weight": (FEATURES, HIDDEN)}
BATCH, BATCHES, ITERATIONS, RATE = 4, 2, 5, 0.05
DENSITY = 0.2
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


def draw(rng, *shape):
    """Normal numbers that float32 has exactly, so that both precisions start alike."""
    return rng.normal(size=shape).astype(np.float32)


def inputs(rng):
    arrays = {f"pretrained/{name}": draw(rng, *shape) for name, shape in SHAPES.items()}
    for k, n in enumerate(SIZES):
        for name, shape in SHAPES.items():
            arrays[f"tau/task{k}/{name}"] = np.float32(0.5) * draw(rng, *shape)
        arrays[f"head/task{k}"] = 2 * draw(rng, CLASSES, FEATURES)
        arrays[f"inputs/task{k}"] = draw(rng, n, PIXELS)
    indices = [rng.permutation(SIZES[k])[:BATCH] for _ in range(ITERATIONS)
               for k in range(len(SIZES)) for _ in range(BATCHES)]  # fmt: skip
    return arrays | {"schedule/sample_indices": np.stack(indices).astype(np.int32)}


def elected(arrays):
    """Trims each task over all its entries together, elects signs, drops what disagrees."""
    flat = np.stack([
        np.concatenate([arrays[f"tau/task{k}/{name}"].ravel() for name in SHAPES])
        for k in range(len(SIZES))
    ]).astype(np.float64)  # fmt: skip
    size = flat.shape[1]
    rank = size - int(DENSITY * size)  # counted from 1
    edges = np.sort(np.abs(flat), axis=1)[:, rank - 1 : rank]
    trimmed = np.where(np.abs(flat) >= edges, flat, 0)
    signs = np.sign(trimmed.sum(axis=0))
    signs[signs == 0] = 1 if signs.sum() > 0 else -1
    kept = np.where(np.sign(trimmed) == signs, trimmed, 0)
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])[:-1]
    for k, row in enumerate(kept):
        for part, (name, shape) in zip(np.split(row, ends), SHAPES.items(), strict=True):
            yield f"tau/task{k}/{name}", part.reshape(shape).astype(np.float32)


def run(arrays, dtype, *, granularity):
    """Returns the loss of each mini-batch and λ after each step, [iteration, tensor, task]."""
    at = {name: torch.tensor(array, dtype=dtype) for name, array in arrays.items()
          if name.partition("/")[0] != "schedule"}  # fmt: skip
    rows = len(SHAPES) if granularity == "leaf" else 1
    lam = torch.full((rows, len(SIZES)), 0.3, dtype=dtype)
    lam[0, 0], lam[-1, 1] = 1.2, 0.0  # outside, where nothing may move it, and on the bound
    lam.requires_grad_()
    adam = torch.optim.Adam([lam], lr=RATE, betas=(0.9, 0.999), weight_decay=0.0)
    batches = iter(arrays["schedule/sample_indices"])
    losses, path = [], []
    for _ in range(ITERATIONS):
        clamped = torch.clamp(lam, 0, 1)
        weights = {}
        for j, name in enumerate(SHAPES):
            weights[name] = at[f"pretrained/{name}"]
            for k in range(len(SIZES)):
                own = clamped[j if rows > 1 else 0, k]
                weights[name] = weights[name] + own * at[f"tau/task{k}/{name}"]
        total = 0.0
        for k in range(len(SIZES)):
            for _ in range(BATCHES):
                x = at[f"inputs/task{k}"][torch.as_tensor(next(batches), dtype=torch.long)]
                h = torch.tanh(x @ weights["a.weight"].T + weights["a.bias"])
                logits = (h @ weights["b.weight"].T) @ at[f"head/task{k}"].T
                log_p = torch.log_softmax(logits, dim=1)
                loss = -(log_p.exp() * log_p).sum(1).mean(0)
                losses.append(float(loss.detach()))
                total = total + loss
        adam.zero_grad()
        total.backward()
        adam.step()
        path.append(lam.detach().numpy().copy())
    return {"loss": np.array(losses), "coefficients": np.stack(path)}


def main():
    rng = np.random.default_rng(20240225)
    arrays = inputs(rng)
    plus_plus = dict(elected(arrays))
    out = dict(arrays) | {f"elected/{name}": array for name, array in plus_plus.items()}
    for variant, (given, granularity) in {
        "leaf": (arrays, "leaf"),
        "task": (arrays, "task"),
        "plus_plus": (arrays | plus_plus, "leaf"),
    }.items():
        for name, dtype in PRECISIONS.items():
            for key, value in run(given, dtype, granularity=granularity).items():
                kept = value.astype(np.float32 if name == "f32" else np.float64)
                out[f"{variant}/{name}/{key}"] = kept
    np.savez_compressed(HERE / "adamerging.npz", **out)
    facts = {
        "title": "AdaMerging, joint updates",
        "made_by": "make_adamerging.py, beside this file",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "inputs": {
            "pretrained/<tensor>, tau/task<t>/<tensor>": "float32, PyTorch's [out, in]",
            "elected/tau/task<t>/<tensor>": "what TIES leaves of them, density 0.2",
            "head/task<t>": "[class, feature]",
            "inputs/task<t>": "[n, 6]",
            "schedule/sample_indices": "a row per mini-batch, two per task and iteration",
        },
        "outputs": {
            "<leaf|task|plus_plus>/<f64|f32>/loss": "mean entropy of each mini-batch",
            "<leaf|task|plus_plus>/<f64|f32>/coefficients": "[iteration, tensor or 1, task]",
        },
    }
    (HERE / "adamerging.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
