"""ExampleWeights: λ is one weight for each training example (data hyper-cleaning)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.metaparameters.registry import modules


@modules.register()
class ExampleWeights(nn.Module):
    """The weight σ(λ_i) of each training example i, with σ the logistic function.

    Data hyper-cleaning learns it, so that examples with a wrong label count less: Franceschi et al.
    2017 (arXiv 1703.01785, section 5.1) with weights clipped to [0, 1], Shaban et al. 2019 (arXiv
    1810.10667) with the logistic function. Batches carry the places of their examples, as
    ``Batches(images, labels, torch.arange(len(labels)), batch_size=...)`` does. Cost: no pass; one
    number for each example.

    Args:
        examples: Number of training examples.
        value: First weight of all, between 0 and 1.

    Raises:
        ConfigurationError: A number is out of range.

    Attributes:
        logits: λ, (examples,).

    Example:
        >>> weights = ExampleWeights(1000)
        >>> weights(torch.tensor([0, 999])).tolist()
        [0.5, 0.5]
    """

    def __init__(self, examples: int, value: float = 0.5) -> None:
        super().__init__()
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
            raise ConfigurationError(
                f"examples is {examples!r}; the number of training examples is needed, from 1 on."
            )
        if not 0 < value < 1:
            raise ConfigurationError(
                f"value is {value}; a weight between 0 and 1 is needed, which the logistic "
                "function reaches at infinity alone."
            )
        self.logits = nn.Parameter(torch.full((examples,), math.log(value / (1 - value))))

    def forward(self, places: Tensor) -> Tensor:
        """Return the weights of some examples, of the shape of ``places``.

        Args:
            places: Places of the examples in the training set, int64, from 0 on.

        Raises:
            DataError: The places are not int64.
        """
        if not isinstance(places, Tensor) or places.dtype != torch.int64:
            kind = places.dtype if isinstance(places, Tensor) else type(places).__name__
            raise DataError(
                f"places are {kind}; int64 is needed: pass torch.arange(len(labels)) to Batches "
                "behind images and labels, so that a batch tells which examples it has."
            )
        return torch.sigmoid(self.logits[places])

    def values(self) -> Tensor:
        """Return the weights of all examples, (examples,), detached."""
        return torch.sigmoid(self.logits.detach())

    def extra_repr(self) -> str:
        """Return what tells this module from another one."""
        return f"examples={len(self.logits)}"
