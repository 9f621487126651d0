"""What the trainer checks before and while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.problem import BilevelProblem


def check_losses(values: Mapping[str, float], metrics: Mapping[str, Any], step: int) -> None:
    """Raise unless the values of all metrics are finite.

    Args:
        values: Values by name.
        metrics: The metrics to look at, by name.
        step: Number of outer steps done.

    Raises:
        NonFiniteError: One is not.
    """
    for name in metrics:
        value = values[name]
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value} at outer step {step}. Lower the inner learning rate, or look "
                "for NaN in the data."
            )


def check_optimizer(problem: BilevelProblem, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless an optimizer moves meta-parameters.

    Args:
        problem: Problem with the meta-parameters.
        optimizer: Optimizer of these.

    Raises:
        ConfigurationError: It does not.
    """
    own = {id(parameter) for parameter in problem.meta_parameters().values()}
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not own & given:
        raise ConfigurationError(
            "meta_optimizer holds none of the meta-parameters; make it from "
            "problem.meta.parameters()."
        )


def resolve_device(device: torch.device | str | None) -> torch.device | None:
    """Return a device, or ``None`` where none is asked for.

    Args:
        device: A device, or its name.

    Raises:
        ConfigurationError: It does not exist here.
    """
    if device is None:
        return None
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device is {device!r}: {error}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device is {device!r}, but no GPU can be used here; pass device='cpu'."
        )
    return resolved
