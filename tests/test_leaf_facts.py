"""Facts about leaves, model family by model family."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from symerge_jax.checkpoints.clip import fuse_qkv, source_names, split_qkv
from symerge_jax.errors import BadInput
from symerge_jax.leaf_facts import named_leaves, tower_leaves
from symerge_jax.merge.leaves import Leaf
from symerge_jax.models.clip import param_shapes
from symerge_jax.models.clip_config import TextConfig, VisionConfig

SIZES = {"width": 8, "depth": 2, "heads": 2, "projection": 6}
VISION = VisionConfig(image_size=8, patch_size=4, fused_qkv=False, **SIZES)
TEXT = TextConfig(vocabulary=11, length=5, fused_qkv=False, **SIZES)


def towers(*, fused):
    return {
        name: param_shapes(replace(config, fused_qkv=fused))
        for name, config in (("vision", VISION), ("text", TEXT))
    }


def facts_of(tower):
    return flatten_dict(tower_leaves(tower), sep="/")


def test_the_leaves_of_an_image_tower():
    facts = facts_of(towers(fused=False)["vision"])
    assert facts["class_embedding"] == Leaf()
    assert facts["position_embedding"] == Leaf("out_in")
    assert facts["patch_embedding/kernel"] == Leaf("conv_hwio")
    assert facts["projection/kernel"] == Leaf("in_out")
    assert facts["ln_post/scale"] == facts["ln_pre/bias"] == Leaf()
    assert facts["blocks_1/ln_2/scale"] == Leaf(depth=1)
    assert facts["blocks_0/mlp/fc/kernel"] == Leaf("in_out", depth=0)
    assert facts["blocks_1/attention/out/bias"] == Leaf(depth=1)
    for part, name in enumerate(("query", "key", "value")):
        path = f"blocks_1/attention/{name}"
        assert facts[f"{path}/kernel"] == Leaf("in_out", 1, "blocks_1/attention", part)
        assert facts[f"{path}/bias"] == Leaf(depth=1)


def test_a_fused_attention_has_no_group():
    facts = facts_of(towers(fused=True)["vision"])
    assert facts["blocks_0/attention/in_proj/kernel"] == Leaf("in_out", depth=0)
    assert not any(fact.group for fact in facts.values())


def test_the_text_projection_is_no_matrix_and_the_token_table_is_one():
    facts = facts_of(towers(fused=True)["text"])
    assert facts["projection/kernel"] == Leaf()
    assert facts["token_embedding/embedding"] == Leaf("out_in")
    assert facts["ln_final/scale"] == Leaf()
    assert facts["blocks_1/mlp/proj/kernel"] == Leaf("in_out", depth=1)


def test_facts_have_the_structure_of_the_tower():
    tower = towers(fused=False)["vision"]
    found = jax.tree.structure(tower_leaves(tower), is_leaf=lambda x: isinstance(x, Leaf))
    assert found == jax.tree.structure(tower)


def test_a_leaf_that_no_tower_has_is_refused():
    for odd in ({"head": {"kernel": 0}}, {"blocks_0": {"gate": 0}}):
        with pytest.raises(BadInput, match="is none of a CLIP tower's"):
            tower_leaves(odd)


@pytest.mark.parametrize("layout", ["hugging_face", "open_clip"])
def test_names_in_files_tell_what_paths_in_our_tree_do(layout):
    """Depth, parts and what is a matrix are the same; axes are those of the file."""
    params = {**towers(fused=layout == "open_clip"), "logit_scale": jax.ShapeDtypeStruct((), float)}
    names = source_names(params, layout)
    leaves = flatten_dict(params, sep="/")
    found = named_leaves({name: leaves[path].shape for name, path in names}, layout)
    for name, path in names:
        tower, _, inner = path.partition("/")
        expected = facts_of(params[tower])[inner] if inner else Leaf()
        lying = expected.matrix
        if lying == "conv_hwio":
            lying = "conv_oihw"
        if lying == "in_out" and name != "visual.proj":  # stored [in, out] by open_clip
            lying = "out_in"
        group = expected.group and f"{tower}/{expected.group}"
        assert found[name] == replace(expected, matrix=lying, group=group), name


def test_the_order_of_parts_is_query_key_value_whatever_the_file_says():
    prefix = "vision_model.encoder.layers.0.self_attn."
    found = named_leaves({f"{prefix}{n}_proj.weight": (8, 8) for n in "kvq"}, "hugging_face")
    assert [found[f"{prefix}{n}_proj.weight"].part for n in "qkv"] == [0, 1, 2]


def test_what_is_left_of_a_text_tower_has_facts():
    left = {"positional_embedding": (5, 8), "text_projection": (8, 6), "logit_scale": ()}
    found = named_leaves({**left, "visual.class_embedding": (8,)}, "open_clip")
    assert found["positional_embedding"] == Leaf("out_in")
    assert found["text_projection"] == found["logit_scale"] == Leaf()


def test_names_that_no_table_knows_are_told_by_their_axes():
    shapes = {"encoder.layer.0.dense.weight": (3, 4), "encoder.layer.0.dense.bias": (3,)}
    for layout in ("plain", "hugging_face", "open_clip"):
        found = named_leaves(shapes, layout)
        assert list(found.values()) == [Leaf("out_in"), Leaf()]


def test_split_and_fused_towers_are_told_apart_by_their_leaves():
    tower = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), towers(fused=False)["vision"])
    assert facts_of(fuse_qkv(tower)) == facts_of(towers(fused=True)["vision"])
    assert facts_of(split_qkv(fuse_qkv(tower))) == facts_of(tower)
