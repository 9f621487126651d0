"""Feature-wise transformation: learned random scales and shifts of a network's channels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metatoolkit.components.patterns import check_listed, matching
from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.metaparameters.placement import FollowingLayers, let_follow
from metatoolkit.metaparameters.registry import modules

_SHARPNESS = 100.0
_NAME = "feature_wise_transform"


@modules.register()
class FeatureWiseTransform(nn.Module):
    """Multiplies each channel by a random number around 1 and adds one around 0, when training.

    From Tseng et al. 2020, "Cross-Domain Few-Shot Classification via Learned Feature-Wise
    Transformation" (arXiv 2001.08735, equations 1 and 2): z ← γ z + β with γ = 1 + s(θ_γ) ε and
    β = s(θ_β) ε', where s is the softplus log(1 + exp(100 x)) / 100, and ε, ε' are standard normal,
    one of each per channel and call, the same for the whole batch. In eval mode, and where
    ``enabled`` is off, the features are returned as they are.

    Args:
        channels: Number of channels C.
        scale: First value of each θ_γ, about the standard deviation of γ.
        shift: First value of each θ_β, about the standard deviation of β.
        per: What has a θ_γ and a θ_β of its own: each ``"channel"``, 2 C meta-parameters as
            published, or the whole ``"layer"``, 2. The noise is one draw per channel either way.

    Raises:
        ConfigurationError: ``channels`` is less than 1, or ``per`` is neither of the two.

    Attributes:
        scale: θ_γ, of shape (C,), or (1,) per layer.
        shift: θ_β, of the same shape.
        enabled: Whether the layer acts in train mode.

    Example:
        >>> layer = FeatureWiseTransform(8)
        >>> layer(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        scale: float = 0.3,
        shift: float = 0.5,
        per: Literal["channel", "layer"] = "channel",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigurationError(f"channels is {channels}; at least 1 is needed.")
        if per not in ("channel", "layer"):
            raise ConfigurationError(f"per is {per!r}; accepted: 'channel', 'layer'.")
        self.channels = channels
        size = channels if per == "channel" else 1
        self.scale = nn.Parameter(torch.full((size,), float(scale)))
        self.shift = nn.Parameter(torch.full((size,), float(shift)))
        self.enabled = True

    def deviations(self) -> tuple[Tensor, Tensor]:
        """Return the standard deviations of γ and of β, in the shape of their parameters."""
        return F.softplus(self.scale, beta=_SHARPNESS), F.softplus(self.shift, beta=_SHARPNESS)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features, transformed in train mode.

        Args:
            features: Tensor of shape (batch, C, ...).

        Raises:
            ShapeError: The features have another number of channels.
        """
        channels = self.channels
        if features.dim() < 2 or features.shape[1] != channels:
            raise ShapeError(
                f"features have shape {tuple(features.shape)}; this layer takes "
                f"(batch, {channels}, ...)."
            )
        if not (self.training and self.enabled):
            return features
        noise = torch.randn(2, channels, dtype=self.scale.dtype, device=self.scale.device)
        scale, shift = self.deviations()
        shape = (channels,) + (1,) * (features.dim() - 2)
        gamma = (1 + scale * noise[0]).view(shape).to(features.dtype)
        beta = (shift * noise[1]).view(shape).to(features.dtype)
        return gamma * features + beta

    def extra_repr(self) -> str:
        """Return the number of channels, and whether they share their parameters."""
        shared = len(self.scale) < self.channels
        return f"{self.channels}, per='layer'" if shared else f"{self.channels}"


class FeatureWiseTransforms(FollowingLayers[FeatureWiseTransform]):
    """All transformation layers of a network, each below ``after`` at the name of its BatchNorm.

    Made by :func:`insert_feature_wise_transforms`; its parameters are λ.

    Args:
        layers: Layers by the name of the BatchNorm that each follows.
    """

    kind = FeatureWiseTransform

    def switch(self, on: bool) -> FeatureWiseTransforms:
        """Turn all layers on or off for train mode, and return this module.

        Args:
            on: Whether they act. They never do in eval mode.
        """
        for layer in self.layers().values():
            layer.enabled = on
        return self

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave features as they are in the body, for instance that of an outer loss."""
        before = [(layer, layer.enabled) for layer in self.layers().values()]
        try:
            self.switch(False)
            yield
        finally:
            for layer, enabled in before:
                layer.enabled = enabled


def insert_feature_wise_transforms(
    model: nn.Module,
    where: Sequence[str] | None = None,
    scale: float = 0.3,
    shift: float = 0.5,
    per: Literal["channel", "layer", "network"] = "channel",
) -> FeatureWiseTransforms:
    """Put a feature-wise transformation after BatchNorm layers of any network.

    Each layer becomes the submodule ``feature_wise_transform`` of its BatchNorm and is called by a
    forward hook, so that the network's code and the names of its parameters stay as they are, and
    ``model.to(...)``, ``model.train()`` and ``model.state_dict()`` take the layers along. Load the
    weights of a network without transforms, and convert to synchronized BatchNorm, before the call.

    Args:
        model: Network with BatchNorm; changed in place.
        where: Name patterns, as in :mod:`fnmatch`, of the layers to follow, for instance
            ``["*.bn2", "*.shortcut_bn"]``, the published placement in a residual network of this
            package; ``None`` for each ``BatchNorm2d`` and ``SyncBatchNorm``. A pattern may name
            ``BatchNorm1d`` and ``BatchNorm3d``, too.
        scale: First value of each θ_γ.
        shift: First value of each θ_β.
        per: What has a θ_γ and a θ_β of its own: each ``"channel"``, each ``"layer"``, or the
            whole ``"network"``, whose layers then hold the same two parameters.

    Returns:
        The inserted layers as one module, with 2 C parameters for each layer of C channels, or 2
        for each layer, or 2 in all.

    Raises:
        ConfigurationError: There is no BatchNorm, a pattern matches none, the model has
            transforms already, ``per`` is none of the three, or the layers to follow in a whole
            network differ in device or type.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> meta = insert_feature_wise_transforms(model)
        >>> [name for name, _ in meta.named_parameters()]
        ['after.1.scale', 'after.1.shift']
    """
    check_listed("where", where)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and n != ""}
    held = [name for name, norm in norms.items() if hasattr(norm, _NAME)]
    if held:
        raise ConfigurationError(
            f"model has feature-wise transforms already, after {', '.join(held)}; name all layers "
            "in one call, or build the model anew."
        )
    if not norms:
        raise ConfigurationError(
            f"model ({type(model).__name__}) has no BatchNorm layer inside to put a transform "
            "after; give a network with BatchNorm2d, or call FeatureWiseTransform in its forward."
        )
    if where is None:
        flat = nn.BatchNorm2d | nn.SyncBatchNorm
        chosen = [name for name, norm in norms.items() if isinstance(norm, flat)]
        if not chosen:
            raise ConfigurationError(
                f"model ({type(model).__name__}) has no BatchNorm2d layer; name the layers to "
                f"follow in `where`: {', '.join(norms)}."
            )
    else:
        chosen = matching("where", where, norms, "BatchNorm layer")
        if not chosen:
            raise ConfigurationError("where is empty; name at least one BatchNorm layer.")
    if per not in ("channel", "layer", "network"):
        raise ConfigurationError(f"per is {per!r}; accepted: 'channel', 'layer', 'network'.")
    layers: dict[str, FeatureWiseTransform] = {}
    for name in chosen:
        reference = norms[name].weight if norms[name].affine else norms[name].running_mean
        each: Literal["channel", "layer"] = "channel" if per == "channel" else "layer"
        layer = FeatureWiseTransform(norms[name].num_features, scale, shift, each)
        if reference is not None:
            layer.to(reference.device, reference.dtype)
        layer.train(norms[name].training)
        layers[name] = layer
    if per == "network":
        _share(layers)
    let_follow(model, layers, _NAME)
    return FeatureWiseTransforms(layers)


def _share(layers: dict[str, FeatureWiseTransform]) -> None:
    """Let all layers hold the two parameters of the first."""
    first, *others = layers.values()
    kinds = {(layer.scale.device, layer.scale.dtype) for layer in layers.values()}
    if len(kinds) > 1:
        raise ConfigurationError(
            "per is 'network', but the layers to follow differ in device or type: "
            f"{', '.join(sorted(f'{device} {dtype}' for device, dtype in kinds))}; take "
            "per='layer', or name layers of one kind in `where`."
        )
    for layer in others:
        layer.scale, layer.shift = first.scale, first.shift
