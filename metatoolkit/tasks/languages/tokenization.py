"""From words to token ids: a tokenizer trained on the spot, and labels aligned with its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
    UnsupportedError,
)
from metatoolkit.hub import load_pretrained
from metatoolkit.tasks.languages.corpus import (
    Corpus,
    Document,
    Example,
    Sentence,
    check_sizes,
    labels_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

IGNORED = -100
_SPECIAL = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
# Letters stay with their diacritics, which ByteLevel's own pattern would cut off.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


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


def train_tokenizer(
    corpora: Iterable[Corpus] | Mapping[str, Corpus],
    vocabulary: int = 2000,
    *,
    splits: Sequence[str] = ("train",),
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the words of corpora; their labels have no part in it.

    Every text can be encoded, in any script: what the vocabulary lacks falls apart into bytes. The
    special tokens and their ids are those of XLM-R: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>``
    3, ``<mask>`` 4. Equal corpora give equal tokenizers.

    Args:
        corpora: The corpora, or a dictionary of them.
        vocabulary: Largest number of tokens, the 256 bytes and the special tokens included.
        splits: Splits that are read; the default keeps text of dev and test unseen.
        max_length: Longest input of the model, in tokens.

    Returns:
        A tokenizer that adds ``<s>`` and ``</s>``.

    Raises:
        ConfigurationError: ``vocabulary`` is too small for the bytes and the special tokens.
        DataError: There is no corpus.
        UnknownNameError: A corpus lacks a split.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    given = list(corpora.values() if isinstance(corpora, Mapping) else corpora)
    if not given:
        raise DataError("no corpus was given; at least one is needed to train a tokenizer.")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(_SPECIAL.values())
    check_sizes(vocabulary=vocabulary)
    if vocabulary < len(alphabet) + len(special):
        raise ConfigurationError(
            f"vocabulary is {vocabulary}; {len(alphabet)} bytes and {len(special)} special tokens "
            f"need at least {len(alphabet) + len(special)}."
        )
    texts = [text for corpus in given for split in splits for text in _texts(corpus[split])]
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer, length=len(texts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        bos_token=_SPECIAL["cls_token"],
        eos_token=_SPECIAL["sep_token"],
        **_SPECIAL,
    )


def load_tokenizer(pretrained: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that was trained before.

    Args:
        pretrained: Name on the Hugging Face hub, or a folder.

    Returns:
        The fast tokenizer.

    Raises:
        DataError: It cannot be loaded; without a network that is said at once.
        UnsupportedError: It is not fast, or has no padding token.
    """
    import transformers

    tokenizer: PreTrainedTokenizerBase = load_pretrained(
        transformers.AutoTokenizer, pretrained, "tokenizer"
    )
    check_tokenizer(tokenizer)
    return tokenizer


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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None) -> None:
    """Check that labels can be aligned with a tokenizer's tokens, and that a model knows them.

    Args:
        tokenizer: The tokenizer.
        model: A Hugging Face model, or a module that holds one; ``None`` checks the tokenizer
            alone.

    Raises:
        UnsupportedError: The tokenizer is not fast, or has no padding token.
        ConfigurationError: The model has fewer embeddings than the tokenizer has tokens, or takes
            another token for padding.
    """
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError(
            f"the tokenizer {name} cannot tell which word a token belongs to; load the fast one: "
            "AutoTokenizer.from_pretrained(name, use_fast=True)."
        )
    if tokenizer.pad_token_id is None:
        raise UnsupportedError(
            f"the tokenizer {name} has no padding token, so that rows of one batch cannot have "
            "several lengths; set tokenizer.pad_token to a token that the model knows."
        )
    if model is not None:
        _check_model(tokenizer, model)


def _check_model(tokenizer: Any, model: nn.Module) -> None:
    inner = next((m for m in model.modules() if hasattr(m, "get_input_embeddings")), None)
    if inner is None:
        raise UnsupportedError(
            f"{type(model).__name__} holds no Hugging Face model; one with get_input_embeddings() "
            "is needed."
        )
    rows = inner.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise ConfigurationError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; make the "
            "model with vocab_size=len(tokenizer), or call "
            "model.resize_token_embeddings(len(tokenizer))."
        )
    padding = getattr(getattr(inner, "config", None), "pad_token_id", None)
    if padding is not None and padding != tokenizer.pad_token_id:
        raise ConfigurationError(
            f"the tokenizer pads with {tokenizer.pad_token_id}, the model takes {padding} for "
            "padding (and may count its positions by it); make the model with "
            "pad_token_id=tokenizer.pad_token_id."
        )


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    for example in examples:
        yield example.text if isinstance(example, Document) else " ".join(example.words)


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
