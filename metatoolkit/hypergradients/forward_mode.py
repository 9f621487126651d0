"""The exact hypergradient of T inner steps in forward mode, at a memory that T does not change."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.base import Traits
from metatoolkit.hypergradients.forward import ForwardEstimator, Probes
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.truncation import require_truncation, truncated
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class ForwardMode(ForwardEstimator):
    """Forward-mode differentiation through ``steps`` inner steps, for few meta-parameters.

    Franceschi et al. 2017, arXiv 1703.01785, algorithm 2: the derivatives of θ and of the
    optimizer's state in each of the N meta-parameters go along with the steps. It is exact, like
    :class:`Unrolled`; the steps may be as many as one likes. It takes second derivatives of the
    training loss as symmetric, which custom backward passes that are no gradients (straight-through
    estimators) break: for these, use :class:`Unrolled`.

    Cost with F one forward pass: 3 F for each step and up to 6 F more for each meta-parameter on
    which the state or the training loss depends by then; 3 F for the outer loss. Of the N shares
    of a :class:`~metatoolkit.metaparameters.Schedule`, those that have not begun cost no pass, so
    that it is (N + 1) / 2 on average (forward-mode differentiation with sharing, Micaelli & Storkey
    2021, arXiv 2007.07869). Memory, for any T: N times the inner state, and the double backward of
    one step for ``chunk`` meta-parameters at once.

    With ``truncation=k`` the last k steps alone are differentiated, as by :class:`Unrolled`.

    Args:
        steps: Number of inner steps T.
        chunk: Number of meta-parameters that a step is differentiated in at a time. The passes of
            a chunk are batched by ``vmap``; 1 does without it, and needs the least memory.
        max_bytes: Largest size of all derivatives; beyond it a call is an error, before it starts.
        truncation: Number of last steps k that are differentiated; ``None`` for all.

    Raises:
        ConfigurationError: A number is below 1, or ``truncation`` above ``steps``.

    Example:
        >>> ForwardMode(10_000).horizon
        10000
    """

    separable = True
    traits = Traits(
        kind="exact",
        computes="derivative through T inner steps",
        assumes="few meta-parameters N; symmetric second derivatives of the training loss",
        passes="(3 + 6 N) F for each step, 3 F for the outer loss",
        memory="N inner states and the graph of one step, for any T",
        paper="Franceschi et al. 2017, arXiv 1703.01785",
    )

    def __init__(
        self,
        steps: int = 1,
        chunk: int = 64,
        max_bytes: int = 4 * 2**30,
        truncation: int | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("chunk", chunk), ("max_bytes", max_bytes)):
            if value < 1:
                raise ConfigurationError(f"{name} is {value}; a number of at least 1 is needed.")
        require_truncation(truncation, steps)
        self.horizon = steps
        self.truncation = truncation
        self.traits = truncated(type(self).traits, truncation, steps)
        self.chunk = chunk
        self.max_bytes = max_bytes

    @override
    def _probes(self, problem: BilevelProblem, state: InnerState) -> Probes:
        """Return one direction for each entry of λ, or raise where they would be too many."""
        meta = problem.meta_parameters()
        sizes = [tensor.numel() for tensor in meta.values()]
        count = sum(sizes)
        needed = count * sum(tensor.nbytes for tensor in state.tensors())
        if needed > self.max_bytes:
            raise UnsupportedError(
                f"forward mode in {count:,} meta-parameters would take {needed / 2**30:,.1f} GiB "
                f"for the derivatives of the inner state, and max_bytes allows "
                f"{self.max_bytes / 2**30:,.1f} GiB. Use Unrolled, whose memory does not depend on "
                "their number (with checkpoint='tree' for long horizons), or ForwardGradient, "
                "which takes random directions."
            )

        def directions(first: int, last: int) -> list[Tensor]:
            """Return rows of the identity, cut into meta-parameters."""
            rows = torch.zeros(last - first, count)
            rows[torch.arange(last - first), torch.arange(first, last)] = 1.0
            parts = rows.split(sizes, dim=1)
            return [
                part.to(tensor).view(last - first, *tensor.shape)
                for part, tensor in zip(parts, meta.values(), strict=True)
            ]

        def combine(slopes: Tensor) -> Tensors:
            return {
                name: part.to(tensor.dtype).view_as(tensor)
                for (name, tensor), part in zip(meta.items(), slopes.split(sizes), strict=True)
            }

        return Probes(directions, count, combine)
