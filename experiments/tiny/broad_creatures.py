"""Smaller and swimming creatures: the table of recipes and where each one is seen."""

from collections.abc import Callable

from PIL import Image

from experiments.tiny import broad_birds_fish as birds_fish
from experiments.tiny import broad_crawlers as crawlers
from experiments.tiny.broad_scenes import backdrop
from experiments.tiny.broad_tools import Pen, Rng, camera, compose

Recipe = Callable[[Pen, Rng], None]
CREATURES: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    "bird": (birds_fish.bird, ("sky", "leaf", "grass", "forest", "studio")),
    "ostrich": (birds_fish.ostrich, ("grass", "sand", "field")),
    "duck": (birds_fish.duck, ("water", "water", "grass")), "owl": (birds_fish.owl, ("forest",
    "leaf", "sky")),
    "penguin": (birds_fish.penguin, ("snow", "rock", "water")), "fish": (birds_fish.fish, ("water",
    "rock", "studio")),
    "trout": (birds_fish.trout, ("water", "grass", "rock")), "shark": (birds_fish.shark,
    ("water",)), "dolphin": (birds_fish.dolphin, ("water", "sky")),
    "whale": (birds_fish.whale, ("water",)), "seal": (birds_fish.seal, ("rock", "water", "snow",
    "sand")),
    "frog": (crawlers.frog, ("leaf", "water", "forest", "sand")), "snake": (crawlers.snake,
    ("sand", "grass", "rock", "leaf", "studio")),
    "lizard": (crawlers.lizard, ("rock", "sand", "leaf", "studio")),
    "crocodile": (crawlers.crocodile, ("water", "sand", "grass")),
    "dinosaur": (crawlers.dinosaur, ("studio", "forest", "field", "sand")),
    "turtle": (crawlers.turtle, ("grass", "sand", "water", "studio")),
    "crab": (crawlers.crab, ("sand", "rock", "studio")), "lobster": (crawlers.lobster, ("studio",
    "rock", "water")),
    "spider": (crawlers.spider, ("leaf", "studio", "rock", "indoors")), "beetle": (crawlers.beetle,
    ("leaf", "studio", "sand")),
    "cockroach": (crawlers.cockroach, ("studio", "indoors", "sand")), "bee": (crawlers.bee,
    ("leaf", "studio", "sky")),
    "butterfly": (crawlers.butterfly, ("leaf", "grass", "studio", "sky")),
    "snail": (crawlers.snail, ("leaf", "rock", "studio")),
    "worm": (crawlers.worm, ("forest", "sand", "studio")), "caterpillar": (crawlers.caterpillar,
    ("leaf", "grass", "studio")),
    "ray": (crawlers.ray, ("water", "sand")),
}  # fmt: skip
_CREATURES = tuple(CREATURES.values())
_FROM_ABOVE = {
    "spider",
    "beetle",
    "cockroach",
    "lizard",
    "crocodile",
    "butterfly",
    "ray",
    "worm",
    "snake",
    "lobster",
    "crab",
}
_SPIN = tuple(0.7 if name in _FROM_ABOVE else 0.15 for name in CREATURES)


def draw_creature(rng: Rng, label: int) -> Image.Image:
    """A creature where it is usually seen."""
    recipe, grounds = _CREATURES[label]
    pen = Pen(rng, scale=(0.6, 1.05), turn=_SPIN[label], shift=0.1)
    recipe(pen, rng)
    out = compose(
        rng,
        backdrop(rng, *grounds),
        pen.image,
        relief=rng.uniform(0.3, 0.8),
        grain=0.08,
        patchy=0.09,
    )
    return camera(rng, out)
