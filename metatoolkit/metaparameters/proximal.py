"""Proximal: the strength that pulls inner parameters to their initial values (iMAML)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters.registry import modules


@modules.register()
class Proximal(nn.Module):
    """The proximal term s/2 ‖θ − φ‖² of iMAML (Rajeswaran et al. 2019, arXiv 1909.04630).

    s is the exponential of what is stored, so that it stays above 0.

    Args:
        strength: First value of s.
        learned: Whether s is a meta-parameter, or a constant.

    Raises:
        ConfigurationError: ``strength`` is not above 0.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> term = Proximal(2.0).term(model, {"weight": model.weight.detach() - 3.0})
        >>> round(float(term.detach()), 4)
        9.0
    """

    def __init__(self, strength: float, learned: bool = True) -> None:
        super().__init__()
        if not 0 < strength < math.inf:
            raise ConfigurationError(f"strength is {strength}; a finite number above 0 is needed.")
        self.log_strength = nn.Parameter(torch.tensor(math.log(strength)), requires_grad=learned)

    def term(self, model: nn.Module, initial: Mapping[str, Tensor]) -> Tensor:
        """Return the term, 0-d, to be added to a training loss.

        Args:
            model: Model with the inner parameters θ.
            initial: φ by the names of the parameters.
        """
        present = dict(model.named_parameters())
        parts = [(present[name] - value).square().sum() for name, value in initial.items()]
        return self.log_strength.exp() / 2 * torch.stack(parts).sum()
