"""Derivatives that PyTorch does not have: which operator lacks one, and who does without."""

from __future__ import annotations

import re

from metatoolkit.errors import MetatoolkitError, UnsupportedError, brief
from metatoolkit.stateless.graphs import FIRST_ORDER

_WITHOUT = f"an estimator with first derivatives only: {FIRST_ORDER}"
_FORWARD = (
    r"forward AD with (?P<operator>[\w:.]+)",
    r"ZeroTensors are immutable",
    r"Nested forward mode AD is not supported",
    r"implement the jvp function for custom autograd\.Function",
)
_SECOND = (
    r"derivative for '?(?P<operator>[\w:. ]+?)'? is not implemented",
    r"[Aa]utograd not implemented for (?P<operator>[\w:.]+)",
    r"(?P<operator>torch\.compile) with aot_autograd does not currently support double backward",
    r"differentiate twice a function that was marked with @once_differentiable",
    r"(?P<operator>[Ff]lex ?[Aa]ttention) does not support backward",
    r"backward through (?P<operator>[\w:.]+) but no autograd formula was registered",
)

_SELECTIVE = (
    "the model uses selective activation checkpointing (context_fn), which PyTorch cannot "
    f"differentiate twice. Leave context_fn out, or use {_WITHOUT}."
)


def _operator(error: RuntimeError, patterns: tuple[str, ...]) -> str | None:
    """Return the operator that an error names, or "" if none; ``None`` for other errors."""
    for pattern in patterns:
        found = re.search(pattern, str(error))
        if found is not None:
            return found.groupdict().get("operator") or ""
    return None


def forward_mode_error(error: RuntimeError) -> UnsupportedError | None:
    """Return the error that tells that the training loss has no forward mode.

    Args:
        error: What PyTorch raised.

    Returns:
        ``None`` where that was another error.
    """
    operator = _operator(error, _FORWARD)
    if operator is None:
        return None
    what = f"the operator {operator}" if operator else "an operation"
    return UnsupportedError(
        f"the training loss has no forward mode: {what} lacks it ({brief(error)}). Use "
        "product='reverse_over_reverse', which needs none, or an estimator with first derivatives "
        f"only: {FIRST_ORDER}."
    )


class missing_derivatives:
    """Tell which operator of a loss has no derivative that an estimator needs.

    Args:
        estimator: Name of the estimator that the body calls.

    Raises:
        UnsupportedError: PyTorch lacks a derivative.
    """

    def __init__(self, estimator: str) -> None:
        self._estimator = estimator

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise what tells more than the error of the body, if there is one.

        Args:
            kind: Not used.
            error: The error.
            trace: Not used.
        """
        if isinstance(error, MetatoolkitError) or not isinstance(error, RuntimeError):
            return
        forward = forward_mode_error(error)
        if forward is not None:
            raise forward from error
        if "selective activation checkpoint" in str(error):
            raise UnsupportedError(_SELECTIVE) from error
        operator = _operator(error, _SECOND)
        if operator is None:
            return
        what = f"the operator {operator.removeprefix('aten::')}" if operator else "a function"
        if "backward" in operator or re.search("double backward|twice", str(error)):
            told = (
                f"{self._estimator} takes second derivatives of the losses, and {what} lacks what "
                f"they need ({brief(error)}). Use {_WITHOUT}."
            )
        else:
            told = (
                f"{self._estimator} differentiates the losses, and {what} has no derivative in an "
                f"input that depends on θ or λ ({brief(error)}). Use another operator; or, if it "
                f"lacks its second derivative alone, {_WITHOUT}."
            )
        raise UnsupportedError(told) from error
