"""Tokenizers: trained on the spot or loaded, and checked against a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    UnsupportedError,
    optional_import,
)
from metatoolkit.networks.pretrained import load_pretrained
from metatoolkit.tasks.languages.corpus import (
    Corpus,
    Document,
    Example,
    check_sizes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SPECIAL = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
# Letters stay with their diacritics, which ByteLevel's own pattern would cut off.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


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
        MissingDependencyError: The package transformers is not installed.
        UnknownNameError: A corpus lacks a split.
    """
    with optional_import("a tokenizer"):
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
        MissingDependencyError: The package transformers is not installed.
        UnsupportedError: It is not fast, or has no padding token.
    """
    with optional_import("a tokenizer"):
        import transformers

    tokenizer: PreTrainedTokenizerBase = load_pretrained(
        transformers.AutoTokenizer, pretrained, "tokenizer"
    )
    check_tokenizer(tokenizer)
    return tokenizer


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
