"""Modules of meta-parameters that keep the names of what they belong to in a model."""

from __future__ import annotations

from torch import nn


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
