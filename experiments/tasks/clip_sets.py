"""The 20 image classification sets of the CLIP benchmark: names, sizes, prompts, where to get them.

The sets are those of Wang et al., "Localizing Task Information for Improved Model Merging and
Compression", 2024 (https://arxiv.org/abs/2405.07813), which the SyMerge paper takes over; the first
eight are those of Ilharco et al., "Editing Models with Task Arithmetic", 2022
(https://arxiv.org/abs/2212.04089). Prompts are OpenAI's (prompts.md of their CLIP code), for sets
that OpenAI did not have those of TALL-masks. Each set is one row of `SETS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from symerge_jax.cli.errors import nearest
from symerge_jax.errors import BadInput


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub.

    Attributes:
        dataset: owner/name.
        config: folder of the parquet files where one repository holds several sets.
        train: name of the split that experts are trained on.
        test: name of the split that is scored.
        image: column of {bytes, path}, or of the bytes themselves.
        label: column of class numbers.
        revision: where the parquet files are if not on the default branch.
    """

    dataset: str
    config: str | None = None
    train: str = "train"
    test: str = "test"
    image: str = "image"
    label: str = "label"
    revision: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A data set of tensorflow-datasets: its name, configuration and splits."""

    name: str
    train: str = "train"
    test: str = "test"


# What the hub's own converter writes, for repositories that hold archives instead.
CONVERTED = "refs/convert/parquet"

# How the data's names become names for prompts: underscores to spaces, or as they are.
PromptRule = Literal["spaces", "as_is"]


@dataclass(frozen=True)
class ClipSet:
    """One set of the benchmark.

    Attributes:
        key: its name on the command line and in records.
        name: its name in checkpoint folders.
        suffix: what `tanganke/clip-vit-base-patch32_` is followed by.
        classes: number of classes.
        train: number of images that experts are trained on, validation included.
        test: accepted numbers of test images; the first is the benchmark's.
        epochs: length of fine-tuning in the recipe of task arithmetic (about 2000 steps).
        templates: prompts with {} for the class name.
        hub: where it is on the hub, None where nowhere.
        prepared: where it is in tensorflow-datasets with these very splits, None where nowhere.
        sorted_labels: labels are numbered in alphabetical order of the names.
        prompt_rule: how names of the data become names for prompts.
    """

    key: str
    name: str
    suffix: str
    classes: int
    train: int
    test: tuple[int, ...]
    epochs: int
    templates: tuple[str, ...]
    hub: Hub | None
    prepared: Prepared | None
    sorted_labels: bool = False
    prompt_rule: PromptRule = "spaces"


# --- prompts ------------------------------------------------------------------------------------

ARTICLES = ("a", "the")


def _each(*parts: Sequence[str]) -> tuple[str, ...]:
    """All combinations, the first part changing slowest, with single spaces between words."""
    return tuple(" ".join(word for word in words if word) for words in product(*parts))


PHOTO = _each(["a photo of"], ARTICLES, ["{}."])
CARS = (
    *PHOTO,
    "a photo of my {}.",
    "i love my {}!",
    *_each(["a photo of my"], ["dirty", "clean", "new", "old"], ["{}."]),
)
# The kind of picture changes fastest, then the view, then the article.
RESISC45 = tuple(
    f"{view} {picture} {of} {{}}."
    for of, picture, view in product(
        ("of", "of a", "of the"), ("imagery", "photo", "view"), ("satellite", "aerial")
    )
)
EUROSAT = _each(["a centered satellite photo of"], ["", "a", "the"], ["{}."])
NUMBER = ('a photo of the number: "{}".',)
GTSRB = tuple(
    f'a {how} photo of a "{{}}" traffic sign.' for how in ("zoomed in", "centered", "close up")
)
DTD = _each(["a photo of"], ARTICLES, ["{}"], ["texture.", "pattern.", "thing.", "object."])
_QUALITIES = ("", "blurry", "black and white", "low contrast", "high contrast", "bad", "good")
CIFAR = tuple(
    template
    for article in ARTICLES
    for template in (
        *_each(["a"], _QUALITIES, [f"photo of {article} {{}}."]),
        *_each([f"a photo of {article}"], ["small", "big"], ["{}."]),
    )
)
FER2013 = (
    "a photo of a {} looking face.",
    "a photo of a face showing the emotion: {}.",
    "a photo of a face looking {}.",
    "a face that looks {}.",
    "they look {}.",
    "look at how {} they are.",
)


# --- the table ----------------------------------------------------------------------------------

_ROWS = (
    # 19,850 test images on the hub; results of AdaMerging and Surgery count 19,887.
    ClipSet(
        "sun397", "SUN397", "sun397", 397, 19_850, (19_850, 19_887), 14, PHOTO,
        Hub("tanganke/sun397"), Prepared("sun397/standard-part1-120k"), sorted_labels=True,
    ),
    ClipSet(
        "cars", "Cars", "stanford-cars", 196, 8_144, (8_041,), 35, CARS,
        Hub("tanganke/stanford_cars"), Prepared("cars196"),
    ),
    # tensorflow-datasets has RESISC45 and EuroSAT without splits.
    ClipSet(
        "resisc45", "RESISC45", "resisc45", 45, 18_900, (6_300,), 15, RESISC45,
        Hub("tanganke/resisc45"), None, sorted_labels=True,
    ),
    ClipSet(
        "eurosat", "EuroSAT", "eurosat", 10, 21_600, (2_700,), 12, EUROSAT,
        Hub("tanganke/eurosat"), None,
    ),
    ClipSet(
        "svhn", "SVHN", "svhn", 10, 73_257, (26_032,), 4, NUMBER,
        Hub("ufldl-stanford/svhn", config="cropped_digits"), Prepared("svhn_cropped"),
    ),
    ClipSet(
        "gtsrb", "GTSRB", "gtsrb", 43, 26_640, (12_630,), 11, GTSRB, Hub("tanganke/gtsrb"), None
    ),
    ClipSet(
        "mnist", "MNIST", "mnist", 10, 60_000, (10_000,), 5, NUMBER,
        Hub("ylecun/mnist"), Prepared("mnist"),
    ),
    ClipSet(
        "dtd", "DTD", "dtd", 47, 3_760, (1_880,), 76, DTD,
        Hub("tanganke/dtd"), Prepared("dtd", train="train+validation"), sorted_labels=True,
    ),
    ClipSet(
        "cifar100", "CIFAR100", "cifar100", 100, 50_000, (10_000,), 6, CIFAR,
        Hub("tanganke/cifar100"), Prepared("cifar100"), sorted_labels=True, prompt_rule="as_is",
    ),
    ClipSet(
        "fer2013", "FER2013", "fer2013", 7, 28_709, (7_178,), 10, FER2013,
        Hub("Jeneral/fer-2013", image="img_bytes", label="labels", revision=CONVERTED), None,
    ),
    ClipSet(
        "flowers102", "Flowers102", "oxford_flowers102", 102, 1_020, (6_149,), 147,
        ("a photo of a {}, a type of flower.",),
        Hub("dpdl-benchmark/oxford_flowers102"), Prepared("oxford_flowers102"),
    ),
    ClipSet(
        "oxford_iiit_pet", "OxfordIIITPet", "oxford-iiit-pet", 37, 3_680, (3_669,), 82,
        ("a photo of a {}, a type of pet.",),
        Hub("timm/oxford-iiit-pet"), Prepared("oxford_iiit_pet"), sorted_labels=True,
    ),
    ClipSet(
        "pcam", "PCAM", "pcam", 2, 262_144, (32_768,), 1, ("this is a photo of {}",),
        Hub("1aurent/PatchCamelyon"), Prepared("patch_camelyon"),
    ),
    ClipSet(
        "stl10", "STL10", "stl10", 10, 5_000, (8_000,), 60, PHOTO,
        Hub("tanganke/stl10"), Prepared("stl10"),
    ),
    ClipSet(
        "cifar10", "CIFAR10", "cifar10", 10, 50_000, (10_000,), 6, CIFAR,
        Hub("tanganke/cifar10"), Prepared("cifar10"),
    ),
    # The digits; tanganke's expert is one for the letters (26 classes).
    ClipSet(
        "emnist", "EMNIST", "emnist_letters", 10, 240_000, (40_000,), 2,
        ('a photo of the digit character: "{}".',), None, Prepared("emnist/digits"),
    ),
    ClipSet(
        "fashion_mnist", "FashionMNIST", "fashion_mnist", 10, 60_000, (10_000,), 5, PHOTO,
        Hub("zalando-datasets/fashion_mnist"), Prepared("fashion_mnist"),
    ),
    ClipSet(
        "food101", "Food101", "food101", 101, 75_750, (25_250,), 4,
        ("a photo of {}, a type of food.",),
        Hub("ethz/food101", test="validation"), Prepared("food101", test="validation"),
        sorted_labels=True, prompt_rule="as_is",
    ),
    ClipSet(
        "kmnist", "KMNIST", "kmnist", 10, 60_000, (10_000,), 5,
        ("a photo of the character {}.",), Hub("tanganke/kmnist"), Prepared("kmnist"),
    ),
    ClipSet(
        "rendered_sst2", "RenderedSST2", "rendered-sst2", 2, 6_920, (1_821,), 39,
        ("a {} review of a movie.",), Hub("nateraw/rendered-sst2", revision=CONVERTED), None,
    ),
)  # fmt: skip

SETS: dict[str, ClipSet] = {row.key: row for row in _ROWS}
ORDER20 = tuple(SETS)
ORDER14 = ORDER20[:14]
ORDER8 = ORDER20[:8]

# Test images of RESISC45, EuroSAT, GTSRB and Cars that tanganke corrupted: splits of those names.
CORRUPTIONS = (
    "contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate",
    "spatter",
)  # fmt: skip


# --- published accuracies, in percent -----------------------------------------------------------


def _by_key(*values: float) -> dict[str, float]:
    return dict(zip(ORDER20, values, strict=False))


# Individual experts of the SyMerge paper, table of 20 tasks (another table prints EuroSAT 99.9).
INDIVIDUAL: dict[str, dict[str, float]] = {
    "ViT-B-32": _by_key(
        75.3, 77.7, 96.1, 99.7, 97.5, 98.7, 99.7, 79.4, 89.1, 72.5,
        90.4, 91.8, 87.8, 97.8, 97.9, 99.7, 95.4, 89.1, 98.4, 74.8,
    ),
    "ViT-L-14": _by_key(
        82.3, 92.4, 97.4, 100.0, 98.1, 99.2, 99.7, 84.1, 93.3, 76.5,
        97.9, 95.2, 90.0, 99.3, 99.3, 99.8, 96.0, 95.4, 98.7, 85.6,
    ),
}  # fmt: skip

# tanganke's experts, from FusionBench's table of ViT-B/32. EMNIST is that of the letters.
INDIVIDUAL_TANGANKE = {
    "sun397": 74.86, "cars": 78.52, "resisc45": 95.14, "eurosat": 99.07, "svhn": 97.27,
    "gtsrb": 98.91, "mnist": 99.58, "dtd": 79.68, "flowers102": 88.55, "pcam": 87.96,
    "fer2013": 71.61, "oxford_iiit_pet": 92.45, "stl10": 97.55, "cifar100": 88.38,
    "cifar10": 97.60, "food101": 88.41, "fashion_mnist": 94.75, "emnist": 95.62, "kmnist": 98.23,
    "rendered_sst2": 71.28,
}  # fmt: skip

# Zero-shot accuracy of ViT-B/32 with OpenAI's weights as the SyMerge paper prints it (14 tasks).
ZERO_SHOT = _by_key(
    62.3, 59.7, 60.7, 45.5, 31.4, 32.6, 48.5, 43.8, 64.2, 39.0, 66.3, 87.4, 60.6, 97.1
)  # fmt: skip

# The same with FusionBench's heads, whose class names differ a little.
ZERO_SHOT_TANGANKE = _by_key(
    63.18, 59.58, 60.27, 45.00, 31.63, 32.53, 48.26, 44.20, 63.72, 41.25, 66.45, 83.32, 60.64,
    97.12,
)  # fmt: skip


def clip_set(task: str) -> ClipSet:
    """Returns the row of a task, found by its key, its name in checkpoints or tanganke's suffix.

    Raises:
        BadInput: no set has that name.
    """
    for row in _ROWS:
        if task in (row.key, row.name, row.suffix):
            return row
    raise BadInput(f"unknown task {task!r}{nearest(task, SETS)}; known: {', '.join(SETS)}")
