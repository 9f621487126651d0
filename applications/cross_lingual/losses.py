"""The two losses of MetaXL, cut where the encoder ends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatoolkit.networks.text_classifier import TextClassifier


def encode_all(model: Any, meta: Any, batch: dict[str, dict[str, Tensor]]) -> Any:
    """Return the batch with the encoder's hidden states of each language.

    It depends on the encoder alone: EvoGrad computes it once for all candidates for the head.

    Args:
        model: Encoder and head.
        meta: Not used.
        batch: Batches by language; what already has hidden states stays as it is.
    """
    return {
        name: part if "hidden" in part else {**part, "hidden": model.encode(part)}
        for name, part in batch.items()
    }


def masked_cross_entropy(model: TextClassifier, part: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy over what is labeled.

    Args:
        model: Encoder and head, of which the head is evaluated.
        part: ``hidden``, ``attention_mask`` and ``labels``, those of -100 left out.
    """
    logits = model.classify(part["hidden"], part["attention_mask"])
    return F.cross_entropy(logits.flatten(0, -2), part["labels"].flatten(), ignore_index=-100)


class TransferLoss:
    """The mean of the losses on source and target, the source transformed or not.

    Args:
        transformed: Whether the representation transformation applies to the source.
        inside: Whether it lies inside the encoder, not behind its last layer alone.
    """

    def __init__(self, transformed: bool, inside: bool) -> None:
        self.transformed = transformed
        self.inside = inside

    def __call__(
        self,
        model: Any,
        meta: Any,
        batch: dict[str, dict[str, Tensor]],
    ) -> Tensor:
        """Return the loss; a function of the form that a bilevel problem takes.

        Args:
            model: A :class:`TextClassifier`.
            meta: The :class:`metatoolkit.metaparameters.RepresentationTransform`.
            batch: ``target``, and ``source`` where it takes part, with or without hidden states.
        """
        if self.transformed and self.inside and "source" in batch:
            with meta.active():
                source = {**batch["source"], "hidden": model.encode(batch["source"])}
            batch = {**batch, "source": source}
        parts = encode_all(model, meta, batch)
        if self.transformed and not self.inside and "source" in parts:
            source = parts["source"]
            parts["source"] = {**source, "hidden": meta(source["hidden"])}
        losses = [masked_cross_entropy(model, part) for part in parts.values()]
        return torch.stack(losses).mean()
