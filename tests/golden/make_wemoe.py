"""Makes wemoe.npz: a weight-ensembling mixture on a tiny CLIP, computed by PyTorch in float64.

    python tests/golden/make_wemoe.py     (needs torch and transformers; the tests do not)

Each image has an MLP of its own, made in a Python loop, φ_i = φ₀ + Σ_k g_ik τ_k, as in the paper.
Names are joined with '/', tensor names hold dots only; wemoe.json says what each array is. All
inputs are exact in float32.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

HERE = Path(__file__).parent
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 6,
    "hidden_act": "quick_gelu",
}
CLASSES = (2, 4, 3)
TASKS, BLOCKS, WIDTH = len(CLASSES), SIZES["num_hidden_layers"], SIZES["hidden_size"]
ITERATIONS, BATCH = 3, 2
LAMBDA, RATE = 0.3, 0.01
PARTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class Mixture(nn.Module):
    """Stands where a block's MLP stood."""

    def __init__(self, pretrained, experts, router, batch_reduce):
        super().__init__()
        self.phi0 = [pretrained.get_parameter(name).detach() for name in PARTS]
        self.tau = [
            [expert.get_parameter(name).detach() - phi for expert in experts]
            for name, phi in zip(PARTS, self.phi0, strict=True)
        ]
        self.router, self.batch_reduce = router, batch_reduce

    def route(self, tokens):  # [t, width] of one image → g [task]
        r = self.router
        if "gate" in r:
            return r["gate"]
        if "hidden.weight" in r:
            tokens = F.relu(F.linear(tokens, r["hidden.weight"], r["hidden.bias"]))
        return F.linear(tokens, r["out.weight"], r["out.bias"]).mean(dim=0)

    def forward(self, x):  # [batch, t, width]
        gates = torch.stack([self.route(tokens) for tokens in x])
        if self.batch_reduce:
            gates = gates.mean(dim=0, keepdim=True).expand_as(gates)
        outputs = []
        for tokens, gate in zip(x, gates, strict=True):
            w1, b1, w2, b2 = (
                phi + sum(g * tau for g, tau in zip(gate, taus, strict=True))
                for phi, taus in zip(self.phi0, self.tau, strict=True)
            )
            hidden = F.linear(tokens, w1, b1)
            outputs.append(F.linear(hidden * torch.sigmoid(1.702 * hidden), w2, b2))
        return torch.stack(outputs)


def drawn(*shape, scale=1.0, mean=0.0):
    """Normal numbers that float32 holds exactly, in float64."""
    return (mean + scale * torch.randn(*shape)).float().double()


def encoder():
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES)).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            scale = 0.1 if norm or name.endswith("bias") else 0.35
            weight.copy_(drawn(*weight.shape, scale=scale, mean=float(norm)))
    return model.requires_grad_(False)


def moved(pretrained):
    expert = copy.deepcopy(pretrained)
    for weight in expert.parameters():
        weight.copy_((weight + drawn(*weight.shape, scale=0.15)).float().double())
    return expert


def routers(depth):
    """One router per block, further from a constant than where training starts."""
    found = []
    for _ in range(BLOCKS):
        router = {
            "out.weight": drawn(TASKS, WIDTH, scale=0.2),
            "out.bias": drawn(TASKS, scale=0.05, mean=LAMBDA),
        }
        if depth == 2:
            router["hidden.weight"] = drawn(WIDTH, WIDTH, scale=0.3)
            router["hidden.bias"] = drawn(WIDTH, scale=0.1)
        if depth == 0:
            router = {"gate": drawn(TASKS, scale=0.2, mean=LAMBDA)}
        found.append({name: nn.Parameter(value) for name, value in router.items()})
    return found


def blocks_of(model):
    return model.vision_model.encoder.layers


def upscaled(pretrained, experts, router, *, batch_reduce=False):
    """Task arithmetic everywhere but in the MLPs, which become mixtures."""
    model = copy.deepcopy(pretrained)
    parameters = [dict(expert.named_parameters()) for expert in experts]
    for name, weight in model.named_parameters():
        weight.add_(LAMBDA * sum(own[name] - weight for own in parameters))
    for i, block in enumerate(blocks_of(model)):
        mlps = [blocks_of(expert)[i].mlp for expert in experts]
        block.mlp = Mixture(blocks_of(pretrained)[i].mlp, mlps, router[i], batch_reduce)
    return model


def features(model, images):
    return model(pixel_values=images).image_embeds


def entropy(model, head, images):
    h = features(model, images)
    z = F.linear(h / h.norm(dim=1, keepdim=True), head["weight"], head["bias"])
    return -(z.softmax(dim=1) * z.log_softmax(dim=1)).sum(dim=1).mean()


def train(model, router, heads, images):
    """Three joint steps; yields the tasks' losses before and the routers after each."""
    weights = [value for block in router for value in block.values()]
    adam = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=ITERATIONS)
    for iteration in range(ITERATIONS):
        losses = [entropy(model, heads[k], images[iteration, k]) for k in range(TASKS)]
        adam.zero_grad()
        sum(losses).backward()
        adam.step()
        schedule.step()
        yield losses, router


def main():
    torch.manual_seed(0)
    pretrained = encoder()
    experts = [moved(pretrained) for _ in range(TASKS)]
    heads = [
        {"weight": drawn(c, SIZES["projection_dim"], scale=2.0), "bias": drawn(c, scale=0.2)}
        for c in CLASSES
    ]
    size = SIZES["image_size"]
    images = drawn(ITERATIONS, TASKS, BATCH, 3, size, size)
    arrays, inputs = {"images": images}, {}

    def keep(prefix, tensors):
        arrays.update({f"{prefix}/{name}": value for name, value in tensors.items()})

    def keep_routers(prefix, router, kind=arrays):
        for i, block in enumerate(router):
            for name, value in block.items():
                kind[f"{prefix}/layers.{i}.{name}"] = value.detach().clone()

    keep("pretrained", pretrained.state_dict())
    for k in range(TASKS):
        keep(f"expert/task{k}", experts[k].state_dict())
        keep(f"head/task{k}", heads[k])
    test = images[0].flatten(0, 1)
    outputs = {}
    for depth in (0, 1, 2):
        router = routers(depth)
        keep_routers(f"router/depth{depth}", router)
        with torch.no_grad():
            model = upscaled(pretrained, experts, router)
            outputs[f"features/depth{depth}"] = features(model, test)
            if depth == 2:
                reduced = upscaled(pretrained, experts, router, batch_reduce=True)
                outputs["features/depth2_reduced"] = features(reduced, test)
    losses = []
    for step, (values, trained) in enumerate(train(model, router, heads, images)):
        losses.append(torch.stack(values).detach())
        keep_routers(f"train/router/after{step + 1}", trained, outputs)
    outputs["train/loss"] = torch.stack(losses)

    inputs = {name: value.detach().numpy() for name, value in arrays.items()}
    kept = {name: value.astype(np.float32) for name, value in inputs.items()}
    assert all((kept[name] == inputs[name]).all() for name in kept)
    kept |= {name: value.detach().numpy() for name, value in outputs.items()}
    np.savez_compressed(HERE / "wemoe.npz", **kept)
    facts = {
        "origin": "tests/golden/make_wemoe.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "config": SIZES,
        "coefficient": LAMBDA,
        "learning_rate": RATE,
        "arrays": {
            "pretrained/<tensor>": "float32, Hugging Face names",
            "expert/task<k>/<tensor>": "float32, the same names",
            "head/task<k>/weight, bias": f"float32, {CLASSES} classes, on normalised features",
            "images": "float32 [iteration, task, batch, 3, height, width], normalised",
            "router/depth<d>/layers.<i>.<part>": "float32; matrices [out, in]",
            "features/depth<d>": "float64, of the first iteration's images; per-image routing",
            "features/depth2_reduced": "float64, g averaged over those six images",
            "train/loss": "float64 [iteration, task], before the iteration's step; depth 2",
            "train/router/after<n>/layers.<i>.<part>": "float64, after n Adam steps on the sum of "
            "the tasks' losses, rate on a cosine to 0 over all iterations",
        },
    }
    (HERE / "wemoe.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
