"""Muon: steps by the orthogonalized momentum of matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import Group, Hyperparameter
from metatoolkit.inner.registry import learners
from metatoolkit.inner.slots import zero_slots
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import Tensors

Adjustment = Literal["original", "match_rms_adamw", "spectral_unclamped"]


@learners.register()
class Muon(InnerLearner):
    """The update of ``torch.optim.Muon``, step for step, differentiable in all it reads.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon). With b ← ``momentum`` · b +
    (1 − ``momentum``) · g and u = b, or with Nesterov momentum u = (1 − ``momentum``) · g +
    ``momentum`` · b: θ ← (1 − ``lr`` · ``weight_decay``) θ − ``lr`` · a · NS(u), where NS is
    ``ns_steps`` Newton-Schulz iterations to the nearest orthogonal matrix, from u / ‖u‖, and a
    adjusts the learning rate to the shape. Each step of the iteration is differentiated. It moves
    matrices alone: give other parameters to a learner of their own with :class:`Combined`. Memory
    beyond θ: one tensor per parameter.

    torch computes NS in bfloat16, and so does this learner for parameters of float32 and less. For
    those of float64 it takes float64, so that derivatives can be checked, unless ``ns_dtype`` says
    otherwise.

    Args:
        lr: Learning rate.
        weight_decay: Factor of the decoupled weight decay.
        momentum: Momentum factor.
        nesterov: Whether the momentum is Nesterov's.
        ns_coefficients: The three coefficients of the iteration.
        eps: Least norm that u is divided by.
        ns_steps: Number of iterations.
        adjust_lr_fn: How the learning rate is adjusted, as in torch: ``None`` for ``"original"``.
        groups: Exceptions for some parameters; see :class:`InnerLearner`. They set hyper-parameters
            and ``nesterov``; the options of the iteration are the same for all.
        ns_dtype: Type that the iteration is computed in.
        maximize: Whether the training loss is ascended.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> Muon(lr=0.02).options()["ns_steps"]
        5
    """

    flags = InnerLearner.flags | {"nesterov"}

    def __init__(
        self,
        lr: Hyperparameter = 1e-3,
        weight_decay: Hyperparameter = 0.1,
        momentum: Hyperparameter = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Adjustment | None = None,
        groups: Sequence[Group] = (),
        *,
        ns_dtype: torch.dtype | None = None,
        maximize: bool = False,
    ) -> None:
        values = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(values | {"nesterov": nesterov, "maximize": maximize}, groups)
        if not isinstance(ns_coefficients, tuple | list) or len(ns_coefficients) != 3:
            raise ConfigurationError(
                f"ns_coefficients is {ns_coefficients!r}; three numbers are needed."
            )
        if not 1 <= ns_steps < 100:
            raise ConfigurationError(f"ns_steps is {ns_steps}; accepted: 1 to 99.")
        if not 0 <= eps < math.inf:
            raise ConfigurationError(f"eps is {eps}; a finite number of at least 0 is needed.")
        if adjust_lr_fn not in (None, *get_args(Adjustment)):
            raise ConfigurationError(
                f"adjust_lr_fn is {adjust_lr_fn!r}; accepted: None, "
                f"{', '.join(map(repr, get_args(Adjustment)))}."
            )
        self.ns_coefficients = tuple(ns_coefficients)
        self.eps = eps
        self.ns_steps = ns_steps
        self.adjust_lr_fn = adjust_lr_fn
        self.ns_dtype = ns_dtype

    @override
    def check(self, problem: BilevelProblem) -> None:
        """Raise unless this learner fits a problem, whose inner parameters must be matrices.

        Raises:
            UnsupportedError: An inner parameter is no real matrix.
        """
        super().check(problem)
        self.init_slots(problem.parameters())

    @override
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return a momentum of zeros for each parameter.

        Raises:
            UnsupportedError: One is no real matrix.
        """
        for name, parameter in parameters.items():
            if parameter.dim() != 2 or parameter.is_complex():
                what = "complex" if parameter.is_complex() else f"{parameter.dim()}-d"
                raise UnsupportedError(
                    f"Muon moves real matrices, and {name!r} is {what}. Move it by another "
                    "learner, for instance Combined(Muon(), {'*.bias': AdamW()}), or freeze it."
                )
        return zero_slots(parameters, "momentum")

    @override
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameter and its momentum after one step."""
        del step
        rate, factor = hyperparameters["lr"], hyperparameters["momentum"]
        momentum = factor * slots["momentum"] + (1.0 - factor) * gradient
        direction = momentum
        if hyperparameters["nesterov"]:
            direction = factor * momentum + (1.0 - factor) * gradient
        direction = self._orthogonalized(direction).to(parameter.dtype)
        kept = 1.0 - rate * hyperparameters["weight_decay"]
        adjusted = rate * self._adjustment(*parameter.shape)
        return kept * parameter - adjusted * direction, {"momentum": momentum}

    def _orthogonalized(self, matrix: Tensor) -> Tensor:
        """Return the matrix after the Newton-Schulz iterations."""
        dtype = self.ns_dtype
        if dtype is None:
            dtype = torch.float64 if matrix.dtype == torch.float64 else torch.bfloat16
        first, second, third = self.ns_coefficients
        tall = matrix.size(0) > matrix.size(1)
        x = matrix.to(dtype)
        x = x.mT if tall else x
        x = x / x.norm().clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.mT
            gram = torch.addmm(gram, gram, gram, beta=second, alpha=third)
            x = torch.addmm(x, gram, x, beta=first)
        return x.mT if tall else x

    def _adjustment(self, rows: int, columns: int) -> float:
        """Return the factor of the learning rate for a shape."""
        if rows == 0 or columns == 0:
            return 1.0
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        ratio = rows / columns
        return math.sqrt(ratio if self.adjust_lr_fn == "spectral_unclamped" else max(1.0, ratio))

    @override
    def options(self) -> dict[str, Any]:
        """Return the options of the iteration."""
        names = ("ns_coefficients", "eps", "ns_steps", "adjust_lr_fn", "ns_dtype")
        return {name: getattr(self, name) for name in names}
