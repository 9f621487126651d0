"""Piecewise functions of torch, held to the piece that each entry was in when it was recorded.

A derivative differentiates the piece where the point lies; a difference of values also sees the
steps between pieces. With thousands of rectified units, some change sides however near two points
are, and a difference of gradients is dominated by these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatoolkit.hypergradients.torch_calls import argument, first_argument
from metatoolkit.hypergradients.transforms import in_transform

Arguments = tuple[Any, ...]
# They take one entry of all where no dimension is given.
_WHOLE = ("max", "min", "median", "nanmedian")
# Entries from which on flags are packed: below, it takes longer than the function itself.
_PACKED = 2**14


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of a tensor's entries, eight to a byte where there are many.

    Attributes:
        stored: The bytes, or the flags themselves.
        shape: Shape of the tensor.
    """

    stored: Tensor
    shape: torch.Size

    @staticmethod
    def of(flags: Tensor) -> Flags:
        """Return the flags that a boolean tensor holds.

        Args:
            flags: The tensor.
        """
        if flags.numel() < _PACKED:
            return Flags(flags, flags.shape)
        rows = F.pad(flags.flatten(), (0, -flags.numel() % 8)).view(-1, 8)
        return Flags((rows * _bits(flags.device)).sum(1, dtype=torch.uint8), flags.shape)

    def unpack(self) -> Tensor:
        """Return the boolean tensor."""
        if self.stored.dtype == torch.bool:
            return self.stored
        rows = (self.stored.unsqueeze(1) & _bits(self.stored.device)) != 0
        return rows.flatten()[: self.shape.numel()].view(self.shape)


def _bits(device: torch.device) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One piecewise function.

    Attributes:
        find: ``(function, args, kwargs) -> (result, piece)`` runs the function and tells the piece
            of each entry, without a graph.
        hold: ``(piece, function, args, kwargs) -> result`` computes the given pieces of all
            entries, out of place and differentiably.
    """

    find: Callable[[Any, Arguments, dict[str, Any]], tuple[Any, Any]]
    hold: Callable[[Any, Any, Arguments, dict[str, Any]], Any]


def _before(
    where: Callable[[Tensor, Arguments, dict[str, Any]], Tensor],
) -> Callable[[Any, Arguments, dict[str, Any]], tuple[Any, Any]]:
    """Find the piece from the arguments, before the function may write over them."""

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        with torch.no_grad():
            piece = where(first_argument(args, kwargs), args, kwargs)
        held = Flags.of(piece) if piece.dtype == torch.bool else piece
        return func(*args, **kwargs), held

    return find


def elementwise(
    where: Callable[[Tensor, Arguments, dict[str, Any]], Tensor],
    value: Callable[[Any, Tensor, Arguments, dict[str, Any]], Tensor],
    packed: bool = False,
) -> Piece:
    """Return a function of each entry, with how to compute the piece that holds ``where``."""

    def hold(piece: Any, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        if isinstance(piece, Flags) and not packed:
            piece = piece.unpack()
        return value(piece, first_argument(args, kwargs), args, kwargs)

    return Piece(_before(where), hold)


def _side(tensor: Tensor, low: Any, high: Any) -> Tensor:
    """Return −1 below ``low``, 1 above ``high`` and 0 between, in one byte an entry."""
    side = torch.zeros((), dtype=torch.int8, device=tensor.device)
    if low is not None:
        side = side - (tensor < low).to(torch.int8)
    if high is not None:
        above = tensor > high
        if low is not None:
            # Where the limits are in the wrong order all entries are at the upper one.
            above = above | (torch.as_tensor(low, device=tensor.device) > high)
            side = torch.where(above, 0, side)
        side = side + above.to(torch.int8)
    return side.expand(tensor.shape) if side.dim() == 0 else side


def _limited(piece: Tensor, tensor: Tensor, low: Any, high: Any) -> Tensor:
    for side, limit in ((-1, low), (1, high)):
        if limit is not None:
            limit = torch.as_tensor(limit, dtype=tensor.dtype, device=tensor.device)
            tensor = torch.where(piece == side, limit, tensor)
    return tensor


def _limits(low: tuple[int, str, Any] | None, high: tuple[int, str, Any] | None) -> Piece:
    """Return a clamp whose limits stand at these places among the arguments."""

    def read(args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(None if at is None else argument(args, kwargs, *at) for at in (low, high))  # type: ignore[return-value]

    return elementwise(
        lambda x, args, kwargs: _side(x, *read(args, kwargs)),
        lambda piece, x, args, kwargs: _limited(piece, x, *read(args, kwargs)),
    )


def _steps() -> Piece:
    """Return a function of steps: its value is held, with the derivative of zero that it has."""

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        result = func(*args, **kwargs)
        return result, result.detach().clone()

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        result = func(*args, **kwargs)
        return result + (piece - result.detach())

    return Piece(find, hold)


def _pool(pool: Callable[..., Any], dimensions: int) -> Piece:
    """Return a maximum over windows, whose place in each window is held."""

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = {key: value for key, value in kwargs.items() if key != "return_indices"}
        result, places = pool(*args, **given, return_indices=True)
        return result, places

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        entries = first_argument(args, kwargs).flatten(-dimensions)
        return entries.gather(-1, piece.flatten(-dimensions)).view(piece.shape)

    return Piece(find, hold)


def _choice() -> Piece:
    """Return the larger or smaller of two tensors, of which each entry keeps its side."""

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        result = func(*args, **kwargs)
        one, other = args[0], argument(args, kwargs, 1, "other", None)
        with torch.no_grad():
            # Of equal entries each has half of the gradient.
            return result, (result == one).to(torch.int8) - (result == other).to(torch.int8)

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        one, other = args[0], argument(args, kwargs, 1, "other", None)
        return torch.where(piece == 0, (one + other) / 2, torch.where(piece > 0, one, other))

    return Piece(find, hold)


def _selection() -> Piece:
    """Return a function that selects entries, such as ``max`` and ``sort``; which is held."""
    choice = _choice()

    def pair(args: Arguments, kwargs: dict[str, Any]) -> bool:
        return isinstance(argument(args, kwargs, 1, "other", None), Tensor)

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if pair(args, kwargs):
            return choice.find(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, tuple):
            return result, result[1]
        with torch.no_grad():
            return result, (first_argument(args, kwargs).flatten() == result).to(
                torch.int8
            ).argmax()

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        if pair(args, kwargs):
            return choice.hold(piece, func, args, kwargs)
        x = first_argument(args, kwargs)
        name = func.__name__
        if name in _WHOLE and len(args) < 2 and "dim" not in kwargs:
            return x.flatten()[piece]
        given = 0 if name in _WHOLE else -1
        dim = argument(args, kwargs, 2 if name in ("topk", "kthvalue") else 1, "dim", given)
        dim = dim if isinstance(dim, int) and not isinstance(dim, bool) else given
        reduced = piece.dim() < x.dim()
        places = piece.unsqueeze(dim) if reduced else piece
        values = x.gather(dim, places)
        kind = getattr(torch.return_types, name)
        return kind((values.squeeze(dim) if reduced else values, piece))

    return Piece(find, hold)


def _slope(args: Arguments, kwargs: dict[str, Any]) -> Any:
    return argument(args, kwargs, 1, "negative_slope", 0.01)


def _prelu(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    weight = argument(args, kwargs, 1, "weight", None)
    if weight.numel() > 1 and x.dim() > 1:
        weight = weight.view(-1, *[1] * (x.dim() - 2))
    return torch.where(piece, x, weight * x)


def _hardswish(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    return torch.where(piece == 0, x * (x + 3) / 6, torch.where(piece > 0, x, 0.0))


def _hardsigmoid(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    return _limited(piece, x / 6 + 0.5, 0.0, 1.0)


def _softshrink(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    return piece.abs() * x - piece * argument(args, kwargs, 1, "lambd", 0.5)


def _threshold(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    value = argument(args, kwargs, 2, "value", None)
    return torch.where(piece, x, torch.as_tensor(value, dtype=x.dtype, device=x.device))


class _Masked(torch.autograd.Function):
    """Zero where a flag is off; the graph keeps the flags eight to a byte."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flags: Flags) -> Tensor:
        ctx.flags = flags
        return torch.where(flags.unpack(), x, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Masked.apply(gradient, ctx.flags), None


def _relu(piece: Flags, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    # The transforms know no custom functions of this kind.
    return torch.where(piece.unpack(), x, 0.0) if in_transform() else _Masked.apply(x, piece)


_RELU = elementwise(lambda x, a, k: x > 0, _relu, packed=True)
_LEAKY = elementwise(
    lambda x, a, k: x > 0, lambda piece, x, a, k: torch.where(piece, x, _slope(a, k) * x)
)
_HARDTANH = _limits((1, "min_val", -1.0), (2, "max_val", 1.0))
_CLAMP = _limits((1, "min", None), (2, "max", None))
_CLAMP_MIN = _limits((1, "min", None), None)
_CLAMP_MAX = _limits(None, (1, "max", None))
_ABS = elementwise(lambda x, a, k: x.sign().to(torch.int8), lambda piece, x, a, k: x * piece)
_THRESHOLD = elementwise(lambda x, a, k: x > argument(a, k, 1, "threshold", None), _threshold)
_PRELU = elementwise(lambda x, a, k: x > 0, _prelu)
_HARDSWISH = elementwise(lambda x, a, k: _side(x, -3.0, 3.0), _hardswish)
_HARDSIGMOID = elementwise(lambda x, a, k: _side(x, -3.0, 3.0), _hardsigmoid)
_SOFTSHRINK = elementwise(
    lambda x, a, k: _side(x, -argument(a, k, 1, "lambd", 0.5), argument(a, k, 1, "lambd", 0.5)),
    _softshrink,
)
_HARDSHRINK = elementwise(
    lambda x, a, k: x.abs() > argument(a, k, 1, "lambd", 0.5),
    lambda piece, x, a, k: torch.where(piece, x, 0.0),
)
_CHOICE = _choice()
_SELECTION = _selection()
_STEPS = _steps()


def named(names: Sequence[str], piece: Piece) -> dict[Any, Piece]:
    """Return the functions and methods of torch with these names, in place and out of it."""
    found: dict[Any, Piece] = {}
    for name in names:
        for variant in (name, f"{name}_"):
            for home in (torch, torch.Tensor, torch._C._nn):
                function = getattr(home, variant, None)
                if function is not None:
                    found[function] = piece
    return found


PLAIN_PIECES: dict[Any, Piece] = {
    **named(["relu"], _RELU),
    **named(["leaky_relu"], _LEAKY),
    **named(["hardtanh"], _HARDTANH),
    **named(["clamp", "clip"], _CLAMP),
    **named(["clamp_min"], _CLAMP_MIN),
    **named(["clamp_max"], _CLAMP_MAX),
    **named(["abs", "absolute"], _ABS),
    torch.Tensor.__abs__: _ABS,
    **named(["threshold"], _THRESHOLD),
    **named(["prelu"], _PRELU),
    **named(["hardswish"], _HARDSWISH),
    **named(["hardsigmoid"], _HARDSIGMOID),
    **named(["softshrink"], _SOFTSHRINK),
    **named(["hardshrink"], _HARDSHRINK),
    **named(["maximum", "minimum", "fmax", "fmin"], _CHOICE),
    **named([*_WHOLE, "sort", "topk", "kthvalue", "mode", "cummax", "cummin"], _SELECTION),
    **named(
        ["round", "floor", "ceil", "trunc", "fix", "sign", "bernoulli", "poisson", "normal"],
        _STEPS,
    ),
    F.max_pool1d: _pool(F.max_pool1d, 1),
    F.max_pool2d: _pool(F.max_pool2d, 2),
    F.max_pool3d: _pool(F.max_pool3d, 3),
    F.adaptive_max_pool1d: _pool(F.adaptive_max_pool1d, 1),
    F.adaptive_max_pool2d: _pool(F.adaptive_max_pool2d, 2),
    F.adaptive_max_pool3d: _pool(F.adaptive_max_pool3d, 3),
}
"""A part of the functions that are known; :mod:`metatoolkit.hypergradients.kinks` has all."""
