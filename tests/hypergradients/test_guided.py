"""Guided EvoGrad against its formula, its limit for small σ and finite differences."""

import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import EvoGrad, OneStep
from tests import bank
from tests.hypergradients.test_cost import Setup
from tests.hypergradients.test_finite_difference import weighted, without_outer_gradient

F64 = torch.float64
NAMES = ["illustration", "ridge", "small_net", "inside_model", "tied"]


def guided(sigma=1e-4, temperature=0.5, **kwargs):
    return EvoGrad(2, sigma, temperature, guided=True, **kwargs)


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def relative_error(result, expected):
    return float((flat(result) - flat(expected)).norm() / flat(expected).norm())


def with_inner(case, inner):
    return bank.Case(case.problem, inner, case.train_batches, case.valid_batch)


def test_hand_computed_values():
    # x = 0.3 has the outer gradient −0.4, so that the copies are x₊ = −0.7 and x₋ = 1.3.
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
    case = with_inner(bank.CASES[name](), mt.inner.SGD(lr=lr))
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
def test_a_parameter_that_one_copy_alone_reaches(sign):
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
    result = bank.Case(problem, mt.inner.SGD(lr=0.1), [None], None).call(guided(1.0, 0.5))
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
    case = bank.CASES[name]()
    check = mt.check_hypergradient(
        case.problem, case.inner, guided(0.3, 0.5), case.train_batches[:1], case.valid_batch
    )
    assert check.relative_error < 1e-6


def test_is_evograd_with_these_copies_where_the_outer_loss_is_linear():
    case = bank.ridge()
    slope = torch.linspace(-1, 2, 5, dtype=F64)
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        case.problem.train_loss,
        lambda model, meta, batch: model.value.dot(slope),
    )
    case = bank.Case(problem, case.inner, case.train_batches, None)
    unit = slope / slope.norm()
    random = EvoGrad(2, 0.3, 0.5, noise=lambda copy, name, p: unit if copy == 0 else -unit)
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
    # In the small one it is not lost, so that the copies differ.
    model = torch.nn.ParameterDict({"large": torch.full((3,), 1e6), "small": torch.zeros(())})
    problem = mt.BilevelProblem(
        model,
        bank.Value(0.4).float(),
        lambda model, meta, batch: meta.value * (model["large"].sum() * 1e-6 + model["small"]),
        lambda model, meta, batch: model["large"].sum() + batch * model["small"],
    )
    case = bank.Case(problem, mt.inner.SGD(lr=0.1), [None], 1.0)
    assert torch.isfinite(case.call(guided(1e-3)).gradient["value"])
    with pytest.raises(ConfigurationError, match=r"sigma is 0\.001.*rounding of float32"):
        bank.Case(problem, case.inner, [None], 0.0).call(guided(1e-3))


def test_nothing_is_random():
    case = bank.small_net()
    state = case.state
    one, other = case.call(guided(0.1), state), case.call(guided(0.1, seed=5), state)
    assert torch.equal(flat(one), flat(other))


def test_both_copies_have_the_masks_of_the_base_step(monkeypatch):
    case = bank.small_net()
    keys, real = [], case.problem.evaluate_train

    def spy(parameters, meta, buffers, batch, key):
        keys.append(key)
        return real(parameters, meta, buffers, batch, key)

    monkeypatch.setattr(case.problem, "evaluate_train", spy)
    state = case.state
    case.inner.step(case.problem, state, case.problem.meta_parameters(), case.train_batches[0])
    case.call(guided(), state)
    assert len(keys) == 3 and len(set(keys)) == 1


@pytest.mark.parametrize("how", ["detach", "data"])
def test_what_the_loss_detaches_is_a_constant(how):
    case = with_inner(weighted(how), mt.inner.SGD(lr=1.0))
    state = case.state
    exact = case.call(OneStep(lookahead=False), state)
    errors = [
        relative_error(case.call(guided(sigma, 5.0, rescale=1.0), state), exact)
        for sigma in (1e-3, 1e-4)
    ]
    # The constants are those of one of the copies: an error of the order of σ.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] < 1e-3


@pytest.mark.parametrize(("where", "passes"), [("loss", 5.1), ("input", 9.1)])
def test_at_most_three_passes(where, passes):
    setup = Setup(where, 2)
    base = mt.diagnostics.measure.count_flops(setup.base_step)
    total = mt.diagnostics.measure.count_flops(lambda: setup.call(guided(1e-2)))
    assert total <= 3 * base
    assert total / mt.diagnostics.measure.count_flops(setup.forward) < passes
    cost = bank.ridge().call(guided(1e-2)).cost
    assert (cost.forward, cost.backward, cost.hvp) == (3, 3, 0)


def test_memory_of_an_ordinary_step():
    assert Setup("loss", 8).memory(guided(1e-2)) < 1.1


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
    low = bank.Case(
        case.problem,
        case.inner,
        [tuple(t.bfloat16() for t in batch) for batch in case.train_batches],
        tuple(t.bfloat16() for t in case.valid_batch),
    )
    with pytest.raises(ConfigurationError, match=r"rounding of bfloat16.*raise sigma"):
        low.call(guided(1e-3))
    assert low.call(guided(1.0)).gradient["value"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "arguments", [{"candidates": 3}, {"noise": "gaussian"}, {"common_random_numbers": False}]
)
def test_arguments_that_contradict(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        EvoGrad(guided=True, **arguments)


class Same(torch.autograd.Function):
    """Returns its argument, which autograd gives away as a view."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("run", ["a function", "a module with a hook"])
def test_what_a_function_returns_as_it_got_it_is_no_constant(run):
    def through(x):
        if run == "a function":
            return Same.apply(x)
        module = torch.nn.Identity()
        module.register_full_backward_hook(lambda module, after, before: None)
        return module(x)

    def case(change):
        def train_loss(model, meta, batch):
            slope = torch.autograd.grad(model.value**3, model.value, create_graph=True)[0]
            return meta.value * change(model.value * 1.0) ** 2 + slope

        def valid_loss(model, meta, batch):
            return (model.value - 0.5) ** 2

        problem = mt.BilevelProblem(bank.Value(0.3), bank.Value(0.4), train_loss, valid_loss)
        return bank.Case(problem, mt.inner.SGD(lr=0.1), [None], None)

    right = flat(case(lambda x: x).call(guided()))
    assert bool(right.any())
    torch.testing.assert_close(flat(case(through).call(guided())), right, rtol=1e-12, atol=0)


def _doubled(h):
    h.mul_(2)


def _entry(h):
    h[0] = 0.5


def _view(h):
    h[1:].add_(1.0)


def _kept_view(h):
    part = h.view(-1)
    part.zero_()


def _relu(h):
    torch.nn.functional.relu(h, inplace=True)


def _output(h):
    torch.add(h, 1.0, out=h)


def vector_case(train_loss):
    def valid_loss(model, meta, batch):
        return ((model.value - batch) ** 2).sum()

    problem = mt.BilevelProblem(
        bank.Value([0.3, -0.6]), bank.Value([0.4, 0.2]), train_loss, valid_loss
    )
    batch = torch.tensor([0.5, 0.1], dtype=F64)
    return bank.Case(problem, mt.inner.SGD(lr=0.1), [batch], batch)


@pytest.mark.parametrize("write", [_doubled, _entry, _view, _kept_view, _relu, _output])
@pytest.mark.parametrize("deep", [False, True])
def test_a_hidden_write_over_what_follows_the_parameters_is_refused(write, deep):
    def train_loss(model, meta, batch):
        h = model.value * batch
        h = torch.relu(h + 1).exp() if deep else h
        with torch.no_grad():
            write(h)
        return (meta.value * h**2).sum()

    with pytest.raises(UnsupportedError, match="hides it by"):
        vector_case(train_loss).call(guided())


def test_writes_over_what_does_not_follow_them_are_seen_as_they_are():
    def case(writes):
        def train_loss(model, meta, batch):
            mask, noise = torch.ones(2, dtype=F64), batch * 2
            if writes:
                with torch.no_grad():
                    mask[0] = 0.5
                    noise.mul_(2)
                    noise[1] = 0
                    mask[1:].mul_(2)
                    size = model.value * 2
                    size.view(-1).mul_(0.5)
            else:
                mask = torch.tensor([0.5, 2.0], dtype=F64)
                noise = batch * torch.tensor([4.0, 0.0], dtype=F64)
                size = model.value.detach()
            return (meta.value * mask * (model.value + noise) ** 2).sum() + (size**2).sum()

        return vector_case(train_loss)

    right = flat(case(False).call(guided()))
    torch.testing.assert_close(flat(case(True).call(guided())), right, rtol=1e-12, atol=0)


def test_a_write_through_a_view_of_what_may_follow_them_is_refused():
    def train_loss(model, meta, batch):
        noise = batch * 2
        with torch.no_grad():
            noise[1:].zero_()
        return (meta.value * (model.value + noise) ** 2).sum()

    with pytest.raises(UnsupportedError, match="hides it by"):
        vector_case(train_loss).call(guided())
