"""What a corpus in one language is: sentences with tags, or documents with labels, in splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from metatoolkit.errors import ConfigurationError, DataError, LabelError, UnknownNameError
from metatoolkit.randomness import Stream, fold_in

SPLITS = ("train", "dev", "test")
OUTSIDE = "O"


@dataclass(frozen=True)
class Sentence:
    """Words with one tag each, in the BIO scheme: ``B-PER``, ``I-PER``, ``O``.

    Attributes:
        words: The words.
        tags: As many tags.

    Raises:
        DataError: The numbers of words and tags differ, or there are none.
        LabelError: A tag is not of the BIO scheme.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.words) != len(self.tags) or not self.words:
            raise DataError(
                f"a sentence has {len(self.words)} words and {len(self.tags)} tags; at least one "
                "word, and one tag for each, are needed."
            )
        for word, tag in zip(self.words, self.tags, strict=True):
            if not is_bio_tag(tag):
                raise LabelError(
                    f"the word {word!r} has the tag {tag!r}; 'O', 'B-<type>' and 'I-<type>' are "
                    "accepted."
                )


@dataclass(frozen=True)
class Document:
    """A text with one label, for instance a review with its sentiment.

    Attributes:
        text: The text.
        label: Name of its class.
    """

    text: str
    label: str


Example = Sentence | Document


@dataclass(frozen=True, eq=False)
class Corpus:
    """Examples in one language.

    Attributes:
        language: Name or code of the language.
        splits: Examples by split, as a rule ``train``, ``dev`` and ``test``; all are
            :class:`Sentence`, or all are :class:`Document`.
        labels: The labels that examples may have; the place in this list is the class index.

    Raises:
        DataError: There is no split, or one is empty or holds something else.
        LabelError: An example has a label that is not in ``labels``.
    """

    language: str
    splits: Mapping[str, Sequence[Example]]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if not self.splits:
            raise DataError(f"the corpus {self.language!r} has no split; at least one is needed.")
        known = set(self.labels)
        kinds = set()
        for split, examples in self.splits.items():
            if not examples:
                raise DataError(f"{split!r} of {self.language!r} is empty.")
            for number, example in enumerate(examples):
                kinds.add(type(example))
                for label in labels_of(example):
                    if label not in known:
                        raise LabelError(
                            f"example {number} of {split!r} in {self.language!r} has the label "
                            f"{label!r}; its corpus names {', '.join(self.labels)}."
                        )
        if len(kinds) > 1:
            raise DataError(f"the corpus {self.language!r} mixes sentences and documents.")

    def __getitem__(self, split: str) -> Sequence[Example]:
        """Return the examples of a split.

        Args:
            split: Name of the split.

        Raises:
            UnknownNameError: There is no such split.
        """
        if split not in self.splits:
            raise UnknownNameError(f"split of {self.language!r}", split, self.splits)
        return self.splits[split]

    def sample(self, split: str, count: int, seed: int) -> list[Example]:
        """Draw examples of a split without replacement, in the order of the split.

        Args:
            split: Name of the split.
            count: How many.
            seed: Seed of the draw.

        Returns:
            The examples. With the same seed, a smaller sample is a part of a larger one.

        Raises:
            ConfigurationError: The split has fewer, or ``count`` is no integer from 1 on.
            UnknownNameError: There is no such split.
        """
        examples = self[split]
        check_sizes(count=count)
        if count > len(examples):
            raise ConfigurationError(
                f"count is {count}, but {split!r} of {self.language!r} has {len(examples)} "
                "examples; ask for at most that many."
            )
        generator = torch.Generator().manual_seed(fold_in(seed, Stream.EXAMPLES_OF_SPLIT))
        order = torch.randperm(len(examples), generator=generator)[:count].sort().values
        return [examples[index] for index in order.tolist()]


def labels_of(example: Example) -> tuple[str, ...]:
    """Return the labels of an example: the tags of its words, or the one of the document.

    Args:
        example: A sentence or a document.

    Raises:
        DataError: It is neither.
    """
    if isinstance(example, Sentence):
        return example.tags
    if isinstance(example, Document):
        return (example.label,)
    raise DataError(f"an example is a {type(example).__name__}; Sentence or Document is needed.")


def is_bio_tag(tag: str) -> bool:
    """Tell whether a tag is ``O``, ``B-<type>`` or ``I-<type>``.

    Args:
        tag: The tag.
    """
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def bio_labels(types: Iterable[str]) -> list[str]:
    """Return ``O`` and the two tags of each type, in alphabetical order.

    Args:
        types: Types of spans, for instance ``PER`` and ``LOC``.
    """
    return [OUTSIDE, *(f"{part}-{name}" for name in sorted(set(types)) for part in "BI")]


def common_labels(corpora: Iterable[Corpus], labels: str = "equal") -> list[str]:
    """Return the labels that a model for all of these corpora needs.

    Args:
        corpora: The corpora.
        labels: ``"equal"`` needs all to name the same labels, in any order; ``"union"`` takes
            every label that one of them names.

    Returns:
        The labels, those of the first corpus first; to be passed to :func:`encode`.

    Raises:
        LabelError: ``labels`` is ``"equal"`` and they differ.
        DataError: There is no corpus, or some hold sentences and some documents.
        UnknownNameError: ``labels`` is something else.
    """
    if labels not in ("equal", "union"):
        raise UnknownNameError("way to join labels", labels, ["equal", "union"])
    given = list(corpora)
    if not given:
        raise DataError("no corpus was given; at least one is needed.")
    if len({type(next(iter(corpus.splits.values()))[0]) for corpus in given}) > 1:
        raise DataError(
            f"of {', '.join(repr(c.language) for c in given)} some hold sentences and some "
            "documents; one task for all is needed."
        )
    joined = list(dict.fromkeys(label for corpus in given for label in corpus.labels))
    lacking = {c.language: [x for x in joined if x not in c.labels] for c in given}
    lacking = {language: names for language, names in lacking.items() if names}
    if lacking and labels == "equal":
        told = "; ".join(f"{name!r} lacks {', '.join(names)}" for name, names in lacking.items())
        raise LabelError(
            f"the label sets of {', '.join(repr(c.language) for c in given)} differ: {told}. Pass "
            "labels='union' to train one head for all of them, or map the labels to common ones."
        )
    return joined


def check_sizes(**sizes: int) -> None:
    """Raise unless numbers are integers from 1 on.

    Args:
        sizes: Numbers by the name of their argument.

    Raises:
        ConfigurationError: One is not.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"{name} is {size!r}; an integer from 1 on is needed.")
