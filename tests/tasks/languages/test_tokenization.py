from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    UnsupportedError,
)
from metatoolkit.tasks import (
    Corpus,
    Document,
    check_tokenizer,
    encode,
    generated_languages,
    load_tokenizer,
    train_tokenizer,
)
from tests.tasks.languages.word_pieces import LABELS, PIECES, SENTENCE, pieces

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def family() -> dict[str, Corpus]:
    return generated_languages(2, seed=3, train=60, dev=10, test=20)


@pytest.fixture(scope="module")
def trained(family: dict[str, Corpus]) -> Any:
    return train_tokenizer(family, 400)


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
