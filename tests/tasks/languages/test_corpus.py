from __future__ import annotations

import pytest

from metatoolkit.errors import ConfigurationError, DataError, LabelError, UnknownNameError
from metatoolkit.tasks import Corpus, Document, Sentence, common_labels
from metatoolkit.tasks.languages import bio_labels


def corpus(language: str, types: list[str], count: int = 10) -> Corpus:
    sentences = [Sentence((f"w{i}",), (f"B-{types[i % len(types)]}",)) for i in range(count)]
    return Corpus(language, {"train": sentences}, bio_labels(types))


def test_labels_have_both_parts_of_each_type() -> None:
    assert bio_labels(["PER", "LOC", "PER"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_samples_are_reproducible_nested_and_in_order() -> None:
    data = corpus("a", ["PER"], 50)
    small, large = data.sample("train", 5, 3), data.sample("train", 20, 3)
    assert small == data.sample("train", 5, 3)
    assert set(small) < set(large)
    assert small != data.sample("train", 5, 4)
    places = [data["train"].index(sentence) for sentence in large]
    assert places == sorted(set(places))
    assert data.sample("train", 50, 0) == data["train"]


def test_a_sample_needs_enough_examples() -> None:
    with pytest.raises(ConfigurationError, match=r"count is 11.*'a' has 10"):
        corpus("a", ["PER"]).sample("train", 11, 0)
    for count in (0, 2.5, True):
        with pytest.raises(ConfigurationError, match=f"count is {count}; an integer from 1 on"):
            corpus("a", ["PER"]).sample("train", count, 0)  # type: ignore[arg-type]


def test_a_missing_split_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"split of 'a' 'trian'.*Did you mean 'train'"):
        corpus("a", ["PER"])["trian"]


def test_sentences_that_make_no_sense() -> None:
    with pytest.raises(DataError, match="2 words and 1 tags"):
        Sentence(("a", "b"), ("O",))
    with pytest.raises(DataError, match="0 words"):
        Sentence((), ())
    for tag in ("S-PER", "PER", "B-", "b-PER", ""):
        with pytest.raises(LabelError, match="'Ann' has the tag"):
            Sentence(("Ann",), (tag,))


def test_corpora_that_make_no_sense() -> None:
    with pytest.raises(DataError, match="no split"):
        Corpus("a", {}, ["O"])
    with pytest.raises(DataError, match="'dev' of 'a' is empty"):
        Corpus("a", {"dev": []}, ["O"])
    with pytest.raises(LabelError, match=r"example 0 of 'dev' in 'a'.*'B-LOC'"):
        Corpus("a", {"dev": [Sentence(("x",), ("B-LOC",))]}, ["O"])
    with pytest.raises(DataError, match="mixes"):
        Corpus("a", {"dev": [Sentence(("x",), ("O",)), Document("x", "O")]}, ["O"])
    with pytest.raises(DataError, match="an example is a str"):
        Corpus("a", {"dev": ["x"]}, ["O"])


def test_label_sets_that_differ_are_named_with_their_languages() -> None:
    first, second = corpus("swa", ["PER", "LOC"]), corpus("yor", ["PER", "DATE"])
    with pytest.raises(LabelError) as caught:
        common_labels([first, second])
    message = str(caught.value)
    assert "'swa' lacks B-DATE, I-DATE" in message
    assert "'yor' lacks B-LOC, I-LOC" in message
    assert "labels='union'" in message
    union = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-DATE", "I-DATE"]
    assert common_labels([first, second], "union") == union


def test_the_order_of_labels_does_not_matter() -> None:
    first = corpus("a", ["PER"])
    second = Corpus("b", first.splits, first.labels[::-1])
    assert common_labels([first, second]) == first.labels
    with pytest.raises(UnknownNameError, match=r"'intersection'.*Accepted: equal, union"):
        common_labels([first], "intersection")
    with pytest.raises(DataError, match="no corpus"):
        common_labels([])


def test_sentences_and_documents_are_not_one_task() -> None:
    reviews = Corpus("b", {"train": [Document("x", "good")]}, ["good"])
    with pytest.raises(DataError, match="'a', 'b' some hold sentences and some documents"):
        common_labels([corpus("a", ["PER"]), reviews], "union")
