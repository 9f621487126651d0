"""Many estimates of EvoGrad at once on the one-dimensional problem, and the notebook's noise.

The formula is that of :class:`metatoolkit.hypergradients.EvoGrad`, written for tensors of points; a
test holds the two together. The noise comes in the order of the paper's notebook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from applications.illustration.problem import true_hypergradient

# Up to 15 normal numbers come from torch's generator as single ones do; more come otherwise.
_CHUNK = 8


class NotebookNoise:
    """Normal numbers as a run of single draws gives them after ``torch.manual_seed``.

    Args:
        seed: The seed.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, *shape: int) -> Tensor:
        """Return the next numbers of the stream, float32, the last dimension running fastest.

        Args:
            shape: Shape of the result.
        """
        count = torch.Size(shape).numel()
        sizes = [_CHUNK] * (count // _CHUNK) + [count % _CHUNK] * (count % _CHUNK > 0)
        parts = [torch.randn(size, generator=self._generator) for size in sizes]
        return torch.cat(parts).view(shape) if parts else torch.empty(shape)


def estimates(
    x: Tensor, penalty: Tensor | float, noise: Tensor, sigma: float, temperature: float
) -> Tensor:
    """Return EvoGrad's estimate at each point.

    Args:
        x: Inner parameters, of any shape.
        penalty: λ, of a shape that expands to that of ``x``.
        noise: ε of the candidates, of the shape of ``x`` and one dimension more for the candidates.
        sigma: σ.
        temperature: τ.

    Returns:
        Estimates of the shape of ``x``.
    """
    candidates = x.unsqueeze(-1) + sigma * noise
    penalty = torch.as_tensor(penalty, dtype=x.dtype).expand_as(x).unsqueeze(-1)
    weights = torch.softmax(
        -((candidates - 1) ** 2 + penalty * candidates**2) / temperature, dim=-1
    )
    offspring = (weights * candidates).sum(-1, keepdim=True)
    outer = 2 * (offspring - 0.5)
    coefficients = -(weights / temperature) * outer * (candidates - offspring)
    # Their sum is zero: shifting ∂ℓ/∂λ = θ² changes nothing but the rounding of equal candidates.
    return (coefficients * (candidates**2 - offspring**2)).sum(-1)


def sample_estimates(
    penalties: Tensor,
    trials: int,
    candidates: int,
    sigma: float,
    temperature: float,
    noise: NotebookNoise,
) -> Tensor:
    """Return estimates at x ~ N(0, 1), drawn anew for each, in the order of the notebook.

    Args:
        penalties: Values of λ, shape (penalties,).
        trials: Number of estimates at each.
        candidates: K.
        sigma: σ.
        temperature: τ.
        noise: Stream that gives x, then the K draws of its candidates, and so on.

    Returns:
        Estimates of shape (penalties, trials), float32.
    """
    drawn = noise.draw(len(penalties), trials, 1 + candidates)
    x, epsilon = drawn[..., 0], drawn[..., 1:]
    return estimates(x, penalties.float().unsqueeze(1), epsilon, sigma, temperature)


def evograd_trajectory(
    start: Sequence[float],
    steps: int,
    lr: float,
    candidates: int,
    sigma: float,
    temperature: float,
    noise: NotebookNoise,
) -> list[tuple[float, float]]:
    """Return (x, λ) after 0 to ``steps`` steps, of x first, and of λ along EvoGrad's estimate.

    Args:
        start: x and λ to start from.
        steps: Number of steps.
        lr: Learning rate of both.
        candidates: K.
        sigma: σ.
        temperature: τ.
        noise: Stream of the draws.
    """
    x, penalty = torch.tensor(start)
    path = [(float(x), float(penalty))]
    for _ in range(steps):
        x = _inner_step(x, penalty, lr)
        penalty = penalty - lr * estimates(x, penalty, noise.draw(candidates), sigma, temperature)
        path.append((float(x), float(penalty)))
    return path


def true_trajectory(start: Sequence[float], steps: int, lr: float) -> list[tuple[float, float]]:
    """Return the same with the true hypergradient at the λ that this trajectory itself has.

    Args:
        start: x and λ to start from.
        steps: Number of steps.
        lr: Learning rate of both.
    """
    x, penalty = torch.tensor(start)
    path = [(float(x), float(penalty))]
    for _ in range(steps):
        x = _inner_step(x, penalty, lr)
        penalty = penalty - lr * true_hypergradient(penalty)
        path.append((float(x), float(penalty)))
    return path


def _inner_step(x: Tensor, penalty: Tensor, lr: float) -> Tensor:
    return x - lr * (2 * (x - 1) + 2 * penalty * x)
