"""PyTorch files in every layout: the numbers come out bit by bit, read lazily."""

import pickle
import sys
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_by_hand import floats, make_zip, numbers, saved

from symerge_jax.checkpoints.torch_file import open_torch
from symerge_jax.errors import BadInput

FILES = Path(__file__).parent / "torch_files"
LAYOUTS = {"zip": "torch zip", "legacy": "torch legacy", "plain": "pickle"}
STEMS = sorted(path.stem for path in FILES.glob("*.pt"))
every_file = pytest.mark.parametrize("stem", STEMS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def expected(content):
    with np.load(FILES / "expected.npz") as arrays:
        return {
            name.partition("|")[2]: arrays[name]
            for name in arrays
            if name.startswith(f"{content}|")
        }


def assert_same_bits(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype.itemsize == wanted.dtype.itemsize
    assert found.tobytes() == wanted.tobytes()


# --- what PyTorch wrote -------------------------------------------------------------------------


@every_file
def test_every_tensor_has_the_bits_that_were_saved(stem):
    content, _, layout = stem.partition("_")
    file = open_torch(FILES / f"{stem}.pt")
    wanted = expected(content)
    assert list(file.tensors) == list(wanted)
    assert file.container == LAYOUTS.get(layout.partition("_")[0], "torch zip")
    assert file.files == (file.path,) == (FILES / f"{stem}.pt",)
    assert file.metadata == {}
    for name, info in file.tensors.items():
        found = file.read(name)
        assert (found.shape, found.dtype) == info
        assert found.flags.c_contiguous
        assert_same_bits(found, wanted[name])


@every_file
def test_reading_into_an_array_fills_that_array(stem):
    file = open_torch(FILES / f"{stem}.pt")
    for name, (shape, dtype) in file.tensors.items():
        out = np.zeros(shape, dtype)
        assert file.read(name, out) is out
        assert out.tobytes() == file.read(name).tobytes()


@every_layout
def test_the_dtypes_are_those_of_numpy_and_ml_dtypes(layout):
    tensors = open_torch(FILES / f"state_{layout}.pt").tensors
    named = ("half float16", "double float64", "scalar int64", "mask bool", "plain float32")
    for name, dtype in [pair.split() for pair in named]:
        assert tensors[name].dtype == np.dtype(dtype)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        assert tensors[name].dtype == np.dtype(getattr(ml_dtypes, name))
    for name in ("complex64", "int8", "uint8", "int16", "int32", "uint16", "uint64"):
        assert tensors[name].dtype == np.dtype(name)


@every_layout
def test_tied_weights_are_told_from_views_of_the_same_storage(layout):
    file = open_torch(FILES / f"state_{layout}.pt")
    assert file.aliases == {"tied_again": "tied"}
    base = file.read("tied")
    np.testing.assert_array_equal(file.read("transposed"), base.T)
    np.testing.assert_array_equal(file.read("sliced"), base[1:5:2, 2:])


@every_layout
def test_a_whole_module_tells_activation_and_preprocessing(layout):
    facts = open_torch(FILES / f"encoder_{layout}.pt").module
    assert facts.class_name == "src.modeling.ImageEncoder"
    assert facts.activation == "quick_gelu"
    assert facts.layer_norm_eps == 1e-5
    assert facts.normalize is None
    assert facts.mean == (0.48145466, 0.4578275, 0.40821073)
    assert facts.std == (0.268, 0.261, 0.275)
    assert facts.image_size == 4
    assert facts.interpolation == "bicubic"
    assert {"open_clip.model.CLIP", "torchvision.transforms.transforms.Resize"} <= set(
        facts.classes
    )
    assert len(set(facts.classes)) == len(facts.classes)


def test_exact_gelu_is_told_from_quick_gelu():
    assert open_torch(FILES / "exact_zip.pt").module.activation == "gelu"


@every_layout
def test_a_head_tells_whether_it_normalises(layout):
    facts = open_torch(FILES / f"head_{layout}.pt").module
    assert facts.normalize is True
    assert facts.class_name == "src.modeling.ClassificationHead"
    assert (facts.activation, facts.mean, facts.image_size) == (None, None, None)


@every_layout
def test_a_state_dict_has_no_module(layout):
    assert open_torch(FILES / f"state_{layout}.pt").module is None


def test_a_lightning_checkpoint_gives_its_state_dict_alone():
    assert list(open_torch(FILES / "lightning_zip.pt").tensors) == ["encoder.conv1.weight"]


def test_buffers_that_are_not_saved_are_left_out():
    names = open_torch(FILES / "encoder_zip.pt").tensors
    assert "model.steps" in names
    assert "model.attn_mask" not in names


def test_no_module_of_the_file_is_imported():
    for stem in STEMS:
        open_torch(FILES / f"{stem}.pt")
    assert not {"src", "src.modeling", "open_clip", "torchvision"} & set(sys.modules)


@every_layout
def test_threads_read_without_disturbing_each_other(layout):
    file = open_torch(FILES / f"encoder_{layout}.pt")
    wanted = {name: file.read(name).tobytes() for name in file.tensors}
    start = threading.Barrier(4)

    def all_of(seed):
        start.wait()
        for name in np.random.default_rng(seed).permutation(list(wanted)):
            assert file.read(name).tobytes() == wanted[name]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(all_of, range(4)))


def test_only_the_bytes_of_a_tensor_are_read(tmp_path):
    """The rest of the file may change, so nothing was kept and nothing else is touched."""
    path = tmp_path / "x.pt"
    content = bytearray(make_zip({"a": floats(4), "b": floats(4, offset=4)}, {"0": numbers(8)}))
    path.write_bytes(content)
    file = open_torch(path)
    place = bytes(content).index(numbers(8))
    content[place + 16 : place + 32] = np.float32([9, 9, 9, 9]).tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(file.read("a"), [0, 1, 2, 3])
    np.testing.assert_array_equal(file.read("b"), [9, 9, 9, 9])


# --- reading ------------------------------------------------------------------------------------


def test_a_file_that_changed_since_it_was_opened_is_told(tmp_path):
    path = saved(tmp_path, make_zip({"w": floats(8)}, {"0": numbers(8)}))
    file = open_torch(path)
    path.write_bytes(b"short")
    with pytest.raises(BadInput, match="tensor w are not all there"):
        file.read("w")
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        file.read("w")


def test_a_damaged_deflated_storage_is_told(tmp_path):
    packed = make_zip({"w": floats(8)}, {"0": numbers(8)}, compression=zipfile.ZIP_DEFLATED)
    deflate = zlib.compressobj(wbits=-15)
    data = deflate.compress(numbers(8)) + deflate.flush()
    assert data in packed
    path = saved(tmp_path, packed.replace(data, b"\xff" * len(data)))
    with pytest.raises(BadInput, match="tensor w are not all there"):
        open_torch(path).read("w")


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(BadInput, match="there is no tensor nothing"):
        open_torch(FILES / "head_zip.pt").read("nothing")


def test_an_unfit_array_is_not_read_into():
    file = open_torch(FILES / "head_zip.pt")
    shape, dtype = file.tensors["weight"]
    for out in (
        np.zeros(shape, np.float64),
        np.zeros((1, *shape), dtype),
        np.zeros(shape, dtype).T,
    ):
        with pytest.raises(AssertionError):
            file.read("weight", out)


@every_layout
@pytest.mark.parametrize("content", ["head", "state"])
def test_no_cut_of_a_file_is_read_as_a_file(tmp_path, content, layout):
    whole = (FILES / f"{content}_{layout}.pt").read_bytes()
    for end in np.linspace(1, len(whole) - 1, 20).astype(int):
        with pytest.raises(BadInput):
            open_torch(saved(tmp_path, whole[:end]))


@every_layout
def test_damage_ends_in_bad_input_or_in_numbers(tmp_path, layout):
    whole = (FILES / f"head_{layout}.pt").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        try:
            file = open_torch(saved(tmp_path, bytes(damaged)))
            for name in file.tensors:
                file.read(name)
        except BadInput:
            continue


# --- live ---------------------------------------------------------------------------------------


@pytest.mark.torch
@every_layout
@pytest.mark.parametrize("seed", range(3))
def test_what_torch_saves_now_is_read_bit_by_bit(tmp_path, layout, seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    dtypes = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
    state = {}
    for i in range(40):
        shape = tuple(rng.integers(0, 6, rng.integers(0, 5)).tolist())
        tensor = (10 * torch.randn(shape)).to(getattr(torch, rng.choice(dtypes)))
        if tensor.ndim > 1 and rng.random() < 0.5:
            tensor = tensor.permute(*rng.permutation(tensor.ndim).tolist())
        if tensor.ndim and rng.random() < 0.5:
            tensor = tensor[:: rng.integers(1, 3)]
        state[f"t{i}"] = tensor
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU())
    net.add_module("tied", net[0])
    net.half() if seed else net.double()
    for thing, tensors in ((state, state), (net, net.state_dict())):
        path = tmp_path / "x.pt"
        if layout == "plain":
            path.write_bytes(pickle.dumps(thing))
        else:
            torch.save(thing, path, _use_new_zipfile_serialization=layout == "zip")
        file = open_torch(path)
        assert list(file.tensors) == list(tensors)
        for name, tensor in tensors.items():
            found = file.read(name)
            assert found.shape == tuple(tensor.shape)
            bits = tensor.detach().contiguous()
            if tensor.dtype == torch.bfloat16:
                bits = bits.view(torch.int16)
            assert found.tobytes() == bits.numpy().tobytes()
    assert file.aliases == {"tied.weight": "0.weight", "tied.bias": "0.bias"}
