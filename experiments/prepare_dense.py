"""What the dense experiment needs: torchvision's ResNet-50, three experts, and NYUv2.

DIR/resnet50/                          timm/resnet50.tv_in1k, torchvision's resnet50-19c8e357 as
                                       safetensors; or that file itself, DIR/resnet50-19c8e357.pth
DIR/{segmentation,depth,normal}/       experts; none are public, `experiments.finetune` trains them
DATA/data/{train,val}-….parquet        tanganke/nyuv2; or MTAN's folders DATA/{train,val}/

A train and a val split of 795 and 654 scenes of 288 x 384 pixels is what the paper is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.prepare_needs import Missing, Need
from experiments.resnet_folders import MODEL, find_base, find_expert
from experiments.tasks.rooms import KINDS, TASKS
from experiments.tasks.task import check_known
from symerge_jax.checkpoints.open import open_checkpoint
from symerge_jax.data import dense
from symerge_jax.data.dense_checks import checked_image
from symerge_jax.data.dense_files import FOLDERS
from symerge_jax.errors import BadInput

BASE = "timm/resnet50.tv_in1k"
DATA = "tanganke/nyuv2"
FILE = "resnet50-19c8e357.pth"
_URL = f"https://download.pytorch.org/models/{FILE}"
_WEIGHTS = "model.safetensors"
SCENES: dict[Literal["train", "test"], int] = {"train": 795, "test": 654}
SIZE = (288, 384)
_SHARDS = {"train": 8, "val": 6}
_ORIGIN = (
    f"https://huggingface.co/datasets/{DATA} (3 GB) or the pre-processed folders that "
    "github.com/lorenmt/mtan links to, train and val"
)


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the tasks of these names, all by default.

    Raises:
        BadInput: an unknown name.
    """
    for name in names or ():
        check_known(name, TASKS, "task")
    return tuple(task for task in TASKS if names is None or task in names)


def checkpoint_needs(root: Path, data: Path | None, tasks: Sequence[str]) -> list[Need]:
    """What is not there in any form, or cannot be opened: the pre-trained trunk and experts.

    Args:
        root: the checkpoint folder.
        data: the data folder, to be named in how experts are trained.
        tasks: of the experts.

    Raises:
        BadInput: several files may be the same thing.
    """
    base = find_base(root)
    needs = []
    why = _fault(base, f"https://huggingface.co/{BASE} or, as {root / FILE}, {_URL}")
    if why is not None:
        needs.append(Need("pre-trained", (("config.json", _WEIGHTS),), MODEL, BASE, why))
    for task in tasks:
        training = (
            f"python -m experiments.finetune --model {MODEL} --task {task} --pretrained "
            f"{base or root / MODEL} --data {data or 'DATA'} --out OUT makes it, in "
            f"OUT/experts/{MODEL}/{task}"
        )
        why = _fault(find_expert(root, task), training)
        if why is not None:
            needs.append(Need(f"{task} expert", ((_WEIGHTS,),), task, None, why))
    return needs


def _fault(path: Path | None, origin: str) -> str | None:
    """Says what is wrong with a checkpoint, or where to get it if there is none."""
    if path is None:
        return origin
    try:
        open_checkpoint(path)
    except BadInput as error:
        return f"{error}; it is to be had thus: {origin}"
    return None


def data_needs(data: Path) -> list[Need]:
    """The hub's parquet files, unless scenes are there in any form.

    A fetch that broke off goes on: part of the hub's files is no other form.
    """
    files = tuple(
        f"data/{split}-{i:05}-of-{count:05}.parquet"
        for split, count in _SHARDS.items()
        for i in range(count)
    )
    if any((data / name).is_file() for name in files) or not _has_scenes(data):
        return [Need("NYUv2", (files,), "", DATA, _ORIGIN, kind="dataset")]
    return []


def _has_scenes(data: Path) -> bool:
    try:
        return all(dense.find_split(data, split).count for split in SCENES)
    except BadInput:
        return False


def check_data(data: Path, tasks: Sequence[str]) -> list[Missing]:
    """Says which split is missing, has another number or size of scenes, or lacks maps."""
    found = []
    for split, count in SCENES.items():
        name = f"NYUv2 {split}"
        try:
            files = dense.find_split(data, split)
            image = next(files.maps("images"))
            assert image.raw is not None
            size = checked_image(image.raw, image.where).shape[:2]
            lacking = [
                FOLDERS[KINDS[task].maps]
                for task in tasks
                if next(files.maps(KINDS[task].maps)).raw is None
            ]
        except BadInput as error:
            found.append(Missing(name, str(data), f"{error} From {_ORIGIN}"))
            continue
        wrong = []
        if files.count != count:
            wrong.append(f"expected {count} scenes, found {files.count}")
        if size != SIZE:
            wrong.append(f"expected {SIZE[0]} x {SIZE[1]} pixels, found {size[0]} x {size[1]}")
        wrong += [f"has no {kind} maps" for kind in lacking]
        found += [Missing(name, str(files.path), why) for why in wrong]
    return found
