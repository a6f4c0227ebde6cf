"""Tasks on two sentences of the language world.

Each function makes one example: (generator, label) → both sentences; `similarity` chooses its score
itself.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from experiments.tiny.language_grammar import (
    Event,
    Phrase,
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
    other_phrase,
    other_verb,
    person,
    pick,
    reworded,
    same_noun,
    same_verb,
    sentence,
    synonymous,
    thing,
)
from experiments.tiny.language_words import (
    HANDLING,
    NUMBERS,
    PLACES,
    TIMES,
    Verb,
)

Pair = tuple[str, str]


def paraphrase(rng: Random, label: int) -> Pair:
    """Makes two sentences that mean the same (1), or nearly the same words with another meaning."""
    meant = event(rng, place=0.0, time=0.3)
    said = reworded(rng, meant)
    if not label:
        swapped = not is_thing(meant.object) and chance(rng, 0.4)
        said = _swapped(said) if swapped else changed(rng, said)
    return (
        sentence(clause(meant, passive=chance(rng, 0.2))),
        sentence(clause(said, passive=chance(rng, 0.5), time_first=chance(rng, 0.3))),
    )


def _swapped(meant: Event) -> Event:
    return meant._replace(subject=meant.object, object=meant.subject)


def similarity(rng: Random) -> tuple[Pair, float]:
    """Makes two captions and how much they have in common, from 0 to 5.

    Subject, verb and object count 1.5 each, the place 0.5. Annotators err by up to 0.4.
    """
    meant = event(rng, place=1.0, time=0.0)
    said, score = reworded(rng, meant), 5.0
    for slot in ("subject", "object"):
        if chance(rng, 0.45):
            said = said._replace(**{slot: other_phrase(rng, getattr(said, slot))})
            score -= 1.5
    if chance(rng, 0.45):
        said, score = said._replace(verb=other_verb(rng, said.verb)), score - 1.5
    if chance(rng, 0.5):
        said, score = said._replace(place=other(rng, PLACES, said.place)), score - 0.5
    score = min(max(score + rng.random() * 0.8 - 0.4, 0.0), 5.0)
    first, second = (
        sentence(clause(one, tense="progressive", passive=chance(rng, 0.1)))
        for one in (meant, said)
    )
    return (first, second), round(score, 2)


def duplicate(rng: Random, label: int) -> Pair:
    """Makes two questions that ask the same (1), or differ in what is asked or about what."""
    verb, goods = pick(rng, pick(rng, HANDLING)), thing(rng)
    intent = pick(rng, tuple(INTENTS))
    first = question_about(rng, intent, verb, goods)
    if label:
        verb, goods = same_verb(rng, verb), same_noun(rng, goods)
        rest = [form for form in INTENTS[intent] if form != first[0]]
        return first[1], question_about(rng, intent, verb, goods, forms=tuple(rest))[1]
    slot = pick(rng, ("intent", "intent", "verb", "object"))
    if slot == "intent":
        intent = other(rng, tuple(INTENTS), intent)
    verb = other_verb(rng, verb) if slot == "verb" else same_verb(rng, verb)
    goods = other_phrase(rng, goods) if slot == "object" else same_noun(rng, goods)
    return first[1], question_about(rng, intent, verb, goods)[1]


# What is asked, each in several forms: V is the verb, G its -ing form, N what it is about.
INTENTS = {
    "how": ("how can i V N", "what is the best way to V N", "please tell me how you would V N"),
    "price": ("how much does it cost to V N", "what is the price of G N"),
    "duration": ("how long does it take to V N", "how many hours do i need to V N"),
    "reason": ("why should i V N", "what is the reason for G N"),
    "time": ("when should i V N", "what is the best time to V N"),
    "who": ("who can V N", "do you know a person that can V N"),
    "where": ("where can i V N", "what is the best place for G N"),
}


def question_about(
    rng: Random, intent: str, verb: Verb, goods: Phrase, forms: tuple[str, ...] = ()
) -> tuple[str, str]:
    """Returns a form of one of the `INTENTS`, and the question in it."""
    form = pick(rng, forms or INTENTS[intent])
    what = noun_phrase(goods._replace(definite=False))
    words = {"V": verb.base, "G": verb.ing, "N": what}
    return form, sentence(*(words.get(word, word) for word in form.split()), end="?")


def inference(rng: Random, label: int) -> Pair:
    """Makes a premise and a hypothesis: entailed (0), open (1) or contradicted (2)."""
    subject = described(rng, being(rng), 0.5)._replace(
        number=pick(rng, (1, 1, 0, 2, 3, 4)), definite=False
    )
    meant = event(rng, place=0.3, time=0.0)._replace(subject=subject)
    if synonymous(meant.object.noun, subject.noun):
        meant = meant._replace(object=other_phrase(rng, meant.object))
    negated = chance(rng, 0.15)
    premise = sentence(clause(meant, tense="progressive", negated=negated))
    hypothesis = (_entailed, _open, _contradicted)[label](rng, meant, negated)
    return premise, sentence(hypothesis)


def _say(rng: Random, meant: Event, negated: bool = False) -> str:
    subject = meant.subject._replace(definite=chance(rng, 0.5))
    return clause(
        meant._replace(subject=subject), tense="progressive", negated=negated,
        passive=chance(rng, 0.15),
    )  # fmt: skip


def _entailed(rng: Random, meant: Event, negated: bool) -> str:
    said = reworded(rng, meant)
    if negated:  # less cannot be concluded from what does not happen
        return _say(rng, said, negated)
    if chance(rng, 0.5):
        said = said._replace(subject=said.subject._replace(adjective=""))
    if chance(rng, 0.5):
        said = said._replace(place="")
    slot = pick(rng, ("subject", "object", ""))
    if slot and getattr(said, slot).noun.kind != "name":
        said = said._replace(**{slot: generalised(getattr(said, slot))})
    return _say(rng, said)


def _open(rng: Random, meant: Event, negated: bool) -> str:
    said = reworded(rng, meant)
    change = pick(rng, ("verb", "object", "sleeper", "detail"))
    if change == "detail" and not negated:  # what is not done at all is not done in detail
        if said.object.noun.kind == "name":
            return _say(rng, said._replace(time=pick(rng, TIMES)))
        return _say(rng, said._replace(object=described(rng, said.object)))
    if change == "sleeper":
        return _asleep(other_phrase(rng, said.subject))
    if change == "verb":
        said = said._replace(verb=other_verb(rng, said.verb))
    else:
        said = said._replace(object=other_phrase(rng, said.object))
    # The opposite of something else is open too, and so "not" alone tells nothing.
    return _say(rng, said, chance(rng, 0.3))


def _asleep(who: Phrase) -> str:
    return f"{noun_phrase(who._replace(definite=True))} {'is' if who.singular else 'are'} sleeping"


def _contradicted(rng: Random, meant: Event, negated: bool) -> str:
    said, subject = reworded(rng, meant), meant.subject
    change = pick(rng, ("not", "number", "adjective", "action"))
    if negated or change == "not":
        return _say(rng, said, not negated)
    if change == "number" and subject.number > 1:
        numbers = range(2, 2 + len(NUMBERS))
        return _say(rng, said._replace(
            subject=said.subject._replace(number=other(rng, numbers, subject.number))
        ))  # fmt: skip
    if change == "adjective" and subject.adjective:
        changed_subject = opposite(rng, said.subject)
        return _say(rng, said._replace(subject=changed_subject._replace(definite=True)))
    return _asleep(said.subject)


def answer(rng: Random, label: int) -> Pair:
    """Makes a question and a sentence that answers it (1) or does not (0)."""
    asked = pick(rng, ("where", "when", "who", "what"))
    meant = event(rng, place=0.5, time=0.5)
    told = meant._replace(
        place=meant.place or pick(rng, PLACES), time=meant.time or pick(rng, TIMES)
    )
    if chance(rng, 0.4):  # a sentence need not tell all
        spare = {"where": "time", "when": "place"}.get(asked, pick(rng, ("place", "time")))
        told = told._replace(**{spare: ""})
    if not label:
        told = _unrelated(rng, told, asked)
    told = clause(reworded(rng, told), passive=chance(rng, 0.2), time_first=chance(rng, 0.2))
    return question(asked, meant), sentence(told)


def _unrelated(rng: Random, told: Event, asked: str) -> Event:
    slots = {"where": "place", "when": "time"}
    if asked in slots and chance(rng, 0.5):
        rest = {"place": "time", "time": "place"}[slots[asked]]
        filled = getattr(told, rest) or pick(rng, {"place": PLACES, "time": TIMES}[rest])
        return told._replace(**{slots[asked]: "", rest: filled})
    known = {"who": ("verb", "object"), "what": ("subject", "verb")}
    slot = pick(rng, known.get(asked, ("subject", "verb", "object")))
    if slot == "verb":
        return told._replace(verb=other_verb(rng, told.verb))
    while True:
        new = told._replace(**{slot: other_phrase(rng, getattr(told, slot))})
        if not synonymous(new.subject.noun, new.object.noun):
            return new


def question(asked: str, meant: Event) -> str:
    """Asks who, what, where or when."""
    who, what = noun_phrase(meant.subject), noun_phrase(meant.object)
    verb = meant.verb
    if asked == "who":
        return sentence("who", verb.past, what, end="?")
    if asked == "what":
        word = "what" if is_thing(meant.object) else "who"
        return sentence(word, "did", who, verb.base, end="?")
    return sentence(asked, "did", who, verb.base, what, end="?")


class Matrix(NamedTuple):
    """What somebody does about an action, and what follows from it.

    Attributes:
        past, base: the words, plain and after "did not".
        follows: 1 if the action happened, -1 if it did not, 0 if that is open.
        denied: the same when the words are negated.
    """

    past: str
    base: str
    follows: int
    denied: int


TO_DO = (
    Matrix("managed", "manage", 1, -1), Matrix("remembered", "remember", 1, -1),
    Matrix("chose", "choose", 1, -1), Matrix("forgot", "forget", -1, 1),
    Matrix("failed", "fail", -1, 1), Matrix("refused", "refuse", -1, 0),
    Matrix("declined", "decline", -1, 0), Matrix("wanted", "want", 0, 0),
    Matrix("hoped", "hope", 0, 0), Matrix("promised", "promise", 0, 0),
    Matrix("planned", "plan", 0, 0),
)  # fmt: skip
THAT = (
    Matrix("knew", "know", 1, 1), Matrix("regretted", "regret", 1, 1),
    Matrix("learned", "learn", 1, 1), Matrix("claimed", "claim", 0, 0),
    Matrix("believed", "believe", 0, 0), Matrix("thought", "think", 0, 0),
)  # fmt: skip


def entailment(rng: Random, label: int) -> Pair:
    """Makes a premise and a hypothesis that follows from it (1) or does not (0)."""
    while True:
        premise, meant, follows = report(rng)
        denies = chance(rng, 0.4)
        true = follows == (-1 if denies else 1)
        said = reworded(rng, meant)
        if chance(rng, 0.2):
            said, true = changed(rng, said), False
        if true == bool(label):
            return premise, sentence(clause(said, negated=denies))


def report(rng: Random) -> tuple[str, Event, int]:
    """Returns what somebody did about an event or said of it, the event, and whether it happened.

    That is 1 if it did, -1 if it did not, and 0 if that is open.
    """
    meant = event(rng, place=0.0, time=0.0)
    negated = chance(rng, 0.5)
    if chance(rng, 0.6):
        matrix = pick(rng, TO_DO)
        head = f"did not {matrix.base}" if negated else matrix.past
        what = f"{meant.verb.base} {noun_phrase(meant.object)}"
        text = sentence(noun_phrase(meant.subject), head, "to", what)
    else:
        matrix = pick(rng, THAT)
        head = f"did not {matrix.base}" if negated else matrix.past
        text = sentence(noun_phrase(person(rng)), head, "that", clause(meant))
    return text, meant, matrix.denied if negated else matrix.follows
