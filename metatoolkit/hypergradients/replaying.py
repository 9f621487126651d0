"""The pass that is given what another one recorded, call by call of torch's functions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.hypergradients.custom_functions import (
    check_derivative,
    name_of,
    observed,
    points_of,
)
from metatoolkit.hypergradients.detached import DETACHING, Held, HeldConstants
from metatoolkit.hypergradients.holding import CUTTING, READERS, HoldingMode, with_mode
from metatoolkit.hypergradients.kinks import PIECES
from metatoolkit.hypergradients.torch_calls import (
    as_tuple,
    is_custom,
    other_calls,
    random_states,
    set_random_states,
)
from metatoolkit.hypergradients.transforms import put_in
from metatoolkit.problem import BilevelProblem

_NO_CALL: tuple[Any, list[Any], list[Any]] = (None, [], [])


class Replaying(HoldingMode):
    """Gives the calls of the functions of torch what was recorded.

    The calls are those of the recorded pass, one by one. What that pass did once and for all, such
    as filling a cache, may be missing here, and the calls that hold something may not.
    """

    repeats = True

    def __init__(self, held: HeldConstants, position: int = 0) -> None:
        super().__init__(held)
        self._position = position
        self._calls = iter(held.calls if position == 0 else ())
        self._checks = position == 0 and bool(held.calls)

    @override
    def again(self) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Return a context that goes on from the present place."""
        position = self._position

        @contextlib.contextmanager
        def resumed() -> Iterator[None]:
            mode = Replaying(self.held, position)
            mode._checks = False
            with observed(mode.observe), mode:
                yield

        return resumed

    def _next(self, func: Any) -> Held | None:
        log = self.held.log
        place = self._position
        while place < len(log):
            known, found = log[place]
            if known == func:
                self._position = place + 1
                return found
            if found:
                break
            place += 1
        name = func.__name__
        if func in PIECES or func in DETACHING or name in READERS or name in CUTTING:
            raise other_calls(f"{name} is called where it was not before")
        return None

    @override
    def finish(self, loss: Any) -> None:
        """Raise unless all that was recorded has been asked for.

        Args:
            loss: What the loss returned.

        Raises:
            UnsupportedError: Something is left.
        """
        del loss
        left = [func for func, found in self.held.log[self._position :] if found]
        if left or (self._checks and next(self._calls, None) is not None):
            name = left[0].__name__ if left else "a custom function"
            raise other_calls(f"{name} was not called again")
        self.held.calls = []

    @override
    def call(self, func: Any, args: Any, kwargs: Any, targets: list[Tensor]) -> Any:
        """Call a function, and put what is held in the place of its results."""
        found = self._next(func)
        if found is None:
            return self.run(func, args, kwargs)
        if found.kind == "piece":
            result = PIECES[func].hold(put_in(found.value), func, args, kwargs)
            in_place = targets and result is not args[0]
            return args[0].copy_(result) if in_place else result
        result = self.run(func, args, kwargs)
        if found.kind == "number":
            if func is torch.Tensor.numpy and not kwargs.get("force", False):
                # What is written over the array is written over the tensor.
                np.copyto(result, found.value)
                return result
            return copy.deepcopy(found.value)
        outcome = targets if targets and result is None else result
        outputs = list(outcome) if isinstance(outcome, tuple | list) else [outcome]
        for i, cell in zip(found.places, found.value, strict=True):
            value = cell.value()
            if i >= len(outputs) or outputs[i].shape != value.shape:
                raise other_calls(f"{func.__name__} returned another shape")
            if targets or func.__name__ == "detach_":
                with torch.no_grad():
                    outputs[i].copy_(value)
            else:
                outputs[i] = value
        if result is None:
            return None
        if not isinstance(result, tuple | list):
            return outputs[0]
        named = hasattr(type(result), "_make")
        return type(result)(*outputs) if named else type(result)(outputs)

    @override
    def function(self, cls: Any, args: Any, points: list[Tensor], call: Callable[[], Any]) -> Any:
        """Call a custom function, and check its derivative the first time."""
        if not self._checks:
            return self.within(call)
        known, before, values = next(self._calls, _NO_CALL)
        if known is not cls or [c.tensor.shape for c in before] != [p.shape for p in points]:
            raise other_calls(f"{name_of(cls)} was called in the place of another function")
        random = random_states(points)
        result = self.within(call)
        after = random_states(points)

        def again(given: tuple[Any, ...]) -> Any:
            set_random_states(random)
            return (cls if is_custom(cls) else cls.apply)(*given)

        self.within(
            lambda: check_derivative(
                cls,
                again,
                args,
                [cell.tensor for cell in before],
                [cell.tensor for cell in values],
                points_of(as_tuple(result)),
            )
        )
        set_random_states(after)
        return result


def replaying(problem: BilevelProblem, held: HeldConstants) -> BilevelProblem:
    """Return a problem whose training loss is given what was recorded.

    Args:
        problem: The problem.
        held: What was recorded.
    """
    return with_mode(problem, lambda: Replaying(held))
