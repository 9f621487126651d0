"""Meta-parameter modules by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metatoolkit.components.registry import Registry

if TYPE_CHECKING:
    from torch import nn

modules: Registry[nn.Module] = Registry(
    "meta-parameter module", "metatoolkit.metaparameters", "metatoolkit.metaparameters"
)
