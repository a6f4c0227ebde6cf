"""`symerge inspect`: what checkpoints hold and how they are related, worked by hand."""

import itertools
import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_experts
from commands import contents, refused, symerge
from tiny_experts import TASKS

TORCH_FILES = Path(__file__).parent / "torch_files"


def save(path, **tensors):
    arrays = {name.replace("__", "."): np.asarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.fixture
def family(tmp_path):
    """θ₀ of length 13 in two blocks of lengths 5 and 12, and two experts.

    τ₁ = (1.5, 0 | 0, 0), τ₂ = (0.3, 0.4 | 0, 1.2): lengths 1.5 and 0 by block, 0.5 and 1.2.
    """

    def model(name, first, second):
        return save(
            tmp_path / f"{name}.safetensors",
            layers__0__w=np.array(first, np.float64),
            layers__1__w=np.array(second, np.float64),
            step=np.array([name == "base"], np.int64),
        )

    return (
        model("base", (3.0, 4.0), (0.0, 12.0)),
        model("one", (4.5, 4.0), (0.0, 12.0)),
        model("two", (3.3, 4.4), (0.0, 13.2)),
    )


def findings(capsys, *words, code=0):
    capsys.readouterr()
    assert symerge("inspect", *words, "--json") == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def table(capsys, *words, code=0):
    capsys.readouterr()
    assert symerge("inspect", *words) == code
    return capsys.readouterr().out


def test_norms_and_cosines_by_hand(capsys, family):
    found = findings(capsys, *family)["relation"]
    assert found["pretrained"] == 0
    assert found["blocks"] == ["all", "block 0", "block 1"]
    norms = [[0, 1.5 / 13, 1.3 / 13], [0, 1.5 / 5, 0.5 / 5], [0, 0, 1.2 / 12]]
    np.testing.assert_allclose(found["norms"], norms, atol=1e-12)
    cosines = [block[1][2] for block in found["cosines"]]
    assert cosines[:2] == pytest.approx([0.45 / (1.5 * 1.3), 0.6])
    assert cosines[2] is None  # the first expert did not move there
    assert found["same_start"] == [True, True, True]
    assert found["unchanged"] == [2, 1, 0]
    assert found["left_out"] == []  # integers take no part


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_pretrained_file_is_found_whatever_the_order(capsys, family, order):
    found = findings(capsys, *(family[k] for k in order))["relation"]
    place = order.index(0)
    assert found["pretrained"] == place
    norms = np.array(found["norms"])[0]
    np.testing.assert_allclose(norms[[order.index(1), order.index(2)]], [1.5 / 13, 0.1])


def test_the_table_says_what_json_says(capsys, family):
    text = table(capsys, *family)
    found = findings(capsys, *family)["relation"]
    assert f"pre-trained (closest to all others): {family[0]}" in " ".join(text.split())
    for name, row, cosines in zip(found["blocks"], found["norms"], found["cosines"], strict=True):
        (line,) = re.findall(rf"^{name} +(\d.*)$", text, re.MULTILINE)
        first, second, mean, largest = line.split()
        assert [first, second] == [f"{row[1]:.4f}", f"{row[2]:.4f}"]
        cosine = "–" if cosines[1][2] is None else f"{cosines[1][2]:.3f}"
        assert [mean, largest] == [cosine, cosine]


def test_real_experts_descend_from_their_base(capsys, tiny):
    for layout in tiny_experts.LAYOUTS:
        experts = [tiny.experts[layout][task] for task in TASKS]
        found = findings(capsys, *experts, tiny.base[layout])["relation"]
        assert found["pretrained"] == 3
        assert found["same_start"] == [True] * 4
        assert {"input", "block 0", "block 1", "output"} == set(found["blocks"][1:])
        assert all(0.01 < norm < 0.3 for norm in found["norms"][0][:3])


def test_another_initialisation_is_detected(capsys, tmp_path, family):
    stranger = save(
        tmp_path / "stranger.safetensors",
        layers__0__w=np.array([-4.0, 3.0]),
        layers__1__w=np.array([12.0, 0.0]),
        step=np.zeros(1, np.int64),
    )
    found = findings(capsys, *family, stranger)["relation"]
    assert found["pretrained"] == 0
    assert found["same_start"] == [True, True, True, False]
    assert found["norms"][0][3] == pytest.approx(np.sqrt(2))
    text = table(capsys, *family, stranger)
    assert len(re.findall(r"\bno:", text)) == 1  # different initialisation
    assert len(re.findall(r"\byes\b", text)) == 2


def test_one_file_alone(capsys, family):
    found = findings(capsys, family[0])
    assert set(found) == {"format", "files"}
    (content,) = found["files"]
    assert content["path"] == str(family[0])
    assert content["container"] == "safetensors"
    assert content["layout"] == "plain"
    assert content["architecture"] is None
    assert content["dtypes"] == {"float64": 2, "int64": 1}
    assert (content["tensors"], content["numbers"]) == (3, 5)
    assert content["not_finite"] == content["dead"] == []
    assert "pre-trained" not in table(capsys, family[0])


def test_a_clip_model_is_described(capsys, tiny):
    for layout, qkv in (("open_clip", "one"), ("hugging_face", "separate")):
        (content,) = findings(capsys, tiny.base[layout])["files"]
        assert content["layout"] == layout
        assert content["activation"] == "quick_gelu"
        assert content["architecture"] == (
            "CLIP image tower: width 32, 2 blocks, 2 heads, patches of 16 in 32 pixels, "
            f"features 24, {qkv} query/key/value"
        )


def test_a_pickled_module_tells_its_class(capsys):
    (content,) = findings(capsys, TORCH_FILES / "encoder_zip.pt")["files"]
    assert content["class_name"] == "src.modeling.ImageEncoder"
    assert content["layout"] == "open_clip"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_tensor_that_is_not_finite_is_named(capsys, tmp_path, bad, dtype):
    good = np.ones((2, 3), dtype)
    path = save(tmp_path / "bad.safetensors", good=good, worse__w=np.full((2, 3), bad, dtype))
    (content,) = findings(capsys, path, code=1)["files"]
    assert content["not_finite"] == ["worse.w"]
    assert re.search(r"NaN or infinity +worse\.w", table(capsys, path, code=1))


def test_a_damaged_expert_is_compared_as_far_as_it_goes(capsys, tmp_path, family):
    arrays = safetensors.numpy.load_file(family[2])
    arrays["layers.0.w"][1] = np.nan
    safetensors.numpy.save_file(arrays, family[2])
    found = findings(capsys, *family, code=1)
    assert [content["not_finite"] for content in found["files"]] == [[], [], ["layers.0.w"]]
    assert found["relation"]["left_out"] == ["layers.0.w"]
    assert found["relation"]["blocks"] == ["all", "block 1"]
    assert found["relation"]["norms"][0] == pytest.approx([0, 0, 0.1])
    assert "not finite: layers.0.w" in " ".join(table(capsys, *family, code=1).split())


def test_tensors_of_zeros_are_named(capsys, tmp_path):
    path = save(
        tmp_path / "model.safetensors",
        alive=np.array([0.0, 1.0]),
        dead=np.zeros((3, 3)),
        dead_half=np.zeros(4, ml_dtypes.bfloat16),
        empty=np.zeros((0, 2)),
    )
    (content,) = findings(capsys, path)["files"]
    assert sorted(content["dead"]) == ["dead", "dead_half", "empty"]
    assert re.search(r"dead +dead", table(capsys, path))


def test_tensors_that_not_all_have_are_left_out(capsys, tmp_path):
    one = save(tmp_path / "a.safetensors", w=np.ones(3), head=np.ones((2, 3)), odd=np.ones(1))
    two = save(tmp_path / "b.safetensors", w=np.ones(3) * 1.1, head=np.ones((5, 3)))
    found = findings(capsys, one, two)["relation"]
    assert sorted(found["left_out"]) == ["head", "odd"]
    assert found["norms"][0] == pytest.approx([0, 0.1])


def test_nothing_is_written(capsys, tmp_path, family):
    before = contents(tmp_path)
    table(capsys, *family)
    assert contents(tmp_path) == before


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def refusal(capsys, tmp_path):
    def of(*words):
        return refused(capsys, "inspect", *words, among=tmp_path)

    return of


def test_no_file_at_all(refusal):
    assert "name at least one checkpoint" in refusal()


def test_a_file_that_is_not_there(refusal, tmp_path, family):
    gone = tmp_path / "gone.safetensors"
    assert f"{gone}: there is no such file or folder" in refusal(family[0], gone)


def test_a_lora_adapter(refusal, tmp_path, family):
    path = save(tmp_path / "adapter.safetensors", model__q__lora_A__weight=np.ones((2, 2)))
    says = refusal(family[0], path)
    assert f"{path}: a LoRA adapter" in says
    assert "merge_and_unload" in says


def test_a_folder_with_an_adapter_alone(refusal, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert f"{tmp_path / 'lora'}: a LoRA adapter" in refusal(tmp_path / "lora")


def test_two_layouts(refusal, tiny):
    says = refusal(tiny.base["open_clip"], tiny.base["hugging_face"])
    assert "cannot compare layouts" in says
    assert "(open_clip)" in says
    assert "(hugging_face)" in says


def test_models_that_share_nothing(refusal, tmp_path):
    one = save(tmp_path / "a.safetensors", w=np.ones(3))
    two = save(tmp_path / "b.safetensors", w=np.ones(4))
    assert "share no tensor of the same name and shape" in refusal(one, two)


def test_a_truncated_file(refusal, tmp_path, family):
    path = shutil.copy(family[0], tmp_path / "short.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    assert f"{path}: not a whole safetensors file" in refusal(path)


def test_files_whose_only_tensors_are_not_finite(refusal, tmp_path):
    one = save(tmp_path / "a.safetensors", w=np.ones(3))
    two = save(tmp_path / "b.safetensors", w=np.full(3, np.nan))
    assert "every tensor that the files share holds NaN or infinity" in refusal(one, two)
