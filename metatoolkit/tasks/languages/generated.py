"""Generated languages: one grammar with parameters, and another vocabulary for each language."""

from __future__ import annotations

import random
from dataclasses import dataclass

from metatoolkit.errors import ConfigurationError
from metatoolkit.randomness import fold_in
from metatoolkit.tasks.languages.corpus import SPLITS, Corpus, Sentence, bio_labels
from metatoolkit.tasks.languages.vocabulary import (
    choice,
    draw_names,
    draw_vocabulary,
    zipf_choice,
)

ENTITY_TYPES = ("DATE", "LOC", "ORG", "PER")
_CONCEPTS = {
    "determiner": 3,
    "preposition": 4,
    "conjunction": 2,
    "noun": 80,
    "verb": 50,
    "saying": 8,
    "moving": 8,
    "adjective": 30,
    "adverb": 12,
    "title": 10,
    "institution": 12,
    "district": 6,
    "month": 12,
    "weekday": 7,
    "period": 4,
    "distance": 3,
    "affix": 6,
}
_NAMES = {"given": 80, "family": 150, "city": 120, "company": 60}

Tokens = list[tuple[str, str]]


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
    """

    verb: str = "middle"
    adjective_first: bool = True
    preposition: bool = True
    owner_first: bool = False
    title_first: bool = True
    prefixes: bool = False


def generated_languages(
    count: int = 2,
    seed: int = 0,
    *,
    cognates: float = 0.2,
    shared_names: float = 0.4,
    word_order: float = 0.3,
    train: int = 1000,
    dev: int = 150,
    test: int = 300,
) -> dict[str, Corpus]:
    """Generate named-entity corpora in languages that share a grammar and little else.

    Sentences are news-like clauses with people, organizations, places and dates. Languages differ
    in their words, in word order and in inflection; a share of the words has a common origin and a
    share of the names is the same everywhere, as in related languages.

    Args:
        count: Number of languages.
        seed: Seed of everything: equal arguments give equal corpora on every machine.
        cognates: Share of words with a common origin, from 0 to 1.
        shared_names: Share of names that are the same in all languages, from 0 to 1.
        word_order: Probability that a language differs from the first one in a parameter of the
            grammar, from 0 to 1.
        train: Sentences in the training split of each language.
        dev: Sentences in the development split.
        test: Sentences in the test split.

    Returns:
        One corpus per language, ``generated-0`` on, all with the types DATE, LOC, ORG and PER; no
        sentence occurs twice in a language.

    Raises:
        ConfigurationError: A number is out of range.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    _check_numbers({"count": count, **sizes})
    _check_shares({"cognates": cognates, "shared_names": shared_names, "word_order": word_order})
    corpora = {}
    for number in range(count):
        grammar = draw_grammar(seed, number, word_order)
        words = draw_vocabulary(_CONCEPTS, seed, number, cognates)
        names = draw_names(_NAMES, seed, number, shared_names)
        seen: set[tuple[str, ...]] = set()
        splits = {}
        for place, split in enumerate(SPLITS):
            rng = random.Random(fold_in(seed, 6, number, place))
            writer = _Writer(grammar, words, names, rng)
            splits[split] = _distinct(writer, sizes[split], seen)
        name = f"generated-{number}"
        corpora[name] = Corpus(name, splits, bio_labels(ENTITY_TYPES))
    return corpora


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
    rng = random.Random(fold_in(seed, 7, language))

    def flipped(value: bool) -> bool:
        return value != (rng.random() < word_order)

    return Grammar(
        verb=choice(rng, ("first", "last")) if rng.random() < word_order else first.verb,
        adjective_first=flipped(first.adjective_first),
        preposition=flipped(first.preposition),
        owner_first=flipped(first.owner_first),
        title_first=flipped(first.title_first),
        prefixes=flipped(first.prefixes),
    )


class _Writer:
    """Writes sentences in one language; each method returns words with their tags."""

    def __init__(
        self,
        grammar: Grammar,
        words: dict[str, list[str]],
        names: dict[str, list[str]],
        rng: random.Random,
    ) -> None:
        self.grammar = grammar
        self.words = words
        self.names = names
        self.rng = rng

    def sentence(self) -> Sentence:
        tokens = self.clause()
        if self.rng.random() < 0.3:
            tokens += [(self.words["conjunction"][0], "O"), *self.clause()]
        first, tag = tokens[0]
        tokens[0] = first[:1].upper() + first[1:], tag
        tokens.append((".", "O"))
        words, tags = zip(*tokens, strict=True)
        return Sentence(words, tags)

    def clause(self) -> Tokens:
        kind = zipf_choice(self.rng, ("doing", "saying", "moving", "plain"))
        if kind == "saying":
            subject = self.person() if self.chance(0.7) else self.organization()
            tokens = self.ordered(subject, "saying", self.noun_phrase())
        elif kind == "moving":
            subject = self.person() if self.chance(0.7) else self.noun_phrase()
            tokens = self.ordered(subject, "moving", self.at(0, self.place()))
        elif kind == "doing":
            subject = self.organization() if self.chance(0.5) else self.person()
            target = self.noun_phrase() if self.chance(0.6) else self.someone()
            tokens = self.ordered(subject, "verb", target)
        else:
            tokens = self.ordered(self.noun_phrase(), "verb", self.noun_phrase())
        if kind != "moving" and self.chance(0.3):
            tokens += self.at(1, self.place())
        if self.chance(0.3):
            date = self.date()
            tokens = [*date, (",", "O"), *tokens] if self.chance(0.4) else tokens + date
        return tokens

    def ordered(self, subject: Tokens, verb: str, rest: Tokens) -> Tokens:
        plural = subject[0][1] == "O" and self.chance(0.3)
        acting: Tokens = [(self.inflect(zipf_choice(self.rng, self.words[verb]), plural), "O")]
        if self.chance(0.2):
            acting.append((zipf_choice(self.rng, self.words["adverb"]), "O"))
        parts = {
            "first": [acting, subject, rest],
            "middle": [subject, acting, rest],
            "last": [subject, rest, acting],
        }
        return [token for part in parts[self.grammar.verb] for token in part]

    def someone(self) -> Tokens:
        return self.person() if self.chance(0.5) else self.organization()

    def noun_phrase(self) -> Tokens:
        noun = self.inflect(zipf_choice(self.rng, self.words["noun"]), self.chance(0.3), 3)
        tokens = [(noun, "O")]
        if self.chance(0.4):
            adjective = (zipf_choice(self.rng, self.words["adjective"]), "O")
            tokens = [adjective, *tokens] if self.grammar.adjective_first else [*tokens, adjective]
        if self.chance(0.5):
            tokens = [(zipf_choice(self.rng, self.words["determiner"]), "O"), *tokens]
        return tokens

    def person(self) -> Tokens:
        family = zipf_choice(self.rng, self.names["family"])
        # Some people are called like a city.
        if self.chance(0.15):
            family = zipf_choice(self.rng, self.names["city"])
        name = [family]
        if self.chance(0.6):
            name = [zipf_choice(self.rng, self.names["given"]), family]
        tokens = span("PER", name)
        if self.chance(0.4):
            title = (zipf_choice(self.rng, self.words["title"]), "O")
            tokens = [title, *tokens] if self.grammar.title_first else [*tokens, title]
        return tokens

    def place(self) -> Tokens:
        name = [zipf_choice(self.rng, self.names["city"])]
        if self.chance(0.2):
            name.append(zipf_choice(self.rng, self.words["district"]).capitalize())
        return span("LOC", name)

    def organization(self) -> Tokens:
        institution = zipf_choice(self.rng, self.words["institution"]).capitalize()
        city = zipf_choice(self.rng, self.names["city"])
        company = zipf_choice(self.rng, self.names["company"])
        kind = zipf_choice(self.rng, ("institution", "company", "acronym", "named"))
        if kind == "institution":
            link = self.words["preposition"][2]
            name = [city, institution] if self.grammar.owner_first else [institution, link, city]
        elif kind == "company":
            name = [company]
        elif kind == "acronym":
            name = [company[:3].upper()]
        else:
            name = [company, institution]
        return span("ORG", name)

    def date(self) -> Tokens:
        kind = zipf_choice(self.rng, ("weekday", "month", "period"))
        if kind == "weekday":
            return span("DATE", [choice(self.rng, self.words["weekday"]).capitalize()])
        if kind == "month":
            name = [str(1 + int(self.rng.random() * 28)), choice(self.rng, self.words["month"])]
            if self.chance(0.4):
                name.append(str(2000 + int(self.rng.random() * 25)))
            return span("DATE", name)
        name = [choice(self.rng, self.words["distance"]), choice(self.rng, self.words["period"])]
        return span("DATE", name if self.grammar.adjective_first else name[::-1])

    def at(self, which: int, phrase: Tokens) -> Tokens:
        word = (self.words["preposition"][which], "O")
        return [word, *phrase] if self.grammar.preposition else [*phrase, word]

    def inflect(self, word: str, plural: bool, affixes: int = 0) -> str:
        affix = self.words["affix"][affixes + plural]
        return affix + word if self.grammar.prefixes else word + affix

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


def span(kind: str, words: list[str]) -> Tokens:
    """Return words with the tags of one span.

    Args:
        kind: Type of the span.
        words: Its words.
    """
    return [(word, f"{'I' if place else 'B'}-{kind}") for place, word in enumerate(words)]


def _distinct(writer: _Writer, count: int, seen: set[tuple[str, ...]]) -> list[Sentence]:
    sentences: list[Sentence] = []
    while len(sentences) < count:
        sentence = writer.sentence()
        if sentence.words not in seen:
            seen.add(sentence.words)
            sentences.append(sentence)
    return sentences


def _check_numbers(numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"{name} is {number!r}; an integer from 1 on is needed.")


def _check_shares(shares: dict[str, float]) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigurationError(f"{name} is {share!r}; a number from 0 to 1 is needed.")
