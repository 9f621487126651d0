"""Multilayer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from metatoolkit.errors import ShapeError, UnknownNameError
from metatoolkit.networks.arguments import check_positive
from metatoolkit.networks.registry import NETWORKS

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


@NETWORKS.register("mlp")
class MLP(nn.Module):
    """Fully connected network on flattened inputs.

    Args:
        inputs: Number of values of one input.
        hidden: Widths of the hidden layers; empty for a linear classifier.
        classes: Number of outputs.
        activation: ``"relu"``, ``"gelu"``, ``"softplus"`` or ``"tanh"``.

    Raises:
        ConfigurationError: A width is less than 1.
        UnknownNameError: There is no such activation.

    Example:
        >>> import torch
        >>> MLP(inputs=64, hidden=(32,), classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (100,),
        classes: int = 10,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise UnknownNameError("activation", activation, _ACTIVATIONS)
        check_positive(inputs=inputs, classes=classes)
        for width in hidden:
            check_positive(hidden=width)
        self.inputs = inputs
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((inputs, *hidden)):
            layers += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
        last = hidden[-1] if hidden else inputs
        self.layers = nn.Sequential(*layers, nn.Linear(last, classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits.

        Args:
            inputs: Tensor of shape (batch, ...) with ``inputs`` values per example.

        Returns:
            Logits of shape (batch, classes).

        Raises:
            ShapeError: An example has another number of values.
        """
        flat = inputs.flatten(1)
        if flat.shape[1] != self.inputs:
            raise ShapeError(
                f"inputs have shape {tuple(inputs.shape)}, that is {flat.shape[1]} values per "
                f"example; this MLP takes {self.inputs}."
            )
        logits: Tensor = self.layers(flat)
        return logits
