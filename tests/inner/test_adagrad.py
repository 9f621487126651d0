"""Adagrad against torch.optim.Adagrad, autograd and finite differences, dead coordinates too."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import Adagrad
from metatoolkit.testing import bank
from tests.inner import reference

OPTIONS = [
    {"lr": 0.05},
    {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.2, "eps": 1e-3},
    {"lr": 0.1, "initial_accumulator_value": 0.3},
    {"lr": 0.002, "maximize": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(Adagrad(**options), torch.optim.Adagrad, options)


def test_groups_equal_torch():
    options = {"lr": 0.05, "weight_decay": 0.1}
    special = [{"lr": 0.02, "lr_decay": 0.5}, {"eps": 0.1, "weight_decay": 0.0}]
    inner = Adagrad(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.Adagrad, options, special)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(Adagrad(**options))


@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(dead):
    values = {"lr": 0.1, "lr_decay": 0.3, "decay": 0.2, "eps": 0.05}

    def make(meta):
        return Adagrad(
            lr=meta["lr"],
            lr_decay=lambda meta, step: meta["lr_decay"],
            weight_decay=meta["decay"],
            eps=meta["eps"],
        )

    reference.assert_differences(make, values, dead=dead)


def test_dead_coordinates_are_finite_and_right():
    check = reference.loss_check(Adagrad(lr=0.05), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4


def test_what_is_left_out():
    reference.assert_defaults(Adagrad, torch.optim.Adagrad)
    assert repr(Adagrad(initial_accumulator_value=0.2)).endswith(
        "maximize=False, initial_accumulator_value=0.2, groups=0)"
    )


def test_a_gradient_of_zero_has_the_slope_of_a_linear_step():
    # g / (|g| + eps) has the slope 1 / eps at 0; the third step has the rate lr / 2.
    reference.assert_rest(Adagrad(lr=0.1, lr_decay=0.5, eps=0.5), -0.1 / 0.5)
    reference.assert_rest(Adagrad(lr=0.1, lr_decay=0.5, eps=0.5), -0.05 / 0.5, step=2)


def test_a_complex_parameter_begins_with_a_sum_for_each_part():
    parameter = torch.nn.Parameter(torch.tensor([0.3 + 0.4j, -0.5j], dtype=torch.complex128))
    options = {"lr": 0.1, "initial_accumulator_value": 0.3}
    model = torch.nn.ParameterDict({"value": parameter})

    def loss(model, meta, batch):
        return meta.value * (model["value"] - batch).abs().square().sum()

    problem = mt.BilevelProblem(model, bank.Value(0.7), loss, loss)
    inner, stepper = Adagrad(**options), torch.optim.Adagrad([parameter], **options)
    state = inner.init(problem)
    assert state.optimizer["square_sum"]["value"].tolist() == [0.3 + 0.3j] * 2
    for batch in (1.0, 0.5j):
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        stepper.zero_grad()
        loss(model, problem.meta, batch).backward()
        stepper.step()
        torch.testing.assert_close(state.parameters["value"], parameter.detach())


@pytest.mark.parametrize("start", [-1.0, float("nan"), float("inf"), None, torch.tensor(0.1)])
def test_arguments_out_of_range(start):
    with pytest.raises(ConfigurationError, match="initial_accumulator_value is"):
        Adagrad(initial_accumulator_value=start)
