"""Corpora of the Hugging Face hub: WikiAnn and the multilingual Amazon reviews."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metatoolkit.errors import DataError, optional_import
from metatoolkit.networks.pretrained import check_connection
from metatoolkit.tasks.languages.corpus import Corpus, Document, Sentence, bio_labels

_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
_WIKIANN_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
_STARS = {1: "negative", 2: "negative", 4: "positive", 5: "positive"}
_FORMATS = {"parquet": "parquet", "jsonl": "json", "json": "json"}
_REMEDY = (
    "Get it on a machine with a network, and pass path, a folder with one folder for each "
    "language that holds train.parquet, validation.parquet and test.parquet; or, if it was "
    "downloaded before, set HF_HUB_OFFLINE=1 to use the cache."
)


def load_wikiann(language: str, path: str | os.PathLike[str] = "unimelb-nlp/wikiann") -> Corpus:
    """Load named entities in Wikipedia: PER, ORG and LOC, in 176 languages.

    Pan et al., Cross-lingual Name Tagging and Linking for 282 Languages, ACL 2017, in the splits of
    Rahimi et al., ACL 2019 (arXiv:1902.00193).

    Args:
        language: Code of the language, for instance ``"qu"``.
        path: Name of the data set on the hub; or a folder, which must exist, with
            ``<language>/train.parquet``, ``validation`` and ``test`` (``.jsonl`` and shards such
            as ``train-00000-of-00001.parquet`` do too), or with what ``save_to_disk`` wrote.

    Returns:
        A corpus of sentences with the splits ``train``, ``dev`` and ``test``.

    Raises:
        DataError: The data cannot be reached, or are not what is expected.
        MissingDependencyError: The package datasets is not installed.
    """
    splits: dict[str, list[Sentence]] = {}
    for split, rows in _load(path, language).items():
        _check_columns(path, rows, ("tokens", "ner_tags"))
        feature = getattr(rows.features["ner_tags"], "feature", None)
        names = getattr(feature, "names", _WIKIANN_TAGS)
        splits[split] = []
        for number, row in enumerate(rows):
            place = f"row {number} of {split!r} in {path} ({language})"
            tags = [_name(place, tag, names) for tag in row["ner_tags"]]
            if len(tags) != len(row["tokens"]):
                raise DataError(f"{place} has {len(row['tokens'])} tokens and {len(tags)} tags.")
            if tags:
                splits[split].append(Sentence(tuple(row["tokens"]), tuple(tags)))
    return Corpus(language, splits, bio_labels(("LOC", "ORG", "PER")))


def load_amazon_reviews(
    language: str, path: str | os.PathLike[str] = "mteb/amazon_reviews_multi"
) -> Corpus:
    """Load product reviews with their sentiment.

    Keung et al., The Multilingual Amazon Reviews Corpus, EMNLP 2020 (arXiv:2010.02573). One and two
    stars are negative, four and five positive; reviews with three stars are left out. The text is
    the title and the body.

    Args:
        language: ``"de"``, ``"en"``, ``"es"``, ``"fr"``, ``"ja"`` or ``"zh"``.
        path: As in :func:`load_wikiann`. Columns are ``text`` and ``label`` (from 0), as on the
            hub, or those of the original: ``stars``, ``review_title`` and ``review_body``.

    Returns:
        A corpus of documents, ``negative`` and ``positive``.

    Raises:
        DataError: The data cannot be reached, or are not what is expected.
        MissingDependencyError: The package datasets is not installed.
    """
    splits: dict[str, list[Document]] = {}
    for split, rows in _load(path, language).items():
        original = "stars" in rows.column_names
        columns = ("stars", "review_title", "review_body") if original else ("text", "label")
        _check_columns(path, rows, columns)
        splits[split] = []
        for number, row in enumerate(rows):
            stars = int(row["stars"]) if original else row["label"] + 1
            if not 1 <= stars <= 5:
                raise DataError(
                    f"row {number} of {split!r} in {path} ({language}) has {stars} stars; 1 to 5 "
                    "are accepted."
                )
            text = f"{row['review_title']}\n\n{row['review_body']}" if original else row["text"]
            if stars in _STARS:
                splits[split].append(Document(text, _STARS[stars]))
    return Corpus(language, splits, ["negative", "positive"])


def _load(path: str | os.PathLike[str], language: str) -> dict[str, Any]:
    """Return the rows of each split, by the names that a corpus uses."""
    with optional_import(f"reading {path}"):
        import datasets
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            parts = _load_folder(folder, language)
        elif folder.is_absolute() or len(folder.parts) > 2:
            raise DataError(f"the folder {folder} does not exist.")
        else:
            check_connection(path, _REMEDY)
            parts = datasets.load_dataset(os.fspath(path), language)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be loaded in the language {language!r}: {error} Check both names; "
            "where the hub cannot be reached, pass path, a folder with a copy of it."
        ) from error
    missing = [name for name in _SPLITS if name not in parts]
    if missing:
        raise DataError(
            f"{path} has no split {missing[0]!r} in {language!r}, only {', '.join(parts)}."
        )
    return {split: parts[name] for name, split in _SPLITS.items()}


def _load_folder(folder: Path, language: str) -> Mapping[str, Any]:
    import datasets

    base = folder / language
    if not base.is_dir():
        raise DataError(
            f"{base} does not exist; {folder} should hold one folder for each language, with "
            "train.parquet, validation.parquet and test.parquet."
        )
    if (base / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(base))
    for suffix, builder in _FORMATS.items():
        files = {
            name: found
            for name in _SPLITS
            if (found := [str(file) for file in sorted(base.glob(f"{name}*.{suffix}"))])
        }
        if files:
            return datasets.load_dataset(builder, data_files=files)
    raise DataError(
        f"{base} holds no train.parquet or train.jsonl, nor what save_to_disk of the package "
        "datasets writes."
    )


def _check_columns(path: str | os.PathLike[str], rows: Any, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(rows.column_names)}; {missing[0]!r} is missing."
        )


def _name(place: str, tag: int | str, names: Sequence[str]) -> str:
    if isinstance(tag, str):
        return tag
    if not 0 <= tag < len(names):
        raise DataError(f"{place} has the tag {tag}; 0 to {len(names) - 1} are accepted.")
    return names[tag]
