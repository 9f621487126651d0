"""Ways to draw the perturbations of EvoGrad's candidates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from metatoolkit.hypergradients.noise import standard_noise
from metatoolkit.randomness import fold_in


def _signs(size: int, number: int, key: int) -> Tensor:
    like = {"noise": torch.empty(number, size, dtype=torch.float64)}
    return standard_noise(like, "sign", key)["noise"]


def _basis(vectors: Tensor) -> Tensor:
    """Return orthonormal rows with the span of the rows."""
    return torch.linalg.qr(vectors.T)[0].T


def _pairs(half: Tensor) -> Tensor:
    return torch.cat([half, -half])


def independent(gradients: Tensor, number: int, key: int) -> Tensor:
    """Return K independent vectors of ±1, the paper's, shape (K, D).

    Args:
        gradients: Former gradients of the outer loss, the latest last, shape (steps, D).
        number: Their number K.
        key: Random key.
    """
    return _signs(gradients.shape[1], number, key)


def antithetic(gradients: Tensor, number: int, key: int) -> Tensor:
    """Return K/2 independent vectors and their negatives; see :func:`independent`."""
    return _pairs(_signs(gradients.shape[1], number // 2, key))


def orthogonal(gradients: Tensor, number: int, key: int) -> Tensor:
    """Return the corners of a simplex in K−1 random dimensions; see :func:`independent`."""
    size = gradients.shape[1]
    axes = _basis(_signs(size, number - 1, key)) * math.sqrt(size)
    corners = torch.cat([torch.ones(1, number), torch.eye(number)[: number - 1]]).double()
    return math.sqrt(number / (number - 1)) * _basis(corners)[1:].T @ axes


def span(gradients: Tensor, number: int, key: int) -> Tensor:
    """Return random vectors in the span of the last four gradients; see :func:`independent`."""
    return _signs(4, number, key) @ _basis(gradients[-4:])


def last_gradient(gradients: Tensor, number: int, key: int) -> Tensor:
    """Return a pair along the last gradient, the others at random and orthogonal to it.

    With K = 2 the pair is all there is; see :func:`independent`.
    """
    along, pairs = _basis(gradients[-1:]), number // 2
    half = math.sqrt(pairs) * along
    if pairs > 1:
        drawn = _signs(gradients.shape[1], pairs - 1, key)
        drawn = drawn - drawn @ along.T @ along
        half = torch.cat([half, math.sqrt(pairs / (pairs - 1)) * drawn])
    return _pairs(half)


DIRECTIONS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "independent": independent,
    "antithetic": antithetic,
    "orthogonal": orthogonal,
    "span": span,
    "last_gradient": last_gradient,
}


def second_moment(directions: str, number: int) -> float:
    """Return the factor c of the mean c·P of the candidates' covariance with divisor K.

    P is the identity, or the projection on what the candidates span on average.

    Args:
        directions: A name of :data:`DIRECTIONS`.
        number: Number of candidates K.
    """
    return (number - 1) / number if directions in ("independent", "span") else 1.0


def draw(directions: str, gradients: Tensor, number: int, seed: int) -> Tensor:
    """Return one draw of perturbations, shape (K, D).

    Args:
        directions: A name of :data:`DIRECTIONS`.
        gradients: Former gradients of the outer loss, the latest last, shape (steps, D).
        number: Number of candidates K, even.
        seed: Seed of the draw.
    """
    return DIRECTIONS[directions](gradients, number, fold_in(seed, number))
