from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from typing import Any

import pytest

from metatoolkit.errors import ConfigurationError
from metatoolkit.tasks import Corpus, Sentence, common_labels, generated_languages
from metatoolkit.tasks.synthetic.grammar import Grammar, draw_grammar
from metatoolkit.tasks.synthetic.vocabulary import draw_names, draw_vocabulary, zipf_choice

SMALL: dict[str, int] = {"train": 300, "dev": 40, "test": 60}


def family(count: int = 2, seed: int = 0, **options: Any) -> list[Corpus]:
    return list(generated_languages(count, seed, **{**SMALL, **options}).values())


def fingerprint(corpora: list[Corpus]) -> str:
    text = repr([[corpus.language, dict(corpus.splits), corpus.labels] for corpus in corpora])
    return hashlib.sha256(text.encode()).hexdigest()


def words_of(corpus: Corpus) -> set[str]:
    return {word for sentence in corpus["train"] for word in sentence.words if word.isalpha()}


def test_the_same_text_on_every_machine() -> None:
    # The hash is not derived: it holds that no later change alters published numbers unseen.
    assert fingerprint(family(3, 1)) == PUBLISHED
    assert fingerprint(family(3, 2)) != PUBLISHED


def test_a_language_does_not_depend_on_how_many_there_are() -> None:
    few, many = family(2), family(4)
    assert fingerprint(few) == fingerprint(many[:2])


def test_splits_have_their_size_and_share_no_sentence() -> None:
    for corpus in family():
        assert {split: len(part) for split, part in corpus.splits.items()} == SMALL
        sentences = [sentence.words for part in corpus.splits.values() for sentence in part]
        assert len(set(sentences)) == sum(SMALL.values())


def test_tags_are_bio_and_of_every_type() -> None:
    corpora = family(3)
    assert len(common_labels(corpora)) == 9
    for corpus in corpora:
        counts: Counter[str] = Counter()
        for sentence in corpus["train"]:
            assert isinstance(sentence, Sentence)
            for before, tag in zip(("O", *sentence.tags), sentence.tags, strict=False):
                if tag[0] == "I":
                    assert before[1:] == tag[1:]
            counts.update(sentence.tags)
        assert min(counts[label] for label in corpus.labels) > 10
        assert 0.4 < counts["O"] / sum(counts.values()) < 0.8


def test_vocabularies_differ_but_for_shared_names_and_cognates() -> None:
    def overlap(**options: float) -> float:
        first, second = (words_of(corpus) for corpus in family(**options))
        return len(first & second) / min(len(first), len(second))

    nothing = overlap(cognates=0.0, shared_names=0.0)
    names = overlap(cognates=0.0, shared_names=1.0)
    assert nothing < 0.05
    assert nothing + 0.1 < overlap(cognates=0.0, shared_names=0.5) < names


def test_the_share_of_names_is_what_was_asked_for() -> None:
    kinds = {"city": 2000}
    for shared in (0.0, 0.3, 1.0):
        first, second = (draw_names(kinds, 5, language, shared)["city"] for language in (0, 1))
        same = sum(a == b for a, b in zip(first, second, strict=True)) / 2000
        # A binomial share; 0.04 is four standard deviations, and chance hits are rare.
        assert abs(same - shared) < 0.04


def similarity(first: str, second: str) -> float:
    """Return the share of letters that two words have at the same places."""
    pairs = list(itertools.zip_longest(first, second))
    return sum(a == b for a, b in pairs) / len(pairs)


def test_words_of_common_origin_resemble_each_other() -> None:
    concepts = {"noun": 400}

    def resemblance(cognates: float) -> float:
        first, second = (draw_vocabulary(concepts, 5, n, cognates)["noun"] for n in (0, 1))
        return sum(map(similarity, first, second)) / 400

    assert resemblance(0.0) < 0.2
    assert resemblance(1.0) > 0.4
    assert resemblance(0.0) < resemblance(0.5) < resemblance(1.0)


@pytest.mark.parametrize("loans", [0.0, 0.3, 1.0])
def test_the_share_of_loan_words(loans: float) -> None:
    first, second = (draw_vocabulary({"noun": 1000}, 5, n, 0.0, loans)["noun"] for n in (0, 1))
    same = sum(a == b for a, b in zip(first, second, strict=True)) / 1000
    # Words of another origin are alike now and then, and loans that are taken are replaced.
    assert abs(same - loans) < 0.06


def test_no_word_means_two_things() -> None:
    words = draw_vocabulary({"noun": 200, "verb": 200}, 1, 0, 0.5)
    assert len({*words["noun"], *words["verb"]}) == 400


def test_word_order_changes_with_its_probability() -> None:
    assert draw_grammar(3, 0, 1.0) == Grammar()
    assert all(draw_grammar(3, n, 0.0) == Grammar() for n in range(5))
    opposite = draw_grammar(3, 1, 1.0)
    assert opposite.verb != "middle"
    fields = ("adjective_first", "preposition", "owner_first", "title_first", "prefixes")
    assert all(getattr(opposite, name) != getattr(Grammar(), name) for name in fields)
    changed = sum(not draw_grammar(n, 1, 0.3).preposition for n in range(1000)) / 1000
    assert abs(changed - 0.3) < 0.06


def test_the_grammar_shows_in_the_text() -> None:
    def subject_first(corpus: Corpus) -> float:
        """Return how often a sentence begins with a person, rather than with a verb."""
        starts = [sentence.tags[0] for sentence in corpus["train"]]
        return starts.count("B-PER") / len(starts)

    by_order: dict[str, list[float]] = {"first": [], "middle": [], "last": []}
    for seed in range(4):
        for number, corpus in enumerate(family(2, seed, word_order=1.0, train=200)):
            by_order[draw_grammar(seed, number, 1.0).verb].append(subject_first(corpus))
    assert by_order["first"]
    assert by_order["last"]
    assert max(by_order["first"]) < 0.1
    assert min(by_order["middle"] + by_order["last"]) > 0.15


def test_names_alone_do_not_tell_the_type() -> None:
    corpus = family(1, train=2000)[0]
    types: dict[str, set[str]] = {}
    for sentence in corpus["train"]:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            if word[0].isupper():
                types.setdefault(word, set()).add(tag[2:])
    counts = Counter(word for s in corpus["train"] for word in s.words)
    frequent = [word for word in types if counts[word] >= 10]
    ambiguous = sum(len(types[word]) > 1 for word in frequent) / len(frequent)
    assert ambiguous > 0.3


def test_frequencies_follow_zipf() -> None:
    rng = random.Random(1)
    draws = Counter(zipf_choice(rng, "abcd") for _ in range(20000))
    total = sum(1 / (place + 2) for place in range(4))
    for place, letter in enumerate("abcd"):
        expected = 1 / (place + 2) / total
        assert abs(draws[letter] / 20000 - expected) < 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"train": 2.5}, "train is 2.5"),
        ({"dev": True}, "dev is True"),
        ({"test": -1}, "test is -1"),
        ({"cognates": 1.5}, r"cognates is 1\.5; a number from 0 to 1"),
        ({"shared_names": -0.1}, "shared_names"),
        ({"word_order": float("nan")}, "word_order is nan"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        generated_languages(**options)


PUBLISHED = "49e1fe2db735dcfff7222f87264202feaebc389c15c092f21c61f24f0af77744"
