"""The example in the README runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

README = Path(__file__).parents[1] / "README.md"


def test_the_example_merges_and_adapts():
    code = re.search(r"test_readme.py -->\n```python\n(.*?)```", README.read_text(), re.S)
    assert code is not None
    module = nn.Dense(4)
    keys = jax.random.split(jax.random.key(0), 6)
    inputs = [np.asarray(jax.random.normal(key, (40, 3)), np.float32) for key in keys[:2]]
    pretrained = module.init(keys[2], jnp.zeros((1, 3), jnp.float32))["params"]
    experts = [
        jax.tree.map(lambda x, key=key: x + 0.3 * jax.random.normal(key, x.shape), pretrained)
        for key in keys[3:5]
    ]
    heads = [
        {"weight": jax.random.normal(keys[5], (c, 4)), "bias": jnp.zeros(c, jnp.float32)}
        for c in (2, 3)
    ]
    names = {
        "module": module,
        "experts": experts,
        "pretrained": pretrained,
        "heads": heads,
        "inputs": inputs,
    }
    exec(code.group(1), names)
    merged = names["merged"]
    assert jax.tree.structure(merged.params) == jax.tree.structure(pretrained)
    assert merged.losses.shape == (1000,)
    agreement = merged.losses.reshape(-1, 100).mean(axis=1)
    assert agreement[-1] < agreement[0]
