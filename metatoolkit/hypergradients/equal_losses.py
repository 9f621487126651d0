"""Whether losses that were evaluated twice are equal, to rounding, and the error where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metatoolkit.errors import ReplayError
from metatoolkit.hypergradients.unrewound import changed_by
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless.traced_flags import is_traced

_HALF = torch.finfo(torch.bfloat16).eps
_TF32 = 2.0**-10


def require_equal(
    problem: BilevelProblem,
    kind: str,
    first: Sequence[Tensor],
    again: Sequence[Tensor],
    evaluate: Callable[[], Any],
    other_kernels: bool = False,
) -> None:
    """Raise where losses that were evaluated twice differ by more than rounding.

    Args:
        problem: The bilevel problem.
        kind: ``"train_loss"`` or ``"valid_loss"``.
        first: Losses, scalars.
        again: The same losses, evaluated again.
        evaluate: Evaluates one of them once more; see :func:`differing`.
        other_kernels: Whether the two may have been computed by other attention kernels.

    Raises:
        ReplayError: They differ.
    """
    if is_traced():
        # What is compiled is a function of its inputs.
        return
    worst = differing(first, again, evaluate, other_kernels)
    if worst is not None:
        one, other = (float(losses[worst].detach()) for losses in (first, again))
        raise _error(problem, kind, one, other, evaluate)


def differing(
    first: Sequence[Tensor],
    again: Sequence[Tensor],
    evaluate: Callable[[], Any],
    other_kernels: bool = False,
) -> int | None:
    """Return which of losses that were evaluated twice differs most, beyond rounding, if one does.

    With the rounding unit u of the lowest precision at work, values may differ by u^(2/3) of
    their size and by 2 u: 4e-11 in float64, 2e-5 in float32, 4 % in bfloat16. Equal evaluations
    are equal to the bit where kernels are deterministic, and else differ by some u; a drift of a
    generator or of a moving average is larger, as a rule. One that is smaller passes.

    Args:
        first: Losses, scalars.
        again: The same losses, evaluated again.
        evaluate: Evaluates one of them once more, to see what is at work; not called where all
            are equal.
        other_kernels: Whether the two may have been computed by other attention kernels.
    """
    one = torch.stack([loss.detach().double() for loss in first])
    other = torch.stack([loss.detach().double() for loss in again])
    size = torch.maximum(one.abs(), other.abs())
    # Two values that are not finite are told by what looks for those.
    known = torch.isfinite(one) | torch.isfinite(other)
    gaps = (one - other).abs()

    def differs(unit: float) -> Tensor:
        return known & ~(gaps <= unit ** (2 / 3) * size + 2 * unit)

    unit = max(torch.finfo(loss.dtype).eps for loss in first)
    beyond, far = torch.stack([differs(unit).any(), differs(_HALF).any()]).tolist()
    if beyond and not far:
        # A loss of float32 may have a lower precision inside.
        with torch.no_grad(), _Precision() as seen:
            evaluate()
        if other_kernels and one.device.type == "cuda":
            seen.unit = max(seen.unit, _TF32)
        beyond = bool(differs(max(unit, seen.unit)).any())
    if not beyond:
        return None
    ratio = torch.where(known, gaps / size, 0.0)
    return int(torch.where(torch.isnan(ratio), torch.inf, ratio).argmax())


def _error(
    problem: BilevelProblem, kind: str, one: float, other: float, run: Callable[[], Any]
) -> ReplayError:
    with torch.no_grad():
        found = changed_by(problem, run)
    seen = f" An evaluation changed {', '.join(found[:5])}." if found else ""
    return ReplayError(
        f"{kind} gave {one:.6g} and then {other:.6g} for the same parameters, batch and random "
        f"key, so that what is made of several evaluations would be wrong.{seen} Likely sources: a "
        "random generator of its own (torch.Generator, numpy.random.default_rng, random.Random), "
        "an attribute that is no buffer (a hidden state, a moving average, a cache), a variable "
        "that it closes over, a counter, the time, global state. Draw from torch's, Python's or "
        "NumPy's global generator, which are rewound; keep state with register_buffer; or pass in "
        "the batch what differs from call to call."
    )


class _Precision(TorchFunctionMode):
    """Notes the largest rounding unit among the results of the body.

    Attributes:
        unit: That unit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unit = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.unit = max(self.unit, torch.finfo(result.dtype).eps)
        return result
