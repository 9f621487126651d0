"""Generated reviews with their sentiment, in languages that share a grammar and few words."""

from __future__ import annotations

from metatoolkit.randomness import Stream
from metatoolkit.tasks.languages.corpus import Corpus, Document, check_sizes
from metatoolkit.tasks.synthetic.author import Author, beside
from metatoolkit.tasks.synthetic.grammar import (
    Grammar,
    Writer,
    check_shares,
    write_corpora,
)
from metatoolkit.tasks.synthetic.vocabulary import choice, draw_vocabulary

SENTIMENTS = ("negative", "positive")
_CONCEPTS = {
    "determiner": 3,
    "copula": 1,
    "negation": 2,
    "contrast": 1,
    "intensifier": 8,
    "noun": 100,
    "positive": 60,
    "negative": 60,
    "neutral": 60,
    "doing": 60,
}


def generated_reviews(
    count: int = 2,
    seed: int = 0,
    *,
    cognates: float = 0.2,
    loans: float = 0.3,
    word_order: float = 0.3,
    train: int = 1000,
    dev: int = 150,
    test: int = 300,
) -> dict[str, Corpus]:
    """Generate reviews in languages that share a grammar and little else.

    A review states good, bad and neutral things of its subject. A negation turns what it negates
    around, and what follows a "but" counts twice; the sum makes the label, so that counting
    positive and negative words is not enough.

    Args:
        count: Number of languages.
        seed: Seed of everything: equal arguments give equal corpora on every machine.
        cognates: Share of words with a common origin, from 0 to 1, among those that are no loans.
        loans: Share of words that are the same in all languages, from 0 to 1.
        word_order: Probability that a language differs from the first one in a parameter of the
            grammar, from 0 to 1.
        train: Documents in the training split of each language.
        dev: Documents in the split ``dev``, to choose settings by.
        test: Documents in the test split.

    Returns:
        One corpus per language, ``generated-0`` on, with the labels ``negative`` and ``positive``,
        each with about half of the documents; no document occurs twice in a language.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> corpora = generated_reviews(count=2, train=10, dev=5, test=5)
        >>> [len(corpus["train"]) for corpus in corpora.values()]
        [10, 10]
    """
    sizes = {"train": train, "dev": dev, "test": test}
    check_sizes(count=count, **sizes)
    check_shares(cognates=cognates, loans=loans, word_order=word_order)

    def speak(number: int, grammar: Grammar) -> Writer:
        words = draw_vocabulary(_CONCEPTS, seed, number, cognates, loans)
        return lambda rng: _Reviewer(grammar, words, rng).write

    return write_corpora(
        count, seed, word_order, sizes, speak, list(SENTIMENTS), stream=Stream.REVIEWS
    )


class _Reviewer(Author):
    """Writes reviews in one language; a statement is words and what they count."""

    def write(self) -> Document:
        mood = choice(self.rng, (-1, 1))
        total = 0
        # A review without a verdict is written again.
        while total == 0:
            sentences = []
            total = 0
            for _ in range(2 + int(3 * self.rng.random())):
                words, value = self.sentence(mood)
                sentences.append(" ".join([words[0].capitalize(), *words[1:]]) + " .")
                total += value
        return Document(" ".join(sentences), SENTIMENTS[total > 0])

    def sentence(self, mood: int) -> tuple[list[str], int]:
        if self.chance(0.3):
            return self.remark(), 0
        words, value = self.verdict(mood)
        if self.chance(0.25):
            second, decisive = self.verdict(mood)
            return [*words, self.words["contrast"][0], *second], value + 2 * decisive
        return words, value

    def verdict(self, mood: int) -> tuple[list[str], int]:
        value = mood if self.chance(0.75) else -mood
        negated = self.chance(0.25)
        polarity = SENTIMENTS[(value > 0) != negated]
        said = [self.frequent(polarity)]
        if self.chance(0.3):
            intensifier = self.any_of("intensifier")
            said = beside(intensifier, said, self.grammar.adjective_first)
        if negated:
            negation = self.any_of("negation")
            said = beside(negation, said, self.grammar.negation_first)
        subject, copula = self.thing(), self.words["copula"]
        return self.grammar.clause(subject, copula, said), value

    def remark(self) -> list[str]:
        verb = [self.frequent("doing")]
        first, second = self.thing(), self.thing()
        return self.grammar.clause(first, verb, second)

    def thing(self) -> list[str]:
        words = [self.frequent("noun")]
        if self.chance(0.3):
            neutral = self.frequent("neutral")
            words = beside(neutral, words, self.grammar.adjective_first)
        return [self.any_of("determiner"), *words]
