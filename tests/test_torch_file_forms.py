"""Unusual and hostile PyTorch files: read where they can be, else refused by name; nothing runs."""

import os
import pickle
import struct
import threading
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from torch_by_hand import (
    a_dict,
    assert_refused,
    floats,
    integers,
    make_legacy,
    make_plain,
    make_zip,
    numbers,
    saved,
    storage_alone,
    text,
)

from symerge_jax.checkpoints import torch_containers
from symerge_jax.checkpoints.torch_file import open_torch
from symerge_jax.errors import BadInput

LAYOUTS = ("zip", "legacy", "plain")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_repacked_zip_reads_alike(tmp_path, compression):
    tensors = {"a": floats(2, 3, offset=1), "b": floats(4, 2, stride=(1, 4)), "c": floats()}
    path = saved(tmp_path, make_zip(tensors, {"0": numbers(8)}, compression=compression))
    file = open_torch(path)
    np.testing.assert_array_equal(file.read("a"), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(file.read("b"), [[0, 4], [1, 5], [2, 6], [3, 7]])
    np.testing.assert_array_equal(file.read("c"), np.float32(0))


def test_a_zip_behind_other_bytes_is_no_checkpoint(tmp_path):
    content = make_zip({"a": floats(8)}, {"0": numbers(8)})
    with pytest.raises(BadInput, match="no PyTorch checkpoint: it begins with"):
        open_torch(saved(tmp_path, b"#!/bin/sh\n" + content))


def test_storages_embedded_as_zip_or_legacy_files(tmp_path):
    embedded = {
        "zip": make_zip(storage_alone(), {"0": numbers(8)}),
        "packed": make_zip(storage_alone(), {"0": numbers(8)}, compression=zipfile.ZIP_DEFLATED),
        "legacy": make_legacy(storage_alone(view=b"N"), {"0": numbers(8)}),
        "long": make_legacy(storage_alone(view=b"N"), {"0": numbers(8)}) + bytes(2000),
    }
    for content in embedded.values():
        file = open_torch(saved(tmp_path, make_plain(content)))
        assert file.container == "pickle"
        np.testing.assert_array_equal(file.read("w"), np.arange(8))


def test_views_of_storages_in_the_oldest_legacy_files(tmp_path):
    view = b"(" + text("9") + b"I2\nI4\nt"
    tensors = {"whole": floats(8, view=b"N"), "part": floats(3, offset=1, view=view)}
    file = open_torch(saved(tmp_path, make_legacy(tensors, {"0": numbers(8)})))
    np.testing.assert_array_equal(file.read("part"), [3, 4, 5])
    np.testing.assert_array_equal(file.read("whole"), np.arange(8))
    beyond = floats(3, offset=1, view=b"(" + text("9") + b"I6\nI4\nt")
    with pytest.raises(BadInput, match="view reaches beyond its storage"):
        open_torch(saved(tmp_path, make_legacy({"part": beyond}, {"0": numbers(8)})))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_are_found_under_the_usual_keys(tmp_path, key):
    weights = a_dict({"w": floats(8)})[2:-1]
    content = b"\x80\x02}(" + text("epoch") + b"I3\n" + text("loss") + floats()
    content += text(key) + weights + text("optimizer") + b"}" + b"u."
    file = open_torch(saved(tmp_path, make_zip(content, {"0": numbers(8)})))
    assert list(file.tensors) == ["w"]


def test_what_is_no_tensor_in_a_state_dict_is_passed_over(tmp_path):
    tensors = {"w": floats(8), "version": b"I3\n", "_extra_state": b"N", "name": text("x")}
    file = open_torch(saved(tmp_path, make_zip(tensors, {"0": numbers(8)})))
    assert list(file.tensors) == ["w"]


def module(kind, **attributes):
    """The opcodes of a module without parameters of its own."""
    parts = {"_parameters": b"}", "_buffers": b"}", "_modules": b"}", **attributes}
    state = b"}(" + b"".join(text(k) + v for k, v in parts.items()) + b"u"
    return b"c" + kind.replace(".", "\n", 1).encode() + b"\n)\x81" + state + b"b"


def children(**modules):
    return b"}(" + b"".join(text(k) + v for k, v in modules.items()) + b"u"


def norm(eps):
    own = b"}" + text("weight") + floats(8) + b"s"
    shape = integers(8)
    return module("nn.LayerNorm", eps=b"F%r\n" % eps, normalized_shape=shape, _parameters=own)


def test_modules_that_disagree_are_refused(tmp_path):
    both = children(a=norm(1e-5), b=norm(1e-6))
    content = b"\x80\x02" + module("m.Net", _modules=both) + b"."
    with pytest.raises(BadInput, match="more than one LayerNorm epsilon: 1e-06, 1e-05"):
        open_torch(saved(tmp_path, make_zip(content, {"0": numbers(8)})))
    both = children(a=norm(1e-5), b=module("m.QuickGELU"), c=module("nn.GELU"))
    content = b"\x80\x02" + module("m.Net", _modules=both) + b"."
    with pytest.raises(BadInput, match="more than one activation: gelu, quick_gelu"):
        open_torch(saved(tmp_path, make_zip(content, {"0": numbers(8)})))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (module("nn.GELU", approximate=text("tanh")), "gelu_tanh"),
        (module("nn.GELU", approximate=text("none")), "gelu"),
        (module("nn.GELU"), "gelu"),
        (module("clip.model.QuickGELU"), "quick_gelu"),
        (module("nn.ReLU"), None),
    ],
)
def test_the_activation_is_read_from_classes(tmp_path, activation, name):
    content = b"\x80\x02" + module("m.Net", _modules=children(a=norm(1e-5), b=activation)) + b"."
    file = open_torch(saved(tmp_path, make_zip(content, {"0": numbers(8)})))
    assert file.module.activation == name
    assert list(file.tensors) == ["a.weight"]


def transforms(*steps):
    held = b"}" + text("transforms") + b"](" + b"".join(steps) + b"es"
    return b"cT\nCompose\n)\x81" + held + b"b"


def test_preprocessing_of_older_and_newer_torchvision(tmp_path):
    older = transforms(module("T.Resize", size=b"I224\n", interpolation=b"I3\n"))
    mode = b"c__builtin__\ngetattr\n(cT\nInterpolationMode\n" + text("BILINEAR") + b"tR"
    newer = transforms(
        module("T.Resize", size=b"](I32\nI32\ne", interpolation=mode),
        module("T.Normalize", mean=b"](F0.5\nF0.5\nF0.5\ne", std=b"](I1\nI1\nI1\ne"),
    )
    found = []
    for steps in (older, newer):
        net = module("m.Net", _modules=children(a=norm(1e-5)), val_preprocess=steps)
        path = saved(tmp_path, make_zip(b"\x80\x02" + net + b".", {"0": numbers(8)}))
        found.append(open_torch(path).module)
    assert (found[0].image_size, found[0].interpolation) == (224, "bicubic")
    assert (found[1].image_size, found[1].interpolation) == (32, "bilinear")
    assert (found[1].mean, found[1].std) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def test_modules_that_hold_themselves_are_refused(tmp_path):
    content = b"\x80\x02cm\nNet\n)\x81q\x00}(" + text("_parameters") + b"}" + text("_modules")
    content += b"}" + text("self") + b"h\x00s" + b"ub."
    with pytest.raises(BadInput, match="hold each other without end"):
        open_torch(saved(tmp_path, make_zip(content, {})))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"hello, world\n" * 100, "no PyTorch checkpoint: it begins with b'hello, world"),
        (b"\n <!DOCTYPE html><html></html>", "HTML page"),
        (b"<html><body>Quota exceeded", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (bytes(257) + b"ustar" + bytes(250), "before 0.1.10"),
        (bytes(100), "no PyTorch checkpoint"),
        (pickle.dumps(3), "one int"),
        (pickle.dumps([1, 2]), "one list"),
        (pickle.dumps({"a": 1, "b": {"c": 2}}), "a dict with the keys a, b"),
        (pickle.dumps(OrderedDict(state_dict={})), "holds no tensors"),
        (pickle.dumps(threading.Barrier), "holds no tensors"),
        (b"\x80\x02cfoo\nBar\n)\x81.", "an object of class foo.Bar"),
        (make_zip({"a": floats(8)}, {"0": numbers(8)})[:-30], "zip directory"),
        (make_zip({"a": floats(8)}, {"0": numbers(8)})[:200], "zip directory"),
        (b"\x80\x02" + floats(8) + b".", "refers to data outside"),
        (make_zip(b"\x80\x02" + floats(8) + b".", {"0": numbers(8)}), "one tensor"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path, content, word):
    assert_refused(saved(tmp_path, content), word)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    assert_refused(tmp_path / "absent.pt", "cannot be read (No such file")
    assert_refused(tmp_path, "cannot be read")


def test_a_checkpoint_of_other_libraries_is_no_torch_zip(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    assert_refused(tmp_path / "x.npz", "a zip archive but none of torch.save")


def test_torchscript_is_refused(tmp_path):
    extra = [("archive/constants.pkl", b"\x80\x02)."), ("archive/code/m.py", b"")]
    content = make_zip({"a": floats(8)}, {"0": numbers(8)}, extra=extra)
    assert_refused(saved(tmp_path, content), "TorchScript", "state_dict()")


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@every_layout
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, layout):
    marker = tmp_path / "marker"
    call = pickle.dumps(Command(marker), 2)[2:-1]
    tensors = {"w": floats(8, view=b"N" if layout == "legacy" else b""), "x": call}
    content = {
        "zip": lambda: make_zip(tensors, {"0": numbers(8)}),
        "legacy": lambda: make_legacy(tensors, {"0": numbers(8)}),
        "plain": lambda: pickle.dumps({"w": 1, "x": Command(marker)}),
    }[layout]()
    path = saved(tmp_path, content)
    assert_refused(path, "asks to call posix.system", "nothing was run")
    assert not marker.exists()


def test_a_hostile_embedded_file_is_refused(tmp_path):
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Command(marker))
    for inner in (
        hostile,
        make_zip(hostile, {}),
        make_legacy(hostile, {}),
        pickle.dumps(0x1950A86A20F9469CFC6C) + hostile,
    ):
        assert_refused(saved(tmp_path, make_plain(inner)), "posix.system")
    assert not marker.exists()


def test_files_are_embedded_once_at_most(tmp_path):
    inner = b"\x80\x03ctorch.storage\n_load_from_bytes\nC\x01x\x85R."
    for embedded in (make_zip(inner, {}), make_legacy(inner, {})):
        assert_refused(saved(tmp_path, make_plain(embedded)), "files within files")


@pytest.mark.parametrize("make", [make_zip, make_legacy])
@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((9,), {}, ["shape (9,) needs 36 bytes", "has 32"]),
        ((2,), {"offset": 7}, ["needs 36 bytes"]),
        ((2, 2), {"stride": (8, 1)}, ["needs 40 bytes"]),
        ((10**15,), {"numel": 10**15}, ["holds 32 bytes", str(4 * 10**15)]),
        ((9,), {"numel": 9}, ["holds 32 bytes", "need 36"]),
        ((2**70,), {}, ["cannot be"]),
        ((2**60, 2**60), {"stride": (0, 0)}, ["claims", "contiguous"]),
        ((10**9,), {"stride": (0,)}, ["claims 4000000000 bytes"]),
        ((-1,), {}, ["cannot be"]),
        ((2,), {"stride": (-1,)}, ["cannot be"]),
        ((2,), {"offset": -1}, ["cannot be"]),
        ((2, 2), {"stride": (1,)}, ["2 sizes and 1 strides"]),
        ((1,) * 40, {}, ["40 sizes"]),
        ((1,), {"numel": -1}, ["claims -1 elements"]),
        ((1,), {"kind": "FancyStorage"}, ["unknown type torch.FancyStorage"]),
    ],
)
def test_a_tensor_that_claims_too_much_allocates_nothing(tmp_path, make, shape, options, words):
    view = b"N" if make is make_legacy else b""
    content = make({"w": floats(*shape, view=view, **options)}, {"0": numbers(8)})
    assert_refused(saved(tmp_path, content), *words)


def test_an_expanded_tensor_may_be_larger_than_its_bytes(tmp_path):
    content = make_zip({"w": floats(1000, 8, stride=(0, 1))}, {"0": numbers(8)})
    found = open_torch(saved(tmp_path, content)).read("w")
    np.testing.assert_array_equal(found, np.tile(np.arange(8, dtype=np.float32), (1000, 1)))


def test_a_storage_that_is_missing_is_named(tmp_path):
    assert_refused(saved(tmp_path, make_zip({"w": floats(8)}, {})), "storage 0 holds 0 bytes")
    content = make_legacy({"w": floats(8, view=b"N")}, {})
    assert_refused(saved(tmp_path, content), "lacks storage 0")
    content = make_legacy({"w": floats(8, view=b"N")}, {"7": numbers(8)})
    assert_refused(saved(tmp_path, content), "a storage that no tensor has")


def test_a_cut_legacy_file_is_told_at_once(tmp_path):
    content = make_legacy({"w": floats(8, view=b"N")}, {"0": numbers(8)})
    open_torch(saved(tmp_path, content))
    assert_refused(saved(tmp_path, content[:-1]), "ends inside storage 0")


UNUSUAL = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_meta_tensor_no_storage": "without values",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
    "numpy.core.multiarray._reconstruct": "a NumPy array",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_tensor_without_a_plain_array_is_refused_by_name(tmp_path, name):
    module, _, function = name.rpartition(".")
    made = f"c{module}\n{function}\n(N".encode() + b"tR"
    wrapped = b"ctorch._utils\n_rebuild_parameter\n(" + made + b"\x89}tR"
    for value in (made, wrapped):
        content = make_zip({"ok": floats(8), "odd": value}, {"0": numbers(8)})
        assert_refused(saved(tmp_path, content), f"tensor odd is {UNUSUAL[name]}")


def test_conjugated_and_unknown_dtypes_are_refused(tmp_path):
    lazy = floats(8).replace(b"\x89}tR", b"\x89}}" + text("conj") + b"\x88stR")
    assert_refused(saved(tmp_path, make_zip({"w": lazy}, {"0": numbers(8)})), "conjugated")
    odd = (
        floats(8).replace(b"tensor_v2", b"tensor_v3").replace(b"\x89}tR", b"\x89}ctorch\nbits8\ntR")
    )
    assert_refused(saved(tmp_path, make_zip({"w": odd}, {"0": numbers(8)})), "torch.bits8")


def test_nested_dicts_of_tensors_are_refused(tmp_path):
    inner = a_dict({"w": floats(8)})[2:-1]
    content = make_zip({"a": floats(8), "b": inner}, {"0": numbers(8)})
    assert_refused(saved(tmp_path, content), "b is a dict of tensors among tensors")


def test_names_from_a_file_cannot_disturb_a_message(tmp_path):
    name = "evil\x1b[31m\n" + "x" * 1000
    inner = a_dict({"w": floats(8)})[2:-1]
    content = make_zip({"a": floats(8), name: inner}, {"0": numbers(8)})
    assert_refused(saved(tmp_path, content), r"evil\x1b[31m\nxxx", "…")


# --- zip archives that PyTorch does not write ---------------------------------------------------


def test_entries_of_the_same_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = make_zip({"w": floats(8)}, {"0": numbers(8)}, extra=[("archive/data/0", b"")])
    assert_refused(saved(tmp_path, content), "two entries named archive/data/0")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    zeros = bytes(4 << 20)
    tensors = {"w": floats(1 << 20, numel=1 << 20)}
    packed = make_zip(tensors, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
    assert_refused(saved(tmp_path, packed), "archive/data/0 unpacks from", "zip -0")
    assert open_torch(saved(tmp_path, make_zip(tensors, {"0": zeros}))).read("w").sum() == 0
    monkeypatch.setattr(torch_containers, "MAX_UNPACKED", 100)
    assert_refused(saved(tmp_path, make_zip(tensors, {"0": zeros})), "data.pkl has", "at most 100")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    content = make_zip({"w": floats(8)}, {"0": numbers(8)}, compression=method)
    assert_refused(saved(tmp_path, content), "PyTorch does not compress")


def changed(content, entry, offset, value):
    """The archive with bytes of an entry's record in the directory replaced."""
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(entry))
    return content[: place + offset] + value + content[place + offset + len(value) :]


def test_encrypted_entries_are_refused(tmp_path):
    content = make_zip({"w": floats(8)}, {"0": numbers(8)})
    assert_refused(saved(tmp_path, changed(content, b"archive/data/0", 8, b"\x01")), "encrypted")


@pytest.mark.parametrize("place", [10**6, 5])
def test_an_entry_must_lie_in_the_file(tmp_path, place):
    content = make_zip({"w": floats(8)}, {"0": numbers(8)})
    moved = changed(content, b"archive/data/0", 42, struct.pack("<I", place))
    assert_refused(saved(tmp_path, moved), "does not lie in the file")


def test_lengths_in_the_directory_cannot_reach_beyond_the_file(tmp_path):
    content = make_zip({"w": floats(100, numel=10_000)}, {"0": numbers(8)})
    longer = changed(content, b"archive/data/0", 20, struct.pack("<II", 40_000, 40_000))
    assert_refused(saved(tmp_path, longer), "does not lie in the file")
    unequal = changed(content, b"archive/data/0", 24, struct.pack("<I", 40_000))
    assert_refused(saved(tmp_path, unequal), "two lengths")


def test_the_checksum_of_the_pickle_is_verified(tmp_path):
    content = make_zip({"weight": floats(8)}, {"0": numbers(8)})
    assert_refused(saved(tmp_path, content.replace(b"weight", b"Weight")), "Bad CRC-32")


def test_a_strange_byte_order_is_refused(tmp_path):
    extra = [("archive/byteorder", b"middle")]
    content = make_zip({"w": floats(8)}, {"0": numbers(8)}, extra=extra)
    assert_refused(saved(tmp_path, content), "byte order is b'middle'")
