"""The merging methods in PyTorch, the way their authors' released code goes about them.

Written for `benchmarks.merge_methods` from the papers' formulas. An expert is a state dict of its
task vector. TIES, PCB, TALL masks, consensus and LiNeS string each one together to a vector and cut
the result up again; the others loop over the dict. Thresholds come from `kthvalue` (TIES), `sort`
(PCB) and `topk` (Breadcrumbs), singular vectors from one `svd` per matrix and task. LOT, of which
no code was released, takes `pinv`.

Where the authors work on all tasks at once this takes them in turn if that needs less memory:
`kthvalue` and `sort` run on one core either way, one row after the other. `linalg.norm` of a large
float32 tensor is off by up to 1e-4 on a CPU (it adds one number after the other), and so is the
result of SLERP, whose arc lies between vectors of nearly one direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from symerge_jax.merge.leaves import Leaf
from symerge_jax.second_moments import Moment

State = dict[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What methods take beside the task vectors.

    Attributes:
        depths: block of each leaf that is in one.
        pretrained: θ₀.
        fisher: leaves [task, ...].
        moments: per leaf its second moments [task, in, in] or [task, d].
    """

    depths: dict[str, int] = field(default_factory=dict)
    pretrained: State = field(default_factory=dict)
    fisher: State = field(default_factory=dict)
    moments: State = field(default_factory=dict)


def use_cores(count: int) -> None:
    """Sets how many processors PyTorch uses."""
    torch.set_num_threads(count)


def tensors(leaves: dict[str, np.ndarray]) -> State:
    """Returns the same memory as tensors."""
    return {path: torch.from_numpy(leaf) for path, leaf in leaves.items()}


def states(
    leaves: dict[str, np.ndarray], facts: dict[str, Leaf], *, torch_layout: bool
) -> list[State]:
    """Returns one state dict per task from leaves [task, ...].

    Args:
        leaves: path → τ.
        facts: how the matrices lie.
        torch_layout: copy matrices to [out, in] and convolutions to [out, in, height, width];
            otherwise the tensors are the same memory.
    """
    found: list[State] = [{} for _ in range(len(next(iter(leaves.values()))))]
    for path, leaf in tensors(leaves).items():
        for state, own in zip(found, leaf, strict=True):
            if torch_layout and facts[path].matrix == "in_out":
                own = own.T.contiguous()
            elif torch_layout and facts[path].matrix == "conv_hwio":
                own = own.permute(3, 2, 0, 1).contiguous()
            state[path] = own
    return found


def given(facts: dict[str, Leaf], more: dict[str, Any]) -> Given:
    """Returns the library's keyword arguments as tensors, without a copy."""
    moments = more.get("moments", {})
    grams = {path: own.mean for path, own in moments.items() if isinstance(own, Moment)}
    diagonals = {path: own for path, own in moments.items() if path not in grams}
    return Given(
        {path: fact.depth for path, fact in facts.items() if fact.depth is not None},
        _shared(more.get("pretrained", {})),
        _shared(diagonals),
        _shared(grams),
    )


def _shared(arrays: dict[str, Any]) -> State:
    return {path: torch.from_dlpack(array) for path, array in arrays.items()}


def as_leaf(tensor: Tensor, fact: Leaf, *, torch_layout: bool) -> np.ndarray:
    """Returns a tensor of a state dict as our leaf; undoes `states`."""
    if torch_layout and fact.matrix == "in_out":
        tensor = tensor.T
    elif torch_layout and fact.matrix == "conv_hwio":
        tensor = tensor.permute(2, 3, 1, 0)
    return tensor.numpy()


@torch.no_grad()
def merge(name: str, experts: list[State], given: Given) -> State | list[State]:
    """Returns τ*, or one for each task, with the same defaults as `METHODS[name].merge`."""
    return FUNCTIONS[name](experts, given)


def _flat(state: State) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in state.values()])


def _flat_rows(experts: list[State]) -> Tensor:
    """[task, n]"""
    count = sum(tensor.numel() for tensor in experts[0].values())
    rows = torch.empty(len(experts), count)
    for row, state in zip(rows, experts, strict=True):
        torch.cat([tensor.reshape(-1) for tensor in state.values()], out=row)
    return rows


def _cut(vector: Tensor, like: State) -> State:
    sizes = [tensor.numel() for tensor in like.values()]
    pieces = vector.split(sizes)
    return {path: piece.reshape(like[path].shape) for path, piece in zip(like, pieces, strict=True)}


def _summed(experts: Sequence[State]) -> State:
    """Adds two state dicts at a time."""
    total = experts[0]
    for state in experts[1:]:
        total = {path: total[path] + tensor for path, tensor in state.items()}
    return total


def _mean(experts: Sequence[State], path: str) -> Tensor:
    total = experts[0][path].clone()
    for state in experts[1:]:
        total += state[path]
    return total / len(experts)


def _weight_average(experts: list[State], _: Given) -> State:
    return {path: _mean(experts, path) for path in experts[0]}


def _task_arithmetic(experts: list[State], _: Given) -> State:
    return _summed(experts)


def _ties(experts: list[State], _: Given) -> State:
    rows = _flat_rows(experts)
    rank = rows.shape[1] - int(rows.shape[1] * 0.2)
    size = rows.abs()
    least = torch.stack([own.kthvalue(rank, keepdim=True).values for own in size])
    trimmed = rows * (size >= least)
    del rows, size
    sign = trimmed.sum(dim=0).sign()
    sign[sign == 0] = 1.0 if sign.sum() > 0 else -1.0
    kept = trimmed * torch.where(sign > 0, trimmed > 0, trimmed < 0)
    count = (kept != 0).sum(dim=0).float()
    return _cut(kept.sum(dim=0) / count.clamp(min=1), experts[0])


def _magmax(experts: list[State], _: Given) -> State:
    largest = dict(experts[0])
    for state in experts[1:]:
        for path, tensor in state.items():
            before = largest[path]
            largest[path] = torch.where(tensor.abs() >= before.abs(), tensor, before)
    return largest


def _pcb(experts: list[State], _: Given) -> State:
    vectors = [_flat(state) for state in experts]
    count, tasks = len(vectors[0]), len(vectors)
    sizes, signed = [], []
    for vector in vectors:
        size = vector.abs()
        order = size.sort().values
        size.clamp_(order[int(count * 0.01)], order[int(count * 0.99 - 1)])
        sizes.append(size)
        signed.append(vector.sign() * _between_0_and_1(size))
        del order
    common = torch.stack(signed).sum(dim=0)
    del signed
    total, weights = torch.zeros(count), torch.zeros(count)
    for vector, size in zip(vectors, sizes, strict=True):
        score = torch.exp(tasks * _between_0_and_1(size) ** 2) * torch.tanh(vector * common)
        order = score.sort().values
        weight = _between_0_and_1(score.clamp_(min=order[int(count * 0.95)]))
        total += vector.sign() * size * weight
        weights += weight
    return _cut(total / weights.clamp(min=1e-12), experts[0])


def _between_0_and_1(vector: Tensor) -> Tensor:
    low, high = vector.aminmax()
    return (vector - low) / (high - low)


def _lines(experts: list[State], given: Given) -> State:
    flat = _flat(_summed(experts))
    merged = flat  # of task arithmetic, whose norms are equal
    alpha = (flat.abs().sum() / merged.abs().sum() / len(experts)).item()
    last = max(given.depths.values())
    return {
        path: (alpha + 0.5 * given.depths.get(path, 0) / last) * tensor
        for path, tensor in _cut(merged, experts[0]).items()
    }


def _tall(experts: list[State]) -> tuple[Tensor, Tensor]:
    """τ_M [n] and the masks [task, n]."""
    rows = _flat_rows(experts)
    merged = rows.sum(dim=0)
    return merged, torch.stack([own.abs() > 0.4 * (merged - own).abs() for own in rows])


def _tall_masks(experts: list[State], _: Given) -> list[State]:
    merged, masks = _tall(experts)
    return [_cut(merged * mask, experts[0]) for mask in masks]


def _consensus(experts: list[State], _: Given) -> State:
    merged, masks = _tall(experts)
    return _cut(merged * (masks.sum(dim=0) >= 2), experts[0])


def _svd(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], sigma[:rank], vt[:rank]


def _polar(matrix: Tensor) -> Tensor:
    u, _, vt = _svd(matrix)
    return u @ vt


def _tsv_m(experts: list[State], _: Given) -> State:
    def merged(path: str) -> Tensor:
        if experts[0][path].ndim != 2:
            return _mean(experts, path)
        rank = min(experts[0][path].shape) // len(experts)
        u, sigma, vt = zip(*(_svd(state[path], rank) for state in experts), strict=True)
        left, right = _polar(torch.cat(u, dim=1)), _polar(torch.cat(vt))
        return torch.linalg.multi_dot((left, torch.diag(torch.cat(sigma)), right))

    return {path: merged(path) for path in experts[0]}


def _tsv_c(experts: list[State], _: Given) -> list[State]:
    def compressed(tensor: Tensor) -> Tensor:
        if tensor.ndim != 2:
            return tensor
        u, sigma, vt = _svd(tensor, min(tensor.shape) // len(experts))
        return u @ torch.diag(sigma) @ vt

    return [{path: compressed(tensor) for path, tensor in state.items()} for state in experts]


def _iso_c(experts: list[State], _: Given) -> State:
    def merged(path: str) -> Tensor:
        if experts[0][path].ndim != 2:
            return _mean(experts, path)
        u, sigma, vt = _svd(torch.stack([state[path] for state in experts]).sum(dim=0))
        return sigma.mean() * (u @ vt)

    return {path: merged(path) for path in experts[0]}


def _iso_cts(experts: list[State], _: Given) -> State:
    def merged(path: str) -> Tensor:
        if experts[0][path].ndim != 2:
            return _mean(experts, path)
        rank = min(experts[0][path].shape)
        own = round((rank - int(rank * 0.8)) / len(experts))
        common = rank - own * len(experts)
        u, sigma, vt = _svd(torch.stack([state[path] for state in experts]).sum(dim=0), common)
        parts = [_svd(tau - u @ (u.T @ tau), own) for tau in (state[path] for state in experts)]
        lefts, values, rights = zip(*parts, (u, sigma, vt), strict=True)
        left, right = _polar(torch.cat(lefts, dim=1)), _polar(torch.cat(rights))
        return torch.cat(values).mean() * (left @ right)

    return {path: merged(path) for path in experts[0]}


def _emr(experts: list[State], _: Given) -> list[State]:
    unified = {}
    for path, first in experts[0].items():
        flag = torch.where(sum(state[path] for state in experts) > 0, 1.0, -1.0)
        largest = torch.zeros_like(first)
        for state in experts:
            agreeing = (state[path] * flag > 0) * state[path].abs()
            largest = torch.maximum(largest, agreeing)
        unified[path] = largest * flag
    found = []
    for state in experts:
        own = {path: (tau * unified[path] > 0) * unified[path] for path, tau in state.items()}
        factor = sum(tau.abs().mean() for tau in state.values())
        factor = factor / sum(tau.abs().mean() for tau in own.values())
        found.append({path: factor * tau for path, tau in own.items()})
    return found


def _lot(experts: list[State], given: Given) -> State:
    def merged(path: str) -> Tensor:
        second = given.moments.get(path)
        if second is None:
            return _mean(experts, path)
        taus = [state[path] for state in experts]
        weighted = sum(tau @ own if own.ndim == 2 else tau * own
                       for tau, own in zip(taus, second, strict=True))  # fmt: skip
        total = second.sum(dim=0)
        if total.ndim == 1:
            return weighted / total
        return weighted @ torch.linalg.pinv(total, rtol=1e-6, hermitian=True)

    return {path: merged(path) for path in experts[0]}


def _regmean(experts: list[State], given: Given) -> State:
    def merged(path: str) -> Tensor:
        second = given.moments.get(path)
        if second is None or second.ndim == 2:
            return _mean(experts, path)
        shrunk = [0.95 * own + 0.05 * torch.diag(torch.diag(own)) for own in second]
        weighted = sum(state[path] @ own for state, own in zip(experts, shrunk, strict=True))
        return weighted @ torch.linalg.inv(sum(shrunk))

    return {path: merged(path) for path in experts[0]}


def _breadcrumbs(experts: list[State], _: Given) -> State:
    def masked(tau: Tensor) -> Tensor:
        if tau.ndim == 0:
            return tau
        size, count = tau.abs(), tau.shape[-1]
        outliers = size.topk(int(count * 0.006), dim=-1).indices
        size.scatter_(-1, outliers, -1.0)
        kept = size.topk(int(count * 0.15), dim=-1).indices
        return tau * torch.zeros_like(tau).scatter_(-1, kept, 1.0)

    return _summed([{path: masked(tau) for path, tau in state.items()} for state in experts])


def _dare(experts: list[State], _: Given) -> State:
    def thinned(tau: Tensor) -> Tensor:
        return tau * torch.bernoulli(torch.full_like(tau, 0.5)) / 0.5

    return _summed([{path: thinned(tau) for path, tau in state.items()} for state in experts])


def _slerp(experts: list[State], given: Given) -> State:
    def between(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b = start + first, start + second
        cosine = (a * b).sum() / (torch.linalg.norm(a) * torch.linalg.norm(b))
        if cosine.abs() > 0.9995:
            return (a + b) / 2 - start
        angle = torch.arccos(cosine)
        return torch.sin(angle / 2) / torch.sin(angle) * (a + b) - start

    one, other = experts
    return {path: between(given.pretrained[path], one[path], other[path]) for path in one}


def _fisher(experts: list[State], given: Given) -> State:
    squares = sum(f.flatten(start_dim=1).square().sum(dim=1) for f in given.fisher.values())
    weight = 1 / (torch.as_tensor(squares).sqrt() + 1e-6)
    weight = weight / weight.sum()
    found = {}
    for path in experts[0]:
        factor = weight.reshape(-1, *[1] * experts[0][path].ndim) * (given.fisher[path] + 1e-6)
        taus = torch.stack([state[path] for state in experts])
        found[path] = (factor * taus).sum(dim=0) / factor.sum(dim=0)
    return found


FUNCTIONS: dict[str, Callable[[list[State], Given], State | list[State]]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _weight_average, _task_arithmetic, _ties, _magmax, _pcb, _lines, _tall_masks, _consensus,
        _tsv_m, _tsv_c, _iso_c, _iso_cts, _emr, _lot, _breadcrumbs, _dare, _slerp, _fisher,
        _regmean,
    )
}  # fmt: skip
