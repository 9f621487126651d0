"""Hyper-parameters that are functions of the step, in calls that are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from metatoolkit.randomness.traced import StepNumber


def value_at(function: Callable[[Any, int], Any], own: nn.Module, module: Any, step: Any) -> Any:
    """Return the value of a hyper-parameter that is a function ``(meta, step) -> value``.

    In a call that is traced a number becomes a tensor that each call computes anew, as long as it
    is not 0 where it was not: what is 0 may be left out. A tensor is what its operators are, for
    the very steps whose numbers these read.

    Args:
        function: The function.
        own: Module with λ itself.
        module: What the function is given, which holds other tensors.
        step: Number of the step.
    """
    if type(step) is not StepNumber:
        return function(module, step)
    clock, offset = step.clock, step.offset
    value = function(module, step.present)
    if type(value) not in (int, float):
        return function(module, cast(int, step))
    if not clock.ask(lambda first: function(own, first + offset) != 0):
        return value
    return clock.number(lambda first: function(own, first + offset))
