"""What the environment says of JAX before conftest.py changes it, which imports this first."""

import os

ENVIRONMENT = {name: os.environ.get(name) for name in ("JAX_PLATFORMS", "XLA_FLAGS")}
