"""`symerge convert IN OUT --to LAYOUT`: the same model with other names or container."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

from symerge_jax.checkpoints import export
from symerge_jax.checkpoints.hashes import sha256
from symerge_jax.checkpoints.heads import copy_heads
from symerge_jax.checkpoints.layout import names_of
from symerge_jax.checkpoints.open import Loaded, load_clip, open_checkpoint
from symerge_jax.checkpoints.source import Checkpoint
from symerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Settings:
    """Converts a checkpoint; no pickle is executed and PyTorch is not needed.

    hf: a Hugging Face folder; of a ResNet, which has none, one in torchvision's names. open_clip: a
    folder with an open_clip state dict. safetensors: the same tensors under the same names, as one
    file.
    """

    source: tyro.conf.Positional[str]
    """File, folder, or owner/name[@revision] on the hub."""
    output: tyro.conf.Positional[Path]
    """Folder to write; for safetensors, the file."""
    to: Literal["hf", "open_clip", "safetensors"]
    """What to write."""
    overwrite: bool = False
    """Replace what is there already."""


def main(settings: Settings) -> None:
    """Converts, and prints the path of the result last."""
    checkpoint = open_checkpoint(settings.source)
    if settings.to == "safetensors":
        write_file(checkpoint, settings.output, overwrite=settings.overwrite)
    elif names_of(checkpoint).layout == "roberta":
        if settings.to == "open_clip":
            raise BadInput(
                f"{checkpoint.path}: a RoBERTa, which open_clip's layout has no names for; take "
                "--to hf"
            )
        write_text_folder(checkpoint, settings.output, overwrite=settings.overwrite)
    elif names_of(checkpoint).layout == "resnet":
        if settings.to == "open_clip":
            raise BadInput(
                f"{checkpoint.path}: a ResNet, which open_clip's layout has no names for; take "
                "--to hf for a folder in torchvision's names"
            )
        write_trunk_folder(checkpoint, settings.output, overwrite=settings.overwrite)
    else:
        layout = "hugging_face" if settings.to == "hf" else "open_clip"
        write_folder(checkpoint, settings.output, layout, overwrite=settings.overwrite)
    print(settings.output.absolute())


def write_file(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    """Writes all tensors, as they are, to one safetensors file."""
    if output.suffix != ".safetensors":
        raise BadInput(f"{output}: expected a name that ends with .safetensors")
    if output.exists() and not overwrite:
        raise BadInput(f"{output}: is there already; choose another name or add --overwrite")
    with export.new_file(output) as temporary:
        metadata = {"format": "pt", **checkpoint.metadata}
        with export.SafetensorsWriter(temporary, checkpoint.tensors, metadata) as file:
            for name in checkpoint.where:
                file.write(name, checkpoint.read(name))
        checkpoint.check_unchanged()


def write_folder(
    checkpoint: Checkpoint, output: Path, layout: Literal["hugging_face", "open_clip"], *,
    overwrite: bool,
) -> None:  # fmt: skip
    """Writes a CLIP model, with its text tower if it has one, in the other public layout."""
    from symerge_jax.checkpoints.clip import fuse_qkv, split_qkv, to_hugging_face, to_open_clip
    from symerge_jax.cli.progress import say

    export.check_output(output, overwrite=overwrite)
    loaded = load_clip(checkpoint, text=True)
    for note in loaded.notes:
        say(f"{checkpoint.path}: {note}")
    if layout == "open_clip":
        _check_sayable(loaded)
    change = split_qkv if layout == "hugging_face" else fuse_qkv
    params = {
        name: change(value) if name in ("vision", "text") else value
        for name, value in loaded.params.items()
    }
    tensors = (to_hugging_face if layout == "hugging_face" else to_open_clip)(params)
    if loaded.text is None:
        _say_left_out(checkpoint, say)
    with export.new_folder(output, overwrite=overwrite) as folder:
        export.write_tensors(folder / export.weights_name(layout), tensors)
        export.write_config(folder, layout, loaded.vision, loaded.text)
        export.copy_companions(checkpoint, folder)
        copy_heads([checkpoint], folder)
        _finish(checkpoint, folder, layout, to=layout)


def write_text_folder(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    """Writes a RoBERTa, with its classifier if it has one, under the names of today."""
    from symerge_jax.checkpoints.roberta import load_roberta
    from symerge_jax.checkpoints.roberta_export import save_roberta
    from symerge_jax.checkpoints.roberta_names import parts_of
    from symerge_jax.cli.progress import say

    export.check_output(output, overwrite=overwrite)
    loaded = load_roberta(checkpoint)
    for note in loaded.notes:
        say(f"{checkpoint.path}: {note}")
    if left := parts_of(checkpoint.where, loaded.names.prefix).passed_over:
        say(f"left out, no part of the encoder or its classifier: {', '.join(left)}")
    with export.new_folder(output, overwrite=overwrite) as folder:
        save_roberta(
            folder, loaded.params, loaded.config,
            head=loaded.head, classes=loaded.classes, like=checkpoint,
        )  # fmt: skip
        copy_heads([checkpoint], folder)
        _finish(checkpoint, folder, "roberta", to="hugging_face")


def write_trunk_folder(checkpoint: Checkpoint, output: Path, *, overwrite: bool) -> None:
    """Writes a ResNet's trunk and classifier in torchvision's names, and each decoder in heads/."""
    from symerge_jax.checkpoints.resnet import load_resnet
    from symerge_jax.checkpoints.resnet_export import save_resnet
    from symerge_jax.checkpoints.resnet_names import parts_of
    from symerge_jax.cli.progress import say

    export.check_output(output, overwrite=overwrite)
    loaded = load_resnet(checkpoint)
    for note in loaded.notes:
        say(f"{checkpoint.path}: {note}")
    if left := parts_of(checkpoint.where, loaded.names.prefix).passed_over:
        say(f"left out, no part of the trunk, its classifier or a decoder: {', '.join(left)}")
    with export.new_folder(output, overwrite=overwrite) as folder:
        save_resnet(
            folder, loaded.variables, loaded.config, decoders=loaded.decoders,
            classifier=loaded.classifier, counts=loaded.counts, like=checkpoint,
        )  # fmt: skip
        copy_heads([checkpoint], folder)
        _finish(checkpoint, folder, "resnet", to="hugging_face")


def _finish(checkpoint: Checkpoint, folder: Path, layout: str, *, to: str) -> None:
    """Writes the reference outputs and the card."""
    from symerge_jax.verify import write_reference

    hashes = {path: sha256(path) for path in checkpoint.files}
    checkpoint.check_unchanged()
    card: dict[str, Any] = {
        "method": "convert",
        "kind": "shared",
        "settings": {"to": to},
        "layout": layout,
        "inputs": {"source": export.origin(checkpoint, hashes)},
    }
    write_reference(folder)
    export.write_card(folder, card)


def _check_sayable(loaded: Loaded) -> None:
    """Raises `BadInput` for what open_clip's files cannot say, so that it would compute another."""
    vision, text = loaded.vision, loaded.text
    found = []
    if vision.projection is None:
        found.append("no projection (visual_projection)")
    for tower in (vision, text) if text is not None else (vision,):
        if tower.layer_norm_eps != 1e-5:
            found.append(f"the LayerNorm epsilon {tower.layer_norm_eps} instead of 1e-05")
    if text is not None and text.activation != vision.activation:
        found.append(f"the activations {vision.activation} for images and {text.activation}")
    if text is not None and text.pooling == "eos" and text.eos_token != text.vocabulary - 1:
        found.append(f"the end of text {text.eos_token}, which is not the last of the vocabulary")
    if found:
        raise BadInput(
            f"{loaded.source.path}: has {found[0]}, which open_clip's layout cannot say; keep the "
            "layout of Hugging Face"
        )


def _say_left_out(checkpoint: Checkpoint, say: Any) -> None:
    """Names what is left of a text tower, which has no place in an image encoder."""
    from symerge_jax.checkpoints.layout import is_text

    names = names_of(checkpoint)
    left = [source for common, source in names.source.items() if is_text(common, names.layout)]
    if left or names.aside:
        say(f"left out, no part of the image tower: {', '.join([*left, *names.aside])}")
