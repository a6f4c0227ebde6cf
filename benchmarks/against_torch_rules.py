"""SyMerge's step in PyTorch: as published, and as fast as care makes it.

Written for `benchmarks.against_torch` from the method's description (arXiv 2412.19098).

published: task vectors and experts stay on the host; each step moves them to the device, adds
    θ₀ + Σ_k clip(λ_k) τ_k up tensor by tensor in Python, asks the task's expert for its labels,
    and runs Adam over λ and the heads.
improved: task vectors lie stacked on the device. One matrix-vector product merges a tensor, another
    gives the gradient of its λ; the experts' labels are known; images lie on the device; the last
    block works out the class token alone; Adam is fused.

In bfloat16 the published rule runs under autocast with float32 task vectors, as its authors' mixed
precision does; the improved one keeps them and the merged weights in bfloat16, λ rounded to it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.adaptation_step import RATES, Problem
from benchmarks.against_torch_tower import Tower, name_of, turned
from symerge_jax.adapt.objectives import ExpertLabels
from symerge_jax.models.clip_config import VisionConfig

State = dict[str, Tensor]
START = 0.3  # of λ, as `make_problem` has it
SURER = 3.0  # factor of the experts' heads, so that few samples are near the filter's threshold


class Given(NamedTuple):
    """What both rules are given, on the host.

    Attributes:
        config: of the image tower.
        pretrained: θ₀.
        task_vectors: τ, leaves [task, ...].
        heads: weight [task, classes, d] and bias [task, classes].
        images: uint8 [sample, height, width, 3], all tasks end to end.
        targets: the experts' labels and confidences [sample], for the improved rule.
        steps: task and rows of `images` of each step.
        device: where the model runs.
        dtype: of the computation.
    """

    config: VisionConfig
    pretrained: State
    task_vectors: State
    heads: tuple[Tensor, Tensor]
    images: Tensor
    targets: tuple[Tensor, Tensor]
    steps: list[tuple[int, Tensor]]
    device: torch.device
    dtype: torch.dtype

    @property
    def tasks(self) -> int:
        """K."""
        return len(self.heads[0])


def use(device: str, cores: int, precision: str) -> torch.device:
    """Returns the device; sets processors and the precision of float32 products on it.

    Args:
        device: "cpu" or "gpu".
        cores: processors that PyTorch takes.
        precision: "highest", or "tf32" for TensorFloat-32 in matrix products and convolutions.
    """
    torch.set_num_threads(cores)
    torch.set_float32_matmul_precision("highest" if precision == "highest" else "high")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.device("cuda" if device == "gpu" else "cpu")


def given(
    config: VisionConfig, problem: Problem, device: torch.device, dtype: str, *, keep: bool = True
) -> Given:
    """Returns the problem's numbers as tensors on the host.

    Args:
        config: of the image tower.
        problem: of `benchmarks.adaptation_step`.
        device: where the rules run.
        dtype: "float32" or "bfloat16".
        keep: whether the problem stays usable; if not, its task vectors are taken out of it one by
            one, so that they are not in memory twice.
    """
    stacked: dict[str, Any] = problem.constants.task_vectors
    leaves: dict[str, Any] = flatten_dict(stacked, sep="/")
    if not keep:
        stacked.clear()
    single: dict[str, Any] = flatten_dict(problem.constants.pretrained, sep="/")
    paths = list(leaves)
    heads = problem.trainables.heads
    offsets = np.cumsum([0, *problem.data.sizes[:-1]])
    tasks, rows, masks, _ = problem.schedule
    return Given(
        config,
        {name_of(path): tensor(turned(path, np.asarray(single[path]))) for path in paths},
        {name_of(path): tensor(turned(path, np.asarray(leaves.pop(path)))) for path in paths},
        (tensor(np.asarray(heads["weight"])), tensor(np.asarray(heads["bias"]))),
        torch.from_numpy(problem.data.inputs),
        as_pair(problem.data.targets),
        [
            (int(task), torch.from_numpy(offsets[task] + own[mask]))
            for task, own, mask in zip(tasks, rows, masks, strict=True)
        ],
        device,
        torch.bfloat16 if dtype == "bfloat16" else torch.float32,
    )


def tensor(numbers: np.ndarray) -> Tensor:
    """Returns a contiguous copy; bfloat16 of NumPy's extension becomes PyTorch's own."""
    if numbers.dtype.name != "bfloat16":
        return torch.from_numpy(np.array(numbers, order="C"))
    return torch.from_numpy(np.array(numbers.view(np.int16), order="C")).view(torch.bfloat16)


def as_pair(answered: ExpertLabels) -> tuple[Tensor, Tensor]:
    """Returns labels and confidences [sample] as tensors."""
    label, confidence = (torch.from_numpy(np.array(leaf)) for leaf in answered)
    return label, confidence


class Learned(NamedTuple):
    """λ [leaf, task], and a head per task, whose weight and bias have moments of their own."""

    coefficients: nn.Parameter
    heads: list[tuple[nn.Parameter, nn.Parameter]]

    @staticmethod
    def start(given: Given) -> "Learned":
        """Returns where every run begins."""
        rows = len(given.task_vectors)
        lam = torch.full((rows, given.tasks), START, device=given.device)
        weights, biases = given.heads
        return Learned(
            nn.Parameter(lam),
            [
                (nn.Parameter(w.to(given.device, copy=True)),
                 nn.Parameter(b.to(given.device, copy=True)))
                for w, b in zip(weights, biases, strict=True)
            ],
        )  # fmt: skip

    def adam(self, **more: Any) -> torch.optim.Adam:
        """Returns one optimiser over all of it."""
        everything = [self.coefficients, *(part for head in self.heads for part in head)]
        return torch.optim.Adam(everything, lr=RATES.coefficients, **more)


def logits_of(head: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
    """Returns z = W h / ‖h‖ + b in float32."""
    h = features.float()
    return F.linear(h / h.norm(dim=-1, keepdim=True), *head)


def self_labelled(logits: Tensor, label: Tensor, confidence: Tensor) -> Tensor:
    """Cross-entropy to the expert's label; drops samples on which the merged model is surer."""
    surest, own = logits.detach().softmax(dim=-1).max(dim=-1)
    kept = (own == label) | (surest <= confidence)
    losses = F.cross_entropy(logits, label, reduction="none")
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def by_tensor(given: Given, experts: list[State], coefficients: Tensor) -> State:
    """Merges as published: θ₀ + Σ_k clip(λ_k) τ_k, one tensor of one task after the other."""
    rows, device = coefficients.clamp(0, 1), given.device
    return {
        name: start.to(device)
        + sum(c * expert[name].to(device) for c, expert in zip(row, experts, strict=True))
        for row, (name, start) in zip(rows, given.pretrained.items(), strict=True)
    }


class Experts(NamedTuple):
    """What published code keeps of the experts: a state dict of τ each, and each whole model."""

    task_vectors: list[State]
    models: list[State]

    @staticmethod
    def of(given: Given) -> "Experts":
        """Adds θ₀ to τ."""
        taus = [{n: tau[k].float() for n, tau in given.task_vectors.items()}
                for k in range(given.tasks)]  # fmt: skip
        models = [{n: given.pretrained[n] + tau for n, tau in state.items()} for state in taus]
        return Experts(taus, models)


def autocast(given: Given) -> contextlib.AbstractContextManager:
    """Mixed precision as in published code; nothing in float32."""
    return torch.autocast(
        given.device.type, given.dtype, enabled=given.dtype == torch.bfloat16, cache_enabled=False
    )


@torch.no_grad()
def asked(
    given: Given, tower: Tower, experts: Experts, task: int, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Asks a task's expert, moved to the device, for labels and confidences [batch]."""
    weights = {name: leaf.to(given.device) for name, leaf in experts.models[task].items()}
    weight, bias = (part[task].to(given.device) for part in given.heads)
    with autocast(given):
        features = functional_call(tower, weights, (images,))
    confidence, label = logits_of((SURER * weight, bias), features).softmax(dim=-1).max(dim=-1)
    return label, confidence


def answers(given: Given, experts: Experts) -> tuple[ExpertLabels, list[float]]:
    """Asks the experts about all images that the steps use.

    Returns:
        Their answers, leaves [sample], and the seconds that each batch took.
    """
    tower = Tower(given.config, fast=False)
    labels = np.zeros(len(given.images), np.int32)
    confidences = np.ones(len(given.images), np.float32)
    seconds = []
    for task, rows in given.steps:
        begin = time.perf_counter()
        label, confidence = asked(given, tower, experts, task, given.images[rows].to(given.device))
        labels[rows], confidences[rows] = label.cpu().numpy(), confidence.cpu().numpy()
        seconds.append(time.perf_counter() - begin)
    return ExpertLabels(labels, confidences), seconds


def published(given: Given, experts: Experts) -> np.ndarray:
    """Runs the rule as published; returns losses [step]."""
    tower, learned = Tower(given.config, fast=False), Learned.start(given)
    adam, losses = learned.adam(), []
    for task, rows in given.steps:
        images = given.images[rows].to(given.device)
        label, confidence = asked(given, tower, experts, task, images)
        merged = by_tensor(given, experts.task_vectors, learned.coefficients)
        with autocast(given):
            features = functional_call(tower, merged, (images,))
        loss = self_labelled(logits_of(learned.heads[task], features), label, confidence)
        # Zeros, not None: heads of the other tasks go on by momentum, as in PyTorch 1.12.
        adam.zero_grad(set_to_none=False)
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu().numpy()


class Merge(torch.autograd.Function):
    """θ = θ₀ + λ τ with one product per tensor; so is the gradient, <dL/dθ, τ_k>."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stacked: list[Tensor], starts: list[Tensor]) -> Any:
        """Merges all tensors."""
        ctx.stacked = stacked
        return tuple(
            torch.addmv(start.view(-1), tau.view(len(tau), -1).t(), row.to(tau.dtype)).view_as(
                start
            )
            for row, tau, start in zip(rows, stacked, starts, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Returns the gradient of λ [leaf, task]."""
        rows = [
            tau.view(len(tau), -1) @ gradient.reshape(-1)
            for tau, gradient in zip(ctx.stacked, gradients, strict=True)
        ]
        return torch.stack(rows).float(), None, None


class Held(NamedTuple):
    """What the improved rule keeps on the device from run to run."""

    names: list[str]
    stacked: list[Tensor]
    starts: list[Tensor]
    images: Tensor
    targets: tuple[Tensor, Tensor]
    encode: Callable[[State, Tensor], Tensor]

    @staticmethod
    def of(given: Given, *, compiled: bool) -> "Held":
        """Moves all of it there; `compiled` runs the tower through torch.compile."""
        tower = Tower(given.config, fast=True)

        def encode(weights: State, images: Tensor) -> Tensor:
            return functional_call(tower, weights, (images,))

        device, dtype = given.device, given.dtype
        label, confidence = given.targets
        return Held(
            list(given.pretrained),
            [tau.to(device, dtype) for tau in given.task_vectors.values()],
            [start.to(device, dtype) for start in given.pretrained.values()],
            given.images.to(device),
            (label.long().to(device), confidence.to(device)),
            torch.compile(encode) if compiled else encode,
        )  # fmt: skip

    def merged(self, coefficients: Tensor) -> State:
        """Returns θ."""
        leaves = Merge.apply(coefficients.clamp(0, 1), self.stacked, self.starts)
        return dict(zip(self.names, leaves, strict=True))


def improved(given: Given, held: Held) -> np.ndarray:
    """Runs the improved rule; returns losses [step]."""
    learned = Learned.start(given)
    adam, losses = learned.adam(fused=True), []
    for task, rows in _on(given.device, given.steps):
        features = held.encode(held.merged(learned.coefficients), held.images[rows])
        logits = logits_of(learned.heads[task], features)
        loss = self_labelled(logits, *(leaf[rows] for leaf in held.targets))
        adam.zero_grad(set_to_none=False)
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu().numpy()


def _on(device: torch.device, steps: list[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    for task, rows in steps:
        yield task, rows.to(device)


@torch.no_grad()
def merged_as_published(given: Given, experts: Experts) -> None:
    """Merges once, tensor by tensor, and waits for it."""
    by_tensor(given, experts.task_vectors, Learned.start(given).coefficients)
    _wait(given.device)


@torch.no_grad()
def merged_as_improved(given: Given, held: Held) -> None:
    """Merges once, a product per tensor, and waits for it."""
    held.merged(Learned.start(given).coefficients)
    _wait(given.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """Returns the most that tensors held on a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
