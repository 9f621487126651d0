"""WarpGrad by name: what it puts together, and what it learns."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters import insert_warp_layers
from tests.training.across_tasks import sinusoids, squared_error

WARPS = ["shared.0.warp_layer.weight", "shared.0.warp_layer.bias"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def build(model, **options):
    losses = (squared_error, squared_error)
    return mt.algorithms.build("warpgrad", model, *losses, lr=0.05, steps=3, **options)


@pytest.mark.parametrize("start", [None, "fomaml", "leap"])
def test_it_learns_the_warps_and_what_it_is_told(start):
    algorithm = build(model := network(), start=start)
    names = algorithm.problem.meta_parameter_names
    initial = [f"initialization.{n}" for n in algorithm.problem.parameter_names]
    assert names == (WARPS if start is None else [*initial, *WARPS])
    assert algorithm.problem.parameter_names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(algorithm.meta.parameters(), lr=0.01)
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator)
    options = {"meta_optimizer": optimizer, "tasks": mt.TaskBatching("loop")}
    first = float(mt.over_tasks(*parts, sinusoids(seed=5)).valid_loss)
    mt.MetaTrainer(*parts, **options).fit([sinusoids(seed=5)], steps=15, progress=False)
    assert float(mt.over_tasks(*parts, sinusoids(seed=5)).valid_loss) < first
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    warps = {name.removeprefix("shared.") for name in WARPS}
    assert moved == (warps if start is None else set(before))


def test_warp_layers_of_the_model_are_taken_as_they_are():
    model = network()
    layers = insert_warp_layers(model, ["2"], identity=False).layers()
    algorithm = build(model, first_order=True, iterates="last", weight=0.5)
    shared = algorithm.meta["shared"].get_parameter("2.warp_layer.weight")
    assert shared is layers["2"].weight
    estimator = algorithm.estimator
    given = estimator.start, estimator.first_order, estimator.iterates, estimator.weight
    assert given == ("maml", True, "last", 0.5)
    with pytest.raises(ConfigurationError, match="warp layers already"):
        build(model, where=["0"])
    assert (
        build(network(), where=["2"]).meta["shared"].get_parameter("2.warp_layer.bias").numel() == 1
    )
