"""Guided EvoGrad against its formula, its limit for small σ and finite differences."""

import dataclasses
import inspect
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad, OneStep, build
from metatoolkit.testing import bank
from tests.hypergradients.test_cost import Setup
from tests.hypergradients.test_finite_difference import without_outer_gradient

F64 = torch.float64
NAMES = ["illustration", "ridge", "small_net", "inside_model", "tied"]


def guided(sigma=1e-4, temperature=0.5, **kwargs):
    return GuidedEvoGrad(sigma, temperature, **kwargs)


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def relative_error(result, expected):
    return float((flat(result) - flat(expected)).norm() / flat(expected).norm())


def with_inner(case, inner):
    return dataclasses.replace(case, inner=inner)


def test_hand_computed_values():
    # x = 0.3 has the outer gradient −0.4, so that the candidates are x₊ = −0.7 and x₋ = 1.3.
    result = bank.illustration().call(guided(1.0, 0.5))
    losses = [1.7**2 + 0.4 * 0.7**2, 0.3**2 + 0.4 * 1.3**2]
    plus = 1 / (1 + math.exp((losses[0] - losses[1]) / 0.5))
    coefficient = -2 * plus * (1 - plus) * 1.0 * 0.4 / 0.5
    expected = coefficient * (0.7**2 - 1.3**2)
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=1e-12)
    assert result.details["weights"].tolist() == pytest.approx([plus, 1 - plus], rel=1e-12)
    assert result.details["train_losses"].tolist() == pytest.approx(losses, rel=1e-12)
    assert float(result.valid_loss) == pytest.approx(0.04)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sigma", "temperature", "rescale"), [(1e-4, 0.05, None), (1e-3, 2, 0.7)])
def test_limit_is_the_one_step_hypergradient_at_theta(name, sigma, temperature, rescale):
    estimator = guided(sigma, temperature, rescale=rescale)
    lr = sigma**2 / temperature if rescale is None else rescale
    assert estimator.learning_rate == pytest.approx(lr)
    case = with_inner(bank.PROBLEMS[name](), mt.inner.SGD(lr=lr))
    state = case.state
    result, exact = case.call(estimator, state), case.call(OneStep(lookahead=False), state)
    for key, gradient in result.gradient.items():
        norm = float(exact.gradient[key].norm())
        assert float((gradient - exact.gradient[key]).norm()) <= 1e-3 * norm
    assert torch.equal(result.valid_loss, exact.valid_loss)


class Hinge(torch.autograd.Function):
    """λ x² to the right of a point, where alone its backward pass reaches λ."""

    @staticmethod
    def forward(ctx, x, penalty, point):
        ctx.save_for_backward(x, penalty)
        ctx.reached = bool(x > point)
        return penalty * x.square() * (x > point)

    @staticmethod
    def backward(ctx, gradient):
        x, penalty = ctx.saved_tensors
        if not ctx.reached:
            return torch.zeros_like(x), None, None
        return gradient * 2 * penalty * x, gradient * x.square(), None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_parameter_that_one_candidate_alone_reaches(sign):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.tensor(0.4, dtype=F64))
            self.other = torch.nn.Parameter(torch.tensor(0.2, dtype=F64))

    def train_loss(model, meta, batch):
        hinge = Hinge.apply(sign * model.value, meta.one, 0.0)
        return (model.value - 1).square() + hinge + 0.1 * meta.other * model.value

    problem = mt.BilevelProblem(
        bank.Value(0.3), Two(), train_loss, lambda model, meta, batch: (model.value - 0.5).square()
    )
    result = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None).call(
        guided(1.0, 0.5)
    )
    weights, (factor, _) = result.details["weights"], result.details["coefficients"]
    assert float(factor) == pytest.approx(-1.6 * float(weights.prod()), rel=1e-12)
    expected = float(factor) * (-(1.3**2) if sign > 0 else 0.7**2)
    assert float(result.gradient["one"]) == pytest.approx(expected, rel=1e-12)
    assert float(result.gradient["other"]) == pytest.approx(-0.2 * float(factor), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_single_number_keeps_its_type(dtype):
    case = bank.illustration()
    case.problem.model.to(dtype)
    case.problem.meta.to(dtype)
    result = case.call(guided(1.0, 0.5))
    assert result.gradient["value"].dtype == dtype
    assert result.details["weights"].dtype == torch.float32
    exact = float(bank.illustration().call(guided(1.0, 0.5)).gradient["value"])
    assert float(result.gradient["value"]) == pytest.approx(exact, rel=0.05)


def test_the_error_falls_with_the_square_of_sigma():
    case = with_inner(bank.ridge(), mt.inner.SGD(lr=1.0))
    exact = case.call(OneStep(lookahead=False))
    errors = [
        relative_error(case.call(guided(sigma, 5.0, rescale=1.0)), exact) for sigma in (0.2, 0.1)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_derivative_of_its_objective(name):
    case = bank.PROBLEMS[name]()
    check = mt.check_hypergradient(
        case.problem, case.inner, guided(0.3, 0.5), case.train_batches[:1], case.valid_batch
    )
    assert check.relative_error < 1e-6


def test_is_evograd_with_these_candidates_where_the_outer_loss_is_linear():
    case = bank.ridge()
    slope = torch.linspace(-1, 2, 5, dtype=F64)
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        case.problem.train_loss,
        lambda model, meta, batch: model.value.dot(slope),
    )
    case = dataclasses.replace(case, problem=problem, valid_batch=None)
    unit = slope / slope.norm()
    random = EvoGrad(2, 0.3, 0.5, noise=lambda k, name, p: unit if k == 0 else -unit)
    one, other = case.call(guided(0.3, 0.5)), case.call(random)
    assert relative_error(one, other) < 1e-12
    torch.testing.assert_close(one.details["coefficients"], other.details["coefficients"])


def test_the_state_that_was_given_comes_back():
    case = bank.small_net()
    state = case.state
    result = case.call(guided(0.1), state)
    assert (result.state.step, result.state.key) == (state.step, state.key)
    for name, tensor in state.parameters.items():
        assert torch.equal(result.state.parameters[name], tensor)
    assert not result.valid_loss.requires_grad
    assert not any(tensor.requires_grad for tensor in result.details.values())


def test_the_perturbation_is_told_where_it_is_lost_in_all_parameters():
    # In the small one it is not lost, so that the candidates differ.
    model = torch.nn.ParameterDict({"large": torch.full((3,), 1e6), "small": torch.zeros(())})
    problem = mt.BilevelProblem(
        model,
        bank.Value(0.4).float(),
        lambda model, meta, batch: meta.value * (model["large"].sum() * 1e-6 + model["small"]),
        lambda model, meta, batch: model["large"].sum() + batch * model["small"],
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], 1.0)
    assert torch.isfinite(case.call(guided(1e-3)).gradient["value"])
    with pytest.raises(ConfigurationError, match=r"sigma is 0\.001.*rounding of float32"):
        bank.ProblemInstance(problem, case.inner, [None], 0.0).call(guided(1e-3))


def test_nothing_is_random():
    case = bank.small_net()
    state = case.state
    estimator = guided(0.1)
    one, other = case.call(estimator, state), case.call(guided(0.1), state)
    assert torch.equal(flat(one), flat(other))
    assert torch.equal(flat(one), flat(case.call(estimator, state)))
    assert estimator.state_dict() == {}


def test_both_candidates_have_the_masks_of_the_base_step(monkeypatch):
    case = bank.small_net()
    keys, real = [], case.problem.evaluate_train

    def spy(parameters, meta, buffers, batch, key):
        keys.append(key)
        return real(parameters, meta, buffers, batch, key)

    monkeypatch.setattr(case.problem, "evaluate_train", spy)
    state = case.state
    case.inner.step(case.problem, state, case.problem.meta_parameters(), case.train_batches[0])
    case.call(guided(), state)
    # The base step, θ and both candidates.
    assert len(keys) == 4 and len(set(keys)) == 1


@pytest.mark.parametrize(("where", "passes"), [("loss", 6.1), ("input", 10.1)])
def test_passes(where, passes):
    setup = Setup(where, 2)
    total = mt.diagnostics.measure.count_flops(lambda: setup.call(guided(1e-2)))
    assert total / mt.diagnostics.measure.count_flops(setup.forward) < passes
    cost = bank.ridge().call(guided(1e-2)).cost
    assert (cost.forward, cost.backward, cost.hvp) == (4, 3, 0)


@pytest.mark.parametrize(("where", "steps"), [("loss", 1.1), ("input", 1.4)])
def test_memory_of_an_ordinary_step(where, steps):
    assert Setup(where, 8).memory(guided(1e-2)) < steps


def test_perturb_moves_only_what_it_names():
    case = bank.small_net()
    some, everything = case.call(guided(perturb=["4.*"])), case.call(guided())
    assert relative_error(some, everything) > 1e-2
    with pytest.raises(ConfigurationError, match="matches no inner parameter"):
        case.call(guided(perturb=["head.*"]))


def test_a_zero_outer_gradient_gives_zero():
    result = without_outer_gradient().call(guided())
    assert bool((result.gradient["value"] == 0).all())


def test_a_perturbation_that_rounding_swallows_is_an_error():
    case = bank.ridge()
    case.problem.model.value.data += 10
    case.problem.model.to(torch.bfloat16)
    case.problem.meta.to(torch.bfloat16)
    low = bank.ProblemInstance(
        case.problem,
        case.inner,
        [tuple(t.bfloat16() for t in batch) for batch in case.train_batches],
        tuple(t.bfloat16() for t in case.valid_batch),
    )
    with pytest.raises(ConfigurationError, match=r"rounding of bfloat16.*raise sigma"):
        low.call(guided(1e-3))
    assert low.call(guided(1.0)).gradient["value"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "arguments",
    [
        {"sigma": "large"},
        {"sigma": 0.0},
        {"sigma": math.nan},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"rescale": 0.0},
        {"perturb": "head"},
        {"prefix": "encoder"},
    ],
)
def test_arguments_out_of_range(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ConfigurationError, match=f"{name} is {value!r}"):
        GuidedEvoGrad(**arguments)


def test_has_only_the_options_that_act_on_it():
    given = inspect.signature(GuidedEvoGrad).parameters
    assert {name: parameter.default for name, parameter in given.items()} == {
        **{"sigma": "auto", "temperature": 0.05},
        **dict.fromkeys(("rescale", "perturb", "prefix")),
    }
    assert build("GuidedEvoGrad", sigma=0.1, temperature=0.5).learning_rate == pytest.approx(0.02)
    with pytest.raises(UnknownNameError, match="candidates"):
        build("GuidedEvoGrad", candidates=2)


def test_learning_rates():
    assert GuidedEvoGrad(0.1, 0.5).learning_rate == pytest.approx(0.02)
    assert GuidedEvoGrad(0.1, 0.5, rescale=3.0).learning_rate == 3.0
    assert GuidedEvoGrad().learning_rate == 1.0
    assert GuidedEvoGrad(rescale=3.0).learning_rate == 3.0


def test_tells_its_own_cost_and_error():
    plain, own = vars(EvoGrad.traits), vars(GuidedEvoGrad.traits)
    changed = {name: words for name, words in own.items() if words != plain[name]}
    assert changed == {
        "kind": "approximate",
        "computes": "for small σ, derivative through one SGD step, at the θ before it",
        "passes": "6 F to 10 F",
    }
    assert plain["passes"] == "(K+3) F to (3K+3) F" and plain["kind"] == "stochastic"
