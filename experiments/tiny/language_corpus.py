"""What the language base reads in pre-training: short texts of one or two sentences.

They hold the words and constructions of the tasks: questions with answers, things said twice, what
words mean, opinions with reasons, promises and what became of them. Two in three make sense. The
others are wrong in one point ("no" where "yes" is right, two words swapped), and whether a text
makes sense is all that is told about it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np

from experiments.tiny.language_grammar import (
    Event,
    article,
    being,
    chance,
    changed,
    clause,
    described,
    event,
    generalised,
    is_thing,
    noun_phrase,
    opposite,
    other,
    other_verb,
    person,
    pick,
    reworded,
    same_noun,
    same_verb,
    sentence,
    thing,
)
from experiments.tiny.language_pairs import INTENTS, question, question_about, report
from experiments.tiny.language_single import grammar, opinion
from experiments.tiny.language_words import (
    HANDLING,
    KIND_NOUNS,
    KINDS,
    MEETING,
    NUMBERS,
    OPPOSITES,
    PEOPLE,
    RESTING,
    REVIEWED,
    Noun,
    Verb,
)

Text = tuple[str, ...]  # one or two sentences


def texts(
    count: int, *, longest: int, easy: int = 0, seed: int = 0
) -> tuple[list[Text], np.ndarray]:
    """Writes that many texts, the same for the same arguments.

    Args:
        count: of texts.
        easy: how many of them, in front, only say one thing twice.
        longest: most tokens of a text, two more than words for each sentence.
        seed: any number.

    Returns:
        The texts, and whether each makes sense, bool [count].
    """
    rng = Random(f"language corpus {seed}")
    found: list[Text] = []
    sense = np.array([chance(rng, 2 / 3) for _ in range(count)])
    while len(found) < count:
        write = _plainly if len(found) < easy else pick(rng, _WRITERS)
        text = write(rng, bool(sense[len(found)]))
        if sum(len(part.split()) + 2 for part in text) <= longest:
            found.append(text)
    return found, sense


def _yes_or_no(rng: Random, sense: bool) -> Text:
    """Did the dog chase the cat? Yes, … / No, …"""
    asked = event(rng, place=0.1, time=0.1)
    yes = chance(rng, 0.5)
    told = reworded(rng, asked if yes else _twisted(rng, asked))
    if chance(rng, 0.5):
        words = ["did", noun_phrase(asked.subject), asked.verb.base, noun_phrase(asked.object)]
        said = clause(told, passive=chance(rng, 0.1))
    else:
        be = "is" if asked.subject.singular else "are"
        words = [be, noun_phrase(asked.subject), asked.verb.ing, noun_phrase(asked.object)]
        said = clause(told, tense="progressive", passive=chance(rng, 0.1))
    return (
        sentence(*words, asked.place, asked.time, end="?"),
        sentence("yes ," if yes == sense else "no ,", said),
    )


def _twisted(rng: Random, meant: Event) -> Event:
    """Returns another event of nearly the same words."""
    if not is_thing(meant.object) and chance(rng, 0.25):
        return meant._replace(subject=meant.object, object=meant.subject)
    return changed(rng, meant)


def _again(rng: Random, sense: bool) -> Text:
    """The same once more in other words."""
    meant = event(rng, place=0.2, time=0.3, adjective=0.1)
    told = reworded(rng, meant if sense else _twisted(rng, meant))
    return (
        sentence(clause(meant, passive=chance(rng, 0.2), time_first=chance(rng, 0.1))),
        sentence(clause(told, passive=chance(rng, 0.3), time_first=chance(rng, 0.1))),
    )


def _plainly(rng: Random, sense: bool) -> Text:
    """The same once more, in the same order: what a comparison is learned from."""
    meant = event(rng, place=0.0, time=0.0)
    tense = pick(rng, ("past", "progressive"))
    told = meant if sense else changed(rng, meant)
    told = reworded(rng, told) if chance(rng, 0.5) else told
    return sentence(clause(meant, tense=tense)), sentence(clause(told, tense=tense))


def _alike(rng: Random, sense: bool) -> Text:
    """Two opinions that agree."""
    first, second = opinion(rng, pick(rng, REVIEWED)[0]), opinion(rng, pick(rng, REVIEWED)[0])
    while (first.good == second.good) != sense:
        second = opinion(rng, pick(rng, REVIEWED)[0])
    return sentence(first.text), sentence(second.text)


def _seen(rng: Random, sense: bool) -> Text:
    """What several beings do, and the same again, perhaps less exactly."""
    who = described(rng, being(rng), 0.5)._replace(number=pick(rng, (1, 2, 3, 4)))
    meant = event(rng, place=0.2, time=0.0)._replace(subject=who)
    told = reworded(rng, meant)
    if chance(rng, 0.3):
        told = told._replace(subject=generalised(told.subject), place="")
    elif chance(rng, 0.3):
        told = told._replace(object=generalised(told.object))
    if not sense:
        slots = ["number"] * (who.number > 1) + ["adjective"] * bool(who.adjective) + ["verb"]
        slot = pick(rng, slots)
        if slot == "verb":
            told = told._replace(verb=other_verb(rng, told.verb))
        elif slot == "adjective":
            told = told._replace(subject=opposite(rng, told.subject))
        else:
            told = told._replace(
                subject=told.subject._replace(number=other(rng, (2, 3, 4), who.number))
            )
    return (
        sentence(clause(meant, tense="progressive")),
        sentence(clause(told, tense="progressive", passive=chance(rng, 0.1))),
    )


def _which(rng: Random, sense: bool) -> Text:
    """Who, what, where, when: a question and its answer."""
    meant = event(rng, place=1.0, time=1.0)
    kinds = ("who", "what", "where", "when")
    asked = pick(rng, kinds)
    if chance(rng, 0.5):
        short = {
            "who": noun_phrase(meant.subject), "what": noun_phrase(meant.object),
            "where": meant.place, "when": meant.time,
        }  # fmt: skip
        return question(asked, meant), sentence(short[asked if sense else other(rng, kinds, asked)])
    told = reworded(rng, meant if sense else changed(rng, meant))
    left_out = {"where": "time", "when": "place"}.get(asked, pick(rng, ("time", "place")))
    long = clause(told._replace(**{left_out: ""}), passive=chance(rng, 0.2))
    return question(asked, meant), sentence(long)


def _promise(rng: Random, sense: bool) -> Text:
    """Managed, forgot, wanted: and so it was done, or not."""
    first, meant, follows = report(rng)
    verb, what = same_verb(rng, meant.verb), noun_phrase(meant.object)
    if not sense:
        follows = other(rng, (1, -1, 0), follows)
    if follows > 0:
        return first, sentence("so they", verb.past, what)
    if follows < 0:
        return first, sentence("so they did not", verb.base, what)
    return first, sentence("nobody can tell if they", verb.past, what)


def _asking(rng: Random, sense: bool) -> Text:
    """A question twice."""
    verb, goods = pick(rng, pick(rng, HANDLING)), thing(rng)
    intent = pick(rng, tuple(INTENTS))
    _, first = question_about(rng, intent, verb, goods)
    if not sense:
        intent = other(rng, tuple(INTENTS), intent)
    _, second = question_about(rng, intent, same_verb(rng, verb), same_noun(rng, goods))
    return first, second


def _review(rng: Random, sense: bool) -> Text:
    """An opinion and another that agrees, or one that does not after "but"."""
    first = opinion(rng, pick(rng, pick(rng, REVIEWED)))
    second = opinion(rng, pick(rng, pick(rng, REVIEWED)))
    if (first.good == second.good) == sense:
        if chance(rng, 0.5):
            return sentence(first.text), sentence(second.text)
        return (sentence(first.text, pick(rng, (", and", "because")), second.text),)
    if chance(rng, 0.4):
        return (sentence("although", first.text, ",", second.text),)
    return (sentence(first.text, ", but", second.text),)


def _plain(rng: Random, sense: bool) -> Text:
    """One plain sentence, or two that have nothing to do with each other."""
    return _in_order(rng, tuple(grammar(rng, 1) for _ in range(pick(rng, (1, 1, 2)))), sense)


def _scene(rng: Random, sense: bool) -> Text:
    """What is seen: several beings at work or at rest."""
    who = described(rng, person(rng, names=0.2), 0.5)
    if who.noun.kind != "name":
        who = who._replace(number=pick(rng, (1, 0, 2, 3, 4)), definite=chance(rng, 0.5))
    meant = event(rng, time=0.2, adjective=0.2)._replace(subject=who)
    text = sentence(clause(meant, tense="progressive", negated=chance(rng, 0.15)))
    if chance(rng, 0.5):
        return _in_order(rng, (text,), sense)
    rest, near = pick(rng, pick(rng, RESTING)), pick(rng, pick(rng, PEOPLE))
    several = chance(rng, 0.5)
    words = ["the", near.plural if several else near.word]
    if chance(rng, 0.5):
        words += ["are" if several else "is", rest.ing]
    else:
        words.append(rest.base if several else rest.third)
    return _in_order(rng, (text, sentence(*words, meant.place)), sense)


def _in_order(rng: Random, text: Text, sense: bool) -> Text:
    """Swaps two neighbours in one of the sentences unless the text is to make sense."""
    if sense:
        return text
    chosen = int(rng.random() * len(text))
    words = text[chosen].split()
    places = [i for i in range(len(words) - 2) if words[i] != words[i + 1]]
    i = pick(rng, places)
    words[i], words[i + 1] = words[i + 1], words[i]
    return (*text[:chosen], " ".join(words), *text[chosen + 1 :])


def _meaning(rng: Random, sense: bool) -> Text:
    """What words mean: kinds, synonyms, opposites."""
    return (sentence(*pick(rng, (_kind, _kind, _synonym, _verb, _opposite, _number))(rng, sense)),)


def _kind(rng: Random, sense: bool) -> list[str]:
    kind = pick(rng, tuple(KINDS))
    noun = pick(rng, pick(rng, KINDS[kind]))
    named = KIND_NOUNS[kind if sense else other(rng, tuple(KINDS), kind)]
    if chance(rng, 0.5):
        return [noun.plural, "are", named.plural]
    return [article(noun.word), noun.word, "is", article(named.word), named.word]


def _synonym(rng: Random, sense: bool) -> list[str]:
    first, second = _words_alike(rng, _NOUNS, sense)
    return [article(first.word), first.word, "is the same as", article(second.word), second.word]


def _verb(rng: Random, sense: bool) -> list[str]:
    first, second = _words_alike(rng, _VERBS, sense)
    return ["to", first.base, "means to", second.base]


def _words_alike(rng: Random, groups: tuple, sense: bool) -> tuple:
    """Returns two words of one group, or of two."""
    group = pick(rng, groups)
    first = pick(rng, group)
    rest = group if sense else pick(rng, [g for g in groups if g is not group])
    return first, other(rng, rest, first)


def _opposite(rng: Random, sense: bool) -> list[str]:
    pairs = pick(rng, tuple(OPPOSITES.values()))
    pair = pick(rng, pairs)
    first, second = pair if chance(rng, 0.5) else pair[::-1]
    if not sense:
        second = pick(rng, (first, pick(rng, other(rng, pairs, pair))))
    return [pick(rng, first), "is the opposite of", pick(rng, second)]


def _number(rng: Random, sense: bool) -> list[str]:
    first = pick(rng, NUMBERS)
    second = first if chance(rng, 0.5) else other(rng, NUMBERS, first)
    return [first, "is" if (first == second) == sense else "is not", "the same as", second]


_NOUNS: tuple[tuple[Noun, ...], ...] = tuple(
    group for groups in KINDS.values() for group in groups if len(group) > 1
)
_VERBS: tuple[tuple[Verb, ...], ...] = tuple(g for g in (*HANDLING, *MEETING) if len(g) > 1)
_WRITERS: tuple[Callable[[Random, bool], Text], ...] = (
    _plainly, _alike, _alike, _again, _again, _again, _seen, _seen, _yes_or_no, _which, _which,
    _meaning, _review, _review, _promise, _promise, _asking, _asking, _scene, _plain,
)  # fmt: skip
