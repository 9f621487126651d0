"""NAdam against torch.optim.NAdam, autograd and finite differences, with its product of momenta."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.inner import NAdam, exponential
from tests.inner import reference

OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.05, "betas": (0.5, 0.8), "eps": 1e-3, "weight_decay": 0.3, "momentum_decay": 0.5},
    {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.3, "decoupled_weight_decay": True},
    {"lr": 0.005, "betas": (0.3, 0.5), "maximize": True, "momentum_decay": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(NAdam(**options), torch.optim.NAdam, options)


def test_groups_equal_torch():
    options = {"lr": 0.02, "weight_decay": 0.1}
    special = [
        {"decoupled_weight_decay": True, "betas": (0.7, 0.9)},
        {"weight_decay": 0.0, "eps": 1e-2, "maximize": True, "lr": 1e-3, "momentum_decay": 0.3},
    ]
    inner = NAdam(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.NAdam, options, special)


def test_a_momentum_that_changes_enters_the_product_as_in_torch():
    inner = NAdam(lr=0.02, betas=(exponential(0.9, 0.95), 0.99))
    reference.assert_follows(
        inner, torch.optim.NAdam, {"lr": 0.02}, schedule=lambda t: {"betas": (0.9 * 0.95**t, 0.99)}
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(NAdam(**options), steps=4)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(decoupled, dead):
    values = {"lr": 0.05, "beta1": 0.8, "beta2": 0.8, "eps": 0.05, "decay": 0.2, "growth": 0.3}

    def make(meta):
        return NAdam(
            lr=lambda meta, step: meta["lr"],
            betas=(meta["beta1"], meta["beta2"]),
            eps=meta["eps"],
            weight_decay=meta["decay"],
            momentum_decay=meta["growth"],
            decoupled_weight_decay=decoupled,
        )

    reference.assert_differences(make, values, dead=dead)


def test_dead_coordinates_are_finite_and_right():
    check = reference.loss_check(NAdam(lr=0.02, betas=(0.8, 0.8)), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4


def test_each_entry_may_have_a_momentum_of_its_own():
    rates = torch.tensor([0.3, 0.9], dtype=torch.float64)
    problem, batches = reference.make_problem(), reference.make_batches(4)

    def run(beta1):
        inner = NAdam(lr=0.1, groups=[{"params": ["head.bias"], "beta1": beta1}])
        state = inner.init(problem)
        for batch in batches:
            state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        return state

    # The biases of other entries do not matter to the first step's gradient; see one step.
    batches = batches[:1]
    found = run(rates)
    assert found.optimizer["momentum_product"]["head.bias"].shape == (2,)
    for entry in range(2):
        alone = run(float(rates[entry])).parameters["head.bias"][entry]
        torch.testing.assert_close(found.parameters["head.bias"][entry], alone)
    with pytest.raises(ShapeError, match=r"momentum_product of 'head.bias'.*not by functions"):
        run(lambda meta, step: rates)


def test_arguments_out_of_range():
    with pytest.raises(ConfigurationError, match=r"beta1 is 1.0"):
        NAdam(betas=(1.0, 0.9))
    with pytest.raises(ConfigurationError, match="momentum_decay is -1"):
        NAdam(momentum_decay=-1)
