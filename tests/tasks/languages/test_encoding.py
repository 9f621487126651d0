from __future__ import annotations

from typing import Any

import pytest
import torch

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
)
from metatoolkit.tasks import (
    Corpus,
    Document,
    Sentence,
    TokenDataset,
    encode,
    generated_languages,
    train_tokenizer,
)
from tests.tasks.languages.word_pieces import LABELS, SENTENCE, pieces

pytest.importorskip("transformers", reason="transformers is not installed")

X = -100


@pytest.fixture(scope="module")
def family() -> dict[str, Corpus]:
    return generated_languages(2, seed=3, train=60, dev=10, test=20)


@pytest.fixture(scope="module")
def trained(family: dict[str, Corpus]) -> Any:
    return train_tokenizer(family, 400)


def tags_of(dataset: TokenDataset) -> list[list[str]]:
    """Return the tags that are scored, of each sentence."""
    tags: dict[int, list[str]] = {}
    for labels, example in zip(dataset.labels, dataset.example.tolist(), strict=True):
        scored = [dataset.label_names[label] for label in labels[labels != X].tolist()]
        tags.setdefault(example, []).extend(scored)
    return list(tags.values())


def test_the_first_token_of_a_word_carries_its_tag() -> None:
    short = Sentence(("Lee", "?"), ("B-PER", "O"))
    dataset = encode([SENTENCE, short], pieces(), LABELS, 20)
    assert dataset.input_ids.tolist() == [[2, 4, 5, 6, 7, 8, 9, 3], [2, 7, 1, 3, 0, 0, 0, 0]]
    assert dataset.attention_mask.tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    assert dataset.labels.tolist() == [[X, 1, X, X, 2, 0, 0, X], [X, 1, 0, X, X, X, X, X]]
    assert dataset.example.tolist() == [0, 1]
    assert dataset.label_names == tuple(LABELS)
    assert dataset.is_tagging
    assert len(dataset) == 2


def test_the_order_of_labels_is_the_order_of_classes() -> None:
    dataset = encode([SENTENCE], pieces(), ["I-PER", "O", "B-PER"], 20)
    assert dataset.labels.tolist() == [[X, 2, X, X, 0, 1, 1, X]]


def test_a_long_sentence_takes_several_rows() -> None:
    dataset = encode([SENTENCE, SENTENCE], pieces(), LABELS, 5)
    assert dataset.input_ids[:2].tolist() == [[2, 4, 5, 6, 3], [2, 7, 8, 9, 3]]
    assert dataset.labels[:2].tolist() == [[X, 1, X, X, X], [X, 2, 0, 0, X]]
    assert dataset.example.tolist() == [0, 0, 1, 1]


def test_a_word_longer_than_a_row_is_scored_once() -> None:
    long = Sentence(("Annababa", "runs"), ("B-PER", "O"))
    dataset = encode([long], pieces(), LABELS, 4)
    assert dataset.labels.tolist() == [[X, 1, X, X], [X, 0, X, X]]
    # Of the rows between, which hold nothing but the end of the word, none is left.
    assert dataset.input_ids.tolist() == [[2, 4, 5, 3], [2, 8, 3, 0]]


@pytest.mark.parametrize("max_length", [3, 4, 7, 16, 200])
def test_no_word_is_lost(family: dict[str, Corpus], trained: Any, max_length: int) -> None:
    for corpus in family.values():
        dataset = encode(corpus["test"], trained, corpus.labels, max_length)
        assert tags_of(dataset) == [list(sentence.tags) for sentence in corpus["test"]]
        assert dataset.input_ids.shape[1] <= max_length
        special = torch.isin(dataset.input_ids, torch.tensor(trained.all_special_ids))
        assert bool((dataset.labels[special] == X).all())
        assert bool((dataset.labels != X).any(dim=1).all())


def test_a_word_without_a_token_becomes_unknown() -> None:
    odd = Sentence(("Lee", "\u200b", "runs"), ("B-PER", "O", "O"))
    dataset = encode([odd], pieces(), LABELS, 20)
    assert dataset.input_ids.tolist() == [[2, 7, 1, 8, 3]]
    assert dataset.labels.tolist() == [[X, 1, 0, 0, X]]
    with pytest.raises(DataError, match=r"nothing of word 1 of sentence 0, '\\u200b'"):
        encode([odd], pieces(unk_token=None), LABELS, 20)


def test_documents_have_one_label_and_are_cut_off() -> None:
    documents = [Document("Lee runs", "bad"), Document("runs runs runs runs", "good")]
    dataset = encode(documents, pieces(), ["good", "bad"], 5)
    assert dataset.input_ids.tolist() == [[2, 7, 8, 3, 0], [2, 8, 8, 8, 3]]
    assert dataset.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1] * 5]
    assert dataset.labels.tolist() == [1, 0]
    assert not dataset.is_tagging


def test_encoding_does_not_depend_on_what_came_before() -> None:
    tokenizer = pieces()
    first = encode([SENTENCE], tokenizer, LABELS, 5)
    encode([SENTENCE], tokenizer, LABELS, 20)
    again = encode([SENTENCE], tokenizer, LABELS, 5)
    assert torch.equal(first.input_ids, again.input_ids)
    # Truncation is no longer set on the tokenizer of the caller.
    assert len(tokenizer("runs " * 30)["input_ids"]) == 32


def test_examples_that_cannot_be_encoded() -> None:
    with pytest.raises(DataError, match="no examples"):
        encode([], pieces(), LABELS, 20)
    with pytest.raises(DataError, match="mixed"):
        encode([SENTENCE, Document("a", "O")], pieces(), LABELS, 20)  # type: ignore[list-item]
    with pytest.raises(LabelError, match=r"example 0 has the label 'I-PER'.*labels='union'"):
        encode([SENTENCE], pieces(), ["O", "B-PER"], 20)
    with pytest.raises(ConfigurationError, match="each may occur once"):
        encode([SENTENCE], pieces(), ["O", "B-PER", "I-PER", "O"], 20)
    with pytest.raises(ConfigurationError, match=r"max_length is 2.*2 special.*at least 3"):
        encode([SENTENCE], pieces(), LABELS, 2)
    with pytest.raises(ConfigurationError, match="max_length is '64'; an integer"):
        encode([SENTENCE], pieces(), LABELS, "64")  # type: ignore[arg-type]


def test_tensors_that_do_not_fit_together() -> None:
    ids, rows = torch.zeros(2, 3, dtype=torch.int64), torch.arange(2)
    TokenDataset(ids, ids, ids, ("O",), rows)
    with pytest.raises(ShapeError, match=r"attention_mask has shape \(2, 2\)"):
        TokenDataset(ids, ids[:, :2], ids, ("O",), rows)
    with pytest.raises(ShapeError, match=r"labels has shape \(3,\)"):
        TokenDataset(ids, ids, torch.zeros(3, dtype=torch.int64), ("O",), rows)
    with pytest.raises(LabelError, match="labels hold -1; with 1 label names"):
        TokenDataset(ids, ids, ids - 1, ("O",), rows)
