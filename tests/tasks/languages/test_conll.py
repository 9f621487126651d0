from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from metatoolkit.errors import DataError, UnknownNameError
from metatoolkit.tasks import Sentence, load_conll, load_masakhaner
from metatoolkit.tasks.languages import read_conll

EXPECTED = [
    Sentence(("Ann", "sleeps", "."), ("B-PER", "O", "O")),
    Sentence(("New", "York"), ("B-LOC", "I-LOC")),
]
PLAIN = "Ann B-PER\nsleeps O\n. O\n\nNew B-LOC\nYork I-LOC\n\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        "\n\n" + PLAIN.replace("\n\n", "\n\n\n \n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(" ", "\t"),
        PLAIN.replace(" ", "  ").replace("\n", " \t\n"),
        "\ufeff" + PLAIN,
        "-DOCSTART- O\n\n" + PLAIN,
        PLAIN.replace(" ", " NNP _ "),
    ],
    ids=[
        *("plain", "no_last_blank", "many_blanks", "crlf", "cr", "tabs", "trailing"),
        *("bom", "docstart", "four_columns"),
    ],
)
def test_ways_to_write_the_same_sentences(tmp_path: Path, text: str) -> None:
    assert read_conll(write(tmp_path / "a.txt", text)) == EXPECTED


def test_tokens_keep_odd_characters(tmp_path: Path) -> None:
    words = ("a\u00a0b", "\u2028", "ẹ̀", "\u200b", "#", "\x85")
    path = write(tmp_path / "a.txt", "\n".join(f"{word} O" for word in words))
    assert read_conll(path) == [Sentence(words, ("O",) * 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann B-PER\n\nsleeps\n", "line 3 .* holds 'sleeps' alone"),
        ("Ann B-PER\n O\n", "line 2 .* holds 'O' alone"),
        ("New York B-LOC\nAnn B-PER\n", "line 2 .* 2 columns, those before it 3"),
        ("Ann S-PER\n", "line 1 .* tag 'S-PER'.*BIOES"),
        ("Ann B-PER\nLee E-PER\n", "line 2 .* tag 'E-PER'"),
        ("Ann PER\n", "line 1 .* tag 'PER'"),
        ("", "holds no sentence"),
        ("\n \n", "holds no sentence"),
    ],
)
def test_files_that_cannot_be_read_name_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "a.txt", text)
    with pytest.raises(DataError, match=message) as caught:
        read_conll(path)
    assert str(path) in str(caught.value)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Zoë B-PER\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        read_conll(path)


def test_a_folder_becomes_a_corpus(tmp_path: Path) -> None:
    write(tmp_path / "eng" / "train.txt", PLAIN)
    write(tmp_path / "eng" / "valid.conll", "Kim I-PER\n")
    write(tmp_path / "eng" / "test.txt", "1999 B-DATE\n")
    corpus = load_conll(tmp_path / "eng")
    assert corpus.language == "eng"
    assert list(corpus.splits) == ["train", "dev", "test"]
    assert corpus["train"] == EXPECTED
    assert corpus.labels == ["O", "B-DATE", "I-DATE", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert load_conll(tmp_path / "eng", "English").language == "English"


def test_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist.*train\.txt, dev\.txt"):
        load_conll(tmp_path / "nowhere")
    write(tmp_path / "eng" / "train.txt", PLAIN)
    with pytest.raises(DataError, match=r"eng holds no dev\.txt"):
        load_conll(tmp_path / "eng")


def test_missing_masakhaner_tells_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_masakhaner(["swa"])
    message = str(caught.value)
    for part in (str(tmp_path / "masakhaner" / "swa"), "github.com/masakhane-io", "CC BY-NC"):
        assert part in message
    assert "train.txt" in message
    with pytest.raises(UnknownNameError, match=r"MasakhaNER language 'sw'.*Did you mean 'swa'"):
        load_masakhaner(["sw"])


def test_masakhaner_is_read_from_its_folder(tmp_path: Path) -> None:
    for language in ("swa", "yor"):
        for split in ("train", "dev", "test"):
            write(tmp_path / "masakhaner" / language / f"{split}.txt", PLAIN)
    corpora = load_masakhaner(["yor", "swa"], tmp_path)
    assert list(corpora) == ["yor", "swa"]
    assert corpora["swa"]["test"] == EXPECTED
    assert list(load_masakhaner("swa", tmp_path)) == ["swa"]


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("METATOOLKIT_DATA", ""), "masakhaner", "swa")),
    reason="METATOOLKIT_DATA holds no masakhaner/swa",
)
def test_masakhaner_counts() -> None:
    corpus = load_masakhaner(["swa"])["swa"]
    assert [len(corpus[split]) for split in ("train", "dev", "test")] == [2109, 300, 604]
    tags = Counter(tag for sentence in corpus["test"] for tag in sentence.tags)
    assert (tags["O"], tags["B-PER"], tags["I-LOC"]) == (13648, 333, 136)
