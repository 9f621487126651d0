"""Functions of torch with pieces inside, composed of those whose pieces are held.

They are single operators to torch, so that nothing of what they choose is seen from outside:
margin losses, distances, quantiles. A pass that records or replays computes them from their parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MEAN, _SUM = 1, 2
_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
_TAPS = {_BILINEAR: (0, 1), _BICUBIC: (-1, 0, 1, 2)}
_ZEROS, _REFLECTION = 0, 2


def _reduced(losses: Tensor, reduction: int) -> Tensor:
    if reduction == _MEAN:
        return losses.mean()
    return losses.sum() if reduction == _SUM else losses


def _margin_ranking(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 0
) -> Tensor:
    return _reduced((-target * (input1 - input2) + margin).clamp_min(0), reduction)


def _hinge_embedding(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = 0
) -> Tensor:
    apart = torch.where(target != 1, (margin - input).clamp_min(0), 0.0)
    return _reduced(apart + torch.where(target != -1, input, 0.0), reduction)


def _cosine_embedding(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 0
) -> Tensor:
    dim = target.dim()
    sizes = [(x * x).sum(dim) + 1e-12 for x in (input1, input2)]
    cosine = (input1 * input2).sum(dim) / (sizes[0] * sizes[1]).sqrt()
    apart = torch.where(target == -1, (cosine - margin).clamp_min(0), 0.0)
    return _reduced(torch.where(target == 1, 1 - cosine, 0.0) + apart, reduction)


def _pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)


def _triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = 0,
) -> Tensor:
    near = torch.pairwise_distance(anchor, positive, p, eps)
    far = torch.pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, torch.pairwise_distance(positive, negative, p, eps))
    return _reduced((margin + near - far).clamp_min(0), reduction)


def _multi_margin(
    input: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: int = 0,
) -> Tensor:
    places = target.reshape(-1, 1)
    rows = input.reshape(places.shape[0], -1)
    excess = (margin - rows.gather(1, places) + rows).clamp_min(0)
    excess = excess if p == 1 else excess * excess
    if weight is not None:
        excess = weight[places] * excess
    losses = torch.scatter(excess, 1, places, 0.0).sum(1) / rows.shape[1]
    return _reduced(losses.reshape(target.shape), reduction)


def _multilabel_margin(input: Tensor, target: Tensor, reduction: int = 0) -> Tensor:
    places = target.clamp_min(0)
    listed = (target >= 0).to(target.dtype).cumprod(-1)
    counts = torch.zeros_like(target).scatter_add(-1, places, listed)
    excess = (1 - input.gather(-1, places).unsqueeze(-1) + input.unsqueeze(-2)).clamp_min(0)
    used = (listed != 0).unsqueeze(-1) & (counts == 0).unsqueeze(-2)
    losses = torch.where(used, excess, 0.0).sum((-2, -1)) / input.shape[-1]
    return _reduced(losses, reduction)


def _is_plain(p: float) -> bool:
    return p in (1, math.inf)


def _cdist(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor:
    if not _is_plain(p):
        return torch.cdist(x1, x2, p, compute_mode)
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    if not _is_plain(p):
        return torch.pdist(input, p)
    one, other = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return torch.linalg.vector_norm(input[one] - input[other], p, -1)


def _dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    return torch.linalg.vector_norm(input - other, p)


def _vector_norm(
    x: Tensor,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    if ord not in (math.inf, -math.inf) or x.is_complex() or out is not None:
        given = {} if out is None else {"out": out}
        return torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype, **given)
    sizes = x.abs() if dtype is None else x.to(dtype).abs()
    over = tuple(range(x.dim())) if dim is None else dim
    return sizes.amax(over, keepdim) if ord > 0 else sizes.amin(over, keepdim)


def _aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    over = tuple(range(input.dim())) if dim is None else dim
    ends = (input.amin(over, keepdim), input.amax(over, keepdim))
    return torch.return_types.aminmax(ends)


def _msort(input: Tensor) -> Tensor:
    return input.sort(0).values


def _ranked(skip: bool) -> Callable[..., Tensor]:
    def quantile(
        input: Tensor,
        q: float | Tensor,
        dim: int | None = None,
        keepdim: bool = False,
        *,
        interpolation: str = "linear",
    ) -> Tensor:
        x = input.flatten() if dim is None else input.movedim(dim, -1)
        share = torch.as_tensor(q, dtype=x.dtype, device=x.device)
        values = x.sort(-1).values
        missing = x.isnan()
        count = (~missing).sum(-1, keepdim=True) if skip else x.shape[-1]
        place = (share.reshape(-1) * (count - 1)).expand(*x.shape[:-1], share.numel()).clamp(min=0)
        low, high = place.floor(), place.ceil()
        if interpolation == "nearest":
            low = place.round()
        elif interpolation == "higher":
            low = high
        found = values.gather(-1, low.long())
        if interpolation in ("linear", "midpoint"):
            part = 0.5 * (high - low) if interpolation == "midpoint" else place - low
            found = torch.lerp(found, values.gather(-1, high.long()), part)
        if not skip:
            found = torch.where(missing.any(-1, keepdim=True), math.nan, found)
        if keepdim:
            whole = (1,) * input.dim()
            found = found.movedim(-1, 0)
            found = (
                found.reshape(-1, *whole) if dim is None else found.unsqueeze(dim % input.dim() + 1)
            )
        else:
            found = found.movedim(-1, 0)
        return found if share.dim() else found.squeeze(0)

    return quantile


def _division(name: str, home: Any) -> Callable[..., Tensor]:
    function = getattr(home, name)

    def division(input: Any, other: Any, *, rounding_mode: str | None = None, **rest: Any) -> Any:
        if rounding_mode is None:
            return function(input, other, **rest)
        steps = [v.detach() if isinstance(v, Tensor) else v for v in (input, other)]
        return function(*steps, rounding_mode=rounding_mode, **rest)

    return division


def _grid_sampler(
    input: Tensor, grid: Tensor, interpolation: int, padding: int, align_corners: bool
) -> Tensor:
    if interpolation == _NEAREST:
        return torch.grid_sampler(input, grid.detach(), interpolation, padding, align_corners)
    if len(input) != len(grid) or input.dim() != grid.dim() or interpolation not in _TAPS:
        return torch.grid_sampler(input, grid, interpolation, padding, align_corners)
    sizes = input.shape[2:]
    # The first coordinate of a grid belongs to the last dimension of the images.
    inside = _ZEROS if interpolation == _BICUBIC else padding
    places = [
        _unnormalized(place, size, inside, align_corners)
        for place, size in zip(grid.unbind(-1), reversed(sizes), strict=True)
    ][::-1]
    flat, result = input.flatten(2), torch.zeros((), dtype=input.dtype, device=input.device)
    lows = [place.floor() for place in places]
    for taps in itertools.product(_TAPS[interpolation], repeat=len(sizes)):
        index = torch.zeros(grid.shape[:-1], dtype=torch.int64, device=grid.device)
        weight = torch.ones_like(places[0])
        for place, low, tap, size in zip(places, lows, taps, sizes, strict=True):
            cell = low.long() + tap
            if interpolation == _BICUBIC:
                # It brings the pixels inside, and not the coordinates.
                cell = _padded(cell.to(place.dtype), size, padding, align_corners).long()
                share = _cubic(place - low - tap, abs(2 * tap - 1) == 1)
            else:
                share = place - low if tap else 1 - (place - low)
            index = index * size + cell.clamp(0, size - 1)
            weight = weight * torch.where((cell >= 0) & (cell < size), share, 0.0)
        values = flat.gather(2, index.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1))
        result = result + values.unflatten(2, grid.shape[1:-1]) * weight.unsqueeze(1)
    return result


def _unnormalized(place: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Return the coordinates of a grid in pixels, brought inside."""
    least, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
    return _padded(least + (place + 1) / 2 * span, size, padding, align_corners)


def _cubic(distance: Tensor, near: bool) -> Tensor:
    """Return the weight of a pixel by Keys' cubic convolution with a = −0.75."""
    a, d = -0.75, distance.abs()
    if near:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def _padded(pixels: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Return coordinates in pixels, those outside brought inside as the padding says."""
    least, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
    if padding == _REFLECTION:
        if span == 0:
            return torch.zeros_like(pixels)
        distance = (pixels - least).abs()
        turns = (distance / span).floor()
        rest = distance - turns * span
        pixels = least + torch.where(turns % 2 == 0, rest, span - rest)
    return pixels if padding == _ZEROS else pixels.clamp(0, size - 1)


def _both(name: str, body: Callable[..., Any]) -> dict[Any, Callable[..., Any]]:
    homes: Sequence[Any] = (torch, torch.Tensor, torch._C._nn)
    return {getattr(home, name): body for home in homes if hasattr(home, name)}


COMPOSED: dict[Any, Callable[..., Any]] = {
    **_both("margin_ranking_loss", _margin_ranking),
    **_both("hinge_embedding_loss", _hinge_embedding),
    **_both("cosine_embedding_loss", _cosine_embedding),
    **_both("triplet_margin_loss", _triplet_margin),
    **_both("pairwise_distance", _pairwise_distance),
    **_both("multi_margin_loss", _multi_margin),
    **_both("multilabel_margin_loss", _multilabel_margin),
    **_both("cdist", _cdist),
    **_both("pdist", _pdist),
    **_both("dist", _dist),
    torch.linalg.vector_norm: _vector_norm,
    **_both("aminmax", _aminmax),
    **_both("msort", _msort),
    **_both("quantile", _ranked(skip=False)),
    **_both("nanquantile", _ranked(skip=True)),
    torch.grid_sampler: _grid_sampler,
    torch.div: _division("div", torch),
    torch.Tensor.div: _division("div", torch.Tensor),
}
"""The functions, each with what computes it from its parts."""
