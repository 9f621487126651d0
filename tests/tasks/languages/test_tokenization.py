from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
    UnsupportedError,
)
from metatoolkit.tasks import (
    Corpus,
    Document,
    Sentence,
    TokenDataset,
    check_tokenizer,
    encode,
    generated_languages,
    load_tokenizer,
    train_tokenizer,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ROOT = Path(__file__).resolve().parents[3]
LABELS = ["O", "B-PER", "I-PER"]
X = -100
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "ann", "##a", "##b", "lee", "runs", ".", "[MASK]")
IDS = {piece: number for number, piece in enumerate(PIECES)}
SENTENCE = Sentence(("Annab", "Lee", "runs", "."), ("B-PER", "I-PER", "O", "O"))


def pieces(**options: Any) -> Any:
    """Return a tokenizer whose every token is known: lower-cased word pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    special |= {"sep_token": "[SEP]", **options}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


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


# Labels.


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


# The trained tokenizer.


def test_special_tokens_are_those_of_xlmr(trained: Any) -> None:
    assert [trained.cls_token_id, trained.pad_token_id, trained.sep_token_id] == [0, 1, 2]
    assert [trained.unk_token_id, trained.mask_token_id] == [3, 4]
    ids = trained("a")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)


@pytest.mark.parametrize("text", ["Ọ̀gbẹ́ni àgbà", "日本語", "naïve🙂", "a.b,c 12"])
def test_any_text_survives(trained: Any, text: str) -> None:
    import unicodedata

    ids = trained(text)["input_ids"]
    assert trained.unk_token_id not in ids
    decoded = trained.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded == " " + unicodedata.normalize("NFC", text)


def test_words_are_encoded_alike_in_a_sentence_and_in_a_text(trained: Any) -> None:
    words = "Ann sees Rome".split()
    apart = trained(words, is_split_into_words=True)["input_ids"]
    assert apart == trained(" ".join(words))["input_ids"]


def test_frequent_words_are_one_token(family: dict[str, Corpus], trained: Any) -> None:
    lengths = []
    for corpus in family.values():
        words = [word for sentence in corpus["train"] for word in sentence.words]
        word = max({w for w in words if len(w) > 1}, key=words.count)
        lengths.append(len(trained(word, add_special_tokens=False)["input_ids"]))
    assert lengths == [1, 1]


def test_only_the_splits_asked_for_are_read(family: dict[str, Corpus]) -> None:
    (language, corpus), *_ = family.items()
    other = Corpus(language, {**corpus.splits, "dev": corpus["train"]}, corpus.labels)
    first, second = train_tokenizer([corpus], 350), train_tokenizer([other], 350)
    assert first.get_vocab() == second.get_vocab()
    assert train_tokenizer([corpus], 350, splits=["dev"]).get_vocab() != first.get_vocab()


def test_equal_corpora_give_equal_tokenizers_in_every_process(trained: Any) -> None:
    code = (
        "import hashlib\n"
        "from metatoolkit.tasks import generated_languages, train_tokenizer\n"
        "family = generated_languages(2, seed=3, train=60, dev=10, test=20)\n"
        "text = train_tokenizer(family, 400).backend_tokenizer.to_str()\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    fresh = train_tokenizer(generated_languages(2, seed=3, train=60, dev=10, test=20), 400)
    expected = hashlib.sha256(fresh.backend_tokenizer.to_str().encode()).hexdigest()
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == expected
    assert fresh.get_vocab() == trained.get_vocab()


def test_vocabularies_that_are_too_small(family: dict[str, Corpus]) -> None:
    with pytest.raises(ConfigurationError, match=r"vocabulary is 260.*256 bytes.*261"):
        train_tokenizer(family, 260)
    assert len(train_tokenizer(family, 261)) == 261
    with pytest.raises(DataError, match="no corpus"):
        train_tokenizer([])


def test_documents_are_read_too() -> None:
    corpus = Corpus("a", {"train": [Document("lorem lorem", "x")]}, ["x"])
    tokenizer = train_tokenizer([corpus], 300)
    assert len(tokenizer("lorem", add_special_tokens=False)["input_ids"]) == 1


# Tokenizer and model.


def bert(rows: int = len(PIECES), padding: int | None = 0) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=rows,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        pad_token_id=padding,
    )
    return transformers.BertModel(config)


def test_a_tokenizer_and_a_model_that_fit() -> None:
    check_tokenizer(pieces())
    check_tokenizer(pieces(), bert())
    check_tokenizer(pieces(), nn.Sequential(bert(100)))
    check_tokenizer(pieces(), bert(padding=None))


def test_a_vocabulary_larger_than_the_embedding() -> None:
    with pytest.raises(ConfigurationError, match=r"11 tokens, the model 10.*resize_token"):
        check_tokenizer(pieces(), bert(10))


def test_another_padding_token() -> None:
    with pytest.raises(ConfigurationError, match=r"pads with 0, the model takes 1.*pad_token_id="):
        check_tokenizer(pieces(), bert(padding=1))


def test_a_tokenizer_without_padding() -> None:
    with pytest.raises(UnsupportedError, match=r"no padding token.*tokenizer\.pad_token"):
        check_tokenizer(pieces(pad_token=None))
    with pytest.raises(UnsupportedError, match="no padding token"):
        encode([SENTENCE], pieces(pad_token=None), LABELS, 20)


def test_a_slow_tokenizer(tmp_path: Path) -> None:
    from transformers.models.ctrl import CTRLTokenizer

    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    slow = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    with pytest.raises(UnsupportedError, match=r"CTRLTokenizer cannot tell.*use_fast=True"):
        encode([SENTENCE], slow, LABELS, 20)


def test_a_stored_tokenizer_is_loaded_from_its_folder(trained: Any, tmp_path: Path) -> None:
    trained.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.is_fast
    text = "Ọ̀gbẹ́ni Ann, 12"
    assert loaded(text)["input_ids"] == trained(text)["input_ids"]
    assert loaded.pad_token_id == 1


def test_a_model_without_embeddings() -> None:
    with pytest.raises(UnsupportedError, match="Linear holds no Hugging Face model"):
        check_tokenizer(pieces(), nn.Linear(2, 2))
