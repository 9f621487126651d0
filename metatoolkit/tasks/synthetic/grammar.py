"""Grammars of generated languages: one set of rules, with parameters that languages differ in."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from metatoolkit.errors import ConfigurationError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks.languages.corpus import Corpus, Example
from metatoolkit.tasks.synthetic.vocabulary import choice

T = TypeVar("T", bound=Hashable)
Token = TypeVar("Token")
# Takes the generator of a split and returns what writes one example of it.
Writer = Callable[[random.Random], Callable[[], Example]]


@dataclass(frozen=True)
class Grammar:
    """In what order a language says things.

    Attributes:
        verb: Place of the verb: ``"first"``, ``"middle"`` or ``"last"``.
        adjective_first: Whether an adjective comes before its noun.
        preposition: Whether prepositions come before their noun phrase, or after it.
        owner_first: Whether a city comes before the institution that is in it.
        title_first: Whether a title comes before the name.
        prefixes: Whether verbs and nouns are inflected in front, or behind.
        negation_first: Whether a negation comes before the word that it negates.
    """

    verb: str = "middle"
    adjective_first: bool = True
    preposition: bool = True
    owner_first: bool = False
    title_first: bool = True
    prefixes: bool = False
    negation_first: bool = True

    def clause(self, subject: list[Token], verb: list[Token], rest: list[Token]) -> list[Token]:
        """Return a clause with its verb in its place.

        Args:
            subject: Tokens of the subject.
            verb: Those of the verb.
            rest: What follows, but for the verb.
        """
        parts = {
            "first": [verb, subject, rest],
            "middle": [subject, verb, rest],
            "last": [subject, rest, verb],
        }
        return [token for part in parts[self.verb] for token in part]


def draw_grammar(seed: int, language: int, word_order: float) -> Grammar:
    """Return the grammar of a language; language 0 has the default one.

    Args:
        seed: Seed of the family of languages.
        language: Number of the language.
        word_order: Probability that a parameter differs from that of language 0.
    """
    first = Grammar()
    if language == 0:
        return first
    rng = random.Random(fold_in(seed, Stream.GRAMMAR, language))

    def flipped(value: bool) -> bool:
        return value != (rng.random() < word_order)

    return Grammar(
        verb=choice(rng, ("first", "last")) if rng.random() < word_order else first.verb,
        adjective_first=flipped(first.adjective_first),
        preposition=flipped(first.preposition),
        owner_first=flipped(first.owner_first),
        title_first=flipped(first.title_first),
        prefixes=flipped(first.prefixes),
        negation_first=flipped(first.negation_first),
    )


def write_corpora(
    count: int,
    seed: int,
    word_order: float,
    sizes: Mapping[str, int],
    speak: Callable[[int, Grammar], Writer],
    labels: Sequence[str],
    stream: Stream,
) -> dict[str, Corpus]:
    """Write a corpus in each language of a family; no example occurs twice in a language.

    Args:
        count: Number of languages.
        seed: Seed of the family.
        word_order: As in :func:`draw_grammar`.
        sizes: Number of examples by split.
        speak: Called with the number of a language and its grammar; returns its writer.
        labels: Labels that the examples may have.
        stream: What tells the draws of these examples from others of the same seed.

    Returns:
        The corpora by name, ``generated-0`` on.
    """
    corpora = {}
    for number in range(count):
        writer = speak(number, draw_grammar(seed, number, word_order))
        seen: set[Example] = set()
        splits = {}
        for place, (split, size) in enumerate(sizes.items()):
            rng = random.Random(fold_in(seed, stream, number, place))
            splits[split] = distinct(writer(rng), size, seen)
        name = f"generated-{number}"
        corpora[name] = Corpus(name, splits, labels)
    return corpora


def distinct(write: Callable[[], T], count: int, seen: set[T]) -> list[T]:
    """Return examples that were not seen before.

    Args:
        write: Returns an example.
        count: Number of examples.
        seen: Examples that were seen; the new ones are added.
    """
    examples: list[T] = []
    while len(examples) < count:
        example = write()
        if example not in seen:
            seen.add(example)
            examples.append(example)
    return examples


def check_shares(**shares: float) -> None:
    """Raise unless numbers lie between 0 and 1.

    Args:
        shares: Numbers by the name of their argument.

    Raises:
        ConfigurationError: One does not.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigurationError(f"{name} is {share!r}; a number from 0 to 1 is needed.")
