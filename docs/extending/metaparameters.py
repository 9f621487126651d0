"""A meta-parameter module of one's own: how strongly each tensor of a model is decayed."""

import torch
from torch import nn
from typing_extensions import override

from metatoolkit.losses import cross_entropy
from metatoolkit.metaparameters import register


@register()
class Decays(nn.Module):
    """Σ exp(λ_i) ‖θ_i‖² over the tensors θ_i of a model, to be added to its training loss."""

    def __init__(self, tensors, start=-4.0):
        super().__init__()
        self.logs = nn.Parameter(torch.full((tensors,), start))

    @override
    def forward(self, model):
        return self.logs.exp() @ torch.stack(
            [tensor.square().sum() for tensor in model.parameters()]
        )


def decayed_cross_entropy(model, meta, batch):
    """Return the training loss, in which λ acts.

    Args:
        model: The model, which maps inputs to logits.
        meta: A :class:`Decays`.
        batch: Inputs and labels.
    """
    return cross_entropy(model, meta, batch) + meta(model)
