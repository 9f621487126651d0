from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from metatoolkit.errors import DataError, MissingDependencyError
from metatoolkit.tasks import Document, Sentence, load_amazon_reviews, load_wikiann

datasets = pytest.importorskip("datasets", reason="datasets is not installed")

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SPLITS = ("train", "validation", "test")
WORDS = {"tokens": [["Ann", "Lee", "in", "Rome"], []], "ner_tags": [[1, 2, 0, 5], []]}
SENTENCE = Sentence(("Ann", "Lee", "in", "Rome"), ("B-PER", "I-PER", "O", "B-LOC"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def wikiann(words: dict[str, Any] = WORDS, names: list[str] | None = TAGS) -> Any:
    tag = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(tag),
        }
    )
    return datasets.Dataset.from_dict(words, features=features)


def save(folder: Path, rows: Any, kind: str, splits: tuple[str, ...] = SPLITS) -> None:
    folder.mkdir(parents=True)
    if kind == "disk":
        datasets.DatasetDict(dict.fromkeys(splits, rows)).save_to_disk(str(folder))
    for split in splits:
        if kind == "parquet":
            rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        if kind == "json":
            rows.to_json(str(folder / f"{split}.jsonl"))


@pytest.mark.parametrize("kind", ["disk", "parquet", "json"])
def test_wikiann_from_a_folder(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "qu", wikiann(), kind)
    corpus = load_wikiann("qu", tmp_path)
    assert corpus.language == "qu"
    # The second row has no token, and is left out.
    assert corpus.splits == {"train": [SENTENCE], "dev": [SENTENCE], "test": [SENTENCE]}
    assert corpus.labels == ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]


def test_the_names_of_the_data_count_not_their_order(tmp_path: Path) -> None:
    names = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-ORG", "I-ORG"]
    save(tmp_path / "qu", wikiann(names=names), "disk")
    assert load_wikiann("qu", tmp_path)["test"][0].tags == ("B-LOC", "I-LOC", "O", "B-ORG")


def test_amazon_reviews_as_the_hub_has_them(tmp_path: Path) -> None:
    rows = {"text": list("abcde"), "label": [0, 1, 2, 3, 4]}
    save(tmp_path / "en", datasets.Dataset.from_dict(rows), "json")
    corpus = load_amazon_reviews("en", tmp_path)
    assert corpus["dev"] == [
        *(Document("a", "negative"), Document("b", "negative")),
        *(Document("d", "positive"), Document("e", "positive")),
    ]
    assert corpus.labels == ["negative", "positive"]


def test_amazon_reviews_as_they_were_published(tmp_path: Path) -> None:
    rows = {"stars": [5, 3], "review_title": ["Good", "x"], "review_body": ["Works.", "y"]}
    save(tmp_path / "de", datasets.Dataset.from_dict(rows), "parquet")
    assert load_amazon_reviews("de", tmp_path)["train"] == [Document("Good\n\nWorks.", "positive")]


def test_tags_out_of_range(tmp_path: Path) -> None:
    words = {"tokens": [["a"]], "ner_tags": [[7]]}
    save(tmp_path / "qu", wikiann(words, names=None), "json")
    with pytest.raises(DataError, match=r"row 0 of 'train' in .* has the tag 7; 0 to 6"):
        load_wikiann("qu", tmp_path)


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "a", wikiann({"tokens": [["x", "y"]], "ner_tags": [[0]]}), "disk")
    with pytest.raises(DataError, match="2 tokens and 1 tags"):
        load_wikiann("a", tmp_path)
    save(tmp_path / "b", datasets.Dataset.from_dict({"text": ["x"], "label": [5]}), "disk")
    with pytest.raises(DataError, match="6 stars; 1 to 5"):
        load_amazon_reviews("b", tmp_path)
    with pytest.raises(DataError, match="columns text, label; 'tokens' is missing"):
        load_wikiann("b", tmp_path)
    save(tmp_path / "c", wikiann(), "parquet", ("train", "test"))
    with pytest.raises(DataError, match="no split 'validation' in 'c', only train, test"):
        load_wikiann("c", tmp_path)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"qu does not exist.*train\.parquet"):
        load_wikiann("qu", tmp_path)
    (tmp_path / "qu").mkdir()
    with pytest.raises(DataError, match=r"holds no train\.parquet"):
        load_wikiann("qu", tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_wikiann("qu", tmp_path / "nowhere")


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "qu").mkdir()
    for split in SPLITS:
        (tmp_path / "qu" / f"{split}.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be loaded in the language 'qu'"):
        load_wikiann("qu", tmp_path)


def test_without_a_network_there_is_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked = []

    def refuse(url: str, **options: Any) -> None:
        asked.append((url, options["timeout"]))
        raise requests.ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(DataError, match=r"cannot be reached to load unimelb-nlp/wikiann.*path"):
        load_wikiann("qu")
    assert asked == [(constants.ENDPOINT, 5)]


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"wikiann cannot be loaded in the language 'qu'.*a copy"):
        load_wikiann("qu")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"needs datasets.*metatoolkit\[text\]"):
        load_wikiann("qu")
