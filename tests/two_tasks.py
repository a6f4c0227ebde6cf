"""Two task vectors of ten entries that the hand-worked cases of several methods share."""

import jax.numpy as jnp

# Positions: a clear sign, exact cancellation, opposite signs (twice), alone, zeros, opposite signs.
FIRST = (1.0, -2, 3, 4, 0.5, 0, 0, 0, 0, 6)
SECOND = (2.0, 2, -5, 1, 0, 0, 0, 0, 0, -3)
TEN = {"w": jnp.array([FIRST, SECOND], jnp.float32)}

# The same entries as two leaves of eight and two.
SPLIT = {"a": TEN["w"][:, :8], "b": TEN["w"][:, 8:]}
APART = {"w": jnp.array([[1.0, 0, 0, 2], [0, 3, 0, 0]], jnp.float32)}  # disjoint supports


def row(*values):
    return {"w": jnp.array(values, jnp.float32)}
