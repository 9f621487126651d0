"""Whether the functions that a loss differentiates by itself have the derivatives that they tell.

A difference of values differentiates what a :class:`torch.autograd.Function` computes; automatic
differentiation what its backward pass says. Where the two are not the same, as for a
straight-through estimator, a quantizer or a gradient reversal, the difference is another quantity.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError

Observer = Callable[[Any, tuple[Any, ...], Callable[[], Any]], Any]
"""Function ``(class, args, call) -> result`` in the place of a call of ``forward``."""

_DIRECTIONS = 4
_TOLERANCE = 0.1
# Weights of Simpson's rule over eight parts.
_SIMPSON = [w / 24 for w in (1, 4, 2, 4, 2, 4, 2, 4, 1)]


class _Observers(threading.local):
    """The observers at work on this thread, outermost first, and how often it asked for them."""

    def __init__(self) -> None:
        self.stack: list[Observer] = []
        self.asked = 0


_observers = _Observers()
_lock = threading.Lock()
_users = 0
_before: dict[Any, Any] = {}
# Where a class keeps its wrapper: to make them all anew takes longer than a short pass.
_KEPT = "_metatoolkit_observed_forward"


def _classes() -> Iterator[Any]:
    """Yield all classes of custom functions that bring a ``forward`` of their own."""
    found: list[Any] = [torch.autograd.Function]
    for cls in found:
        found += type.__subclasses__(cls)
    return (cls for cls in found[1:] if "forward" in vars(cls))


def _seen(cls: Any, forward: Callable[..., Any]) -> staticmethod[..., Any]:
    takes_context = cls.setup_context is torch.autograd.Function.setup_context

    @functools.wraps(forward)
    def seen(*args: Any, **kwargs: Any) -> Any:
        if not _observers.stack:
            return forward(*args, **kwargs)
        # A class may inherit the function that it is called by.
        actual = getattr(type(args[0]), "_forward_cls", cls) if takes_context else cls
        given = args[1:] if takes_context else args
        return _observers.stack[-1](actual, given, lambda: forward(*args, **kwargs))

    return staticmethod(seen)


@contextlib.contextmanager
def observable() -> Iterator[None]:
    """Let the classes of custom functions ask the observers of the body, on all threads.

    Where several passes are observed one after the other, it is done once for all of them.

    Yields:
        Nothing.
    """
    global _users
    with _lock:
        _users += 1
        for cls in _classes():
            if cls not in _before:
                _before[cls] = own = vars(cls)["forward"]
                wrapped, wrapper = vars(cls).get(_KEPT, (None, None))
                if wrapped is not own:
                    wrapper = _seen(cls, cls.forward)
                    setattr(cls, _KEPT, (own, wrapper))
                cls.forward = wrapper
    _observers.asked += 1
    try:
        yield
    finally:
        _observers.asked -= 1
        with _lock:
            _users -= 1
            if not _users:
                for cls, forward in _before.items():
                    cls.forward = forward
                _before.clear()


@contextlib.contextmanager
def observed(observer: Observer, known: bool = False) -> Iterator[None]:
    """Let an observer make the forward passes of custom functions in the body, on this thread.

    It stands in the classes themselves, for ``apply`` is looked up long before it is called.

    Args:
        observer: What stands in the place of each forward pass.
        known: Whether all classes that matter are there since :func:`observable` around it began;
            to look for new ones takes as long as a short pass.

    Yields:
        Nothing.
    """
    with contextlib.nullcontext() if known and _observers.asked else observable():
        _observers.stack.append(observer)
        try:
            yield
        finally:
            _observers.stack.pop()


def is_observed(cls: Any) -> bool:
    """Return whether a class of custom functions was there when the observer began.

    Args:
        cls: The class.
    """
    return any(parent in _before for parent in cls.__mro__)


def is_own(cls: Any) -> bool:
    """Return whether a function is one of torch or of this toolkit, which needs no check.

    What torch draws from a distribution has a derivative of the distribution, not of the draw.

    Args:
        cls: A class of custom functions.
    """
    if not isinstance(cls, type) or cls.__module__.startswith("torch.distributions."):
        return False
    return cls.__module__.startswith(("torch.", "metatoolkit."))


def name_of(cls: Any) -> str:
    """Return the name of a function for a message.

    Args:
        cls: A class of custom functions.
    """
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else str(cls)


def check_derivative(
    cls: Any,
    call: Callable[[tuple[Any, ...]], Any],
    args: tuple[Any, ...],
    before: Sequence[Tensor],
    values: Sequence[Tensor],
    results: Sequence[Tensor],
) -> None:
    """Raise unless the change of a function's values is what its backward pass tells of it.

    With J the Jacobian that the backward pass tells, y₁ − y₀ = ∫ J(x₀ + t (x₁ − x₀)) (x₁ − x₀) dt
    holds for a derivative, however far x₁ is from x₀; both sides are compared along random
    directions. The integral is J at x₁ first, and by Simpson's rule where that does not do. Cost:
    one evaluation of the function, forward and backward, or nine.

    Args:
        cls: Class of the function.
        call: Calls the function with other arguments.
        args: Arguments of the second call.
        before: Floating-point arguments of the first call.
        values: Results of the first call.
        results: Results of the second call.

    Raises:
        UnsupportedError: The backward pass is not the derivative of the forward pass.
    """
    places = [i for i, a in enumerate(args) if _is_point(a)]
    after = [args[i].detach() for i in places]
    moves = [one - other for one, other in zip(after, before, strict=True)]
    changes = [one.detach() - other for one, other in zip(results, values, strict=True)]
    if not any(bool((move != 0).any()) for move in moves):
        return
    generator = torch.Generator().manual_seed(0)
    directions = [
        [
            torch.empty(c.shape).bernoulli_(0.5, generator=generator).to(c.device) * 2 - 1
            for c in changes
        ]
        for _ in range(_DIRECTIONS)
    ]
    risen = torch.stack([_dot(u, changes) for u in directions])
    rounding = sum(float(v.double().square().sum()) * torch.finfo(v.dtype).eps ** 2 for v in values)

    def told(share: float) -> Tensor:
        """Return ⟨Jᵀu, x₁ − x₀⟩ at a place between the two, for each direction."""
        points = [(b + share * m).requires_grad_() for b, m in zip(before, moves, strict=True)]
        given = list(args)
        for place, point in zip(places, points, strict=True):
            given[place] = point
        with torch.enable_grad():
            outputs = _points(call(tuple(given)))
        heads = [(o, index) for index, o in enumerate(outputs) if o.requires_grad]
        rows = []
        for u in directions:
            found: Sequence[Tensor | None] = [None] * len(points)
            if heads:
                found = torch.autograd.grad(
                    [o for o, _ in heads],
                    points,
                    [u[index] for _, index in heads],
                    retain_graph=True,
                    allow_unused=True,
                )
            rows.append(_dot(found, moves))
        return torch.stack(rows)

    def is_wrong(integral: Tensor) -> bool:
        scale = max(float(risen.norm()), float(integral.norm()))
        noise = 30 * (_DIRECTIONS * rounding) ** 0.5
        return scale > noise and float((risen - integral).norm()) > _TOLERANCE * scale + noise

    if not is_wrong(told(1.0)):
        return
    integral = sum(w * told(i / 8) for i, w in enumerate(_SIMPSON))
    if not isinstance(integral, Tensor) or not is_wrong(integral):
        return
    raise UnsupportedError(
        f"the backward pass of {name_of(cls)} is not the derivative of its forward pass, as for a "
        "straight-through estimator, a quantizer or a gradient reversal. A difference of values "
        "cannot see what such a backward pass stands for; use OneStep or Unrolled, which "
        "differentiate it."
    )


def _is_point(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _points(result: Any) -> list[Tensor]:
    """Return the floating-point tensors among the results of a function."""
    results = result if isinstance(result, tuple) else (result,)
    return [value for value in results if _is_point(value)]


def points_of(values: tuple[Any, ...]) -> list[Tensor]:
    """Return the floating-point tensors among the arguments of a function.

    Args:
        values: The arguments.
    """
    return [value for value in values if _is_point(value)]


def _dot(ones: Sequence[Tensor | None], others: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(ones, others, strict=True):
        if one is not None:
            total = total + (one.double() * other.double()).sum().cpu()
    return total
