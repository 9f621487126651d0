"""Hypergradients of many calls, kept as their means and squares about these."""

from __future__ import annotations

import torch
from torch import Tensor


class Samples:
    """Hypergradients of one meta-parameter: the mean of each meta batch, and squares about it."""

    def __init__(self, batches: int, draws: int) -> None:
        self._draws = draws
        self.shape: torch.Size = torch.Size()
        self.complex = False
        self.means: list[Tensor] = []
        self._within: Tensor | None = None
        self._count = 0

    def add(self, gradient: Tensor) -> None:
        """Take in the next hypergradient; those of one meta batch follow each other."""
        self.shape, self.complex = gradient.shape, gradient.is_complex()
        # A complex number is two real ones, whose products are the real part of its own.
        parts = torch.view_as_real(gradient.detach().resolve_conj()) if self.complex else gradient
        sample = parts.detach().to("cpu", torch.float64).flatten()
        if self._count == 0:
            self.means.append(sample)
        else:
            # Welford's update: no difference of large squares.
            before = sample - self.means[-1]
            self.means[-1] = self.means[-1] + before / (self._count + 1)
            square = before * (sample - self.means[-1])
            self._within = square if self._within is None else self._within + square
        self._count = (self._count + 1) % self._draws

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean, the variance of one sample and that of its draw, per coordinate."""
        stacked = torch.stack(self.means)
        draw = torch.zeros_like(stacked[0])
        if self._within is not None:
            draw = self._within / (len(self.means) * (self._draws - 1))
        # The mean of a meta batch has the noise of the data and a share of that of the draws.
        variance = stacked.var(0) + draw * (1 - 1 / self._draws)
        return stacked.mean(0), variance, draw

    def shaped(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation in the shape of the meta-parameter."""
        if not self.complex:
            return mean.reshape(self.shape), variance.sqrt().reshape(self.shape)
        whole = torch.view_as_complex(mean.reshape(*self.shape, 2))
        return whole, variance.reshape(*self.shape, 2).sum(-1).sqrt()

    def products(self) -> Tensor:
        """Return the inner products of the means of all meta batches."""
        stacked = torch.stack(self.means)
        return stacked @ stacked.T
