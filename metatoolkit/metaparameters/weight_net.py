"""Meta-Weight-Net: weights of training examples as a function of their losses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.metaparameters.registry import modules


@modules.register()
class WeightNet(nn.Module):
    """Weight of each example as a function of its loss: a sigmoid of a multilayer perceptron.

    From Shu et al. 2019, "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting"
    (arXiv:1902.07379). The default has 301 parameters.

    Args:
        hidden: Width of the hidden layers, or one width for each.
        inputs: Values per example: 1 for its loss alone.
        outputs: Weights per example.
        layers: Number of hidden layers; only with one width for all.

    Raises:
        ConfigurationError: A number is less than 1, or ``hidden`` and ``layers`` disagree.

    Example:
        >>> WeightNet()(torch.tensor([0.1, 2.3])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = 100,
        inputs: int = 1,
        outputs: int = 1,
        layers: int = 1,
    ) -> None:
        super().__init__()
        widths = [hidden] * layers if isinstance(hidden, int) else list(hidden)
        if not isinstance(hidden, int) and layers not in (1, len(widths)):
            raise ConfigurationError(
                f"hidden names {len(widths)} layers, but layers is {layers}; give one of the two."
            )
        numbers = [("layers", len(widths)), ("inputs", inputs), ("outputs", outputs)]
        for name, number in numbers + [("hidden", width) for width in widths]:
            if number < 1:
                raise ConfigurationError(f"{name} is {number}; at least 1 is needed.")
        self.inputs = inputs
        self.outputs = outputs
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise((inputs, *widths)):
            modules += [nn.Linear(before, after), nn.ReLU()]
        self.hidden = nn.Sequential(*modules)
        self.output = nn.Linear(widths[-1], outputs)

    def forward(self, losses: Tensor) -> Tensor:
        """Return one weight in (0, 1) for each example, not normalized.

        Args:
            losses: Losses of shape (batch,), or (batch, inputs). Detach them from the model.

        Returns:
            Weights of shape (batch,), or (batch, outputs) where there are several outputs.

        Raises:
            ShapeError: The losses have another shape.
        """
        columns = losses.unsqueeze(1) if losses.dim() == 1 else losses
        if columns.dim() != 2 or columns.shape[1] != self.inputs:
            accepted = "(batch,)" if self.inputs == 1 else f"(batch, {self.inputs})"
            raise ShapeError(
                f"losses have shape {tuple(losses.shape)}; this WeightNet takes {accepted}."
            )
        # The model may compute in another precision than this network.
        columns = columns.to(self.output.weight.dtype)
        weights = torch.sigmoid(self.output(self.hidden(columns)))
        return weights.squeeze(1) if self.outputs == 1 else weights


def normalize_weights(weights: Tensor) -> Tensor:
    """Divide nonnegative weights by their sum.

    Weights whose sum is exactly 0 are returned as they are, so that a batch of which no example
    counts has the loss 0 and moves nothing.

    Args:
        weights: Weights of shape (batch,).

    Returns:
        Weights of shape (batch,) that sum to 1, or zeros.
    """
    total = weights.sum()
    return weights / torch.where(total == 0, torch.ones_like(total), total)
