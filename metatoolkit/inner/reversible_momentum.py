"""Gradient descent with momentum whose steps can be taken back, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.fixed_point import (
    EMPTY,
    LostBits,
    checked_sum,
    divide,
    fraction,
    from_fixed,
    multiply,
    numerator,
    spilled,
    to_fixed,
)
from metatoolkit.inner.groups import Group
from metatoolkit.inner.hyperparameters import Hyperparameter
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import refuse_complex, slots_of, zero_slots
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@learners.register()
class ReversibleMomentum(InnerLearner):
    """Momentum in fixed-point integers, which loses nothing (Maclaurin et al. 2015).

    Algorithm 2 and section 2.2 of "Gradient-based Hyperparameter Optimization through Reversible
    Learning" (arXiv 1502.03492), with the sign of v turned around: v ← γ v + (1 − γ) g and
    θ ← θ − ``lr`` · v. That is ``torch.optim.SGD`` with a dampening that equals its momentum,
    but for its first step, which is dampened here.

    θ and v are integers of 64 bits, multiples of 2^-``fraction_bits``; losses see θ rounded to its
    type. γ is the nearest n / 2³⁰, at most 5e-10 away. The bits that γ v loses, log2(1/γ) of them
    for each entry, go to the slot ``"lost_bits"``; what does not fit there is dropped by a step,
    and kept by :class:`metatoolkit.hypergradients.Reversible`, which takes the steps back.

    Derivatives are those of the map without rounding, at the rounded values. θ or v that something
    else has changed between two steps are taken as they are. Memory beyond θ: one tensor in its
    type and three of 64-bit integers for each parameter.

    Args:
        lr: Learning rate.
        momentum: γ, from 0.0001 to below 1.
        groups: Exceptions for some parameters; see :class:`InnerLearner`.
        maximize: Whether the training loss is ascended.
        fraction_bits: Number of bits behind the point, 8 to 56. The others, 62 less these, are
            the range: with 48 numbers stay below 16,384.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> ReversibleMomentum(lr=0.1, momentum=0.9)
        ReversibleMomentum(lr=0.1, momentum=0.9, maximize=False, fraction_bits=48, groups=0)
    """

    below_one = frozenset({"momentum"})
    linear_in_gradient = True

    def __init__(
        self,
        lr: Hyperparameter,
        momentum: Hyperparameter = 0.9,
        groups: Sequence[Group] = (),
        *,
        maximize: bool = False,
        fraction_bits: int = 48,
    ) -> None:
        super().__init__({"lr": lr, "momentum": momentum, "maximize": maximize}, groups)
        for value in self.settings("momentum"):
            if isinstance(value, float | int):
                numerator(value)
        if not 8 <= fraction_bits <= 56:
            raise ConfigurationError(
                f"fraction_bits is {fraction_bits}; accepted: a number from 8 to 56."
            )
        self.fraction_bits = fraction_bits

    @override
    def check(self, problem: BilevelProblem) -> None:
        """Raise where a parameter is complex, beside what every learner refuses.

        Raises:
            ConfigurationError: The learner does not fit the problem.
            UnsupportedError: A parameter is complex.
        """
        super().check(problem)
        for name, parameter in problem.parameters().items():
            refuse_complex(name, parameter)

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return velocities of zero, the integers of all parameters, and coders without bits."""
        integers = {
            name: self._fixed(parameter, f"parameter {name!r}")
            for name, parameter in parameters.items()
        }
        return zero_slots(parameters, "velocity") | {
            "fixed_parameter": integers,
            "fixed_velocity": {name: torch.zeros_like(whole) for name, whole in integers.items()},
            "lost_bits": {name: torch.full_like(whole, EMPTY) for name, whole in integers.items()},
        }

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its slots after one step."""
        lr, momentum = hyperparameters["lr"], hyperparameters["momentum"]
        count = numerator(momentum)
        place = self._in_step(slots["fixed_parameter"], parameter, "a parameter")
        speed = self._in_step(slots["fixed_velocity"], slots["velocity"], "a velocity")
        speed, head = multiply(speed, slots["lost_bits"], count)
        bits = self.fraction_bits
        speed = checked_sum(speed, self._push(gradient, count), bits, "a velocity")
        place = checked_sum(place, -self._move(speed, lr), bits, "a parameter")
        velocity = _through(
            from_fixed(speed, bits, parameter.dtype),
            momentum * slots["velocity"] + (1.0 - momentum) * gradient,
        )
        moved = _through(from_fixed(place, bits, parameter.dtype), parameter - lr * velocity)
        after = {"fixed_parameter": place, "fixed_velocity": speed, "lost_bits": head}
        return moved, {"velocity": velocity, **after}

    @override
    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return ∂θ⁺/∂g, which is the same for all coordinates; see :class:`InnerLearner`."""
        slope = -hyperparameters["lr"] * (1.0 - hyperparameters["momentum"])
        return (parameter.new_ones(()) * slope).to(parameter.dtype)

    def spill(
        self,
        problem: BilevelProblem,
        before: InnerState,
        after: InnerState,
        meta: Tensors,
        lost: LostBits,
    ) -> dict[str, float | Tensor]:
        """Keep the bits that a step drops, for :meth:`rewind_velocities`.

        Args:
            problem: Problem whose ``meta`` gives the hyper-parameters that come from λ.
            before: State before the step.
            after: State after it.
            meta: Meta-parameters by name.
            lost: Stack that the bits go to.

        Returns:
            The fraction n / 2³⁰ in the place of the momentum, by the names of the parameters that
            moved.
        """
        resolved = self._resolved(problem, meta, before.step)
        fractions: dict[str, float | Tensor] = {}
        for name in _moved(after, before.missed):
            count = numerator(resolved(name)["momentum"])
            lost.push(spilled(before.optimizer["lost_bits"][name], count))
            fractions[name] = fraction(count)
        return fractions

    def rewind_parameters(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, missed: dict[str, int]
    ) -> InnerState:
        """Take back the last step of θ; the velocity stays, since its gradient is that there.

        Args:
            problem: Problem whose ``meta`` gives the hyper-parameters that come from λ.
            state: State after the step.
            meta: Meta-parameters by name.
            missed: ``missed`` of the state before the step.

        Returns:
            The state with the parameters and the step number before the step. Cost: no pass.
        """
        resolved = self._resolved(problem, meta, state.step - 1)
        parameters = dict(state.parameters)
        places = dict(state.optimizer["fixed_parameter"])
        for name in _moved(state, missed):
            speed = state.optimizer["fixed_velocity"][name]
            places[name] = places[name] + self._move(speed, resolved(name)["lr"])
            dtype = parameters[name].dtype
            parameters[name] = from_fixed(places[name], self.fraction_bits, dtype)
        return state.replaced(
            parameters=parameters,
            optimizer=state.optimizer | {"fixed_parameter": places},
            step=state.step - 1,
            missed=missed,
        )

    def rewind_velocities(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        gradients: Tensors,
        lost: LostBits,
    ) -> InnerState:
        """Take back the velocities, after :meth:`rewind_parameters`.

        Args:
            problem: Problem whose ``meta`` gives the hyper-parameters that come from λ.
            state: State that :meth:`rewind_parameters` returned.
            meta: Meta-parameters by name.
            gradients: Gradient of the training loss there, bit for bit that of the step.
            lost: Stack that :meth:`spill` has filled; the bits of this step are taken from it.

        Returns:
            The state before the step. Cost: no pass.
        """
        resolved = self._resolved(problem, meta, state.step)
        slots = {slot: dict(values) for slot, values in state.optimizer.items()}
        # The words of the last parameter are on top.
        for name in reversed([name for name in state.parameters if name in gradients]):
            values, own = resolved(name), slots_of(state, name)
            count = numerator(values["momentum"])
            gradient = -gradients[name] if values["maximize"] else gradients[name]
            speed = own["fixed_velocity"] - self._push(gradient, count)
            speed, head = divide(speed, own["lost_bits"], count, lost)
            slots["fixed_velocity"][name], slots["lost_bits"][name] = speed, head
            slots["velocity"][name] = from_fixed(speed, self.fraction_bits, gradient.dtype)
        return state.replaced(optimizer=slots)

    def settled(self, state: InnerState) -> InnerState:
        """Return a state whose integers are those of its parameters and velocities.

        Args:
            state: Any state of this learner, such as one whose parameters λ sets.
        """
        speeds = state.optimizer["velocity"]
        slots = {
            "fixed_parameter": {
                name: self._in_step(whole, state.parameters[name], f"parameter {name!r}")
                for name, whole in state.optimizer["fixed_parameter"].items()
            },
            "fixed_velocity": {
                name: self._in_step(whole, speeds[name], f"the velocity of {name!r}")
                for name, whole in state.optimizer["fixed_velocity"].items()
            },
        }
        return state.replaced(optimizer=state.optimizer | slots)

    def _fixed(self, tensor: Tensor, what: str) -> Tensor:
        return to_fixed(tensor, self.fraction_bits, what)

    def _in_step(self, integers: Tensor, value: Tensor, what: str) -> Tensor:
        """Return the integers, those of the value where it is none that they are rounded to."""
        value = value.detach()
        same = from_fixed(integers, self.fraction_bits, value.dtype) == value
        return torch.where(same, integers, self._fixed(value, what))

    def _push(self, gradient: Tensor, count: int | Tensor) -> Tensor:
        """Return (1 − γ) g in integers, a function of the gradient and of n alone."""
        weight = 1.0 - fraction(count)
        return self._fixed(weight * gradient.detach().double(), "a gradient")

    def _move(self, speed: Tensor, lr: float | Tensor) -> Tensor:
        """Return ``lr`` · v in integers, a function of the velocity and of ``lr`` alone."""
        lr = lr.detach().double() if isinstance(lr, Tensor) else lr
        return self._fixed(lr * from_fixed(speed, self.fraction_bits, torch.float64), "a step")

    @override
    def options(self) -> dict[str, Any]:
        """Return the number of bits behind the point."""
        return {"fraction_bits": self.fraction_bits}


def _moved(state: InnerState, missed: dict[str, int]) -> list[str]:
    """Return the names of the parameters that the last step moved, by what was missed before it."""
    return [n for n in state.parameters if state.missed.get(n, 0) == missed.get(n, 0)]


def _through(value: Tensor, smooth: Tensor) -> Tensor:
    """Return a value with the derivative of the number that it was rounded from."""
    return value + (smooth - smooth.detach())
