"""Modules of the bank: models whose parameters are few, and meta-parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metatoolkit.metaparameters import Initialization


class Value(nn.Module):
    """One parameter, ``value``."""

    def __init__(self, value: Any, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))


def value_of(module: Any) -> Tensor:
    """Return the parameter of a :class:`Value`, detached.

    Args:
        module: The module.
    """
    return module.value.detach()


class Weights(nn.Module):
    """A smooth weight per example from its loss, and a log-penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
        self.log_penalty = nn.Parameter(torch.tensor(-4.0))

    def forward(self, losses: Tensor) -> Tensor:
        """Return a weight between 0 and 1 for each loss.

        Args:
            losses: Losses, shape ``(batch,)``.
        """
        return self.layers(losses.unsqueeze(1)).squeeze(1)


class Rates(nn.Module):
    """Meta-parameters of an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))


class Scaled(nn.Module):
    """λ in the middle of the network, beside frozen and 0-d parameters."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.scale = Value([1.0, 0.5, -0.5, 2.0, 1.5])
        self.temperature = nn.Parameter(torch.tensor(1.3))
        self.last = nn.Linear(5, 3)
        self.last.bias.requires_grad_(False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 3)``, and count the call in a buffer.

        Args:
            inputs: Features, shape ``(batch, 6)``.
        """
        self.calls += 1
        hidden = torch.tanh(self.first(inputs)) * self.scale.value
        return self.last(hidden) * self.temperature


class Tied(nn.Module):
    """An autoencoder whose decoder shares its weight with the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features restored.

        Args:
            inputs: Features, shape ``(batch, 6)``.
        """
        return self.decoder(torch.tanh(self.encoder(inputs)))


class Partly(nn.Module):
    """Meta-parameters of which each loss sees its own, and neither sees the third."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.linspace(-1, 1, 6))
        self.direct = nn.Parameter(torch.tensor([0.3, -0.7]))
        self.unused = nn.Parameter(torch.ones(2, 3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


class Adapted(nn.Module):
    """An initial state for some inner parameters, beside λ in the training loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.start = Initialization(model, ["0.*", "4.weight"])
        self.log_penalty = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
