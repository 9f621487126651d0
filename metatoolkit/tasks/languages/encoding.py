"""From words to token ids, with labels aligned with the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, DataError, LabelError, ShapeError
from metatoolkit.tasks.languages.corpus import (
    Document,
    Example,
    Sentence,
    check_sizes,
    labels_of,
)
from metatoolkit.tasks.languages.tokenization import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """Encoded examples, padded to one length.

    Attributes:
        input_ids: Token ids of shape (rows, length), int64.
        attention_mask: 1 at tokens, 0 at padding; same shape and type.
        labels: Class indices, int64: of shape (rows, length), with -100 at positions that are not
            scored, or of shape (rows,) for documents.
        label_names: One name for each class.
        example: For each row the number of the sentence or document that it belongs to, of shape
            (rows,), int64, never decreasing: a long sentence takes several rows.

    Raises:
        ShapeError: The shapes do not fit together.
        LabelError: A label is neither -100 nor a class.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    example: Tensor

    def __post_init__(self) -> None:
        rows = self.input_ids.shape[:1]
        shapes = {
            "attention_mask": (self.attention_mask.shape, {self.input_ids.shape}),
            "labels": (self.labels.shape, {self.input_ids.shape, rows}),
            "example": (self.example.shape, {rows}),
        }
        for name, (shape, accepted) in shapes.items():
            if self.input_ids.dim() != 2 or shape not in accepted:
                raise ShapeError(
                    f"{name} has shape {tuple(shape)}, input_ids {tuple(self.input_ids.shape)}; "
                    "they must agree."
                )
        known = (self.labels == IGNORED) | (
            (self.labels >= 0) & (self.labels < len(self.label_names))
        )
        if not known.all():
            label = int(self.labels[~known][0])
            raise LabelError(
                f"labels hold {label}; with {len(self.label_names)} label names, 0 to "
                f"{len(self.label_names) - 1} and {IGNORED} are accepted."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.input_ids)

    @property
    def is_tagging(self) -> bool:
        """Whether tokens are labelled, rather than documents."""
        return self.labels.dim() == 2


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_length: int,
) -> TokenDataset:
    """Encode sentences or documents.

    The first token of a word carries its tag; its other tokens, special tokens and padding are not
    scored. A sentence of more than ``max_length`` tokens is cut into several rows, so that every
    word is scored exactly once, in evaluation too; a document is cut off. A word of which the
    tokenizer leaves nothing becomes the unknown token.

    Args:
        examples: Sentences or documents.
        tokenizer: A fast tokenizer with a padding token.
        labels: Names of the classes, in the order of their indices.
        max_length: Most tokens per row, special tokens included.

    Returns:
        The encoded examples.

    Raises:
        DataError: There are no examples, or sentences and documents are mixed.
        LabelError: An example has a label that ``labels`` lacks.
        ConfigurationError: ``max_length`` leaves no room, or ``labels`` names one twice.
        UnsupportedError: The tokenizer is not fast, or has no padding token.
    """
    check_tokenizer(tokenizer)
    if not examples:
        raise DataError("there are no examples to encode.")
    if len(set(labels)) < len(labels):
        raise ConfigurationError(f"labels are {', '.join(labels)}; each may occur once.")
    check_sizes(max_length=max_length)
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise ConfigurationError(
            f"max_length is {max_length}, but the tokenizer adds {special} special tokens; "
            f"at least {special + 1} is needed."
        )
    if len({type(example) for example in examples}) > 1:
        raise DataError("sentences and documents are mixed; encode them apart.")
    index = {label: number for number, label in enumerate(labels)}
    for number, example in enumerate(examples):
        for label in labels_of(example):
            if label not in index:
                raise LabelError(
                    f"example {number} has the label {label!r}; labels names {', '.join(labels)}. "
                    "Take them from common_labels(corpora, labels='union')."
                )
    if isinstance(examples[0], Document):
        return _encode_documents(examples, tokenizer, index, max_length)  # type: ignore[arg-type]
    return _encode_sentences(examples, tokenizer, index, max_length)  # type: ignore[arg-type]


def _encode_documents(
    documents: Sequence[Document], tokenizer: Any, index: dict[str, int], max_length: int
) -> TokenDataset:
    texts = [document.text for document in documents]
    encoding = tokenizer(texts, truncation=True, max_length=max_length)
    input_ids, attention_mask = _pad(encoding["input_ids"], tokenizer.pad_token_id)
    return TokenDataset(
        input_ids,
        attention_mask,
        torch.tensor([index[document.label] for document in documents]),
        tuple(index),
        torch.arange(len(documents)),
    )


def _encode_sentences(
    sentences: Sequence[Sentence], tokenizer: Any, index: dict[str, int], max_length: int
) -> TokenDataset:
    words = _words_with_tokens(sentences, tokenizer)
    encoding = tokenizer(
        words,
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
    )
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    example: list[int] = []
    last = (-1, -1)
    for row, number in enumerate(encoding["overflow_to_sample_mapping"]):
        targets = []
        for word in encoding.word_ids(row):
            scored = word is not None and (number, word) > last
            targets.append(index[sentences[number].tags[word]] if scored else IGNORED)
            if scored:
                last = (number, word)
        # The end of a very long word alone has nothing to score.
        if any(target != IGNORED for target in targets):
            ids.append(encoding["input_ids"][row])
            labels.append(targets)
            example.append(number)
    input_ids, attention_mask = _pad(ids, tokenizer.pad_token_id)
    padded, _ = _pad(labels, IGNORED)
    return TokenDataset(input_ids, attention_mask, padded, tuple(index), torch.tensor(example))


def _words_with_tokens(sentences: Sequence[Sentence], tokenizer: Any) -> list[list[str]]:
    """Return the words, those of which no token would be left replaced by the unknown token."""
    words = [list(sentence.words) for sentence in sentences]
    encoding = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
    for number, sentence in enumerate(words):
        for place in set(range(len(sentence))) - set(encoding.word_ids(number)):
            if tokenizer.unk_token is None:
                raise DataError(
                    f"the tokenizer leaves nothing of word {place} of sentence {number}, "
                    f"{sentence[place]!r}, and has no unknown token; remove the word."
                )
            sentence[place] = tokenizer.unk_token
    return words


def _pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    padded = torch.full((len(rows), length), value, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = 1
    return padded, mask
