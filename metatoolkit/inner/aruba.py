"""ARUBA: gradient descent that sums squared gradients, and may refine its rates by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, add_scaled, is_used
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors


@learners.register()
class ARUBA(InnerLearner):
    """The steps within a task of ARUBA and ARUBA++ (Khodak et al. 2019, arXiv 1906.02717).

    With g the gradient and s the sum of its squares in the steps before, coordinate by coordinate:
    θ ← θ − ``lr`` · g / √(1 + ``refinement`` · s), then s ← s + g². Without refinement it is SGD,
    and s, the slot ``"energy"``, is what :class:`metatoolkit.metaparameters.AdaptiveRates` learn
    from. ARUBA++ is the rate √(b / (a + c s)) for constants a, b and c, that is ``lr`` = √(b / a)
    and ``refinement`` = c / a. Memory beyond θ: one tensor per parameter.

    Args:
        lr: Learning rate of the first step.
        refinement: What the sum of squares counts for in the rates; 0 for ARUBA.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> ARUBA(lr=0.1, refinement=1.0)
        ARUBA(lr=0.1, refinement=1.0, maximize=False, groups=0)
    """

    def __init__(
        self,
        lr: Hyperparameter,
        refinement: Hyperparameter = 0.0,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__({"lr": lr, "refinement": refinement, "maximize": maximize}, groups)

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return a sum of squares of zero for each coordinate."""
        return zero_slots(parameters, "energy")

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its sum of squares after one step."""
        energy = torch.addcmul(slots["energy"], gradient, gradient)
        direction = gradient
        if is_used(hyperparameters["refinement"]):
            direction = gradient * (1.0 + hyperparameters["refinement"] * slots["energy"]).rsqrt()
        return add_scaled(parameter, direction, -hyperparameters["lr"]), {"energy": energy}

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g in closed form; see :class:`InnerLearner`."""
        energy = slots["energy"]
        return -hyperparameters["lr"] * (1.0 + hyperparameters["refinement"] * energy).rsqrt()
