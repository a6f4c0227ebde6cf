"""Makes the PyTorch files of this folder, and the arrays that must be read from them.

    python tests/torch_files/make.py        (needs torch; the tests that read the files do not)

The modules are named as in the task-vector checkpoints (a wrapper `src.modeling.ImageEncoder`
around open_clip's CLIP with torchvision's transforms), with tiny classes of our own under those
names, which exist only while this program runs. `expected.npz` holds the tensors of each saved
object as `<content>|<name>`, with bfloat16 and 8-bit floats as unsigned integers.
"""

import enum
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
D, DEPTH, PATCH, OUT, TEXT = 4, 2, 2, 3, 5
BITS = {
    torch.bfloat16: torch.uint16,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e5m2: torch.uint8,
}


def named(module, qualname=None):
    """Puts a class under another module's name, as if it had been defined there."""

    def rename(thing):
        owner = sys.modules.setdefault(module, types.ModuleType(module))
        thing.__module__ = module
        thing.__qualname__ = thing.__name__ = qualname or thing.__name__
        setattr(owner, thing.__name__, thing)
        return thing

    return rename


for parent in ("src", "open_clip", "torchvision", "torchvision.transforms"):
    sys.modules.setdefault(parent, types.ModuleType(parent))


@named("torchvision.transforms.functional")
class InterpolationMode(enum.Enum):
    BICUBIC = "bicubic"


@named("torchvision.transforms.transforms")
class Compose:
    def __init__(self, transforms):
        self.transforms = transforms


@named("torchvision.transforms.transforms")
class Resize(nn.Module):
    def __init__(self, size, interpolation):
        super().__init__()
        self.size, self.max_size = size, None
        self.interpolation, self.antialias = interpolation, True


@named("torchvision.transforms.transforms")
class CenterCrop(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = (size, size)


@named("torchvision.transforms.transforms")
class ToTensor:
    pass


@named("torchvision.transforms.transforms")
class Normalize(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std, self.inplace = mean, std, False


@named("open_clip.transform", "_convert_to_rgb")
def convert_to_rgb(image):
    return image.convert("RGB")


@named("open_clip.model")
class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


@named("open_clip.transformer")
class LayerNorm(nn.LayerNorm):
    pass


@named("open_clip.transformer")
class ResidualAttentionBlock(nn.Module):
    def __init__(self, width, heads, activation):
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.ls_1 = nn.Identity()
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=activation(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ls_2 = nn.Identity()


@named("open_clip.transformer")
class Transformer(nn.Module):
    def __init__(self, width, depth, heads, activation):
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, activation) for _ in range(depth)
        )


@named("open_clip.transformer")
class VisionTransformer(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.image_size, self.output_dim = (2 * PATCH, 2 * PATCH), OUT
        self.conv1 = nn.Conv2d(3, D, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(D))
        self.positional_embedding = nn.Parameter(torch.randn(5, D))
        self.ln_pre = LayerNorm(D)
        self.transformer = Transformer(D, DEPTH, 2, activation)
        self.ln_post = LayerNorm(D)
        self.proj = nn.Parameter(torch.randn(D, OUT))


@named("open_clip.model")
class CLIP(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.visual = VisionTransformer(activation)
        self.token_embedding = nn.Embedding(7, TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(3, TEXT))
        self.ln_final = LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.randn(TEXT, OUT))
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))
        self.register_buffer("attn_mask", torch.full((3, 3), -np.inf).triu_(1), persistent=False)
        self.register_buffer("steps", torch.tensor(7))


@named("src.modeling")
class ImageEncoder(nn.Module):
    def __init__(self, activation=QuickGELU):
        super().__init__()
        self.model = CLIP(activation)
        self.train_preprocess = Compose([ToTensor()])
        self.val_preprocess = Compose(
            [
                Resize(2 * PATCH, InterpolationMode.BICUBIC),
                CenterCrop(2 * PATCH),
                convert_to_rgb,
                ToTensor(),
                Normalize((0.48145466, 0.4578275, 0.40821073), (0.268, 0.261, 0.275)),
            ]
        )
        self.cache_dir = None


@named("src.modeling")
class ClassificationHead(nn.Linear):
    def __init__(self, normalize, weights):
        super().__init__(weights.shape[1], weights.shape[0])
        self.normalize = normalize
        self.weight = nn.Parameter(weights.clone())
        self.bias = nn.Parameter(torch.zeros_like(self.bias))


def save_zip(thing, path):
    torch.save(thing, path)


def save_legacy(thing, path):
    # This layout holds the source text of every class; it is read by nobody, and not all ours.
    with patch.object(torch.serialization, "get_source_lines_and_file", source_of):
        torch.save(thing, path, _use_new_zipfile_serialization=False)


def source_of(kind):
    return ["class Anything:\n", "    pass\n"], 1, "modeling.py"


def save_plain(thing, path):
    path.write_bytes(pickle.dumps(thing))


def save_plain_protocol_2(thing, path):
    path.write_bytes(pickle.dumps(thing, protocol=2))


LAYOUTS = {"zip": save_zip, "legacy": save_legacy, "plain": save_plain}


def state():
    """One tensor of every kind: dtypes, views, shared storage, no elements, no axes."""
    base = torch.randn(6, 5)
    tensors = OrderedDict(
        plain=base.clone(),
        bfloat16=torch.randn(3, 4).bfloat16(),
        transposed=base.T,
        sliced=base[1:5:2, 2:],
        tied=base,
        tied_again=base,
        expanded=torch.randn(1, 3).expand(4, 3),
        scalar=torch.tensor(2**40),
        mask=torch.tensor([True, False, True]),
        empty=torch.zeros(0, 3),
        half=torch.randn(5).half(),
        double=torch.randn(2, 2, dtype=torch.float64),
        complex64=torch.randn(3, dtype=torch.complex64),
        int8=torch.arange(-3, 3, dtype=torch.int8),
        uint8=torch.arange(6, dtype=torch.uint8),
        int16=torch.arange(6, dtype=torch.int16),
        int32=torch.arange(6, dtype=torch.int32),
        uint16=torch.arange(6).to(torch.uint16),
        uint64=torch.arange(6).to(torch.uint64),
        float8_e4m3fn=torch.randn(4).to(torch.float8_e4m3fn),
        float8_e5m2=torch.randn(4).to(torch.float8_e5m2),
    )
    tensors._metadata = {"": {"version": 1}}  # as state_dict() sets it
    return tensors


def big_endian(source, path):
    """Rewrites a zip of float32 tensors as a big-endian machine would have written it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("/byteorder"):
                content = b"big"
            elif "/data/" in entry.filename:
                content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
            new.writestr(entry.filename, content)


def as_numpy(tensor):
    tensor = tensor.detach().contiguous()
    return tensor.view(BITS[tensor.dtype]).numpy() if tensor.dtype in BITS else tensor.numpy()


def main():
    torch.manual_seed(0)
    encoder, exact = ImageEncoder(), ImageEncoder(nn.GELU)
    head = ClassificationHead(normalize=True, weights=torch.randn(3, OUT))
    mixed = state()
    lightning = {
        "epoch": 3,
        "loss": torch.tensor(0.5),
        "state_dict": {"encoder.conv1.weight": torch.randn(2, 3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(2, 3)}}}],
        "hyper_parameters": {"size": torch.Size([2, 3]), "dtype": torch.float32},
    }
    for layout, save in LAYOUTS.items():
        save(encoder, HERE / f"encoder_{layout}.pt")
        save(head, HERE / f"head_{layout}.pt")
        save(mixed, HERE / f"state_{layout}.pt")
    save_plain_protocol_2(encoder, HERE / "encoder_plain_protocol_2.pt")
    save_zip(exact, HERE / "exact_zip.pt")
    save_zip(lightning, HERE / "lightning_zip.pt")
    floats = {"a": torch.randn(2, 3), "b": torch.randn(4, 2).T}
    buffer = io.BytesIO()
    save_zip(floats, buffer)
    big_endian(buffer, HERE / "floats_big_endian.pt")
    contents = {
        "encoder": encoder.state_dict(),
        "exact": exact.state_dict(),
        "head": head.state_dict(),
        "state": mixed,
        "lightning": lightning["state_dict"],
        "floats": floats,
    }
    expected = {
        f"{content}|{name}": as_numpy(tensor)
        for content, tensors in contents.items()
        for name, tensor in tensors.items()
    }
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
