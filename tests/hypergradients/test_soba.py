"""SOBA against its recursion by hand, and the optimum that it tends to."""

import dataclasses
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError, NonFiniteError, UnsupportedError
from metatoolkit.hypergradients import SOBA, OneStep
from metatoolkit.testing import bank
from tests.hypergradients.test_cost import Setup


def problem_and_optimum():
    """A quadratic problem and the λ at which its outer loss is least."""
    case = bank.quadratic(3.0, 6)
    curvature, mixing, shift = case.train_batches[0]
    response = torch.linalg.solve(curvature, mixing)
    offset = case.valid_batch - torch.linalg.solve(curvature, shift)
    return case, torch.linalg.lstsq(response, offset.unsqueeze(1)).solution.squeeze(1)


def trainer(case, estimator, keep_lookahead=False, lr=0.1):
    return mt.MetaTrainer(
        case.problem,
        case.inner,
        estimator,
        torch.optim.SGD(case.problem.meta.parameters(), lr=lr),
        keep_lookahead=keep_lookahead,
    )


@pytest.mark.parametrize("keep_lookahead", [True, False])
@pytest.mark.parametrize("step_size", [1.0, 0.3])
def test_recursion_by_hand(keep_lookahead, step_size):
    case = bank.quadratic(3.0, 6, mt.inner.SGD(lr=0.2))
    (curvature, mixing, shift), target = case.train_batches[0], case.valid_batch
    case.problem.model.value.data += 1.0
    theta = case.problem.model.value.detach().clone()
    meta = case.problem.meta.value.detach().clone()
    v = torch.zeros(6, dtype=torch.float64)
    for _ in range(5):
        # The paper's directions: H v + ∂F for v, ∂²G v + ∂F for λ, with ∂²G = −Bᵀ.
        direction = -mixing.T @ v
        pull = curvature @ v + theta - target
        before = meta
        meta = meta - 0.1 * direction
        used = before if keep_lookahead else meta
        v = v - 0.2 * step_size * pull
        theta = theta - 0.2 * (curvature @ theta - mixing @ used - shift)
    trainer(case, SOBA(step_size), keep_lookahead).fit(
        case.train_batches, [case.valid_batch], 5, progress=False
    )
    torch.testing.assert_close(case.problem.meta.value.detach(), meta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(case.problem.model.value.detach(), theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_tends_to_the_optimum(momentum):
    case, optimum = problem_and_optimum()
    inner = mt.inner.SGD(lr=0.3, momentum=momentum)
    case = dataclasses.replace(case, inner=inner)
    estimator = SOBA()
    trainer(case, estimator, True, lr=0.05).fit(
        case.train_batches, [case.valid_batch], 1500, progress=False
    )
    found = case.problem.meta.value.detach()
    assert float((found - optimum).norm() / optimum.norm()) < 1e-6
    assert case.call(estimator).cost.residual < 1e-6


def test_at_rest_it_is_the_implicit_hypergradient():
    case = bank.quadratic(4.0, 6)
    estimator = SOBA()
    residuals = []
    for _ in range(200):
        result = case.call(estimator)
        residuals.append(result.cost.residual)
    expected = bank.quadratic_hypergradient(case)
    assert float((result.gradient["value"] - expected).norm() / expected.norm()) < 1e-10
    assert residuals[0] == 1.0
    # θ is at its optimum: the residual shrinks by the contraction rate 1 − 1/κ of the step.
    assert residuals[40] / residuals[39] == pytest.approx(0.75, rel=1e-3)


def test_the_first_two_calls():
    case = bank.tied()
    estimator = SOBA()
    first = case.call(estimator)
    torch.testing.assert_close(first.gradient["direct"], case.problem.meta.direct.detach().cos())
    assert bool((first.gradient["features"] == 0).all())
    # After one step from zero, u is the outer gradient: the second is the one-step hypergradient.
    second, one_step = case.call(estimator), case.call(OneStep(lookahead=False))
    for name, gradient in second.gradient.items():
        torch.testing.assert_close(gradient, one_step.gradient[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("through", ["state", "parameters"])
@pytest.mark.parametrize("name", ["ridge", "small_net", "learned_rates", "inside_model", "tied"])
def test_is_the_derivative_of_its_objective(name, through):
    case = bank.PROBLEMS[name]()
    estimator = SOBA(0.5, through)
    for _ in range(3):
        case.call(estimator)
    check = mt.check_hypergradient(
        case.problem, case.inner, estimator, case.train_batches[:1], case.valid_batch,
        state=case.state,
    )  # fmt: skip
    assert check.relative_error < 1e-6


def test_resumes_bitwise(tmp_path):
    def train(steps, resume=False):
        case = bank.inside_model()
        estimator = SOBA(0.5)
        trainer(case, estimator, lr=0.01).fit(
            case.train_batches, [case.valid_batch], steps, checkpoint=tmp_path / "c.pt",
            resume=resume, progress=False,
        )  # fmt: skip
        return [*case.problem.model.state_dict().values(), estimator.state_dict()["u"]]

    whole = train(8)
    train(3)
    resumed = train(8, resume=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert float(whole[-1].norm()) > 0


def test_passes():
    setup = Setup("loss", 2)
    assert setup.passes(SOBA()) == pytest.approx(12, abs=0.1)
    cost = bank.ridge().call(SOBA()).cost
    assert (cost.forward, cost.backward, cost.hvp, cost.iterations) == (2, 2, 1, 1)


def test_a_step_that_is_too_long_is_an_error_that_names_the_parameter():
    case = bank.quadratic(4.0, 6)
    estimator = SOBA(1e4)
    with pytest.raises(NonFiniteError, match="variable at 'value'"):
        for _ in range(200):
            case.call(estimator)


def test_unsupported():
    estimator = SOBA()
    bank.ridge().call(estimator)
    with pytest.raises(ConfigurationError, match="make a new SOBA"):
        bank.tied().call(estimator)
    with pytest.raises(CheckpointError, match="SOBA"):
        SOBA().load_state_dict({"z": torch.zeros(1)})


@pytest.mark.parametrize(
    "arguments", [{"step_size": 0.0}, {"step_size": math.inf}, {"through": "slots"}]
)
def test_arguments_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        SOBA(**arguments)


def test_before_the_first_call():
    estimator = SOBA()
    assert (estimator.step_size, estimator.through, estimator.horizon) == (1.0, "state", 1)
    assert estimator.state_dict() == {}
    case = bank.ridge()
    meta = case.problem.meta_parameters()
    arguments = (case.problem, case.inner, case.state, case.train_batches, case.valid_batch, meta)
    loss = case.problem.valid_loss(case.problem.model, None, case.valid_batch)
    torch.testing.assert_close(estimator.objective(*arguments), loss.detach(), rtol=1e-14, atol=0)


def test_u_is_one_more_precise_than_low_parameters():
    case = bank.ridge()
    exact = SOBA(0.1)
    for _ in range(3):
        case.call(exact)
    arguments = (case.inner, case.state, case.train_batches, case.valid_batch)
    meta = case.problem.meta_parameters()
    expected = exact.objective(case.problem, *arguments, meta)
    low = bank.ridge()
    low.problem.model.to(torch.bfloat16)
    low.problem.meta.to(torch.bfloat16)
    low.train_batches = [tuple(t.to(torch.bfloat16) for t in b) for b in low.train_batches]
    low.valid_batch = tuple(t.to(torch.bfloat16) for t in low.valid_batch)
    estimator = SOBA(0.1)
    for _ in range(3):
        low.call(estimator)
    assert estimator.state_dict()["u"].dtype == torch.float32
    arguments = (low.inner, low.state, low.train_batches, low.valid_batch)
    found = estimator.objective(low.problem, *arguments, low.problem.meta_parameters())
    assert float(found) == pytest.approx(float(expected), rel=0.05)


def test_the_vector_of_a_state_that_is_no_optimum():
    case = bank.started()
    with pytest.raises(UnsupportedError, match="but SOBA takes an inner optimum"):
        case.call(SOBA())
