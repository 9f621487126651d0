"""Vocabularies of generated languages: words of their own sounds, cognates and names."""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from metatoolkit.randomness import Stream, fold_in

T = TypeVar("T")

_CONSONANTS = ("p", "b", "t", "d", "k", "g", "m", "n", "l", "r", "s", "z", "f", "v", "w", "y", "h")
_CLUSTERS = ("sh", "ch", "ng", "kw", "mb", "nd", "tr", "pl", "st", "gb")
_VOWELS = ("a", "e", "i", "o", "u")
_MARKED_VOWELS = ("á", "è", "ị", "ọ", "ú", "ẹ", "ö")
_SHAPES = ("CV", "CVC", "V")


@dataclass(frozen=True)
class Sounds:
    """What the words of a language are made of.

    Attributes:
        onsets: Consonants that begin a syllable, the common ones first.
        vowels: Vowels, the common ones first.
        codas: Consonants that may end a syllable.
        closed: Probability that a syllable ends in a consonant.
        changes: Sounds that words inherited from the common ancestor changed into.
    """

    onsets: tuple[str, ...]
    vowels: tuple[str, ...]
    codas: tuple[str, ...]
    closed: float
    changes: Mapping[str, str]

    def word(self, rng: random.Random, syllables: int) -> str:
        """Return a word.

        Args:
            rng: Source of randomness.
            syllables: Number of syllables.
        """
        parts = []
        for place in range(syllables):
            onset = zipf_choice(rng, self.onsets) if place or rng.random() < 0.85 else ""
            coda = choice(rng, self.codas) if rng.random() < self.closed else ""
            parts.append(onset + zipf_choice(rng, self.vowels) + coda)
        return "".join(parts)

    def inherit(self, word: str) -> str:
        """Return what a word of the common ancestor became.

        Args:
            word: The word.
        """
        return "".join(self.changes.get(letter, letter) for letter in word)


def choice(rng: random.Random, items: Sequence[T]) -> T:
    """Return an item, each with equal probability.

    Args:
        rng: Source of randomness; only ``random()`` is called, whose values Python guarantees.
        items: What to choose from.
    """
    return items[int(rng.random() * len(items))]


def zipf_choice(rng: random.Random, items: Sequence[T]) -> T:
    """Return an item, the one at place n with a probability proportional to 1/(n+2).

    Args:
        rng: Source of randomness.
        items: What to choose from, the most frequent first.
    """
    totals = _zipf_totals(len(items))
    return items[bisect.bisect_right(totals, rng.random() * totals[-1])]


def draw_sounds(seed: int, language: int) -> Sounds:
    """Return the sounds of a language.

    Args:
        seed: Seed of the family of languages.
        language: Number of the language.
    """
    rng = random.Random(fold_in(seed, Stream.SOUNDS, language))
    consonants = _subset(rng, _CONSONANTS, 10)
    changes = dict(zip(_subset(rng, _CONSONANTS, 4), _subset(rng, _CONSONANTS, 4), strict=True))
    changes |= {vowel: choice(rng, _VOWELS) for vowel in _subset(rng, _VOWELS, 1)}
    return Sounds(
        onsets=(*consonants, *_subset(rng, _CLUSTERS, 3)),
        vowels=(*_subset(rng, _VOWELS, 4), *_subset(rng, _MARKED_VOWELS, int(rng.random() * 3))),
        codas=tuple(consonants[:4]),
        closed=0.4 * rng.random(),
        changes=changes,
    )


def draw_vocabulary(
    concepts: Mapping[str, int], seed: int, language: int, cognates: float, loans: float = 0.0
) -> dict[str, list[str]]:
    """Return a word for each concept, no two of them alike.

    A share of the concepts has a loan word, the same in every language; of the rest a share has a
    word in a common ancestor, to which each language applies its sound changes; the others have
    words that each language made of its own sounds.

    Args:
        concepts: Number of concepts by category.
        seed: Seed of the family of languages.
        language: Number of the language.
        cognates: Share of concepts with an inherited word, from 0 to 1, where there is no loan.
        loans: Share of concepts with a loan word, from 0 to 1.
    """
    sounds = draw_sounds(seed, language)
    ancestor = draw_sounds(seed, -1)
    taken: set[str] = set()
    words: dict[str, list[str]] = {}
    for number, (category, count) in enumerate(concepts.items()):
        words[category] = []
        for concept in range(count):
            shared = random.Random(fold_in(seed, Stream.SHARED_WORDS, number, concept))
            own = random.Random(fold_in(seed, Stream.OWN_WORDS, number, concept, language))
            draw = shared.random()
            loan, inherited = draw < loans, draw < loans + (1 - loans) * cognates
            # Frequent words are short.
            syllables = 1 + (concept + count // 4 >= 4) + (shared.random() < 0.3)
            old = ancestor.word(shared, max(syllables, 2))
            if inherited:
                word = old if loan else sounds.inherit(old)
            else:
                word = sounds.word(own, syllables)
            while word in taken:
                word = sounds.word(own, syllables + 1)
            taken.add(word)
            words[category].append(word)
    return words


def draw_names(
    kinds: Mapping[str, int], seed: int, language: int, shared: float
) -> dict[str, list[str]]:
    """Return capitalized names, of which a share is the same in every language.

    Args:
        kinds: Number of names by kind.
        seed: Seed of the family of languages.
        language: Number of the language.
        shared: Share of names that all languages have in common, from 0 to 1.
    """
    names: dict[str, list[str]] = {}
    for number, (kind, count) in enumerate(kinds.items()):
        names[kind] = []
        for place in range(count):
            common = random.Random(fold_in(seed, Stream.SHARED_NAMES, number, place))
            everywhere = common.random() < shared
            # A shared name has its origin in one of several languages of the world.
            origin = 1000 + int(common.random() * 5) if everywhere else language
            own = random.Random(fold_in(seed, Stream.OWN_NAMES, number, place, language))
            rng = common if everywhere else own
            sounds = draw_sounds(seed, origin)
            names[kind].append(sounds.word(rng, 2 + (rng.random() < 0.4)).capitalize())
    return names


def _subset(rng: random.Random, items: Sequence[str], count: int) -> tuple[str, ...]:
    """Return some of the items, in random order."""
    return tuple(sorted(items, key=lambda item: rng.random())[:count])


@functools.cache
def _zipf_totals(count: int) -> list[float]:
    return list(itertools.accumulate(1 / (place + 2) for place in range(count)))
