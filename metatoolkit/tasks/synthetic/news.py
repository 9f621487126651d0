"""Generated news with named entities, in languages that share a grammar and few words."""

from __future__ import annotations

import random

from metatoolkit.randomness import Stream
from metatoolkit.tasks.languages.corpus import Corpus, Sentence, bio_labels, check_sizes
from metatoolkit.tasks.synthetic.author import Author, beside
from metatoolkit.tasks.synthetic.grammar import (
    Grammar,
    Writer,
    check_shares,
    write_corpora,
)
from metatoolkit.tasks.synthetic.vocabulary import (
    draw_names,
    draw_vocabulary,
    zipf_choice,
)

ENTITY_TYPES = ("DATE", "LOC", "ORG", "PER")
_CONCEPTS = {
    "determiner": 3,
    "preposition": 12,
    "conjunction": 2,
    "noun": 120,
    "doing": 60,
    "saying": 30,
    "going": 30,
    "visiting": 30,
    "meeting": 30,
    "joining": 30,
    "hiring": 30,
    "adjective": 40,
    "adverb": 15,
    "title": 25,
    "institution": 25,
    "district": 8,
    "month": 12,
    "weekday": 7,
    "period": 4,
    "distance": 3,
    "affix": 6,
}
_NAMES = {"given": 100, "proper": 500}
# Families, cities, companies and products are often called alike: their names overlap.
_BEARERS = {"family": (0, 260), "city": (120, 360), "company": (220, 420), "product": (320, 500)}
# Who does it, the class of the verb, and to whom; a verb tells the type of a bare name beside it.
_FRAMES = (
    ("person", "saying", "thing"),
    ("thing", "doing", "thing"),
    ("person", "going", "there"),
    ("organization", "saying", "thing"),
    ("person", "visiting", "place"),
    ("thing", "doing", "thing"),
    ("person", "meeting", "person"),
    ("person", "joining", "organization"),
    ("organization", "hiring", "person"),
    ("organization", "visiting", "place"),
    ("thing", "hiring", "person"),
    ("thing", "joining", "organization"),
)

Tokens = list[tuple[str, str]]


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
        dev: Sentences in the split ``dev``, to choose settings by.
        test: Sentences in the test split.

    Returns:
        One corpus per language, ``generated-0`` on, all with the types DATE, LOC, ORG and PER; no
        sentence occurs twice in a language.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> corpora = generated_languages(count=2, train=10, dev=5, test=5)
        >>> [len(corpus["train"]) for corpus in corpora.values()]
        [10, 10]
    """
    sizes = {"train": train, "dev": dev, "test": test}
    check_sizes(count=count, **sizes)
    check_shares(cognates=cognates, shared_names=shared_names, word_order=word_order)

    def speak(number: int, grammar: Grammar) -> Writer:
        words = draw_vocabulary(_CONCEPTS, seed, number, cognates)
        names = draw_names(_NAMES, seed, number, shared_names)
        return lambda rng: _Reporter(grammar, words, names, rng).write

    labels = bio_labels(ENTITY_TYPES)
    return write_corpora(count, seed, word_order, sizes, speak, labels, stream=Stream.NEWS)


class _Reporter(Author):
    """Writes sentences in one language; each method returns words with their tags."""

    def __init__(
        self,
        grammar: Grammar,
        words: dict[str, list[str]],
        names: dict[str, list[str]],
        rng: random.Random,
    ) -> None:
        super().__init__(grammar, words, rng)
        self.names = names

    def write(self) -> Sentence:
        tokens = self.clause()
        if self.chance(0.3):
            tokens += [(self.words["conjunction"][0], "O"), *self.clause()]
        first, tag = tokens[0]
        tokens[0] = first[:1].upper() + first[1:], tag
        tokens.append((".", "O"))
        words, tags = zip(*tokens, strict=True)
        return Sentence(words, tags)

    def clause(self) -> Tokens:
        subject, verb, target = zipf_choice(self.rng, _FRAMES)
        tokens = self.ordered(self.phrase(subject), verb, self.phrase(target))
        if target != "there" and self.chance(0.2):
            tokens += self.phrase("there")
        if self.chance(0.25):
            date = self.date()
            tokens = [*date, (",", "O"), *tokens] if self.chance(0.4) else tokens + date
        return tokens

    def phrase(self, kind: str) -> Tokens:
        if kind == "there":
            word = (self.frequent("preposition"), "O")
            target = self.place() if self.chance(0.6) else self.thing()
            return beside(word, target, self.grammar.preposition)
        writers = {
            "person": self.person,
            "place": self.place,
            "organization": self.organization,
            "thing": self.thing,
        }
        return writers[kind]()

    def ordered(self, subject: Tokens, verb: str, rest: Tokens) -> Tokens:
        plural = subject[0][1] == "O" and self.chance(0.3)
        acting: Tokens = [(self.inflect(self.frequent(verb), plural), "O")]
        if self.chance(0.2):
            acting.append((self.frequent("adverb"), "O"))
        return self.grammar.clause(subject, acting, rest)

    def thing(self) -> Tokens:
        if self.chance(0.15):
            return [(self.name("product"), "O")]
        noun = self.inflect(self.frequent("noun"), self.chance(0.3), 3)
        tokens = [(noun, "O")]
        if self.chance(0.4):
            adjective = (self.frequent("adjective"), "O")
            tokens = beside(adjective, tokens, self.grammar.adjective_first)
        if self.chance(0.5):
            tokens = [(self.frequent("determiner"), "O"), *tokens]
        return tokens

    def name(self, bearer: str) -> str:
        first, last = _BEARERS[bearer]
        return zipf_choice(self.rng, self.names["proper"][first:last])

    def person(self) -> Tokens:
        if self.chance(0.15):
            return [(self.frequent("title"), "O")]
        name = [self.name("family")]
        if self.chance(0.4):
            name.insert(0, zipf_choice(self.rng, self.names["given"]))
        tokens = span("PER", name)
        if self.chance(0.3):
            title = (self.frequent("title"), "O")
            tokens = beside(title, tokens, self.grammar.title_first)
        return tokens

    def place(self) -> Tokens:
        name = [self.name("city")]
        if self.chance(0.2):
            name.append(self.frequent("district").capitalize())
        return span("LOC", name)

    def organization(self) -> Tokens:
        kind = zipf_choice(self.rng, ("company", "institution", "acronym", "named", "common"))
        institution = self.frequent("institution")
        if kind == "common":
            return [(institution, "O")]
        if kind == "company":
            return span("ORG", [self.name("company")])
        if kind == "acronym":
            return span("ORG", [self.name("company")[:3].upper()])
        if kind == "named":
            return span("ORG", [self.name("company"), institution.capitalize()])
        city, link = self.name("city"), self.words["preposition"][0]
        words = [city, institution] if self.grammar.owner_first else [institution, link, city]
        return span("ORG", [words[0].capitalize(), *words[1:]])

    def date(self) -> Tokens:
        kind = zipf_choice(self.rng, ("weekday", "month", "period"))
        if kind == "weekday":
            return span("DATE", [self.any_of("weekday").capitalize()])
        if kind == "month":
            name = [str(1 + int(self.rng.random() * 28)), self.any_of("month")]
            if self.chance(0.4):
                name.append(str(2000 + int(self.rng.random() * 25)))
            return span("DATE", name)
        name = [self.any_of("distance"), self.any_of("period")]
        return span("DATE", name if self.grammar.adjective_first else name[::-1])

    def inflect(self, word: str, plural: bool, affixes: int = 0) -> str:
        affix = self.words["affix"][affixes + plural]
        return affix + word if self.grammar.prefixes else word + affix


def span(kind: str, words: list[str]) -> Tokens:
    """Return words with the tags of one span.

    Args:
        kind: Type of the span.
        words: Its words.
    """
    return [(word, f"{'I' if place else 'B'}-{kind}") for place, word in enumerate(words)]
