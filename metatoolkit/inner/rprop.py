"""Rprop: steps by the sign of the gradient, of sizes that follow its changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.groups import listed
from metatoolkit.inner.hyperparameters import Group, Hyperparameter, split_pairs
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.state import Tensors

PAIRS = {"etas": ("eta_minus", "eta_plus"), "step_sizes": ("least_step", "largest_step")}
"""What is given as a pair."""


@learners.register()
class Rprop(InnerLearner):
    """The update of ``torch.optim.Rprop``, step for step, differentiable in all it reads.

    Riedmiller and Braun 1993, "A direct adaptive method for faster backpropagation learning". The
    size Δ of each coordinate's step is ``lr`` before the first one. Where the gradient g has the
    sign of the last one, Δ ← η⁺ Δ; where it has the other sign, Δ ← η⁻ Δ, and g counts as 0; Δ is
    cut to ``step_sizes``, and θ ← θ − Δ sign(g).

    The steps read signs alone, which are constants of the derivative: what moves the gradient,
    such as λ in the training loss, has a hypergradient of zero through the steps, rightly, and
    jumps where a sign changes. The derivatives in ``lr`` (through the first Δ), ``etas`` and
    ``step_sizes`` go through Δ; where Δ meets a limit exactly, they are those of what is within.
    Memory beyond θ: two tensors per parameter.

    Args:
        lr: Size of the first steps; it is not read later.
        etas: Factors η⁻, above 0 and below 1, and η⁺, above 1; each a hyper-parameter of its own.
        step_sizes: Least and largest size of a step, each a hyper-parameter of its own.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. A group sets the pairs,
            or ``eta_minus``, ``eta_plus``, ``least_step`` and ``largest_step``.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Rprop(lr=1e-3)
        Rprop(lr=0.001, eta_minus=0.5, eta_plus=1.2, least_step=1e-06, largest_step=50.0, \
maximize=False, groups=0)
    """

    below_one = frozenset({"eta_minus"})

    def __init__(
        self,
        lr: Hyperparameter = 1e-2,
        etas: tuple[Hyperparameter, Hyperparameter] = (0.5, 1.2),
        step_sizes: tuple[Hyperparameter, Hyperparameter] = (1e-6, 50.0),
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
    ) -> None:
        values: dict[str, Any] = {"lr": lr, "etas": etas, "step_sizes": step_sizes}
        values = split_pairs(values | {"maximize": maximize}, PAIRS)
        super().__init__(values, [split_pairs(group, PAIRS) for group in listed(groups)])
        limits = [("eta_minus", 0.0), ("eta_plus", 1.0)]
        for name, limit in limits:
            for value in self.settings(name):
                if isinstance(value, int | float) and value <= limit:
                    raise ConfigurationError(
                        f"{name} is {value}; accepted: etas of which the first is above 0 and "
                        "below 1, and the second above 1."
                    )

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the last gradients and the step sizes as zeros."""
        return zero_slots(parameters, "last_gradient", "step_size")

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter, the gradient that counted and the step sizes after one step."""
        names = ("eta_minus", "eta_plus", "least_step", "largest_step")
        minus, plus, least, largest = (hyperparameters[name] for name in names)
        size = slots["step_size"] + hyperparameters["lr"] if step == 0 else slots["step_size"]
        # The product and not the signs: it may underflow, and counts as 0 then, as in torch.
        change = gradient * slots["last_gradient"]
        turned = change < 0
        factor = torch.where(turned, minus, size.new_ones(()))
        size = torch.where(change > 0, plus, factor) * size
        size = torch.where(size < least, least, size)
        size = torch.where(size > largest, largest, size)
        gradient = gradient.masked_fill(turned, 0.0)
        return parameter - gradient.sign() * size, {"last_gradient": gradient, "step_size": size}

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g, which is 0; see :class:`InnerLearner`."""
        del gradient, slots, hyperparameters, step
        return parameter.new_zeros(())
