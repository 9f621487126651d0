"""SignDescent: λ follows the signs of its hypergradients, each number with a step of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError


class SignDescent(torch.optim.Optimizer):
    """Sign descent with a step size for each scalar, shortened whenever its sign turns.

    The outer optimizer of forward-mode differentiation with sharing (Micaelli & Storkey 2021, arXiv
    2007.07869): hypergradients through many steps tell a direction well, and a size badly. With s
    the sign of the present gradient and s' the last sign that was not 0, a scalar's factor f, which
    begins at 1, becomes ``decay`` · f where s s' = −1; then λ ← λ − ``lr`` f s, and back to the
    nearer bound where it lies outside. A gradient that is 0 or NaN leaves λ, f and s' as they are.
    Memory: two tensors per parameter.

    Args:
        params: Parameters or groups of them, each with options of its own.
        lr: First step size; a scheduler may change it.
        decay: Factor of a step size whose sign turns.
        bounds: Lowest and highest value; ``None`` for none.

    Raises:
        ConfigurationError: A number is out of range, the bounds are turned round, or a value lies
            outside.
        UnsupportedError: A parameter is complex.

    Example:
        >>> value = torch.nn.Parameter(torch.tensor([0.5, 0.0]))
        >>> optimizer = SignDescent([value], lr=0.2, bounds=(0.0, 1.0))
        >>> for gradient in ([3.0, 1.0], [-1e-3, float("nan")]):
        ...     value.grad = torch.tensor(gradient)
        ...     optimizer.step()
        >>> [round(number, 2) for number in value.tolist()]
        [0.4, 0.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        decay: float = 0.5,
        bounds: Sequence[float] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "bounds": bounds})

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the options given to the optimizer where it has none.

        Args:
            param_group: ``"params"`` and options by name.

        Raises:
            ConfigurationError: See the class.
            UnsupportedError: A parameter is complex.
        """
        options = self.defaults | param_group
        lr, decay, bounds = options["lr"], options["decay"], options["bounds"]
        if not 0 < lr < math.inf:
            raise ConfigurationError(f"lr is {lr}; a finite number above 0 is needed.")
        if not 0 < decay < 1:
            raise ConfigurationError(f"decay is {decay}; a number between 0 and 1 is needed.")
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ConfigurationError(
                f"bounds is {bounds!r}; two numbers are needed, the lower one first, or None."
            )
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            value = parameter.detach()
            if value.is_complex():
                raise UnsupportedError(
                    "a parameter is complex, and has no sign. Keep its real and imaginary parts in "
                    "a real parameter."
                )
            if bounds is not None and bool((value != value.clamp(*bounds)).any()):
                raise ConfigurationError(
                    f"bounds is {bounds!r}, and a parameter holds values from "
                    f"{float(value.min())} to {float(value.max())}; start between the "
                    "bounds, or widen them."
                )

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move each parameter that has a gradient.

        Args:
            closure: Evaluates the loss and its gradients anew; ``None`` for those that are there.

        Returns:
            What the closure returns, if there is one.
        """
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["factor"] = torch.ones_like(parameter)
            state["sign"] = torch.zeros_like(parameter)
        sign = gradient.sign().nan_to_num(nan=0.0)
        turned = sign * state["sign"] < 0
        state["factor"].mul_(torch.where(turned, group["decay"], 1.0))
        state["sign"].copy_(torch.where(sign == 0, state["sign"], sign))
        parameter.sub_(group["lr"] * state["factor"] * sign)
        if group["bounds"] is not None:
            parameter.clamp_(*group["bounds"])

    def converged(self, tolerance: float = 0.05) -> bool:
        """Return whether the next steps are short, each beside its scalar's absolute value.

        A scalar at a bound that its last sign holds it to is at rest, whatever its step size.

        Args:
            tolerance: Largest step, relative to the value.

        Raises:
            ConfigurationError: ``tolerance`` is not above 0.
        """
        if not tolerance > 0:
            raise ConfigurationError(f"tolerance is {tolerance}; a number above 0 is needed.")
        return all(
            self._rests(parameter, group, tolerance)
            for group in self.param_groups
            for parameter in group["params"]
        )

    def _rests(self, parameter: Tensor, group: dict[str, Any], tolerance: float) -> bool:
        state = self.state.get(parameter)
        if not state:
            return False
        rests = group["lr"] * state["factor"] < tolerance * parameter.detach().abs()
        if group["bounds"] is not None:
            low, high = group["bounds"]
            rests |= (parameter <= low) & (state["sign"] > 0)
            rests |= (parameter >= high) & (state["sign"] < 0)
        return bool(rests.all())
