"""Text in several languages: corpora, tokenizers, and batches of encoded text."""

from metatoolkit.tasks.languages.conll import load_conll, load_masakhaner, read_conll
from metatoolkit.tasks.languages.corpus import (
    Corpus,
    Document,
    Sentence,
    bio_labels,
    common_labels,
)
from metatoolkit.tasks.languages.encoding import TokenDataset, encode
from metatoolkit.tasks.languages.hub_datasets import load_amazon_reviews, load_wikiann
from metatoolkit.tasks.languages.token_batches import TokenBatches, evaluation_token_batches
from metatoolkit.tasks.languages.tokenization import (
    check_tokenizer,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "Corpus",
    "Document",
    "Sentence",
    "TokenBatches",
    "TokenDataset",
    "bio_labels",
    "check_tokenizer",
    "common_labels",
    "encode",
    "evaluation_token_batches",
    "load_amazon_reviews",
    "load_conll",
    "load_masakhaner",
    "load_tokenizer",
    "load_wikiann",
    "read_conll",
    "train_tokenizer",
]
