"""Classifier of tokens or of sentences: a Hugging Face encoder and a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, ShapeError, optional_import
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.pretrained import load_pretrained


class TextClassifier(nn.Module):
    """An encoder, dropout and one linear layer, cut between the encoder and the head.

    For tokens each hidden state is classified, for sequences their mean over the tokens.

    Args:
        encoder: Model of Hugging Face's transformers that returns ``last_hidden_state``.
        classes: Number of classes.
        kind: ``"token"`` or ``"sequence"``.
        dropout: Probability of dropout before the head.

    Raises:
        ConfigurationError: ``kind`` is unknown, or a number is out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        kind: Literal["token", "sequence"] = "token",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive(classes=classes)
        if kind not in ("token", "sequence"):
            raise ConfigurationError(f"kind is {kind!r}; accepted: 'token', 'sequence'.")
        _check_probabilities(dropout=dropout)
        self.kind = kind
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        config: Any = encoder.config
        self.classifier = nn.Linear(config.hidden_size, classes)

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the encoder's last hidden states, of shape (batch, tokens, size).

        Args:
            batch: ``input_ids`` and ``attention_mask``, both int64 of shape (batch, tokens).
        """
        output = self.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden: Tensor = output.last_hidden_state
        return hidden

    def classify(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits of hidden states.

        Args:
            hidden: Hidden states of shape (batch, tokens, size).
            attention_mask: 1 for tokens and 0 for padding, of shape (batch, tokens).

        Returns:
            Logits of shape (batch, tokens, classes), or (batch, classes) for sequences.

        Raises:
            ShapeError: The two do not belong together.
        """
        if hidden.shape[:-1] != attention_mask.shape:
            raise ShapeError(
                f"hidden states have shape {tuple(hidden.shape)}, attention_mask "
                f"{tuple(attention_mask.shape)}; batch and tokens must be equal."
            )
        if self.kind == "sequence":
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            hidden = (mask * hidden).sum(1) / mask.sum(1)
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a batch; see :meth:`classify`.

        Args:
            batch: ``input_ids`` and ``attention_mask``, both int64 of shape (batch, tokens).
        """
        return self.classify(self.encode(batch), batch["attention_mask"])


def build_encoder(
    tokenizer: Any,
    max_length: int,
    pretrained: str | None = None,
    size: int = 64,
    layers: int = 2,
    heads: int = 4,
    feed_forward: int = 128,
    embeddings: int | None = None,
    dropout: float = 0.1,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """Return an encoder of Hugging Face's transformers, loaded or with random weights.

    The random one is an XLM-RoBERTa, whose positions are counted from the one after the padding
    token's, drawn from the global random state.

    Args:
        tokenizer: Tokenizer whose tokens a random encoder embeds; of a loaded one nothing is used.
        max_length: Longest sequence in tokens that a random encoder has positions for.
        pretrained: Name on the hub or folder of the encoder to load; the following arguments then
            have no say.
        size: Size of the hidden states.
        layers: Number of layers.
        heads: Attention heads, a divisor of ``size``.
        feed_forward: Hidden units between attentions.
        embeddings: Rows of the embedding; ``None`` for one per token of the tokenizer.
        dropout: Probability of dropout of hidden states.
        attention_dropout: Probability of dropout of attention weights.

    Raises:
        ConfigurationError: A number is out of range.
        DataError: The encoder cannot be loaded.
        MissingDependencyError: The package transformers is not installed.
    """
    with optional_import("a text encoder"):
        import transformers

    if pretrained is not None:
        model = load_pretrained(transformers.AutoModel, pretrained, "encoder")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # nothing here uses it, and its parameters would be inner ones
        return cast(nn.Module, model)
    check_positive(size=size, layers=layers, heads=heads, feed_forward=feed_forward)
    _check_probabilities(dropout=dropout, attention_dropout=attention_dropout)
    if size % heads:
        raise ConfigurationError(f"heads is {heads}, which does not divide size, {size}.")
    padding = tokenizer.pad_token_id
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer) if embeddings is None else embeddings,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=attention_dropout,
        max_position_embeddings=max_length + 1 + (padding or 0),
        type_vocab_size=1,
        pad_token_id=padding,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return transformers.XLMRobertaModel(config, add_pooling_layer=False)


def check_positions(encoder: nn.Module, max_length: int) -> None:
    """Raise unless an encoder has positions for sequences of a length.

    RoBERTa and its kin count positions from the one after the padding token's, so that they take
    fewer tokens than they have positions.

    Args:
        encoder: Model of Hugging Face's transformers.
        max_length: Longest sequence in tokens.

    Raises:
        ConfigurationError: It has fewer.
    """
    config: Any = encoder.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    if "roberta" in config.model_type:
        positions -= 1 + (config.pad_token_id or 0)
    if max_length > positions:
        raise ConfigurationError(
            f"max_length is {max_length}, but the encoder {type(encoder).__name__} has positions "
            f"for {positions} tokens; lower max_length."
        )


def _check_probabilities(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigurationError(f"{name} is {value}; a number from 0 to below 1 is needed.")
