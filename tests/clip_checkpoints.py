"""Tiny CLIP checkpoints in every public layout, with random weights."""

import json
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from torch_by_hand import floats, make_zip

from symerge_jax.checkpoints.clip import split_qkv, to_hugging_face, to_open_clip
from symerge_jax.checkpoints.clip_layouts import hugging_face_config, open_clip_config
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import TextConfig, VisionConfig

VISION = VisionConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, projection=6)
TEXT = TextConfig(vocabulary=11, length=5, width=12, depth=1, heads=3, projection=6)
# safetensors' name of a dtype → NumPy's
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


def params(*, text=False, projection=True, seed=0):
    """A fused tree {'vision'[, 'text', 'logit_scale']} with every leaf away from zero and one."""
    rng = np.random.default_rng(seed)

    def drawn(config):
        shapes = param_shapes(config)
        return jax.tree.map(lambda x: rng.normal(0.3, 0.2, x.shape).astype(np.float32), shapes)

    tree = {"vision": drawn(VISION if projection else replace(VISION, projection=None))}
    if text:
        tree |= {"text": drawn(TEXT), "logit_scale": np.float32(2.5)}
    return tree


def split(tree):
    """The same tree with query, key and value apart."""
    return {k: split_qkv(v) if k in ("vision", "text") else v for k, v in tree.items()}


def hugging_face(*, prefix="vision_model.", **options):
    """A state dict of transformers' CLIP classes."""
    return to_hugging_face(split(params(**options)), prefix=prefix)


def open_clip(*, prefix="", **options):
    """A state dict of open_clip's CLIP, or of its image tower."""
    return to_open_clip(params(**options), prefix=prefix)


def hugging_face_json(*, text=False, projection=True):
    """The config.json beside `hugging_face`."""
    vision = replace(VISION, fused_qkv=False, projection=6 if projection else None)
    return hugging_face_config(vision, replace(TEXT, fused_qkv=False) if text else None)


def open_clip_json(*, text=False):
    """The open_clip_config.json beside `open_clip`."""
    return open_clip_config(replace(VISION), TEXT if text else None)


def moved(tensors, seed, size=0.02):
    """What fine-tuning makes of a state dict: floats move a little, integers stay."""
    rng = np.random.default_rng(seed)

    def one(value):
        if value.dtype.kind in "iub":
            return value
        return np.asarray(value + rng.normal(0, size, value.shape)).astype(value.dtype)

    return {name: one(value) for name, value in tensors.items()}


def save(folder, tensors, config=None, *, name="model.safetensors"):
    """Writes a folder with one weights' file and, if given, its config; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / name, tensors)
    if config is not None:
        kind = "open_clip_config.json" if "model_cfg" in config else "config.json"
        (folder / kind).write_text(json.dumps(config))
    return folder


def save_sharded(folder, tensors, config=None, *, shards=2):
    """Writes a folder with several safetensors files and their index; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[i::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in mine})
        index |= dict.fromkeys(mine, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_safetensors(path, tensors, metadata=None):
    """Writes the format by hand, so that what is read is not what the library itself wrote."""
    codes = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
    header = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, value in tensors.items():
        value = np.asarray(value)
        content = value.tobytes()
        header[name] = {
            "dtype": codes[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def write_torch(path, tensors):
    """Writes a state dict of float32 as `torch.save` does."""
    arrays = {name: np.asarray(value, "<f4") for name, value in tensors.items()}
    entries = {
        name: floats(*value.shape, key=str(i), numel=value.size)
        for i, (name, value) in enumerate(arrays.items())
    }
    storages = {str(i): value.tobytes() for i, value in enumerate(arrays.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_zip(entries, storages))
    return path


def read_all(path):
    """Reads a safetensors file with the library."""
    return safetensors.numpy.load_file(path)


def assert_same(found, expected):
    """Same names, shapes, dtypes and bits."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        assert found[name].tobytes() == value.tobytes(), name
