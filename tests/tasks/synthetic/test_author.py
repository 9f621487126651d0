"""What writers share: draws of words in the order in which they are written."""

import random

from metatoolkit.tasks.synthetic.author import Author, beside
from metatoolkit.tasks.synthetic.grammar import Grammar
from metatoolkit.tasks.synthetic.vocabulary import choice, zipf_choice

WORDS = {"noun": ["tree", "sea", "stone", "bread"]}


def test_words_are_drawn_one_after_the_other():
    author, rng = Author(Grammar(), WORDS, random.Random(5)), random.Random(5)
    for _ in range(20):
        assert author.frequent("noun") == zipf_choice(rng, WORDS["noun"])
        assert author.any_of("noun") == choice(rng, WORDS["noun"])
        assert author.chance(0.3) == (rng.random() < 0.3)


def test_frequent_words_come_first_in_the_vocabulary():
    author = Author(Grammar(), WORDS, random.Random(0))
    frequent = [author.frequent("noun") for _ in range(2000)]
    even = [author.any_of("noun") for _ in range(2000)]
    # 1/2 of 1/2 + 1/3 + 1/4 + 1/5, and a quarter.
    assert abs(frequent.count("tree") / 2000 - 30 / 77) < 0.04
    assert abs(even.count("tree") / 2000 - 0.25) < 0.04


def test_a_token_stands_before_or_behind_a_phrase():
    assert beside("old", ["stone", "bread"], True) == ["old", "stone", "bread"]
    assert beside("old", ["stone", "bread"], False) == ["stone", "bread", "old"]
