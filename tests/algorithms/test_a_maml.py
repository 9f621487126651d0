"""A-MAML by name: the meta-gradient of MAML, in the memory of states alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import metatoolkit as mt
from metatoolkit.randomness import seeded


def loss(model: nn.Module, meta: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-10), ({"method": "continuous", "solver": "heun"}, 5e-2)],
)
def test_it_learns_what_maml_does(options, tolerance):
    """Exactly by the discrete adjoint, and up to the size of a step by that of the flow."""
    with seeded(0):
        model = mt.networks.MLP(inputs=1, hidden=(6,), classes=1, activation="tanh").double()
        support, query = torch.randn(2, 2, 3, 8, 1).double()
    built = [
        mt.algorithms.build(name, model, loss, loss, lr=0.01, steps=20, **given)
        for name, given in (("a-maml", options), ("maml", {}))
    ]
    found, wanted = (
        mt.over_tasks(one.problem, one.inner, one.estimator, (tuple(support), tuple(query)))
        for one in built
    )
    one, other = (torch.cat([g.flatten() for g in r.gradient.values()]) for r in (found, wanted))
    assert float((one - other).norm() / other.norm()) < tolerance
    assert found.details["task_losses"].shape == (3,)
