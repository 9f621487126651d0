"""Initialization: λ is the initial value of the inner parameters (MAML and its kin)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metatoolkit.metaparameters.placement import attach_at, chosen_parameters
from metatoolkit.metaparameters.registry import modules


@modules.register()
class Initialization(nn.Module):
    """Initial values of a model's parameters, as meta-parameters with the same names.

    MAML (Finn et al. 2017, arXiv 1703.03400) learns them. The model itself stays as it is; its
    inner parameters take these values in every state of step 0.

    Args:
        model: Module whose present parameters are the first values; they are copied.
        parameters: Name patterns, as in :mod:`fnmatch`, of those that λ sets; ``None`` for all
            that require a gradient. The others start from the model's own values.

    Raises:
        ConfigurationError: A pattern matches no parameter.

    Example:
        >>> import torch, metatoolkit as mt
        >>> model = torch.nn.Linear(3, 2)
        >>> meta = Initialization(model)
        >>> problem = mt.BilevelProblem(
        ...     model,
        ...     meta,
        ...     mt.losses.cross_entropy,
        ...     mt.losses.cross_entropy,
        ...     initial=Initialization.values,
        ... )
        >>> problem.meta_parameter_names
        ['weight', 'bias']
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str] | None = None) -> None:
        super().__init__()
        for name, parameter in chosen_parameters(model, parameters).items():
            attach_at(self, name, nn.Parameter(parameter.detach().clone()))

    def values(self) -> dict[str, Tensor]:
        """Return the initial values by the names that the parameters have in the model."""
        return dict(self.named_parameters())
