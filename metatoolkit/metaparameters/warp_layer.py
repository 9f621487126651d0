"""Warp layers (WarpGrad): λ is linear layers between those that a task adapts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from metatoolkit.components.patterns import matching
from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.metaparameters.placement import FollowingLayers, let_follow
from metatoolkit.metaparameters.registry import modules

_NAME = "warp_layer"
_KERNEL = 3

Kind = Literal["linear", "rows", "conv"]


@modules.register()
class WarpLayer(nn.Module):
    """Maps features h to Ω h + c, between layers that inner steps adapt.

    From Flennerhag et al. 2020, "Meta-Learning with Warped Gradient Descent" (arXiv 1909.00025).
    Inner steps leave Ω and c as they are and move the layers around them through it: behind a
    linear layer of weight W a step of gradient descent in W moves ΩW by the gradient in ΩW times
    ΩΩᵀ, which the meta-optimizer so learns. At the identity a network computes, and learns, what
    it would without the layer.

    Args:
        size: Number of features or channels C.
        kind: ``"linear"`` acts on the last dimension, (..., C); ``"rows"`` does, but takes
            (batch, C) alone; ``"conv"`` is a 3×3 convolution with padding 1 of
            (batch, C, height, width).
        identity: Whether Ω begins as the identity and c as 0; otherwise as in ``nn.Linear`` and
            ``nn.Conv2d``.
        bias: Whether there is a c.

    Raises:
        ConfigurationError: ``size`` is less than 1, or ``kind`` is none of the three.

    Attributes:
        weight: Ω, of shape (C, C) or (C, C, 3, 3).
        bias: c, of shape (C,), or ``None``.

    Example:
        >>> layer, features = WarpLayer(4), torch.randn(2, 4)
        >>> torch.equal(layer(features), features)
        True
        >>> WarpLayer(8, "conv")(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    bias: nn.Parameter | None

    def __init__(
        self, size: int, kind: Kind = "linear", identity: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigurationError(f"size is {size}; at least 1 is needed.")
        if kind not in get_args(Kind):
            accepted = ", ".join(map(repr, get_args(Kind)))
            raise ConfigurationError(f"kind is {kind!r}; accepted: {accepted}.")
        self.size, self.kind = size, kind
        convolves = kind == "conv"
        layer = (
            nn.Conv2d(size, size, _KERNEL, padding=_KERNEL // 2, bias=bias)
            if convolves
            else nn.Linear(size, size, bias)
        )
        self.weight = layer.weight
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())
        if identity:
            (nn.init.dirac_ if convolves else nn.init.eye_)(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the warped features, of the same shape.

        Args:
            features: Tensor of the shape that ``kind`` takes.

        Raises:
            ShapeError: The features have another number of dimensions or channels.
        """
        shape, convolves = tuple(features.shape), self.kind == "conv"
        dims = {"linear": max(len(shape), 1), "rows": 2, "conv": 4}[self.kind]
        if len(shape) != dims or shape[1 if convolves else -1] != self.size:
            accepted = {
                "linear": f"(..., {self.size})",
                "rows": f"(batch, {self.size})",
                "conv": f"(batch, {self.size}, height, width)",
            }[self.kind]
            raise ShapeError(f"features have shape {shape}; this warp layer takes {accepted}.")
        if convolves:
            return F.conv2d(features, self.weight, self.bias, padding=_KERNEL // 2)
        return F.linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return size and kind."""
        return f"{self.size}, {self.kind!r}"


class WarpLayers(FollowingLayers[WarpLayer]):
    """All warp layers of a network, each below ``after`` at the name of the layer it follows.

    Made by :func:`insert_warp_layers`; its parameters are λ.

    Args:
        layers: Warp layers by the name of the layer that each follows.
    """

    kind = WarpLayer


def insert_warp_layers(
    model: nn.Module, where: Sequence[str] | None = None, identity: bool = True, bias: bool = True
) -> WarpLayers:
    """Put warp layers behind layers or blocks of any network.

    Each becomes the submodule ``warp_layer`` of what it follows and is called by a forward hook,
    so that the network's code and the names of its parameters stay as they are. It is a
    convolution behind a ``Conv2d``, a ``BatchNorm2d`` or a block whose last layer is one of these,
    and linear behind the others; behind a ``BatchNorm1d`` it takes (batch, C) alone. Load the
    weights of a network without warp layers before.

    Args:
        model: Network; changed in place.
        where: Name patterns, as in :mod:`fnmatch`, of what to follow: layers, or blocks such as
            ``["blocks.*"]`` as published; ``None`` for each ``Linear`` and ``Conv2d`` but the last.
        identity: As in :class:`WarpLayer`.
        bias: As in :class:`WarpLayer`.

    Returns:
        The warp layers as one module.

    Raises:
        ConfigurationError: There is no layer to follow, a pattern matches none, or the model has
            warp layers already.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> meta = insert_warp_layers(model)
        >>> [name for name, _ in meta.named_parameters()]
        ['after.0.weight', 'after.0.bias']
    """
    held = list(warp_layers_of(model))
    if held:
        raise ConfigurationError(
            f"model has warp layers already ({', '.join(held)}); name all layers to follow in one "
            "call, or build the model anew."
        )
    if where is None:
        plain = nn.Linear | nn.Conv2d
        every = [
            n for n, m in model.named_modules() if n and isinstance(m, plain) and _is_called(m)
        ]
        chosen = every[:-1]
        if not chosen:
            raise ConfigurationError(
                f"model ({type(model).__name__}) has {len(every)} layers of the types Linear and "
                "Conv2d; at least 2 are needed. Name what to follow in `where`, or call WarpLayer "
                "in the model's forward."
            )
    else:
        named = {n: m for n, m in model.named_modules() if n and _last_layer(m) is not None}
        chosen = matching("where", where, named, "layer or block whose features are known")
        if not chosen:
            raise ConfigurationError("where is empty; name at least one layer.")
    layers: dict[str, WarpLayer] = {}
    for name in chosen:
        last = _last_layer(model.get_submodule(name))
        assert last is not None
        size, kind, reference = last
        layers[name] = WarpLayer(size, kind, identity, bias)
        if reference is not None:
            layers[name].to(reference.device, reference.dtype)
    let_follow(model, layers, _NAME)
    return WarpLayers(layers)


def warp_layers_of(model: nn.Module) -> dict[str, WarpLayer]:
    """Return the warp layers of a network by their names in it.

    Args:
        model: Any module.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, WarpLayer)}


def _is_called(module: nn.Module) -> bool:
    """Return whether a layer's own forward runs; attention reads weights of its projection."""
    return not isinstance(module, NonDynamicallyQuantizableLinear)


def _last_layer(module: nn.Module) -> tuple[int, Kind, torch.Tensor | None] | None:
    """Return number of features, kind of warp and a parameter of the last layer that tells them."""
    for layer in filter(_is_called, reversed(list(module.modules()))):
        if isinstance(layer, nn.Linear):
            return layer.out_features, "linear", layer.weight
        if isinstance(layer, nn.Conv2d):
            return layer.out_channels, "conv", layer.weight
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
            return layer.num_features, "conv", layer.weight
        if isinstance(layer, nn.BatchNorm1d):
            return layer.num_features, "rows", layer.weight
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
            return layer.normalized_shape[0], "linear", layer.weight
    return None
