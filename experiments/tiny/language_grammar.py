"""Sentences of the embedded language world: who does what to whom, said in several ways.

An `Event` is what is meant, `clause` one way to say it. Texts are lower-case words with spaces
between, punctuation included. Random choices use `random.Random.random` alone, the one method
whose sequence Python promises to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple, TypeVar

from experiments.tiny.language_words import (
    ANIMALS,
    COLOURS,
    HANDLING,
    KIND_NOUNS,
    MEETING,
    NAMES,
    NUMBERS,
    OPPOSITES,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    Noun,
    Verb,
)

T = TypeVar("T")
Tense = Literal["past", "progressive"]

_VERB_GROUPS = {verb: group for group in (*HANDLING, *MEETING) for verb in group}
_NOUN_GROUPS = {n: group for group in (*NAMES, *PEOPLE, *ANIMALS, *THINGS) for n in group}
_OPPOSITE = {
    (being, word): other
    for being, pairs in OPPOSITES.items()
    for pair in pairs
    for side, other in (pair, pair[::-1])
    for word in side
}
_SAME = {
    word: side for pairs in OPPOSITES.values() for pair in pairs for side in pair for word in side
}


class Phrase(NamedTuple):
    """A noun phrase.

    Attributes:
        noun: its head.
        adjective: before it, or "".
        number: 1, a larger number that is named, or 0 for several.
        definite: "the" rather than "a" or "some".
    """

    noun: Noun
    adjective: str = ""
    number: int = 1
    definite: bool = True

    @property
    def singular(self) -> bool:
        """Whether the verb takes the form of one."""
        return self.number == 1


class Event(NamedTuple):
    """Somebody does something to somebody or something; place and time may be ""."""

    subject: Phrase
    verb: Verb
    object: Phrase
    place: str = ""
    time: str = ""


def pick(rng: Random, items: Sequence[T]) -> T:
    """Returns one of the items."""
    return items[int(rng.random() * len(items))]


def other(rng: Random, items: Sequence[T], than: T) -> T:
    """Returns one of the items that is not `than`."""
    return pick(rng, [item for item in items if item != than])


def chance(rng: Random, probability: float) -> bool:
    """Returns True that often."""
    return rng.random() < probability


def sentence(*parts: str, end: str = ".") -> str:
    """Joins the parts that are not empty, and ends with a full stop or another mark."""
    return " ".join([*(part for part in parts if part), end])


def article(word: str) -> str:
    """Returns "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"


def noun_phrase(phrase: Phrase) -> str:
    """Writes a noun phrase: "the two old dogs"."""
    noun, adjective, number, definite = phrase
    if noun.kind == "name":
        return noun.word
    words = [adjective, noun.word if number == 1 else noun.plural]
    words = [word for word in words if word]
    if number > 1:
        words.insert(0, NUMBERS[number - 2])
    if definite:
        words.insert(0, "the")
    elif number == 1:
        words.insert(0, article(words[0]))
    elif number == 0:
        words.insert(0, "some")
    return " ".join(words)


def clause(
    event: Event,
    *,
    passive: bool = False,
    tense: Tense = "past",
    negated: bool = False,
    time_first: bool = False,
) -> str:
    """Says an event, without punctuation.

    Args:
        event: what happens.
        passive: from the view of the object.
        tense: "past" (chased) or "progressive" (is chasing).
        negated: says that it does not happen.
        time_first: puts the time in front.
    """
    subject, verb, patient, place, time = event
    not_ = "not" if negated else ""
    first, last = (patient, subject) if passive else (subject, patient)
    if tense == "progressive":
        middle = ["is" if first.singular else "are", not_]
        middle += ["being", verb.participle, "by"] if passive else [verb.ing]
    elif passive:
        middle = ["was" if first.singular else "were", not_, verb.participle, "by"]
    else:
        middle = ["did", "not", verb.base] if negated else [verb.past]
    parts = [noun_phrase(first), *middle, noun_phrase(last), place]
    parts = [time, *parts] if time_first else [*parts, time]
    return " ".join(part for part in parts if part)


def person(rng: Random, *, names: float = 0.0) -> Phrase:
    """Returns somebody, by name in that share of cases."""
    if chance(rng, names):
        return Phrase(pick(rng, NAMES)[0])
    return Phrase(pick(rng, pick(rng, PEOPLE)))


def being(rng: Random) -> Phrase:
    """Returns a person or an animal."""
    return Phrase(pick(rng, pick(rng, (PEOPLE, ANIMALS)[chance(rng, 0.5)])))


def thing(rng: Random) -> Phrase:
    """Returns a thing."""
    return Phrase(pick(rng, pick(rng, THINGS)))


def described(rng: Random, phrase: Phrase, share: float = 1.0) -> Phrase:
    """Adds an adjective in that share of cases; never to a name."""
    if phrase.noun.kind == "name" or not chance(rng, share):
        return phrase
    if is_thing(phrase) and chance(rng, 0.4):
        return phrase._replace(adjective=pick(rng, COLOURS))
    pair = pick(rng, OPPOSITES[world_of(phrase)])
    return phrase._replace(adjective=pick(rng, pick(rng, pair)))


def is_thing(phrase: Phrase) -> bool:
    """Whether it is neither a person nor an animal."""
    return phrase.noun.kind not in ("name", "person", "animal")


def world_of(phrase: Phrase) -> Literal["being", "thing"]:
    """Returns which adjectives fit."""
    return "thing" if is_thing(phrase) else "being"


def event(rng: Random, *, place: float = 0.5, time: float = 0.5, adjective: float = 0.0) -> Event:
    """Returns a random event with place, time and adjectives in those shares of cases."""
    if chance(rng, 0.5):
        subject, verbs, patient = person(rng), HANDLING, thing(rng)
    else:
        subject, verbs, patient = person(rng), MEETING, being(rng)
        if synonymous(patient.noun, subject.noun):
            patient = Phrase(pick(rng, pick(rng, ANIMALS)))
    return Event(
        described(rng, subject, adjective),
        pick(rng, pick(rng, verbs)),
        described(rng, patient, adjective),
        pick(rng, PLACES) if chance(rng, place) else "",
        pick(rng, TIMES) if chance(rng, time) else "",
    )


def same_noun(rng: Random, phrase: Phrase) -> Phrase:
    """Returns the phrase with words that mean the same, where there are any."""
    noun = pick(rng, _NOUN_GROUPS.get(phrase.noun, (phrase.noun,)))
    adjective = pick(rng, _SAME.get(phrase.adjective, (phrase.adjective,)))
    return phrase._replace(noun=noun, adjective=adjective)


def same_verb(rng: Random, verb: Verb) -> Verb:
    """Returns a verb that means the same, which may be the verb itself."""
    return pick(rng, _VERB_GROUPS[verb])


def reworded(rng: Random, meant: Event) -> Event:
    """Returns the event with words that mean the same."""
    subject, patient = same_noun(rng, meant.subject), same_noun(rng, meant.object)
    return meant._replace(subject=subject, verb=same_verb(rng, meant.verb), object=patient)


def synonymous(first: Noun | Verb, second: Noun | Verb) -> bool:
    """Whether two words mean the same."""
    if isinstance(first, Noun):
        return second in _NOUN_GROUPS.get(first, (first,))
    return second in _VERB_GROUPS.get(first, (first,))


def other_phrase(rng: Random, phrase: Phrase) -> Phrase:
    """Returns the phrase with a noun of another meaning: a person for a person, a thing for one."""
    groups = NAMES if phrase.noun.kind == "name" else PEOPLE
    if phrase.noun.kind == "animal":
        groups = ANIMALS
    elif is_thing(phrase):
        groups = THINGS
    return phrase._replace(noun=pick(rng, other(rng, groups, _NOUN_GROUPS[phrase.noun])))


def other_verb(rng: Random, verb: Verb) -> Verb:
    """Returns a verb of another meaning that takes the same objects."""
    group = _VERB_GROUPS[verb]
    return pick(rng, other(rng, HANDLING if group in HANDLING else MEETING, group))


def changed(rng: Random, meant: Event) -> Event:
    """Returns the event with one of subject, verb and object of another meaning."""
    slot = pick(rng, ("subject", "verb", "object"))
    if slot == "verb":
        return meant._replace(verb=other_verb(rng, meant.verb))
    while True:
        new = meant._replace(**{slot: other_phrase(rng, getattr(meant, slot))})
        if not synonymous(new.subject.noun, new.object.noun):
            return new


def opposite(rng: Random, phrase: Phrase) -> Phrase:
    """Returns the phrase with the opposite adjective, or another colour."""
    if phrase.adjective in COLOURS:
        return phrase._replace(adjective=other(rng, COLOURS, phrase.adjective))
    return phrase._replace(adjective=pick(rng, _OPPOSITE[world_of(phrase), phrase.adjective]))


def generalised(phrase: Phrase) -> Phrase:
    """Returns the phrase with the word for all of its kind: "a dog" → "an animal"."""
    return phrase._replace(noun=KIND_NOUNS[phrase.noun.kind])
