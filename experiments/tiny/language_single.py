"""Tasks on one sentence of the language world: is it grammatical, and is the opinion good?

Each function makes one example: (generator, label) → the sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from experiments.tiny.language_grammar import (
    article,
    chance,
    clause,
    event,
    noun_phrase,
    other,
    person,
    pick,
    sentence,
)
from experiments.tiny.language_words import (
    ANIMALS,
    BAD,
    DISLIKING,
    GOOD,
    HANDLING,
    LIKING,
    MEETING,
    MEN,
    PEOPLE,
    PLACES,
    RESTING,
    REVIEWED,
    THINGS,
    WOMEN,
)

STRENGTHS = ("", "", "", "very", "really")


def grammar(rng: Random, label: int) -> str:
    """Makes a sentence that is grammatical (1) or breaks one rule (0)."""
    return pick(rng, _RULES)(rng, bool(label))


def _agreement(rng: Random, right: bool) -> str:
    """The verb agrees with its subject, not with the noun beside it."""
    several, near_several = chance(rng, 0.5), chance(rng, 0.5)
    subject, near = pick(rng, pick(rng, (*PEOPLE, *ANIMALS))), pick(rng, pick(rng, PEOPLE))
    verb = pick(rng, pick(rng, RESTING))
    words = ["the", subject.plural if several else subject.word]
    if chance(rng, 0.5):
        words += ["behind", "the", near.plural if near_several else near.word]
    words.append(verb.base if several == right else verb.third)
    return sentence(*words, pick(rng, PLACES) if chance(rng, 0.5) else "")


def _auxiliary(rng: Random, right: bool) -> str:
    """Did, has and is go with forms of their own."""
    verb = pick(rng, pick(rng, (*HANDLING, *MEETING)))
    objects = THINGS if any(verb in group for group in HANDLING) else (*PEOPLE, *ANIMALS)
    who, what = noun_phrase(person(rng)), pick(rng, pick(rng, objects)).word
    helper, form, wrong = pick(
        rng,
        (
            ("did not", verb.base, verb.past),
            ("has", verb.participle, verb.base),
            ("is", verb.ing, verb.base),
            ("would", verb.base, verb.ing),
        ),
    )
    return sentence(who, helper, form if right else wrong, "the", what)


def _determiner(rng: Random, right: bool) -> str:
    """A, this and every stand before one; these, two and many before several."""
    one = chance(rng, 0.5)
    noun = pick(rng, pick(rng, (*PEOPLE, *ANIMALS, *THINGS)))
    word = noun.word if one == right else noun.plural
    before = pick(rng, (article(word), "this", "every") if one else ("these", "two", "many"))
    verb = pick(rng, pick(rng, MEETING if noun.kind in ("person", "animal") else HANDLING)).past
    return sentence(noun_phrase(person(rng)), verb, before, word)


def _reflexive(rng: Random, right: bool) -> str:
    """Himself and herself go with the subject."""
    woman = chance(rng, 0.5)
    name, near = pick(rng, WOMEN if woman else MEN), pick(rng, (*WOMEN, *MEN))
    verb, own = pick(rng, pick(rng, MEETING)).past, "herself" if woman == right else "himself"
    between = f"and not {near}" if chance(rng, 0.3) else ""
    return sentence(name, between, verb, own, pick(rng, PLACES) if chance(rng, 0.5) else "")


def _order(rng: Random, right: bool) -> str:
    """Words come in order: two neighbours are swapped, or one is left out."""
    words = clause(event(rng, adjective=0.4)).split()
    if right:
        return sentence(*words)
    places = [i for i, word in enumerate(words) if word == "the" and i + 1 < len(words)]
    if places and chance(rng, 0.7):
        i = pick(rng, places)
        words[i : i + 2] = words[i + 1], words[i]
    else:
        verbs = [i for i, word in enumerate(words) if word in _PASTS]
        del words[verbs[0]]
    return sentence(*words)


_PASTS = frozenset(verb.past for group in (*HANDLING, *MEETING) for verb in group)
_RULES: tuple[Callable[[Random, bool], str], ...] = (
    _agreement, _auxiliary, _determiner, _reflexive, _order,
)  # fmt: skip


class Opinion(NamedTuple):
    """A clause about something, and whether it speaks well of it."""

    text: str
    good: bool


def sentiment(rng: Random, label: int) -> str:
    """Makes an opinion that is good (1) or bad (0) on the whole.

    The main clause decides: what follows "but", or what stands beside "although".
    """
    first = pick(rng, REVIEWED)
    second = other(rng, REVIEWED, first)
    decides = _opinion_of(rng, first, bool(label)).text
    if chance(rng, 0.5):
        return sentence(decides)
    against = _opinion_of(rng, second, not label).text
    return pick(
        rng,
        (
            sentence(against, ", but", decides),
            sentence("although", against, ",", decides),
            sentence(decides, ", although", against),
        ),
    )


def _opinion_of(rng: Random, about: tuple[str, ...], good: bool) -> Opinion:
    while True:
        found = opinion(rng, pick(rng, about))
        if found.good == good:
            return found


def opinion(rng: Random, about: str) -> Opinion:
    """Returns a random opinion about something."""
    good = chance(rng, 0.5)
    word = pick(rng, GOOD if good else BAD)
    verb = pick(rng, pick(rng, LIKING if good else DISLIKING))
    strength = pick(rng, STRENGTHS)
    described = f"{strength} {word}".strip()
    text, kept = pick(
        rng,
        (
            (f"the {about} was {described}", True),
            (f"i {'really ' if strength else ''}{verb.past} the {about}", True),
            (f"it is {article(word)} {word} {about}", True),
            (f"the {about} was not {described}", False),
            (f"i did not {verb.base} the {about}", False),
            (f"nobody could {verb.base} the {about}", False),
        ),
    )
    return Opinion(text, good == kept)
