"""Corpora of the Hugging Face hub: WikiAnn and the multilingual Amazon reviews."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from metatoolkit.errors import DataError
from metatoolkit.tasks.languages.corpus import Corpus, Document, Sentence, bio_labels

_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
_STARS = {1: "negative", 2: "negative", 4: "positive", 5: "positive"}


def load_wikiann(language: str, path: str | os.PathLike[str] = "unimelb-nlp/wikiann") -> Corpus:
    """Load named entities in Wikipedia: PER, ORG and LOC, in 176 languages.

    Pan et al., ACL 2017, in the splits of Rahimi et al., ACL 2019.

    Args:
        language: Code of the language, for instance ``"qu"``.
        path: Name on the hub, or a folder with a copy of the data set.

    Returns:
        A corpus with the splits ``train``, ``dev`` and ``test``.

    Raises:
        DataError: The data cannot be reached or are not what is expected.
    """
    parts = _load(path, language)
    splits: dict[str, list[Sentence]] = {}
    for split, part in parts.items():
        names = part.features["ner_tags"].feature.names
        splits[split] = [
            Sentence(tuple(row["tokens"]), tuple(names[tag] for tag in row["ner_tags"]))
            for row in part
            if row["tokens"]
        ]
    return Corpus(language, splits, bio_labels(("LOC", "ORG", "PER")))


def load_amazon_reviews(
    language: str, path: str | os.PathLike[str] = "mteb/amazon_reviews_multi"
) -> Corpus:
    """Load product reviews with their sentiment: one and two stars against four and five.

    Keung et al., The Multilingual Amazon Reviews Corpus, EMNLP 2020.

    Args:
        language: ``"de"``, ``"en"``, ``"es"``, ``"fr"``, ``"ja"`` or ``"zh"``.
        path: Name on the hub, or a folder with a copy of the data set.

    Returns:
        A corpus of documents, ``negative`` and ``positive``.

    Raises:
        DataError: The data cannot be reached or are not what is expected.
    """
    parts = _load(path, language)
    splits = {split: _reviews(part) for split, part in parts.items()}
    return Corpus(language, splits, ["negative", "positive"])


def _reviews(rows: Sequence[Any]) -> list[Document]:
    documents = []
    for row in rows:
        if "stars" in row:
            stars, text = row["stars"], row["review_body"]
        else:
            stars, text = row["label"] + 1, row["text"]
        if stars in _STARS:
            documents.append(Document(text, _STARS[stars]))
    return documents


def _load(path: str | os.PathLike[str], language: str) -> dict[str, Any]:
    import datasets

    try:
        parts = datasets.load_dataset(os.fspath(path), language)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be loaded in the language {language!r} ({error})."
        ) from error
    return {_SPLITS[name]: part for name, part in parts.items() if name in _SPLITS}
