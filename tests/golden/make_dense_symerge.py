"""Writes dense_symerge.npz, and what is in it as JSON: golden runs of SyMerge on pixel maps.

    python tests/golden/make_dense_symerge.py     (needs PyTorch and NumPy; takes seconds)

Independent of the library: SyMerge (arXiv 2412.19098, sections 4 and 5) as a loop in PyTorch and
float64, with its Adam and autograd, on `tests/torch_resnet.py`. Of batch normalisation, of which
the paper says nothing, three answers: running statistics that move in training mode, those that
are merged like weights, and those of the pre-trained network.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch_resnet  # noqa: E402

SIZES = {"blocks": (1, 1, 1, 1), "planes": (2, 2, 2, 4), "stem": 4, "expansion": 2}
WIDTH, RATES = 3, (2,)
OUTPUTS = {"segmentation": 5, "depth": 1, "normal": 3}
TASKS = tuple(OUTPUTS)
COUNT, PIXELS = 5, (16, 24)
# Of each step: the task, its images. Each task comes once a round, in another order.
SCHEDULE = [
    (1, (4, 0, 2)), (0, (1, 2, 3)), (2, (0, 3, 4)),
    (2, (2, 1, 0)), (1, (3, 1, 4)), (0, (4, 0, 1)),
]  # fmt: skip
LAMBDA_RATE, DECODER_RATE = 1e-2, 1e-3
# Of each run: what becomes of the statistics, and λ at the start; 0 is a bound of the clamp.
RUNS = {
    "recalibrate": ("recalibrate", 0.3),
    "merge_stats": ("merge_stats", 0.3),
    "pretrained_stats": ("pretrained_stats", 0.3),
    "at_the_bound": ("merge_stats", 0.0),
}


class Norm(nn.BatchNorm2d):
    """PyTorch's own gives running statistics no gradient."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        mean, var, scale, bias = (
            value[None, :, None, None]
            for value in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return scale * (x - mean) / torch.sqrt(var + self.eps) + bias


def is_statistic(name):
    return name.endswith(("running_mean", "running_var"))


def tensors(module):
    """What a float state dict holds; counters are left out."""
    state = module.state_dict().items()
    return {name: value.detach().clone() for name, value in state if value.is_floating_point()}


def loaded(module, state):
    """The module in float64 and evaluation mode, with those tensors."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, Norm(child.num_features))
    module.double().eval()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(state[name])
    return module


def trunk_of(state):
    return loaded(torch_resnet.Trunk(**SIZES), state)


def head_of(state, task):
    features = SIZES["planes"][-1] * SIZES["expansion"]
    return loaded(torch_resnet.Head(features, WIDTH, RATES, OUTPUTS[task]), state)


def resized(maps):
    return F.interpolate(maps, PIXELS, mode="bilinear", align_corners=True)


def moved(state, generator):
    """An expert: weights of its own, near those of the start."""
    found = {}
    for name, value in state.items():
        size = value.std() if value.dim() > 1 else 0.3
        noise = torch.randn(value.shape, generator=generator)
        found[name] = value if is_statistic(name) else value + 0.5 * size * noise
    return found


def drawn():
    """Returns θ₀, the experts and their decoders, float32, and images uint8."""
    rng = np.random.default_rng(7)
    patches = rng.uniform(20, 200, (COUNT, 2, 3, 3)).repeat(8, axis=1).repeat(8, axis=2)
    images = (patches + rng.uniform(0, 55, patches.shape)).astype(np.uint8)
    whole = torch_resnet.made(WIDTH, RATES, OUTPUTS, seed=3, **SIZES)
    base = tensors(whole.encoder)
    generator = torch.Generator().manual_seed(5)
    experts, heads = [], []
    for task in TASKS:
        expert = moved(base, generator)
        whole.encoder.load_state_dict(expert, strict=False)
        adjust(whole, in_torch(images).float(), generator)
        experts.append(tensors(whole.encoder))
        heads.append(tensors(whole.decoders[task]))
    return base, experts, heads, images


def adjust(whole, images, generator):
    """Gives a network statistics about those of the images, and classes that all are likely."""
    norms = [part for part in whole.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.momentum = 1.0
    with torch.no_grad():
        torch_resnet.without_dropout(whole)(images)
        for part in norms:
            noise = torch.rand(part.running_var.shape, generator=generator)
            part.running_mean.add_(0.2 * (noise - 0.5) * part.running_var.sqrt())
            part.running_var.mul_(0.7 + 0.6 * noise)
        logits = whole.eval()(images)[1]["segmentation"]
        whole.decoders["segmentation"][-1].bias.sub_(logits.mean(dim=(0, 2, 3)))


def in_torch(images):
    return torch.from_numpy(images).double().permute(0, 3, 1, 2) / 255


def says(expert, head, task, images):
    """What an expert says in evaluation mode: classes, or maps rounded to float32."""
    with torch.no_grad():
        maps = resized(head_of(head, task)(trunk_of(expert)(images)))
    return maps.argmax(dim=1) if task == "segmentation" else maps.float().double()


def distance(task, maps, said):
    if task == "segmentation":
        return F.cross_entropy(maps, said)
    if task == "normal":
        maps, said = F.normalize(maps, dim=1), F.normalize(said, dim=1)
    return (maps - said).abs().mean()


def run(base, experts, heads, images, said, statistics, start):
    """Returns losses [step], λ after each step [step, tensor, task], trunk and decoders at last."""
    base = {name: value.double() for name, value in base.items()}
    tau = [{n: expert[n].double() - base[n] for n in base} for expert in experts]
    rows = [n for n in base if statistics == "merge_stats" or not is_statistic(n)]
    first = torch.full((len(TASKS),), start, dtype=torch.float64)
    lam = {n: first.clone().requires_grad_() for n in rows}
    trunk = trunk_of(base).requires_grad_(False)
    decoders = [head_of(head, task) for head, task in zip(heads, TASKS, strict=True)]
    if statistics == "recalibrate":
        for name, value in trunk.named_buffers():
            if is_statistic(name):
                value.copy_(base[name] + sum(start * one[name] for one in tau))
        for module in (trunk, *decoders):
            torch_resnet.without_dropout(module)

    def merged():
        theta = {}
        for name in rows:
            theta[name] = base[name]
            for k, own in enumerate(tau):
                theta[name] = theta[name] + torch.clamp(lam[name][k], 0, 1) * own[name]
        return theta

    weights = [weight for decoder in decoders for weight in decoder.parameters()]
    adam = torch.optim.Adam(
        [{"params": list(lam.values()), "lr": LAMBDA_RATE}, {"params": weights}], lr=DECODER_RATE
    )
    losses, path = [], []
    for k, batch in SCHEDULE:
        features = functional_call(trunk, merged(), (images[list(batch)],))
        loss = distance(TASKS[k], resized(decoders[k](features)), said[k][list(batch)])
        adam.zero_grad(set_to_none=True)  # decoders of other tasks are then passed over
        loss.backward()
        adam.step()
        losses.append(loss.item())
        path.append(np.stack([lam[name].detach().numpy().copy() for name in rows]))
    final = tensors(trunk) | {name: value.detach() for name, value in merged().items()}
    assert min(v.min() for n, v in final.items() if n.endswith("running_var")) > 1e-3
    return np.array(losses), np.stack(path), final, [tensors(decoder) for decoder in decoders]


def flat(state):
    return torch.cat([value.ravel() for value in state.values()]).numpy()


def shapes(state):
    return {name: "x".join(map(str, value.shape)) for name, value in state.items()}


def main():
    base, experts, heads, pictures = drawn()
    images = in_torch(pictures)
    said = [says(*one, images) for one in zip(experts, heads, TASKS, strict=True)]
    arrays = {
        "pretrained": flat(base),
        "images": pictures,
        "schedule/task_ids": np.array([k for k, _ in SCHEDULE], np.int32),
        "schedule/sample_indices": np.array([batch for _, batch in SCHEDULE], np.int32),
    }
    for k, task in enumerate(TASKS):
        arrays |= {f"expert/{task}": flat(experts[k]), f"decoder/{task}": flat(heads[k])}
        maps = said[k].numpy()
        arrays[f"said/{task}"] = (
            maps.astype(np.int8) if maps.ndim == 3 else maps.transpose(0, 2, 3, 1).astype("f4")
        )
    for name, (statistics, start) in RUNS.items():
        losses, path, trunk, decoders = run(base, experts, heads, images, said, statistics, start)
        arrays |= {f"{name}/loss": losses, f"{name}/coefficients": path}
        arrays[f"{name}/trunk"] = flat(trunk)
        arrays |= {f"{name}/decoder/{t}": flat(d) for t, d in zip(TASKS, decoders, strict=True)}
    np.savez_compressed(HERE / "dense_symerge.npz", **arrays)
    facts = {
        "title": "SyMerge for dense prediction, three ways with batch normalisation, in float64",
        "made_by": "make_dense_symerge.py, beside this file",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "inputs": {
            "pretrained, expert/<task>, decoder/<task>": "float32, tensors end to end, see below",
            "images": "uint8 [image, height, width, channel]",
            "said/<task>": "by the experts in evaluation mode: classes, or maps, channels last",
            "schedule/<field>": "a row per step",
        },
        "outputs": {
            "<run>/loss": "of each step, before its update",
            "<run>/coefficients": "λ after each step, not clamped, [step, tensor, task]; a row "
            "per tensor of the trunk, of running statistics in runs that merge them alone",
            "<run>/trunk, <run>/decoder/<task>": "at last, merged, tensors end to end",
        },
        "runs": {n: {"statistics": s, "initial_coefficient": c} for n, (s, c) in RUNS.items()},
        "rates": {"coefficients": LAMBDA_RATE, "decoders": DECODER_RATE},
        "config": {"decoder_rates": RATES, "outputs": OUTPUTS},
        "notes": [
            "nothing is dropped out in training",
            "Adam of each decoder counts its own steps alone",
        ],
        "tensors": {
            "trunk": shapes(base),
            "decoder": {task: shapes(head) for task, head in zip(TASKS, heads, strict=True)},
        },
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    (HERE / "dense_symerge.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
