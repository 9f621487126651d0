"""The signal-to-noise ratio of hypergradients, followed while λ is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError

SIGNAL_TO_NOISE = "hypergradient_signal_to_noise"
"""Name of the metric."""


class RunningSignal:
    """Compares each hypergradient with the one before, and averages over a window.

    Of two independent hypergradients ``a`` and ``b`` of one expectation, ``a·b`` is an unbiased
    estimate of its squared norm, and ``|a - b|²/2`` of the trace of the covariance. Both are
    averaged with weights that fall by ``1 - 1/window`` from one move of λ to the next. It takes a
    copy of λ and two norms for each move.

    Args:
        window: About how many moves of λ count, at least 2.

    Raises:
        ConfigurationError: The window is smaller.
    """

    def __init__(self, window: int) -> None:
        if not isinstance(window, int) or isinstance(window, bool) or window < 2:
            raise ConfigurationError(
                f"signal_window is {window!r}; a number of moves of λ is needed, at least 2, over "
                "which signal and noise are averaged, or None."
            )
        self._decay = 1 - 1 / window
        self._former: list[Tensor] | None = None
        self._sums: tuple[Tensor, Tensor] | None = None

    def see(self, gradient: list[Tensor]) -> None:
        """Take in the hypergradient of the next move, before it is clipped.

        Args:
            gradient: A tensor per meta-parameter, always in the same order.
        """
        if self._former is not None:
            total = _square(torch._foreach_add(gradient, self._former))
            distance = _square(torch._foreach_sub(gradient, self._former))
            signal, noise = (total - distance) / 4, distance / 2
            if self._sums is not None:
                signal = signal + self._decay * self._sums[0]
                noise = noise + self._decay * self._sums[1]
            self._sums = signal, noise
        # A copy: the optimizer may change what it is given.
        self._former = [tensor.clone() for tensor in gradient]

    @property
    def ratio(self) -> Tensor | None:
        """Squared signal to squared noise of one move, 0-d; ``None`` before the second move.

        It is infinite where no two hypergradients differ, and NaN where all are zero.
        """
        return None if self._sums is None else self._sums[0] / self._sums[1]

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen."""
        return {"former": self._former, "sums": self._sums}

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            saved: What that returned.
            device: Where the training runs.
        """
        former, sums = saved["former"], saved["sums"]
        self._former = None if former is None else [tensor.to(device) for tensor in former]
        self._sums = None if sums is None else (sums[0].to(device), sums[1].to(device))


def _square(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the squared norm in float64, as that of a norm from 2e19 on is beyond float32."""
    norms = [
        torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, _wide(tensor)))
        for tensor in tensors
    ]
    return torch.stack([norm.to(_wide(norm)) for norm in norms]).square().sum()


def _wide(tensor: Tensor) -> torch.dtype:
    # MPS has nothing wider.
    return torch.float32 if tensor.device.type == "mps" else torch.float64
