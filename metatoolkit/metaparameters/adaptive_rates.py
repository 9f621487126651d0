"""AdaptiveRates: learning rates from how far tasks move, and how strong their gradients are."""

from __future__ import annotations

import math

import torch
from torch import nn
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.metaparameters.placement import attach_at, chosen_parameters
from metatoolkit.metaparameters.registry import modules
from metatoolkit.metaparameters.task_rule import TaskRule
from metatoolkit.state import InnerState, Tensors

_ALL = "all"


@modules.register()
class AdaptiveRates(TaskRule):
    """The learning rates of ARUBA (Khodak et al. 2019, arXiv 1906.02717, algorithm 2).

    For each coordinate, η = √(b / g) with b₁ = ε² and g₁ = ζ². The task of number t, whose inner
    steps lead from φ to θ with gradients ∇₁, ∇₂, …, adds (φ − θ)² / 2 + ε² / (t + 1)^p to b and
    Σ ∇² + ζ² / (t + 1)^p to g. A coordinate in which tasks differ gets a high rate, one in which
    gradients are strong and tasks alike a low one. Isotropic, η = √(Σ b / Σ g) is one rate for all.
    Tasks that run at once see the same rates, and count as many.

    An inner learner that keeps the sum of squares takes them: ``mt.inner.ARUBA(lr=...)``. What is
    stored are b / ε² and g / ζ², so that the first rate is ``lr`` = ε / ζ exactly. Memory: two
    tensors per parameter, of float32 at least; two numbers where it is isotropic.

    Args:
        model: Module whose parameters they are for, those that require a gradient.
        lr: First value of each, ε / ζ.
        zeta: ζ; the larger, the longer the first value counts.
        power: p.
        isotropic: Whether all coordinates share one rate.

    Raises:
        ConfigurationError: A number is not above 0, or ``power`` below 0.

    Example:
        >>> import torch, metatoolkit as mt
        >>> meta = AdaptiveRates(torch.nn.Linear(2, 1), lr=0.1)
        >>> inner = mt.inner.ARUBA(lr=lambda meta, step: meta["rates"].at(step))
        >>> {name: tuple(rate.shape) for name, rate in meta.at(step=0).items()}
        {'weight': (1, 2), 'bias': (1,)}
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        zeta: float = 1.0,
        power: float = 1.0,
        isotropic: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("zeta", zeta)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{name} is {value}; a finite number above 0 is needed.")
        if not 0 <= power < math.inf:
            raise ConfigurationError(f"power is {power}; a finite number from 0 on is needed.")
        self.lr, self.zeta, self.power, self.isotropic = lr, zeta, power, isotropic
        chosen = chosen_parameters(model, None)
        self._types = {name: parameter.dtype.to_real() for name, parameter in chosen.items()}
        self._count = sum(parameter.numel() for parameter in chosen.values())
        self.spread, self.energy = nn.Module(), nn.Module()
        shaped = {_ALL: next(iter(chosen.values())).new_ones(())} if isotropic else chosen
        for name, like in shaped.items():
            dtype = torch.promote_types(like.dtype.to_real(), torch.float32)
            for part in (self.spread, self.energy):
                first = torch.ones(like.shape, dtype=dtype, device=like.device)
                attach_at(part, name, nn.Parameter(first, requires_grad=False))
        self.tasks = nn.Parameter(torch.tensor(0), requires_grad=False)

    def statistics(self) -> tuple[Tensors, Tensors]:
        """Return b and g by the names of parameters, their means under ``"all"`` if isotropic."""
        return (
            {n: (self.lr * self.zeta) ** 2 * b for n, b in self.spread.named_parameters()},
            {n: self.zeta**2 * g for n, g in self.energy.named_parameters()},
        )

    def at(self, step: int) -> Tensors:
        """Return the rates, which no inner step changes, by the names of the model's parameters.

        Args:
            step: Number of inner steps taken before.

        Returns:
            One tensor for each parameter, of its shape, or 0-d if isotropic; constants.
        """
        del step
        energies = dict(self.energy.named_parameters())
        rates = {n: self.lr * (b / energies[n]).sqrt() for n, b in self.spread.named_parameters()}
        return {n: rates[_ALL if self.isotropic else n].to(t) for n, t in self._types.items()}

    def refinement(self, coefficient: float) -> Tensors:
        """Return the refinement of :class:`metatoolkit.inner.ARUBA` that makes it ARUBA++.

        Its rate is √(b / (g + c s)) with s the sum of squared gradients before the step.

        Args:
            coefficient: c.

        Returns:
            c / g by the names of the model's parameters.

        Raises:
            UnsupportedError: There is one rate for all, which no coordinate can refine by itself.
        """
        if self.isotropic:
            raise UnsupportedError(
                "isotropic rates cannot be refined: each coordinate sums up its own gradients, but "
                "all share one rate. Use isotropic=False."
            )
        factor = coefficient / self.zeta**2
        return {n: (factor / g).to(self._types[n]) for n, g in self.energy.named_parameters()}

    @override
    def observe(self, start: InnerState, final: InnerState) -> Tensors:
        """Return half the squared way and the sum of squared gradients, by ``"b."`` and ``"g."``.

        Raises:
            UnsupportedError: The inner learner keeps no sum of squared gradients.
        """
        energies = final.optimizer.get("energy", {})
        missing = [name for name in self._types if name not in energies]
        if missing:
            raise UnsupportedError(
                "AdaptiveRates learn from squared gradients, of which the inner learner keeps no "
                f"sum for {missing[0]!r}; use mt.inner.ARUBA(lr=...) for all parameters."
            )
        spreads, squares = Tensors(), Tensors()
        for name in self._types:
            like = self.energy.get_parameter(_ALL if self.isotropic else name)
            way = final.parameters[name] - start.parameters[name]
            spreads[name] = way.abs().to(like.dtype).square() / 2
            energy = energies[name]
            # Real and imaginary parts sum up their squares side by side.
            squares[name] = (energy.real + energy.imag if energy.is_complex() else energy).to(like)
        if self.isotropic:
            spreads, squares = (
                {_ALL: torch.stack([part.sum() for part in parts.values()]).sum()}
                for parts in (spreads, squares)
            )
        named = {f"b.{name}": part for name, part in spreads.items()}
        return named | {f"g.{name}": part for name, part in squares.items()}

    @override
    def take_in(self, total: Tensors, tasks: int) -> None:
        first = int(self.tasks) + 2
        vanishing = sum(number**-self.power for number in range(first, first + tasks))
        count = self._count if self.isotropic else 1
        scales = {"b": count * (self.lr * self.zeta) ** 2, "g": count * self.zeta**2}
        for part, letter in ((self.spread, "b"), (self.energy, "g")):
            for name, value in part.named_parameters():
                value.add_(total[f"{letter}.{name}"] / scales[letter] + vanishing)
        self.tasks.add_(tasks)
