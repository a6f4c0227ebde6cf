"""Merges of tiny CLIP checkpoints in files, beside the same merge of trees in memory."""

from functools import partial
from pathlib import Path

import clip_checkpoints as clips
import jax
import ml_dtypes
import numpy as np
import pytest
from golden_files import golden

from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves
from symerge_jax.merge import METHODS
from symerge_jax.merge_files import merge_files
from symerge_jax.merge_plan import plan
from symerge_jax.task_vectors import add, give_back, split_untrained, subtract
from symerge_jax.verify import verify

TORCH_FILES = Path(__file__).parent / "torch_files"
COUNTER = "vision_model.embeddings.position_ids"
# Methods that need statistics are merged as trees; slerp takes two experts.
from_files = [
    name for name, method in METHODS.items() if "moments" not in method.needs and name != "slerp"
]
shared = [name for name in from_files if METHODS[name].kind == "shared"]
per_task = [name for name in from_files if METHODS[name].kind == "per_task"]
# One that takes a leaf at a time and one that needs everything.
both_ways = pytest.mark.parametrize("name", ["task_arithmetic", "ties"])


def moved(tensors, k):
    return clips.moved(tensors, k + 1)


def written(path, start, experts, config=None):
    config = clips.hugging_face_json() if config is None else config
    start = clips.save(path / "in" / "base", start, config)
    return start, [
        clips.save(path / "in" / name, expert, config)
        for name, expert in zip(("eurosat", "dtd", "svhn", "cars"), experts, strict=False)
    ]


def in_memory(start, experts, name, **options):
    """The merge by the library's functions on trees; what nobody changed is θ₀'s.

    One dictionary of tensors, or one per task.
    """
    method = METHODS[name]
    scale = options.pop("scale", method.scale)
    wide = any(value.dtype == np.float64 for value in start.values())
    with jax.enable_x64(wide):
        floats = {k: v for k, v in start.items() if np.issubdtype(v.dtype, np.inexact)
                  or v.dtype.kind == "V"}  # fmt: skip
        tau = subtract([{k: one[k] for k in floats} for one in experts], floats)
        parts, trained = split_untrained(floats, tau)
        if "leaves" in method.needs:
            facts = named_leaves({k: v.shape for k, v in floats.items()}, "hugging_face")
            options["leaves"] = {k: facts[k] for k, v in trained.items() if v is not None}
        if "pretrained" in method.needs:
            options["pretrained"] = {k: v for k, v in parts.merged.items() if v is not None}
        changed = {k: v for k, v in trained.items() if v is not None}
        result = trained | partial(method.merge, **options)(changed)
        if method.kind == "shared":
            return start | _whole(parts, result, scale)
        return [
            start | _whole(parts, jax.tree.map(lambda x, k=k: x[k], result), scale)
            for k in range(len(experts))
        ]


def _whole(parts, result, scale):
    merged = add(parts.merged, result, scale=scale)
    return jax.tree.map(np.asarray, give_back(merged, parts.aside))


def merged_by_files(out, folders, name, *, names=None, **options):
    start, experts = folders
    return merge_files(plan(start, experts, names), name, out, **options)


def assert_close(found, expected, tolerance=1e-6):
    """Same names, shapes, dtypes; half precision may round the last bit the other way."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        if value.dtype.kind in "iub":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            continue
        step = 0 if value.dtype.itemsize >= 4 else float(ml_dtypes.finfo(value.dtype).eps)
        a, b = (np.asarray(x, np.float64) for x in (found[name], value))
        np.testing.assert_allclose(a, b, rtol=max(tolerance, step), atol=tolerance, err_msg=name)


def refusal(out, folders, name="task_arithmetic", **options):
    """The message of a merge that is refused and leaves nothing."""
    with pytest.raises(BadInput) as caught:
        merged_by_files(out, folders, name, **options)
    assert not out.exists()
    assert not list(out.parent.glob(".*"))
    message = str(caught.value)
    assert "\n" not in message
    return message


def everyone(tau):
    """A made-up method of the per-task kind: each task gets its own task vector."""
    return tau


def failures(folder):
    """Names of the checks that fail; a card that is not there at all is one too."""
    try:
        return [finding.what for finding in verify(folder) if not finding.holds]
    except BadInput:
        return ["merge_card.json"]


def assert_noticed(folder, path):
    """One byte changed, wherever it is, or no such file: either is found, and names the file."""
    before = path.read_bytes()
    for position in (0, len(before) // 2, len(before) - 1):
        changed = bytearray(before)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        assert failures(folder) == [path.relative_to(folder).as_posix()], position
    path.unlink()
    assert failures(folder) == [path.relative_to(folder).as_posix()]
    path.write_bytes(before)


def recorded(kind, path):
    """The recorded models as safetensors files or Hugging Face folders; and a reader of outputs."""
    arrays, about = golden("training_free")

    def part(prefix):
        n = len(prefix) + 1
        return {k[n:]: v for k, v in arrays.items() if k.startswith(f"{prefix}/")}

    def place(key):
        name = key.rpartition("/")[2]
        if kind == "folder":
            return clips.save(path / name, part(key), about["model"]["config"])
        path.mkdir(exist_ok=True)
        return clips.write_safetensors(path / f"{name}.safetensors", part(key))

    return (place("pretrained"), [place(f"expert/task{k}") for k in range(4)]), part
