"""Modules of meta-parameters that keep the names of what they belong to in a model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from metatoolkit.components.patterns import matching

Layer = TypeVar("Layer", bound=nn.Module)


def chosen_parameters(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that require a gradient and match a pattern, by name.

    Args:
        model: Any module.
        patterns: Name patterns, as in :mod:`fnmatch`; ``None`` for all.

    Raises:
        ConfigurationError: A pattern matches no parameter.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if patterns is None:
        return named
    kind = "parameter that requires a gradient"
    return {name: named[name] for name in matching("parameters", patterns, named, kind)}


def attach_at(root: nn.Module, name: str, item: nn.Module | nn.Parameter) -> None:
    """Register a module or a parameter where its dotted name says, with empty modules on the way.

    Args:
        root: Module below which the name holds.
        name: Dotted name, as in ``named_modules()`` or ``named_parameters()`` of a model.
        item: What to register.
    """
    *path, last = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(item, nn.Parameter):
        module.register_parameter(last, item)
    else:
        module.add_module(last, item)


class FollowingLayers(nn.Module, Generic[Layer]):
    """Layers of a network that follow others, each below ``after`` at the name of what it follows.

    This is the ``meta`` of a bilevel problem: its parameters are λ. The layers are part of the
    network, too.

    Args:
        layers: Layers by the name of what each follows.
    """

    kind: type[Layer]

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        # A module without attributes of its own: no name of a network's layers is taken in it.
        self.after = nn.Module()
        for name, layer in layers.items():
            attach_at(self.after, name, layer)

    def layers(self) -> dict[str, Layer]:
        """Return the layers by the name of what each follows."""
        named = self.after.named_modules()
        return {name: layer for name, layer in named if isinstance(layer, self.kind)}


def let_follow(model: nn.Module, layers: Mapping[str, nn.Module], attribute: str) -> None:
    """Make each layer a submodule of what it follows, whose output goes through it by a hook.

    Args:
        model: Network; changed in place.
        layers: Layers by the name of what each follows.
        attribute: Name of the submodule.
    """
    for name, layer in layers.items():
        module = model.get_submodule(name)
        module.add_module(attribute, layer)
        module.register_forward_hook(functools.partial(_through, attribute))


def _through(attribute: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Forward hook; it finds the layer through the module, so that copies use their own."""
    result: Tensor = module.get_submodule(attribute)(output)
    return result
