"""More piecewise functions of torch, and all that are known by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.pieces import (
    PLAIN_PIECES,
    Arguments,
    Flags,
    Piece,
    elementwise,
    named,
)
from metatoolkit.hypergradients.torch_calls import argument, first_argument

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _exponential(piece: Tensor, x: Tensor, alpha: Any, rate: Any = 1.0) -> Tensor:
    # What is not chosen must not overflow.
    return torch.where(piece, x, alpha * (rate * torch.where(piece, 0.0, x)).expm1())


def _selu(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    return _SELU_SCALE * _exponential(piece, x, _SELU_ALPHA)


def _elu(piece: Tensor, x: Tensor, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    names = ("alpha", "scale", "input_scale")
    alpha, scale, rate = (argument(args, kwargs, i + 1, n, 1.0) for i, n in enumerate(names))
    return scale * _exponential(piece, x, alpha, rate)


def _random_slopes() -> Piece:
    """Return the unit whose slope on the left is drawn for each entry."""

    def others(args: Arguments, kwargs: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
        return args[1:], {name: value for name, value in kwargs.items() if name != "input"}

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        x = first_argument(args, kwargs)
        positions, names = others(args, kwargs)
        with torch.no_grad():
            sides = torch.where(x == 0, -1.0, x)
            slopes = torch.where(x > 0, 1.0, func(sides.clone(), *positions, **names) / sides)
        return x.mul_(slopes) if func.__name__.endswith("_") else x * slopes, slopes

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        # As many numbers are drawn as before, one for each entry on the left.
        positions, names = others(args, kwargs)
        func(torch.where(piece == 1.0, 1.0, -1.0), *positions, **names)
        return first_argument(args, kwargs) * piece

    return Piece(find, hold)


def _remainder() -> Piece:
    """Return a remainder, whose whole multiple of the divisor is held."""

    def divisor(args: Arguments, kwargs: dict[str, Any]) -> Any:
        return argument(args, kwargs, 1, "other", 1.0)

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        x, by = first_argument(args, kwargs), divisor(args, kwargs)
        before = x.detach().clone() if isinstance(x, Tensor) else x
        result = func(*args, **kwargs)
        with torch.no_grad():
            return result, ((before - result) / by).round()

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        return first_argument(args, kwargs) - piece * divisor(args, kwargs)

    return Piece(find, hold)


def _extremum() -> Piece:
    """Return the largest or smallest entries over dimensions; equal ones have equal shares."""

    def over(args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, bool]:
        return argument(args, kwargs, 1, "dim", ()), argument(args, kwargs, 2, "keepdim", False)

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        result = func(*args, **kwargs)
        x = first_argument(args, kwargs).detach()
        return result, Flags.of(x == func(x, dim=over(args, kwargs)[0], keepdim=True))

    def hold(piece: Flags, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        flags, (dim, keepdim) = piece.unpack(), over(args, kwargs)
        total = torch.where(flags, first_argument(args, kwargs), 0.0).sum(dim, keepdim=keepdim)
        return total / flags.sum(dim, keepdim=keepdim)

    return Piece(find, hold)


def _absolute_error() -> Piece:
    """Return the loss of absolute differences, whose signs are held."""

    def gap(args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        return first_argument(args, kwargs) - argument(args, kwargs, 1, "target", None)

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        result = func(*args, **kwargs)
        with torch.no_grad():
            return result, gap(args, kwargs).sign().to(torch.int8)

    def hold(piece: Tensor, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        sizes = gap(args, kwargs) * piece
        reduction = argument(args, kwargs, 2, "reduction", 1)
        return sizes.mean() if reduction == 1 else sizes.sum() if reduction == 2 else sizes

    return Piece(find, hold)


def _norm() -> Piece:
    """Return a norm; the signs of the entries are held where it is the sum of their sizes."""

    def find(func: Any, args: Arguments, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        result, x = func(*args, **kwargs), first_argument(args, kwargs)
        if argument(args, kwargs, 1, "ord", 2) != 1 or x.is_complex():
            return result, None
        with torch.no_grad():
            return result, x.sign().to(torch.int8)

    def hold(piece: Any, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        if piece is None:
            return func(*args, **kwargs)
        dim, keepdim = (
            argument(args, kwargs, 2, "dim", None),
            argument(args, kwargs, 3, "keepdim", False),
        )
        sizes = first_argument(args, kwargs) * piece
        return sizes.sum(dim, keepdim=keepdim, dtype=kwargs.get("dtype"))

    return Piece(find, hold)


PIECES: dict[Any, Piece] = {
    **PLAIN_PIECES,
    **named(["selu"], elementwise(lambda x, a, k: x > 0, _selu)),
    **named(["elu"], elementwise(lambda x, a, k: x > 0, _elu)),
    **named(["rrelu"], _random_slopes()),
    **named(["remainder", "fmod", "frac"], _remainder()),
    torch.Tensor.__mod__: _remainder(),
    **named(["amax", "amin"], _extremum()),
    **named(["l1_loss"], _absolute_error()),
    torch.linalg.vector_norm: _norm(),
}
"""The functions that are known, as :class:`torch.overrides.TorchFunctionMode` tells them."""
