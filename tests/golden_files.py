"""Finds the golden arrays: outputs of independent implementations on tiny models.

The folder is $SYMERGE_GOLDEN, or shared/golden beside the checkout. Tests that need it are skipped
where it is absent.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "golden"
GOLDEN = Path(os.environ.get("SYMERGE_GOLDEN") or _BESIDE)


def golden(name):
    """Returns the arrays of one file by name, and what the JSON beside it says about them."""
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no golden arrays at {path}; set SYMERGE_GOLDEN to their folder")
    return _read(path)


@functools.cache
def _read(path):
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
