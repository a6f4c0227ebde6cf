"""The embedded language world: its texts, and that labels follow from them."""

import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from experiments.tiny import language_corpus as corpus
from experiments.tiny import language_pairs as pairs
from experiments.tiny import language_words as words
from experiments.tiny import language_world as world
from experiments.tiny.language_grammar import (
    Event,
    Phrase,
    article,
    clause,
    generalised,
    noun_phrase,
    opposite,
    synonymous,
)
from symerge_jax.errors import BadInput

every_task = pytest.mark.parametrize("name", world.TASKS)


def noun(word):
    groups = [*words.NAMES, *(g for groups in words.KINDS.values() for g in groups)]
    return next(n for group in groups for n in group if n.word == word)


def verb(base):
    return next(v for group in (*words.HANDLING, *words.MEETING) for v in group if v.base == base)


@pytest.fixture(scope="module")
def written():
    """Some examples of each task."""
    return {
        name: {
            split: world.examples(name, split=split, count=count)
            for split, count in (("train", 300), ("test", 100))
        }
        for name in world.TASKS
    }


CHASE = Event(
    Phrase(noun("dog"), "old", number=2),
    verb("chase"),
    Phrase(noun("anna")),
    "in the park",
    "at noon",
)


def test_an_event_is_said_in_several_ways():
    assert clause(CHASE) == "the two old dogs chased anna in the park at noon"
    assert clause(CHASE, passive=True) == "anna was chased by the two old dogs in the park at noon"
    assert clause(CHASE, negated=True, time_first=True) == (
        "at noon the two old dogs did not chase anna in the park"
    )
    assert clause(CHASE, tense="progressive", negated=True) == (
        "the two old dogs are not chasing anna in the park at noon"
    )
    assert clause(CHASE, tense="progressive", passive=True) == (
        "anna is being chased by the two old dogs in the park at noon"
    )


def test_noun_phrases_agree_in_number():
    assert noun_phrase(Phrase(noun("pear"), "old", definite=False)) == "an old pear"
    assert noun_phrase(Phrase(noun("mouse"), number=0, definite=False)) == "some mice"
    assert noun_phrase(Phrase(noun("dress"), number=3, definite=False)) == ("three dresses")
    assert noun_phrase(generalised(Phrase(noun("doctor"), number=0))) == "the people"
    assert article("animal") == "an"


def test_words_have_synonyms_and_opposites():
    assert synonymous(noun("dog"), noun("hound"))
    assert not synonymous(noun("dog"), noun("cat"))
    assert synonymous(verb("buy"), verb("purchase"))
    assert opposite(Random(0), Phrase(noun("pear"), "expensive")).adjective == "cheap"
    assert opposite(Random(0), Phrase(noun("doctor"), "old")).adjective == "young"
    assert opposite(Random(0), Phrase(noun("pear"), "red")).adjective in set(words.COLOURS) - {
        "red"
    }


def test_regular_and_irregular_forms_are_right():
    assert tuple(verb("watch")) == ("watch", "watches", "watched", "watched", "watching")
    assert tuple(verb("chase")) == ("chase", "chases", "chased", "chased", "chasing")
    assert tuple(verb("steal")) == ("steal", "steals", "stole", "stolen", "stealing")
    assert noun("box").plural == "boxes"
    assert noun("wolf").plural == "wolves"


@every_task
def test_the_same_arguments_give_the_same_examples(name):
    first, second = (world.examples(name, split="test", count=20, seed=3) for _ in range(2))
    assert first.texts == second.texts
    np.testing.assert_array_equal(first.labels, second.labels)
    assert world.examples(name, split="test", count=20, seed=4).texts != first.texts


@every_task
def test_no_text_stands_twice_and_no_first_sentence_in_both_splits(name, written):
    train, test = (written[name][split].texts for split in ("train", "test"))
    assert len({*train, *test}) == len(train) + len(test)
    assert not {text[0] for text in train} & {text[0] for text in test}


@every_task
def test_classes_have_their_shares(name, written):
    kind, found = world.KINDS[name], written[name]["train"]
    if kind.regression:
        assert found.labels.dtype == np.float32
        assert found.labels.min() >= 0
        assert found.labels.max() <= 5
        assert found.labels.std() > 1
        return
    assert found.labels.dtype == np.int32
    shares = np.array(kind.shares or [1] * len(kind.classes))
    counts = np.bincount(found.labels, minlength=len(kind.classes))
    np.testing.assert_allclose(counts, 300 * shares / shares.sum(), atol=2)


def test_tokens_frame_sentences_as_roberta_does():
    ids = world.IDS
    row = world.tokens([("the dog .", "a cat ?")], length=12)[0]
    assert row.tolist() == [
        0, ids["the"], ids["dog"], ids["."], 2, 2, ids["a"], ids["cat"], ids["?"], 2, 1, 1,
    ]  # fmt: skip
    with pytest.raises(BadInput, match="'gnu' is unknown"):
        world.tokens([("the gnu .",)])
    with pytest.raises(BadInput, match="at most 4 tokens, got 5"):
        world.tokens([("the dog .",)], length=4)


@every_task
def test_all_words_are_known_and_all_texts_fit(name, written):
    for found in written[name].values():
        tokens = world.tokens(found.texts)
        assert tokens.shape == (len(found.texts), world.LENGTH)
        assert tokens.max() < world.MASK


def test_an_unknown_task_is_refused():
    with pytest.raises(BadInput, match="expected a task of grammar"):
        world.examples("cola", split="test", count=1)


# --- labels, found again from the texts by other means ------------------------------------------


def speaks_well(text):
    """The polarity of a clause: that of its one opinion word, turned around by each negation."""
    good = {*words.GOOD, *(f for g in words.LIKING for v in g for f in v)}
    bad = {*words.BAD, *(f for g in words.DISLIKING for v in g for f in v)}
    (word,) = [w for w in text.split() if w in good | bad]
    turns = len(re.findall(r"\b(not|nobody)\b", text))
    return (word in good) ^ (turns % 2 == 1)


def main_clause(text):
    text = text.removesuffix(" .")
    if text.startswith("although "):
        return text.split(" , ")[1]
    if " , but " in text:
        return text.split(" , but ")[1]
    return text.split(" , although ")[0]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("the film was not bad .", True),
        ("it is a dull story .", False),
        ("although i hated the music , nobody could dislike the room .", True),
        ("the meal was not poor , although the service was awful .", True),
        ("i enjoyed the book , but the story was not very great .", False),
    ],
)
def test_the_rules_of_opinion_by_hand(text, good):
    assert speaks_well(main_clause(text)) == good


def test_sentiment_is_that_of_the_main_clause(written):
    for split in written["sentiment"].values():
        for (text,), label in zip(split.texts, split.labels, strict=True):
            assert speaks_well(main_clause(text)) == label, text


def test_what_follows_from_a_promise_by_hand():
    matrices = {m.past: m for m in (*pairs.TO_DO, *pairs.THAT)}
    assert (matrices["forgot"].follows, matrices["forgot"].denied) == (-1, 1)
    assert (matrices["managed"].follows, matrices["managed"].denied) == (1, -1)
    assert (matrices["knew"].follows, matrices["knew"].denied) == (1, 1)
    assert (matrices["hoped"].follows, matrices["hoped"].denied) == (0, 0)


def test_nothing_follows_from_hopes_and_claims(written):
    open_ = {w for m in (*pairs.TO_DO, *pairs.THAT) if m.follows == m.denied == 0 for w in m[:2]}
    found = written["entailment"]["train"]
    labels = [
        label
        for (premise, _), label in zip(found.texts, found.labels, strict=True)
        if open_ & set(re.split(r" (?:to|that) ", premise)[0].split())
    ]
    assert len(labels) > 20
    assert set(labels) == {0}


def test_a_sentence_answers_where_and_when_only_if_it_tells_them(written):
    phrases = {"where": words.PLACES, "when": words.TIMES}
    found = written["answer"]["train"]
    told = Counter()
    for (question, text), label in zip(found.texts, found.labels, strict=True):
        asked = question.split()[0]
        if asked in phrases:
            tells = any(phrase in text for phrase in phrases[asked])
            assert tells or not label, text
            told[tells, int(label)] += 1
    assert min(told[True, 1], told[True, 0], told[False, 0]) > 10


def test_both_signs_of_inference_use_negation(written):
    found = written["inference"]["train"]
    negated = Counter(
        int(label)
        for (_, hypothesis), label in zip(found.texts, found.labels, strict=True)
        if " not " in hypothesis
    )
    assert min(negated[label] for label in range(3)) > 5


def slots(caption):
    """What a caption says: subject, verb, object and place, each by the first of its synonyms."""
    first = {
        form: group[0].word
        for groups in words.KINDS.values()
        for group in groups
        for noun in group
        for form in noun[:2]
    }
    first |= {
        form: group[0].base
        for group in (*words.HANDLING, *words.MEETING)
        for verb in group
        for form in verb
    }
    passive = re.fullmatch(r"the (\w+) is being (\w+) by the (\w+) (.*) \.", caption)
    if passive:
        patient, verb, subject, place = passive.groups()
    else:
        active = re.fullmatch(r"the (\w+) is (\w+) the (\w+) (.*) \.", caption)
        subject, verb, patient, place = active.groups()
    return first[subject], first[verb], first[patient], place


def test_similarity_counts_what_captions_have_in_common(written):
    for (one, two), score in zip(*written["similarity"]["train"], strict=True):
        compared = zip(slots(one), slots(two), (1.5, 1.5, 1.5, 0.5), strict=True)
        common = sum(weight for x, y, weight in compared if x == y)
        assert abs(score - common) <= 0.401, (one, two)


def test_bags_of_words_do_not_solve_paraphrase():
    from sklearn.linear_model import LogisticRegression

    def bags(found):
        tokens = world.tokens(found.texts)
        second = np.cumsum(tokens == world.END, axis=1) > 1  # from the second </s> on
        counts = np.zeros((len(tokens), 2, world.VOCABULARY), np.float32)
        for row, (ids, part) in enumerate(zip(tokens, second.astype(int), strict=True)):
            np.add.at(counts[row], (part, ids), 1)
        return counts.reshape(len(tokens), -1)

    train = world.examples("paraphrase", split="train", count=1200)
    test = world.examples("paraphrase", split="test", count=400)
    fitted = LogisticRegression(C=0.1, max_iter=200).fit(bags(train), train.labels)
    assert fitted.score(bags(test), test.labels) < 0.65


# --- what the base reads ------------------------------------------------------------------------


def test_the_corpus_is_repeatable_and_known():
    texts, sense = corpus.texts(300, longest=world.LENGTH, seed=1)
    again, same = corpus.texts(300, longest=world.LENGTH, seed=1)
    assert texts == again
    np.testing.assert_array_equal(sense, same)
    assert world.tokens(texts).max() < world.MASK
    assert 0.6 < sense.mean() < 0.75


def test_statements_about_numbers_and_kinds_make_sense_if_they_are_true():
    seen = Counter()
    kinds = {n.plural: kind for kind, groups in words.KINDS.items() for g in groups for n in g}
    alls = {noun.plural: kind for kind, noun in words.KIND_NOUNS.items()}
    for text, sense in zip(*corpus.texts(4000, longest=world.LENGTH, seed=2), strict=True):
        parts = text[0].split()
        if parts[0] in words.NUMBERS and "same" in parts:
            seen["number"] += 1
            assert ((parts[0] == parts[-2]) == ("not" not in parts)) == sense, text
        if len(parts) == 4 and parts[1] == "are" and parts[2] in alls:
            seen["kind"] += 1
            assert (kinds[parts[0]] == alls[parts[2]]) == sense, text
    assert min(seen["number"], seen["kind"]) > 20
