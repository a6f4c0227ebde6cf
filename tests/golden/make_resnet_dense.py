"""Writes resnet_dense.npz, and what is in it as JSON: a tiny dilated ResNet with two decoders.

    python tests/golden/make_resnet_dense.py     (needs PyTorch and NumPy; takes a second)

Independent of the library: `tests/torch_resnet.py`, in float64, evaluated and in training mode.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch_resnet  # noqa: E402

SIZES = {"blocks": (1, 2, 2, 2), "planes": (3, 4, 5, 6), "stem": 4, "expansion": 2}
DECODER = {"width": 4, "rates": (1, 2, 3), "outputs": {"segmentation": 5, "depth": 1}}


def rows(maps):
    return maps.detach().permute(0, 2, 3, 1).numpy()


def main():
    model = torch_resnet.made(**DECODER, **SIZES)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 24, 32)))
    arrays = {f"state_dict/{name}": value for name, value in state.items()}
    arrays["input/images"] = rows(images)
    model.double()
    for mode in ("eval", "train"):
        model.eval() if mode == "eval" else torch_resnet.without_dropout(model)
        features, maps = model(images)
        arrays[f"{mode}/features"] = rows(features)
        arrays |= {f"{mode}/{task}": rows(value) for task, value in maps.items()}
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            arrays[f"moved/{name}"] = value.numpy()
    np.savez_compressed(HERE / "resnet_dense.npz", **arrays)
    facts = {
        "title": "a tiny dilated ResNet with decoders, random weights, in float64",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "key_scheme": "state_dict/<tensor> (float32), input/images, eval/<name>, train/<name> "
        "(float64, channels last), moved/<tensor> (running statistics after one batch)",
        "notes": ["names as FusionBench saves them; nothing is dropped out in training"],
        "config": {"trunk": SIZES, "decoder": DECODER},
    }
    (HERE / "resnet_dense.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
