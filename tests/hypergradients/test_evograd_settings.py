"""The arguments of EvoGrad: what each does, by default and out of range."""

import inspect
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvoGrad
from metatoolkit.testing import bank
from tests.hypergradients.test_evograd import fixed_noise


def test_perturb_moves_only_what_it_names():
    case = bank.small_net()
    estimator = EvoGrad(2, 0.1, 0.5, perturb=["4.*"])
    names = {name for name, _ in estimator._candidates(case.state).perturbations(0)}
    assert names == {"4.weight", "4.bias"}
    both = EvoGrad(2, 0.1, 0.5, perturb=["0.*", "*.bias"])._candidates(case.state).names
    assert list(both) == ["0.weight", "0.bias", "1.bias", "4.bias"]
    everything = case.call(EvoGrad(2, 0.1, 0.5)).gradient
    some = case.call(estimator).gradient
    assert not torch.equal(some["layers.0.weight"], everything["layers.0.weight"])
    with pytest.raises(ConfigurationError, match=r"'head\.\*' matches no inner parameter"):
        case.call(EvoGrad(perturb=["head.*"]))


def test_rescale_multiplies_the_estimate():
    case = bank.ridge()
    plain, rescaled = EvoGrad(3, 1e-2, 0.5), EvoGrad(3, 1e-2, 0.5, rescale=0.1)
    assert plain.learning_rate == pytest.approx(1e-4 * 2 / 1.5)
    assert rescaled.learning_rate == 0.1
    expected = case.call(plain).gradient["value"] * (0.1 / plain.learning_rate)
    error = case.call(rescaled).gradient["value"] - expected
    assert float(error.norm()) < 1e-12 * float(expected.norm())


def test_rescale_leaves_the_direct_gradient_alone():
    case = bank.tied()
    direct = case.problem.meta.direct.detach().cos()
    for rescale in (None, 7.0):
        gradient = case.call(EvoGrad(2, 0.1, 0.5, rescale=rescale)).gradient
        torch.testing.assert_close(gradient["direct"], direct)


@pytest.mark.parametrize(
    "arguments",
    [
        {"candidates": 1},
        {"candidates": 2.5},
        {"sigma": 0.0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"noise": "uniform"},
        {"rescale": 0.0},
        {"perturb": "head"},
        {"streamed": "mapped"},
    ],
)
def test_arguments_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        EvoGrad(**arguments)


def test_a_prefix_needs_common_masks():
    with pytest.raises(ConfigurationError, match="prefix with common_random_numbers=False"):
        EvoGrad(prefix=lambda model, meta, batch: batch, common_random_numbers=False)
    with pytest.raises(ConfigurationError, match="prefix is 'encoder'"):
        EvoGrad(prefix="encoder")
    for value in (True, "2", 2.0):
        with pytest.raises(ConfigurationError, match="candidates is"):
            EvoGrad(candidates=value)
    assert EvoGrad(noise=fixed_noise((0, 1)), prefix=lambda *_: None).learning_rate > 0


def test_learning_rates_and_traits():
    # The paper's values: K = 2, σ = 1e-3, τ = 0.05.
    assert EvoGrad().learning_rate == pytest.approx(1e-5)
    assert (EvoGrad().candidates, EvoGrad().temperature) == (2, 0.05)
    assert EvoGrad(3, 0.1, 0.5).learning_rate == pytest.approx(0.01 * 2 / 1.5)
    assert EvoGrad().traits.kind == "stochastic"


def test_what_is_left_out_has_the_values_that_are_told():
    given = inspect.signature(EvoGrad).parameters
    assert {name: parameter.default for name, parameter in given.items()} == {
        **{"candidates": 2, "sigma": 1e-3, "temperature": 0.05, "noise": "sign"},
        **dict.fromkeys(("rescale", "perturb", "streamed", "prefix")),
        **{"common_random_numbers": True, "seed": 0, "fresh": True, "constants": "own"},
    }


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@pytest.mark.parametrize(
    "options",
    [{}, {"streamed": True}, {"streamed": "vmap"}, {"common_random_numbers": False}],
)
def test_perturbations_that_rounding_swallows_are_an_error(options, noise):
    def case_of(dtype):
        model = torch.nn.ParameterDict({"large": torch.full((3,), 64.0), "none": torch.zeros(0)})
        problem = mt.BilevelProblem(
            model.to(dtype),
            bank.Value(0.4).to(dtype),
            lambda model, meta, batch: meta.value * model["large"].square().sum(),
            lambda model, meta, batch: model["large"].sum(),
        )
        return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)

    make = lambda sigma: EvoGrad(4, sigma, 50.0, noise=noise, **options)  # noqa: E731
    with pytest.raises(ConfigurationError, match=r"sigma is 0\.001.*of bfloat16.*raise sigma"):
        case_of(torch.bfloat16).call(make(1e-3))
    assert float(case_of(torch.bfloat16).call(make(4.0)).gradient["value"]) != 0
    assert float(case_of(torch.float32).call(make(1e-3)).gradient["value"]) != 0


@pytest.mark.parametrize("common", [True, False])
def test_candidates_with_equal_losses_may_differ(common):
    # One parameter is lost and the other is not; the training loss sees neither.
    model = torch.nn.ParameterDict({"large": torch.full((3,), 1e9), "small": torch.zeros(())})
    problem = mt.BilevelProblem(
        model,
        bank.Value(0.4).float(),
        lambda model, meta, batch: meta.value.square() + 0 * model["small"],
        lambda model, meta, batch: model["small"] + meta.value,
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    result = case.call(EvoGrad(3, 0.1, 0.5, common_random_numbers=common))
    assert float(result.gradient["value"]) == pytest.approx(1.0)
