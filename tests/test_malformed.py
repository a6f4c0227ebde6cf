"""Malformed files that were once read wrongly: each is refused in a sentence that says why."""

import io
import json
import re
import zipfile

import malformed
import numpy as np
import pytest
from commands import symerge

from symerge_jax.errors import BadInput


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return malformed.cases(tmp_path_factory.mktemp("valid"))


@pytest.mark.parametrize("name", malformed.NAMES)
def test_what_is_damaged_elsewhere_is_valid_here(name, cases, tmp_path):
    case = cases[name]
    if name == "pickle":  # numbers and texts, but no tensors
        with pytest.raises(BadInput, match="holds no tensors"):
            case.read(malformed.write(tmp_path, case.files))
    else:
        case.read(malformed.write(tmp_path, case.files))


def refusal(case, content, folder):
    with pytest.raises(BadInput) as told:
        case.read(malformed.write(folder, {**case.files, case.damage: content}))
    assert "\n" not in str(told.value)
    return str(told.value)


HUGE = 10**30


@pytest.mark.parametrize(
    ("name", "path", "value", "says"),
    [
        ("open_clip config", "model_cfg/vision_cfg/head_width", 999, None),
        ("open_clip config", "model_cfg/vision_cfg/mlp_ratio", float("inf"), "mlp_ratio is inf"),
        ("open_clip config", "model_cfg/vision_cfg/mlp_ratio", [], r"mlp_ratio is \[\]"),
        ("open_clip config", "model_cfg/text_cfg/mlp_ratio", "x" * 999, "a number from 0 to 1024"),
        ("open_clip config", "model_cfg/vision_cfg/width", None, "width is None, expected a whole"),
        ("open_clip config", "model_cfg/text_cfg/context_length", HUGE, "is a huge number"),
        ("open_clip config", "model_cfg/text_cfg/layers", 2**20, "resblocks.1.* is missing"),
        ("open_clip config", "model_cfg/embed_dim", 2**31, "embed_dim is 2147483648"),
        ("open_clip config", "model_cfg/text_cfg", -5, "text_cfg is -5, expected an object"),
        ("clip config", "projection_dim", -1, "projection_dim is -1"),
        ("clip config", "text_config/layer_norm_eps", True, "layer_norm_eps is True"),
        ("clip config", "vision_config/layer_norm_eps", float("nan"), "layer_norm_eps is nan"),
        ("clip config", "text_config/eos_token_id", {}, "eos_token_id is {}, expected a token's"),
        ("clip config", "text_config/hidden_act", {}, "activation is '{}', expected one of"),
        ("preprocessor", "image_mean", ["\0"], "was made with image mean"),
        ("preprocessor", "crop_size", {"height": {}}, "was made with crop size {}"),
        ("tokenizer.json", "added_tokens", 0.5, "added_tokens with an id and a content each"),
        ("tokenizer.json", "added_tokens", [{"id": 0}], "added_tokens with an id and a content"),
        ("tokenizer.json", "model/merges", 3, "expected a list of merges"),
        ("tokenizer.json", "model/vocab/some", 2**31, "from 0 to 2147483647"),
        ("tokenizer.json", "model/merges", [["\ud800", "a"]], "its merges do not fit its tokens"),
        ("vocab.json", "e", 2**70, "from 0 to 2147483647"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, path, value, says, cases, tmp_path):
    case = cases[name]
    tree = json.loads(case.files[case.damage])
    branch = tree
    *parents, last = path.split("/")
    for parent in parents:
        branch = branch[parent]
    branch[last] = value
    content = json.dumps(tree).encode()
    if says is None:  # fewer features than one head has: one head
        case.read(malformed.write(tmp_path, {**case.files, case.damage: content}))
    else:
        assert re.search(says, refusal(case, content, tmp_path))


def repacked(content, member, data):
    """An npz with other bytes for one member, and a checksum that fits them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name == member else old.read(name))
    return buffer.getvalue()


def claiming(shape, dtype="|u1"):
    """The header of an array without the array."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + b"\1" * 100


@pytest.mark.parametrize(
    ("name", "member"),
    [("pack", "images"), ("pack", "labels"), ("encoded pack", "jpeg"), ("scene", "valid")],
)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no array", "is damaged (the magic string is not correct"),
        (b"", "is damaged (no array"),
        (claiming((10**5, 10**5, 3)), "is damaged (it claims 30000000000 bytes and holds 228"),
        (claiming((10**13,), "<f8"), "is damaged (it claims 80000000000000 bytes"),
    ],
    ids=["text", "empty", "gigabytes", "terabytes"],
)
def test_what_is_no_array_in_a_pack(name, member, data, says, cases, tmp_path):
    case = cases[name]
    content = repacked(case.files[case.damage], f"{member}.npy", data)
    line = refusal(case, content, tmp_path)
    assert says in line
    assert f"`{member}`" in line


def test_a_map_that_is_a_single_number(cases, tmp_path):
    case = cases["scene"]
    content = repacked(case.files["0.npz"], "valid.npy", claiming(())[:-99])
    assert "found a single number; save both" in refusal(case, content, tmp_path)


def test_a_line_break_in_the_name_of_a_column(cases, tmp_path):
    case = cases["texts .csv"]
    line = refusal(case, b'"first\nsecond",label\nsome text,1\n', tmp_path)
    assert "found first second, label; name them" in line


def test_commands_say_it_in_one_line(cases, tmp_path, capsys):
    case = cases["open_clip config"]
    content = case.files[case.damage].replace(b'"mlp_ratio": 4.0', b'"mlp_ratio": "x"')
    assert content != case.files[case.damage]
    malformed.write(tmp_path, {**case.files, case.damage: content})
    assert symerge("evaluate", tmp_path, "--task", tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("symerge: error: ")
    assert captured.err.count("\n") == 1
