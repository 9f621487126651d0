"""A tokenizer whose every token is known, and a sentence for it."""

from __future__ import annotations

from typing import Any

from metatoolkit.tasks import Sentence

LABELS = ["O", "B-PER", "I-PER"]
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "ann", "##a", "##b", "lee", "runs", ".", "[MASK]")
IDS = {piece: number for number, piece in enumerate(PIECES)}
SENTENCE = Sentence(("Annab", "Lee", "runs", "."), ("B-PER", "I-PER", "O", "O"))


def pieces(**options: Any) -> Any:
    """Return a tokenizer whose every token is known: lower-cased word pieces."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    special |= {"sep_token": "[SEP]", **options}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
