"""The words of the embedded language world: nouns by kind, verbs with their forms, adjectives.

A word in a table may be followed by irregular forms after colons; words joined by commas mean the
same. Everything else in the world's texts is one of `FUNCTION_WORDS`.
"""

from __future__ import annotations

from typing import NamedTuple


class Noun(NamedTuple):
    """A noun with its plural and its kind: "name", "person", or the word for all of them."""

    word: str
    plural: str
    kind: str


class Verb(NamedTuple):
    """A verb: "chase", "chases", "chased", "chased", "chasing"."""

    base: str
    third: str
    past: str
    participle: str
    ing: str


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _nouns(kind: str, table: str) -> tuple[tuple[Noun, ...], ...]:
    """Reads groups of synonyms: "truck,lorry:lorries bus"."""
    groups = []
    for group in table.split():
        forms = [entry.split(":") for entry in group.split(",")]
        groups.append(tuple(Noun(f[0], f[-1] if f[1:] else _plural(f[0]), kind) for f in forms))
    return tuple(groups)


def _verb(entry: str) -> Verb:
    base, *rest = entry.split(":")
    if rest:
        return Verb(base, *rest)
    past = base + ("d" if base.endswith("e") else "ed")
    return Verb(base, _plural(base), past, past, base.removesuffix("e") + "ing")


def _verbs(table: str) -> tuple[tuple[Verb, ...], ...]:
    return tuple(tuple(_verb(entry) for entry in group.split(",")) for group in table.split())


WOMEN = ("anna", "maria", "julia", "emma", "laura", "sofia", "clara", "nina")
MEN = ("tom", "peter", "david", "paul", "henry", "oscar", "leo", "felix")
NAMES = tuple((Noun(name, name, "name"),) for name in (*WOMEN, *MEN))

PEOPLE = _nouns(
    "person",
    "doctor,physician teacher,instructor lawyer,attorney cook,chef child:children,kid "
    "writer,author student,pupil farmer baker pilot singer sailor driver soldier nurse",
)
ANIMALS = _nouns(
    "animal", "dog,hound cat horse cow goat rabbit,bunny:bunnies pig duck mouse:mice wolf:wolves"
)
KINDS = {
    "person": PEOPLE,
    "animal": ANIMALS,
    "fruit": _nouns("fruit", "pear banana peach lemon"),
    "vehicle": _nouns("vehicle", "car,automobile truck,lorry:lorries bicycle,bike boat tram"),
    "tool": _nouns("tool", "hammer saw shovel drill"),
    "flower": _nouns("flower", "rose tulip lily:lilies daisy:daisies"),
    "garment": _nouns("garment", "shirt coat,jacket hat,cap dress"),
    "instrument": _nouns("instrument", "violin,fiddle guitar piano drum flute"),
    "container": _nouns("container", "bag,sack box basket bottle"),
}
KIND_NOUNS = {
    kind: Noun(kind, {"person": "people", "fruit": "fruits"}.get(kind, _plural(kind)), kind)
    for kind in KINDS
}
THINGS = tuple(
    group for kind, groups in KINDS.items() if kind not in ("person", "animal") for group in groups
)

# What is done to things, and what is done to living beings.
HANDLING = _verbs(
    "buy:buys:bought:bought:buying,purchase sell:sells:sold:sold:selling "
    "find:finds:found:found:finding,discover lose:loses:lost:lost:losing wash,clean "
    "break:breaks:broke:broken:breaking,damage repair,fix paint "
    "steal:steals:stole:stolen:stealing hide:hides:hid:hidden:hiding,conceal "
    "draw:draws:drew:drawn:drawing,sketch push carry:carries:carried:carried:carrying"
)
MEETING = _verbs(
    "watch,observe help,assist follow chase,pursue call,phone feed:feeds:fed:fed:feeding "
    "catch:catches:caught:caught:catching,capture see:sees:saw:seen:seeing,notice visit "
    "praise blame thank kick"
)
RESTING = _verbs(
    "sleep:sleeps:slept:slept:sleeping dance swim:swims:swam:swum:swimming jump laugh "
    "sing:sings:sang:sung:singing wait work"
)

COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown")
# Pairs of opposites; each side is a group of synonyms.
_SIZES = ((("big", "large"), ("small", "little")),)
OPPOSITES = {
    "being": (
        *_SIZES, (("old",), ("young",)), (("strong", "powerful"), ("feeble", "frail")),
        (("fast", "quick"), ("slow",)), (("happy", "cheerful"), ("sad", "unhappy")),
    ),
    "thing": (
        *_SIZES, (("old",), ("new",)), (("clean",), ("dirty", "filthy")),
        (("heavy",), ("light",)), (("cheap",), ("expensive", "costly")),
    ),
}  # fmt: skip

PLACES = (
    "in the park", "in the garden", "in the kitchen", "in the forest", "in the museum",
    "in the village", "at the market", "at the station", "at the school", "at the hotel",
    "on the beach", "near the river", "near the bridge", "behind the church",
)  # fmt: skip
TIMES = (
    "in the morning", "in the evening", "at night", "at noon", "on monday", "on tuesday",
    "on friday", "on sunday", "last week", "last summer", "yesterday",
)  # fmt: skip
NUMBERS = ("two", "three", "four", "five")

# Opinions: what they are about, and what is said.
REVIEWED = (
    ("film", "movie"), ("book", "novel"), ("meal", "food"), ("story", "plot"), ("music",),
    ("service",), ("concert",), ("room",),
)  # fmt: skip
GOOD = ("good", "great", "wonderful", "excellent", "lovely", "pleasant", "charming", "superb")
BAD = ("bad", "awful", "terrible", "boring", "dull", "poor", "horrible", "annoying")
LIKING = _verbs("love like enjoy admire")
DISLIKING = _verbs("hate dislike detest loathe")

FUNCTION_WORDS = (
    "a", "although", "an", "and", "are", "as", "at", "because", "being", "believe", "believed",
    "best", "bought", "but", "by", "can", "choose", "chose", "claim", "claimed", "cost", "could",
    "decline", "declined", "did", "do", "does", "every", "fail", "failed", "for", "forget",
    "forgot", "has", "herself", "himself", "hope", "hoped", "hours", "how", "i", "if", "in", "is",
    "it", "knew", "know", "learn", "learned", "long", "manage", "managed", "many", "me", "means",
    "much", "need", "no", "nobody", "not", "of", "on", "opposite", "person", "place", "plan",
    "planned", "please", "price", "promise", "promised", "really", "reason", "refuse", "refused",
    "regret", "regretted", "remember", "remembered", "same", "should", "so", "sold", "some",
    "take", "tell", "that", "the", "these", "they", "think", "this", "thought", "time", "to",
    "very", "want", "wanted", "was", "way", "what", "when", "where", "who", "why", "would", "yes",
    "you", ",", ".", "?",
)  # fmt: skip


def _all_words() -> tuple[str, ...]:
    """Returns every word of the world once, sorted."""
    found = set(FUNCTION_WORDS)
    for groups in (NAMES, *KINDS.values()):
        found |= {form for group in groups for noun in group for form in noun[:2]}
    found |= {form for noun in KIND_NOUNS.values() for form in noun[:2]}
    for verbs in (HANDLING, MEETING, RESTING, LIKING, DISLIKING):
        found |= {form for group in verbs for verb in group for form in verb}
    for pairs in OPPOSITES.values():
        found |= {word for pair in pairs for side in pair for word in side}
    found |= {word for phrase in (*PLACES, *TIMES) for word in phrase.split()}
    found |= {word for group in REVIEWED for word in group}
    return tuple(sorted(found | {*COLOURS, *NUMBERS, *GOOD, *BAD}))


WORDS = _all_words()
