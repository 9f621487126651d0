"""The one-dimensional problem: (x − 1)² + λx² below (x − ½)², and its closed forms."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import metatoolkit as mt

Number = TypeVar("Number", float, Tensor)


class Scalar(nn.Module):
    """One 0-d parameter, ``value``.

    Args:
        value: Its value.
        dtype: Its type.
    """

    def __init__(self, value: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))


def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return (x − 1)² + λx², a scalar.

    Args:
        model: Holds x.
        meta: Holds λ.
        batch: Not used.
    """
    return (model.value - 1) ** 2 + meta.value * model.value**2


def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return (x − ½)², a scalar.

    Args:
        model: Holds x.
        meta: Not used.
        batch: Not used.
    """
    return (model.value - 0.5) ** 2


def build_problem(x: float, penalty: float) -> mt.BilevelProblem:
    """Return the problem at one point, in float64.

    Args:
        x: The inner parameter.
        penalty: λ.
    """
    return mt.BilevelProblem(Scalar(x), Scalar(penalty), train_loss, valid_loss)


def inner_optimum(penalty: Number) -> Number:
    """Return x*(λ) = 1 / (1 + λ).

    Args:
        penalty: λ, one or a tensor of them.
    """
    return 1 / (1 + penalty)


def true_hypergradient(penalty: Number) -> Number:
    """Return the derivative of the outer loss at x*(λ): (λ − 1) / (λ + 1)³.

    Args:
        penalty: λ, one or a tensor of them.
    """
    return (penalty - 1) / (penalty + 1) ** 3


def limit_estimate(x: Number, penalty: Number, sigma: float, temperature: float) -> Number:
    """Return EvoGrad's estimate with Gaussian noise for K → ∞, which is random no more.

    The weights turn N(x, σ²) into N(θ⁺, ·) with θ⁺ = (τx + 2σ²) / D and D = τ + 2σ²(1 + λ), and the
    estimate into −4σ² (θ⁺ − ½) θ⁺ / D. For τ/σ² → 0 it is the true hypergradient, whatever x.

    Args:
        x: Inner parameter around which the candidates lie.
        penalty: λ.
        sigma: σ.
        temperature: τ.
    """
    scale = temperature + 2 * sigma**2 * (1 + penalty)
    offspring = (temperature * x + 2 * sigma**2) / scale
    return -4 * sigma**2 * (offspring - 0.5) * offspring / scale


def mean_limit_estimate(penalty: Number, sigma: float, temperature: float) -> Number:
    """Return the mean of :func:`limit_estimate` over x ~ N(0, 1).

    For σ = 1 and τ = ½ it is 8 (8λ − 7) / (5 + 4λ)³, with the zero at λ = 7/8 instead of 1.

    Args:
        penalty: λ.
        sigma: σ.
        temperature: τ.
    """
    scale = temperature + 2 * sigma**2 * (1 + penalty)
    second_moment = (temperature**2 + 4 * sigma**4) / scale**2
    return -4 * sigma**2 * (second_moment - sigma**2 / scale) / scale
