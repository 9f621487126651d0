"""What is registered where a dotted name says."""

import torch
from torch import nn

from metatoolkit.metaparameters.placement import attach_at


def test_parameters_and_modules_stand_at_their_names():
    root, layer, first, second = nn.Module(), nn.Linear(2, 1), *map(_parameter, (1.0, 2.0))
    attach_at(root, "a.b.weight", first)
    attach_at(root, "a.b.bias", second)
    attach_at(root, "a.c", layer)
    attach_at(root, "top", _parameter(3.0))
    assert root.a.b.weight is first and root.a.b.bias is second and root.a.c is layer
    names = ["top", "a.b.weight", "a.b.bias", "a.c.weight", "a.c.bias"]
    assert [name for name, _ in root.named_parameters()] == names
    assert type(root.a) is nn.Module and dict(root.named_modules())["a.c"] is layer


def _parameter(value):
    return nn.Parameter(torch.tensor(value))
