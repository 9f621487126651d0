"""Warped gradients in front of an inner learner: the step that warp layers make, without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.registry import learners
from metatoolkit.inner.wrapping import GradientWrapper
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

Factors = Callable[[Any], Mapping[str, Tensor]]


@learners.register()
class Warped(GradientWrapper):
    """An inner learner whose gradients g are preconditioned by a learned metric, ΩΩᵀ g.

    It is the step of warped gradient descent (Flennerhag et al. 2020, arXiv 1909.00025, equation
    6, G⁻¹ = ΩΩᵀ) in the warped parameters themselves: with SGD the matrix ΩW of a network with a
    :class:`metatoolkit.metaparameters.WarpLayer` behind W moves as W alone does here, so that the
    network needs no further layer. Each Ω acts on the first dimension of a parameter, that of the
    outputs of a linear layer or a convolution; a parameter without one has its own gradient.

    A step of a coordinate reads the gradients of others, so that it has no diagonal
    ``gradient_sensitivity``, and tasks run one after the other.

    Args:
        inner: Inner learner that takes the step.
        factors: Function ``(meta) -> mapping from names of inner parameters to Ω``, each of shape
            (d, d) for a parameter of shape (d, ...).

    Raises:
        ConfigurationError: ``inner`` is no inner learner that takes its step from one gradient, or
            ``factors`` is no function.

    Example:
        >>> from metatoolkit.inner import SGD
        >>> Warped(SGD(lr=0.1), lambda meta: {"weight": meta.weight}).hyperparameters["lr"]
        0.1
    """

    def __init__(self, inner: InnerLearner, factors: Factors) -> None:
        super().__init__(inner)
        if not callable(factors):
            raise ConfigurationError(
                f"factors is {factors!r}; give a function of meta that returns matrices by the "
                "names of inner parameters."
            )
        self.factors = factors

    @override
    def check(self, problem: BilevelProblem) -> None:
        """Raise unless the learner and the factors fit a problem.

        Raises:
            ConfigurationError: The learner does not fit, or ``factors`` returns no mapping.
            UnknownNameError: A factor is for what is no inner parameter.
            ShapeError: A factor is no square matrix of the size of its parameter.
        """
        self.inner.check(problem)
        found = self._factors(problem, problem.meta_parameters())
        if not isinstance(found, Mapping):
            raise ConfigurationError(
                f"factors returned a {type(found).__name__}; a mapping from names of inner "
                "parameters to matrices is needed."
            )
        live = problem.parameters()
        for name, factor in found.items():
            if name not in live:
                raise UnknownNameError("inner parameter", name, live)
            size = live[name].shape[0] if live[name].dim() else None
            if size is None or tuple(factor.shape) != (size, size):
                raise ShapeError(
                    f"the factor of {name!r} has shape {tuple(factor.shape)}, and the parameter "
                    f"{tuple(live[name].shape)}; (d, d) is needed for (d, ...)."
                )

    @override
    def apply(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> InnerState:
        """Return the state after the update with the gradients preconditioned."""
        found = self._factors(problem, meta)
        warped = {
            name: _metric(found[name], gradient) if name in found else gradient
            for name, gradient in gradients.items()
        }
        return self.inner.apply(problem, state, meta, warped)

    def _factors(self, problem: BilevelProblem, meta: Tensors) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = problem.evaluate_meta(self.factors, meta)
        return found

    @override
    def options(self) -> dict[str, Any]:
        """Return the learner that takes the step, and the function of the factors."""
        return {"inner": self.inner, "factors": self.factors}


def _metric(factor: Tensor, gradient: Tensor) -> Tensor:
    """Return ΩΩᴴ g."""
    factor = factor.to(gradient.dtype)
    flat = gradient.reshape(len(gradient), -1)
    return torch.reshape(factor @ (factor.mH @ flat), gradient.shape)
