"""Broad picture families for pre-training: everyday things drawn from rules, with captions.

Each family is a list of class names in words and a function that draws one 64x64 picture. Pictures
are reduced to 32x32 and given sensor noise. No photograph and no data set takes part.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.tiny import broad_animals as animals
from experiments.tiny import broad_creatures as creatures
from experiments.tiny import broad_faces as faces
from experiments.tiny import broad_glyphs as glyphs
from experiments.tiny import broad_household as household
from experiments.tiny import broad_land as land
from experiments.tiny import broad_matter as matter
from experiments.tiny import broad_people as people
from experiments.tiny import broad_plants as plants
from experiments.tiny import broad_scenes as scenes
from experiments.tiny import broad_signs as signs
from experiments.tiny import broad_things as things

Draw = Callable[[np.random.Generator, int], Image.Image]


@dataclass(frozen=True)
class Broad:
    """A family: its name, its class names (captions) and its painter.

    `draw(rng, label)` returns a 64x64 RGB picture of class `label`.
    """

    name: str
    classes: tuple[str, ...]
    draw: Draw


FAMILIES = (
    Broad("digits", tuple(f"handwritten digit {c}" for c in glyphs.DIGITS), glyphs.draw_digit),
    Broad("letters", tuple(f"handwritten letter {c}" for c in glyphs.LETTERS), glyphs.draw_letter),
    Broad("kana", tuple(f"cursive kana {c}" for c in glyphs.KANA), glyphs.draw_kana),
    Broad("garments", tuple(people.GARMENTS), people.draw_garment),
    Broad("expressions", tuple(f"{c} face" for c in faces.EXPRESSIONS), faces.draw_expression),
    Broad("people", tuple(f"{c} face" for c in faces.PEOPLE), faces.draw_person),
    Broad("signs", tuple(f"road sign {c}" for c in signs.SIGNS), signs.draw_sign),
    Broad("land", tuple(f"{c} from above" for c in land.LAND), land.draw_land),
    Broad("scenes", tuple(scenes.SCENES), scenes.draw_scene),
    Broad("materials", tuple(f"{c} texture" for c in matter.MATERIALS), matter.draw_material),
    Broad("solids", tuple(f"solid {c}" for c in matter.SOLIDS), matter.draw_solid),
    Broad("beasts", tuple(animals.BEASTS), animals.draw_beast),
    Broad("creatures", tuple(creatures.CREATURES), creatures.draw_creature),
    Broad("vehicles", tuple(things.VEHICLES), things.draw_vehicle),
    Broad("household", tuple(household.HOUSEHOLD), household.draw_household),
    Broad("plants", tuple(plants.PLANTS), plants.draw_plant),
)
BROAD: dict[str, Broad] = {family.name: family for family in FAMILIES}


def broad_images(
    name: str, *, count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draws `count` pictures of a family, balanced over its classes and shuffled.

    Args:
        name: a key of `BROAD`.
        count: how many pictures; classes differ by at most one.
        seed: the same seed gives the same pictures.

    Returns:
        images uint8 [count, 32, 32, 3] and labels int32 [count].
    """
    family = BROAD[name]
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    rng = np.random.default_rng([seed, key])
    labels = (np.arange(count) % len(family.classes)).astype(np.int32)
    rng.shuffle(labels)
    images = np.empty((count, 32, 32, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i] = _sensor(rng, family.draw(rng, label))
    return images, labels


def _sensor(rng: np.random.Generator, picture: Image.Image) -> NDArray[np.uint8]:
    """Reduces a 64x64 picture to 32x32 and, for two in three, adds pixel noise."""
    pixels = np.asarray(picture.reduce(2))
    if rng.random() < 1 / 3:
        return pixels
    grains = rng.standard_normal((32, 32, 3), np.float32) * rng.uniform(1, 9)
    # White ink on pure black stays pure black, as scans are clipped there.
    return np.where(pixels > 0, np.clip(pixels + grains, 0, 255), 0).astype(np.uint8)


def broad_digest() -> str:
    """The sha256 of the source text of these modules, for the keys of caches."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("broad*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
