"""What writers of generated text have in common: a grammar, a vocabulary and draws from them."""

from __future__ import annotations

import random
from typing import TypeVar

from metatoolkit.tasks.synthetic.grammar import Grammar
from metatoolkit.tasks.synthetic.vocabulary import choice, zipf_choice

Token = TypeVar("Token")


class Author:
    """Writes in one language.

    Args:
        grammar: Grammar of the language.
        words: Words by category, the frequent ones first.
        rng: Source of randomness; each method draws in the order of its words.
    """

    def __init__(self, grammar: Grammar, words: dict[str, list[str]], rng: random.Random) -> None:
        self.grammar = grammar
        self.words = words
        self.rng = rng

    def chance(self, probability: float) -> bool:
        """Return whether something happens.

        Args:
            probability: How likely it is.
        """
        return self.rng.random() < probability

    def frequent(self, category: str) -> str:
        """Return a word, frequent ones more often.

        Args:
            category: Category of the word.
        """
        return zipf_choice(self.rng, self.words[category])

    def any_of(self, category: str) -> str:
        """Return a word, each with equal probability.

        Args:
            category: Category of the word.
        """
        return choice(self.rng, self.words[category])


def beside(token: Token, phrase: list[Token], first: bool) -> list[Token]:
    """Return a phrase with a token before or behind it.

    Args:
        token: The token.
        phrase: The phrase.
        first: Whether the token comes before.
    """
    return [token, *phrase] if first else [*phrase, token]
