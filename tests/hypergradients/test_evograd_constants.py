"""What EvoGrad's candidates take for a constant: each its own, or one in common."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ReplayError
from metatoolkit.hypergradients import EvoGrad, OneStep
from metatoolkit.testing import bank
from tests.hypergradients.test_evograd import fixed_noise
from tests.hypergradients.test_finite_difference import weighted
from tests.hypergradients.test_guided_evograd import flat, with_inner

F64 = torch.float64


def scalar_case():
    """ℓ = λ sg(θ²) θ and L = θ², so that with its own constant a candidate has ℓ = λ θ³."""

    def train_loss(model, meta, batch):
        return meta.value * model.value.square().detach() * model.value

    def valid_loss(model, meta, batch):
        return model.value.square()

    problem = mt.BilevelProblem(bank.Value(0.3), bank.Value(0.4), train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)


@pytest.mark.parametrize("streamed", [None, True, False])
@pytest.mark.parametrize("constants", ["own", "common"])
def test_the_closed_form_of_two_candidates(constants, streamed):
    sigma, temperature, penalty, theta = 0.05, 0.5, 0.4, 0.3
    estimator = EvoGrad(
        2,
        sigma,
        temperature,
        noise=fixed_noise((1.0, -1.0)),
        streamed=streamed,
        constants=constants,
    )
    up, down = theta + sigma, theta - sigma
    # The constant in common is that of θ.
    slopes = (theta**2 * up, theta**2 * down) if constants == "common" else (up**3, down**3)
    losses = torch.tensor([penalty * slope for slope in slopes], dtype=F64)
    first, second = torch.softmax(-losses / temperature, 0).tolist()
    gradient = 2 * (theta + sigma * (first - second))
    expected = -2 * first * second * sigma / temperature * gradient * (slopes[0] - slopes[1])
    result = scalar_case().call(estimator)
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=1e-12)
    # 2 K + 1 passes streamed; kept graphs save K, common constants take one.
    assert result.cost.forward == (3 if streamed is False else 5) + (constants == "common")


def axes(parameters):
    """±√D along each of the D axes: noise whose second moments are exactly those of any noise."""
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    total, starts, place = sum(sizes.values()), {}, 0
    for name, size in sizes.items():
        starts[name], place = place, place + size

    def noise(candidate, name, parameter):
        flat = torch.zeros(parameter.numel(), dtype=parameter.dtype)
        entry = candidate // 2 - starts[name]
        if 0 <= entry < len(flat):
            flat[entry] = (-1) ** candidate * total**0.5
        return flat.view_as(parameter)

    return noise, 2 * total


def test_with_common_constants_the_mean_is_the_one_step_hypergradient():
    case = with_inner(weighted("detach"), mt.inner.SGD(lr=1.0))
    exact = flat(case.call(OneStep(lookahead=False)))
    noise, number = axes(case.state.parameters)

    def error(constants, sigma):
        estimator = EvoGrad(number, sigma, 5.0, noise=noise, rescale=1.0, constants=constants)
        # The factor K/(K−1) is that of a mean over the candidates which is drawn with them.
        mean = flat(case.call(estimator)) * (number - 1) / number
        return float((mean - exact).norm() / exact.norm())

    errors = [error("common", sigma) for sigma in (2e-3, 2e-4)]
    # The candidates lie around θ, where the constants are from: an error of the order of σ².
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1) and errors[1] < 1e-4
    assert error("own", 2e-5) > 0.1


def test_nothing_changes_for_a_loss_without_constants():
    case = bank.ridge()
    own, common = (
        case.call(EvoGrad(3, 0.1, 0.5, constants=constants)) for constants in ("own", "common")
    )
    assert torch.equal(own.gradient["value"], common.gradient["value"])


@pytest.mark.parametrize("streamed", [True, False])
def test_what_is_held_does_not_hide_a_loss_that_cannot_be_replayed(streamed):
    counter = iter(range(1000))

    def train_loss(model, meta, batch):
        with torch.no_grad():
            scale = model.value * 0 + next(counter)
        return meta.value * scale * model.value.square()

    problem = mt.BilevelProblem(
        bank.Value(0.3), bank.Value(0.4), train_loss, lambda model, meta, batch: model.value**2
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    with pytest.raises(ReplayError):
        case.call(EvoGrad(2, 0.1, 0.5, constants="common", streamed=streamed))


def test_constants_out_of_range():
    with pytest.raises(ConfigurationError, match="constants is 'each'; accepted: 'own', 'common'"):
        EvoGrad(constants="each")
    with pytest.raises(ConfigurationError, match="with common_random_numbers=False"):
        EvoGrad(constants="common", common_random_numbers=False)
