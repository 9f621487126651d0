"""What a loss may be and return, and what its gradients may be."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, DataError, ShapeError, UnsupportedError
from metatoolkit.state import describe


def check_takes_batch(loss: Any, kind: str) -> None:
    """Raise unless a loss can be called with model, meta-parameter module and batch.

    Args:
        loss: What the user gave.
        kind: Name of the loss.

    Raises:
        ConfigurationError: It cannot.
    """
    remedy = (
        "accepted: a function (model, meta, batch) -> scalar tensor, such as lambda model, meta, "
        "batch: criterion(model(batch[0]), batch[1]) for a criterion of outputs and targets."
    )
    if not callable(loss):
        raise ConfigurationError(f"{kind} is {describe(loss)}; {remedy}")
    try:
        # That of a module's call tells nothing.
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except ValueError:
        # Some built-in functions have none.
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise ConfigurationError(
            f"{kind} cannot be called with model, meta and batch ({error}); {remedy}"
        ) from error


def checked_loss(value: Any, kind: str) -> Tensor:
    """Return what a loss function returned, which must be a real scalar.

    Args:
        value: What it returned.
        kind: Name of the loss.

    Returns:
        The value.

    Raises:
        ShapeError: It is no 0-d tensor.
        DataError: It is one of integers, truth values or complex numbers.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{kind} returned a {type(value).__name__}; a scalar tensor (0-d) is needed"
            f"{_remedy(value)}."
        )
    if value.dim() != 0:
        raise ShapeError(
            f"{kind} returned {describe(value)}; a scalar tensor (0-d) is needed: reduce it with "
            ".mean() or .sum()."
        )
    if not value.is_floating_point():
        remedy = (
            "take its absolute value or its real part"
            if value.is_complex()
            else ("a count of errors has no gradient; use a loss such as the cross entropy")
        )
        raise DataError(
            f"{kind} returned a scalar of type {str(value.dtype).removeprefix('torch.')}; one of a "
            f"floating-point type is needed: {remedy}."
        )
    return value


def _remedy(value: Any) -> str:
    """Return where in an output the loss is likely to be."""
    if value is None:
        return ": let the function return it"
    if isinstance(value, int | float):
        return ": do not take .item() or float() of it, which cuts its gradient"
    if isinstance(getattr(value, "loss", None), Tensor):
        return ": return its .loss"
    if getattr(value, "loss", value) is None:
        return ": its .loss is None; give the model the labels, or compute the loss from .logits"
    if isinstance(value, Mapping):
        names = ", ".join(repr(name) for name in list(value)[:5])
        return ": return its ['loss']" if "loss" in value else f": return one of its {names}"
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return ": return its first entry, [0]" if value[0].dim() == 0 else ": reduce it to one"
    return ""


def refuse_sparse(gradients: Iterable[Tensor | None]) -> None:
    """Raise where a gradient is a sparse tensor, which inner learners do not take.

    Args:
        gradients: Gradients of a loss.

    Raises:
        UnsupportedError: One is sparse.
    """
    for gradient in gradients:
        if gradient is not None and gradient.is_sparse:
            raise UnsupportedError(
                f"the gradient of a parameter of shape {tuple(gradient.shape)} is sparse, which "
                "neither inner steps nor hypergradients take; make the embedding with sparse=False."
            )
