"""Shared: λ is parameters of the model that all tasks have in common (ANIL, BOIL)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metatoolkit.metaparameters.placement import attach_at, chosen_parameters
from metatoolkit.metaparameters.registry import modules


@modules.register()
class Shared(nn.Module):
    """Parameters of a model, themselves, as meta-parameters: no inner step moves them.

    A problem whose ``meta`` owns them has the others as inner parameters, so that inner steps
    neither move these nor take a gradient in them; the outer loss reaches them through the model.
    Beside :class:`Initialization` of the others they make ANIL (Raghu et al. 2020, arXiv
    1909.09157), where the last layer is adapted, and BOIL (Oh et al. 2021, arXiv 2008.08882),
    where all others are.

    Args:
        model: Module whose parameters they are; they are not copied.
        parameters: Name patterns, as in :mod:`fnmatch`, of parameters that require a gradient.

    Raises:
        ConfigurationError: A pattern matches no parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> meta = Shared(model, ["0.*"])
        >>> [name for name, _ in meta.named_parameters()]
        ['0.weight', '0.bias']
        >>> meta.get_parameter("0.bias") is model[0].bias
        True
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str]) -> None:
        super().__init__()
        for name, parameter in chosen_parameters(model, parameters).items():
            attach_at(self, name, parameter)
