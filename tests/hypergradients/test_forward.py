"""What forward-mode estimators share: steps in order, the outer loss, what is not reached."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnusedMetaParameterError
from metatoolkit.hypergradients import ForwardGradient, ForwardMode
from tests import bank
from tests.draws import recorded

both = pytest.mark.parametrize("kind", [ForwardMode, ForwardGradient])


@both
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_by_hand(kind, steps):
    # θ ← 0.9 θ − 0.1 b λ with the batches 1, 2, 3; one meta-parameter is exact with signs.
    case = recorded()
    theta, slope, batches = 0.7, 0.0, case.batches(steps)
    for batch in batches:
        theta, slope = 0.9 * theta + 0.1 * batch * 0.4, 0.9 * slope - 0.1 * batch
    result = case.call(kind(steps))
    assert float(result.gradient["value"]) == pytest.approx(slope * (theta - 0.25), rel=1e-12)
    assert float(result.valid_loss) == pytest.approx((theta - 0.25) ** 2 / 2, rel=1e-12)
    assert float(result.state.parameters["value"]) == pytest.approx(theta, rel=1e-13)
    assert result.state.step == steps and not result.state.parameters["value"].requires_grad
    cost = result.cost
    assert (cost.forward, cost.backward, cost.jvp, cost.hvp) == (steps + 1, steps + 1, steps, 0)
    there = {"value": torch.tensor(1.3, dtype=torch.float64)}
    arguments = (case.problem, case.inner, case.state, batches, case.valid_batch, there)
    theta = 0.7
    for batch in batches:
        theta = 0.9 * theta - 0.1 * batch * 1.3
    found = kind(steps).objective(*arguments)
    assert float(found) == pytest.approx((theta - 0.25) ** 2 / 2, rel=1e-12)


@both
def test_what_no_step_reads_has_the_direct_gradient_alone(kind):
    case = bank.tied()
    gradient = case.call(kind(2)).gradient
    direct = case.problem.meta.direct.detach().cos()
    torch.testing.assert_close(gradient["direct"], direct, rtol=1e-13, atol=0)
    assert not bool(gradient["unused"].any()) and bool(gradient["features"].all())


@both
def test_a_meta_parameter_that_nothing_reads_is_an_error(kind):
    case = bank.small_net()
    problem = mt.BilevelProblem(
        case.problem.model, bank.Value(0.0), case.problem.valid_loss, case.problem.valid_loss
    )
    case = bank.Case(problem, case.inner, case.train_batches, case.valid_batch)
    with pytest.raises(UnusedMetaParameterError, match="value"):
        case.call(kind(2))
