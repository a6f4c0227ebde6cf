"""Classification heads on L2-normalised features, and how text makes one (zero-shot).

Radford et al. 2021 (https://arxiv.org/abs/2103.00020), section 3.1; the head of SyMerge and of the
task-arithmetic experts: z = W (h / ‖h‖₂) + b, with the scale exp(logit_scale) inside W.

A head is {'weight': [classes, d], 'bias': [classes]}: rows are classes, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symerge_jax.errors import BadInput
from symerge_jax.notation import Array

Head = dict[str, Array]
Template = str | Callable[[str], str]


def normalise(features: Array) -> Array:
    """Divides each row [..., d] by its L2 norm; no epsilon, as in the reference."""
    return features / jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True))


def normalised_head(head: Head, features: Array) -> Array:
    """Returns logits [batch, classes] = W (h / ‖h‖₂) + b.

    Args:
        head: 'weight' [classes, d] and 'bias' [classes].
        features: h, [batch, d]; any length but zero.
    """
    return normalise(features) @ head["weight"].T + head["bias"][None]


def zero_shot_head(
    encode_text: Callable[[jax.Array], Array],
    tokenise: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[Template],
    *,
    scale: Any,
) -> Head:
    """Writes a head from class names: one row per class, of length `scale`, and zero bias.

    Per class: the prompts are encoded, L2-normalised, averaged, L2-normalised and multiplied.

    Args:
        encode_text: token ids [prompts, length] → features [prompts, d]; parameters bound.
        tokenise: texts → token ids [prompts, length].
        class_names: one entry per class. A list of synonyms is averaged like templates: all
            prompts of all synonyms weigh the same.
        templates: strings with `{}` for the class name, or functions of it.
        scale: the factor itself, exp(logit_scale): 100 for OpenAI's weights.

    Raises:
        BadInput: there is no class or template, a list of synonyms is empty, or a template has no
            `{}`.
    """
    if not class_names or not templates:
        raise BadInput(
            f"zero-shot head: expected class names and templates, got {len(class_names)} "
            f"and {len(templates)}"
        )
    rows = []
    for entry in class_names:
        names = [entry] if isinstance(entry, str) else list(entry)
        if not names:
            raise BadInput("zero-shot head: a class has an empty list of names")
        prompts = [_fill(template, name) for name in names for template in templates]
        features = normalise(encode_text(jnp.asarray(tokenise(prompts))))
        rows.append(normalise(features.mean(axis=0)))
    weight = jnp.stack(rows)
    weight = weight * jnp.asarray(scale, weight.dtype)
    return {"weight": weight, "bias": jnp.zeros(len(rows), weight.dtype)}


def _fill(template: Template, name: str) -> str:
    if callable(template):
        return template(name)
    if "{}" not in template:
        raise BadInput(f"template {template!r}: expected {{}} where the class name goes")
    return template.replace("{}", name)  # not str.format: a name or template may hold braces


def stack_heads(heads: Sequence[Head]) -> tuple[Head, Array]:
    """Stacks heads over tasks, padding classes with zero rows.

    Args:
        heads: one per task, with the same d.

    Returns:
        {'weight': [task, classes_max, d], 'bias': [task, classes_max]} and the mask of real
        classes, bool [task, classes_max].

    Raises:
        BadInput: there is no head, a head's weight and bias disagree, or d differs.
    """
    if not heads:
        raise BadInput("expected at least one head to stack, got none")
    d = heads[0]["weight"].shape[-1]
    for i, head in enumerate(heads):
        shapes = tuple(head["weight"].shape), tuple(head["bias"].shape)
        if shapes != ((*shapes[1], d), shapes[1]) or len(shapes[1]) != 1:
            raise BadInput(
                f"head {i}: expected weight [classes, {d}] and bias [classes], "
                f"got {list(shapes[0])} and {list(shapes[1])}"
            )
    counts = jnp.array([head["bias"].shape[0] for head in heads])
    most = int(counts.max())

    def pad(leaf: Array) -> Array:
        missing = most - leaf.shape[0]
        return jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))

    stacked: Head = {
        name: jnp.stack([pad(jnp.asarray(head[name])) for head in heads])
        for name in ("weight", "bias")
    }
    return stacked, jnp.arange(most)[None] < counts[:, None]


def unstack_heads(heads: Head, class_mask: Array) -> list[Head]:
    """Returns the heads of `stack_heads` again, one per task and without padding."""
    counts = np.asarray(class_mask).sum(axis=1)
    return [
        {name: leaf[task, :count] for name, leaf in heads.items()}
        for task, count in enumerate(counts)
    ]
