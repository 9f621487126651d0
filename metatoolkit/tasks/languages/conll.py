"""CoNLL files: a token and its BIO tag on each line, a blank line after each sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from metatoolkit.errors import DataError, UnknownNameError
from metatoolkit.tasks.data_root import DATA_VARIABLE, data_root
from metatoolkit.tasks.languages.corpus import SPLITS, Corpus, Sentence, bio_labels, is_bio_tag

MASAKHANER_LANGUAGES = ("amh", "hau", "ibo", "kin", "lug", "luo", "pcm", "swa", "wol", "yor")
_MASAKHANER_SOURCE = "https://github.com/masakhane-io/masakhane-ner (data/, CC BY-NC 4.0)"
_SUFFIXES = (".txt", ".conll", ".bio", ".iob2")
_ALIASES = {"dev": ("dev", "valid", "validation")}
_LAYOUT = "train.txt, dev.txt and test.txt, with a token, a space and a BIO tag on each line"


def read_conll(path: str | os.PathLike[str]) -> list[Sentence]:
    """Read the sentences of one file.

    The first column is the token, the last one the tag; columns are separated by spaces or tabs,
    and their number is the same on every line. Blank lines end sentences, ``-DOCSTART-`` lines are
    left out. Carriage returns, a byte-order mark, spaces at the end of a line and a missing blank
    line at the end do not matter. A tag ``I-X`` that does not continue a span of its type begins
    one, as in the CoNLL evaluation.

    Args:
        path: A file in UTF-8.

    Returns:
        The sentences, at least one.

    Raises:
        DataError: The file is missing, empty or not UTF-8, a line has no tag or another number of
            columns, or a tag is not of the BIO scheme; the message names file and line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it.") from error
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    columns = 0
    for number, line in enumerate([*lines, ""], start=1):
        # Not str.split(): a token may hold a no-break space.
        parts = re.split("[ \t]+", line.strip(" \t"))
        if parts == [""] or parts[0] == "-DOCSTART-":
            if words:
                sentences.append(Sentence(tuple(words), tuple(tags)))
                words, tags = [], []
            continue
        _check_line(f"line {number} of {path}", parts, columns)
        columns = len(parts)
        words.append(parts[0])
        tags.append(parts[-1])
    if not sentences:
        raise DataError(f"{path} holds no sentence; a token, a space and a tag a line are needed.")
    return sentences


def load_conll(folder: str | os.PathLike[str], language: str | None = None) -> Corpus:
    """Load a folder with the files ``train.txt``, ``dev.txt`` and ``test.txt``.

    ``.conll``, ``.bio`` and ``.iob2`` do as well as ``.txt``, and ``valid`` or ``validation`` as
    well as ``dev``.

    Args:
        folder: The folder.
        language: Name of the language; ``None`` takes that of the folder.

    Returns:
        A corpus of sentences; its labels are ``O`` and both tags of every type that occurs.

    Raises:
        DataError: The folder or a file is missing, or as in :func:`read_conll`.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"the folder {path} does not exist; it should hold {_LAYOUT}.")
    splits = {split: read_conll(_split_file(path, split)) for split in SPLITS}
    types = {tag[2:] for part in splits.values() for sentence in part for tag in sentence.tags}
    return Corpus(language or path.name, splits, bio_labels(types - {""}))


def load_masakhaner(
    languages: Sequence[str], root: str | os.PathLike[str] | None = None
) -> dict[str, Corpus]:
    """Load named entities in African languages: news, with PER, ORG, LOC and DATE.

    Adelani et al., MasakhaNER, TACL 2021 (arXiv:2103.11811). The data are licensed for
    non-commercial use with attribution (CC BY-NC 4.0), and are not downloaded by this function.

    Args:
        languages: Codes, for instance ``["pcm", "swa"]``.
        root: Folder that holds ``masakhaner/<language>/``; ``None`` takes the environment variable
            ``METATOOLKIT_DATA``, else the user's data directory.

    Returns:
        One corpus per language, in the order that was asked for.

    Raises:
        UnknownNameError: A language is not part of the data set.
        DataError: A folder is missing, or as in :func:`load_conll`.
    """
    if isinstance(languages, str):
        languages = [languages]
    folder = data_root(root) / "masakhaner"
    corpora = {}
    for language in languages:
        if language not in MASAKHANER_LANGUAGES:
            raise UnknownNameError("MasakhaNER language", language, MASAKHANER_LANGUAGES)
        if not (folder / language).is_dir():
            raise DataError(
                f"{folder / language} does not exist. Get {_MASAKHANER_SOURCE}, put its folder "
                f"{language} there, with {_LAYOUT}, or point {DATA_VARIABLE} or root at the folder "
                "that holds masakhaner/."
            )
        corpora[language] = load_conll(folder / language)
    return corpora


def _check_line(place: str, parts: list[str], columns: int) -> None:
    if len(parts) < 2:
        raise DataError(f"{place} holds {parts[0]!r} alone; a token, a space and a tag are needed.")
    if columns and len(parts) != columns:
        raise DataError(
            f"{place} has {len(parts)} columns, those before it {columns}; tokens hold no spaces."
        )
    if not is_bio_tag(parts[-1]):
        raise DataError(
            f"{place} has the tag {parts[-1]!r}; the BIO scheme is needed: 'O', 'B-<type>', "
            "'I-<type>'. Convert other schemes, such as BIOES, first."
        )


def _split_file(folder: Path, split: str) -> Path:
    for name in _ALIASES.get(split, (split,)):
        for suffix in _SUFFIXES:
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    raise DataError(f"{folder} holds no {split}.txt; it should hold {_LAYOUT}.")
