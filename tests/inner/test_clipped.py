"""Clipping against torch.nn.utils, with its derivative."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner import SGD, Adam, Clipped
from metatoolkit.testing import bank
from tests.inner import heads, reference

INF = float("inf")


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, INF])
@pytest.mark.parametrize("limit", [0.05, 0.5, 1e6])
def test_clipping_by_norm_equals_torch(limit, norm_type):
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    reference.assert_follows(
        Clipped(SGD(**options), max_norm=limit, norm_type=norm_type),
        torch.optim.SGD,
        options,
        change=lambda p: clip_grad_norm_(p, limit, norm_type),
    )


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_clipping_by_value_equals_torch(limit):
    options = {"lr": 0.02, "weight_decay": 0.1}
    inner = Clipped(Adam(**options), max_value=limit)
    reference.assert_follows(
        inner, torch.optim.Adam, options, change=lambda p: clip_grad_value_(p, limit)
    )


def test_both_in_turn():
    options = {"lr": 0.1}

    def change(parameters):
        parameters = list(parameters)
        clip_grad_norm_(parameters, 0.3)
        clip_grad_value_(parameters, 0.1)

    inner = Clipped(Clipped(SGD(**options), max_value=0.1), max_norm=0.3)
    reference.assert_follows(inner, torch.optim.SGD, options, change=change)


def test_parameters_that_are_not_reached_do_not_count():
    options = {"lr": 0.1, "momentum": 0.5}
    batches, _ = heads.make_batches("abba")
    problem, inner = heads.make_problem(), Clipped(SGD(**options), max_norm=0.2)
    state, model = inner.init(problem), heads.Heads()
    stepper = torch.optim.SGD(model.parameters(), **options)
    for batch in batches:
        stepper.zero_grad()
        heads.train_loss(model, problem.meta, batch).backward()
        clip_grad_norm_(model.parameters(), 0.2)
        stepper.step()
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state.parameters[name], parameter.detach())
    assert state.missed["a"] == 2


@pytest.mark.parametrize("norm_type", [2.0, 3.0])
@pytest.mark.parametrize("dead", [(), (0, 3)])
def test_the_derivative_goes_through_the_norm(norm_type, dead):
    values = {"lr": 0.3, "limit": 0.4}

    def make(meta):
        return Clipped(SGD(meta["lr"], 0.5), meta["limit"], norm_type=norm_type)

    reference.assert_differences(make, values, dead=dead)
    clipped = Clipped(SGD(lr=0.3, momentum=0.5), max_norm=0.4, norm_type=norm_type)
    check = reference.loss_check(clipped, dead=dead)
    assert check.relative_error < 1e-6 and float(check.estimate.norm()) > 1e-4, check


@pytest.mark.parametrize(
    "estimator",
    [
        hg.Unrolled(3, product="forward_over_reverse"),
        hg.ForwardMode(3),
        hg.ForwardMode(3, chunk=1),
        hg.OneStep(),
    ],
    ids=["mixed", "forward", "one by one", "OneStep"],
)
def test_estimators_that_differentiate_the_step_see_the_norm(estimator):
    batches = reference.make_batches(estimator.horizon + 1)
    inner = Clipped(SGD(lr=0.1), max_norm=0.3)
    problem = reference.make_problem()
    check = mt.check_hypergradient(problem, inner, estimator, batches[:-1], batches[-1])
    assert check.relative_error < 1e-6, check


def test_a_saturated_value_has_no_derivative():
    # θ₁ = θ₀ − lr · 0.1 whatever λ, where |g| > 0.1; half of the coordinates are below.
    problem, batches = reference.make_problem(), reference.make_batches(3)
    inner = Clipped(SGD(lr=0.5), max_value=0.1)
    reference.assert_differences(
        lambda meta: Clipped(SGD(lr=meta["lr"]), max_value=meta["limit"]), {"lr": 0.3, "limit": 0.1}
    )
    state = inner.init(problem)
    exact = hg.Unrolled(1)(problem, inner, state, batches[:1], batches[1]).gradient["log_penalty"]
    for estimator in (hg.FiniteDifference(), hg.OneStep()):
        found = estimator(problem, inner, state, batches[:1], batches[1]).gradient["log_penalty"]
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-9)
    assert float(exact.norm()) > 0

    def loss(model, meta, batch):
        return meta.value * model.value * 100.0

    linear = mt.BilevelProblem(bank.Value(1.0), bank.Value(2.0), loss, lambda m, _, b: m.value**2)
    for estimator in (hg.FiniteDifference(), hg.SAMA(), hg.Unrolled(1)):
        result = estimator(linear, inner, inner.init(linear), [None], None)
        assert float(result.gradient["value"]) == 0.0
    reference.assert_sensitivity(Clipped(Adam(lr=0.1, maximize=True), max_value=1e3))


def test_what_takes_each_coordinate_alone_refuses_the_norm():
    problem, batches = reference.make_problem(), reference.make_batches(2)
    inner = Clipped(SGD(lr=0.1), max_norm=0.3)
    state = inner.init(problem)
    with pytest.raises(UnsupportedError, match=r"norm of all.*Unrolled"):
        inner.gradient_sensitivity(problem, state, problem.meta_parameters(), state.parameters)
    for estimator, exact in (
        (hg.FiniteDifference(), hg.OneStep()),
        (hg.SAMA(), hg.OneStep(lookahead=False)),
    ):
        found, expected = (
            e(problem, inner, state, batches[:1], batches[1]).gradient["log_penalty"]
            for e in (estimator, exact)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    for solver in (hg.ConjugateGradient(5), hg.MINRES(5), hg.Nystrom(3)):
        with pytest.raises(UnsupportedError, match="inner learner is Clipped"):
            hg.Implicit(solver)(problem, inner, state, batches[:1], batches[1])
    with pytest.raises(UnsupportedError, match="step of Clipped is no gradient step"):
        hg.OneStep(inverse="identity")(problem, inner, state, batches[:1], batches[1])


class Longer(SGD):
    def step(self, *arguments, **options):
        return super().step(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SGD(0.1),), "give one of them"),
        ((SGD(0.1), 1.0, 1.0), "give one of them"),
        ((SGD(0.1), -1.0), "max_norm is -1.0"),
        ((SGD(0.1), 1.0, None, 0.0), "norm_type is 0.0"),
        ((Longer(0.1), 1.0), "takes its step from one gradient"),
        ((torch.optim.SGD, 1.0), "accepted: an inner learner"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Clipped(*arguments)


def test_description():
    assert repr(Clipped(SGD(lr=0.1), max_norm=1.0)).startswith("Clipped(inner=SGD(lr=0.1")


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_gradients_that_are_all_zero_have_the_derivative_of_what_is_not_clipped(norm_type):
    # g = λ at λ = 0, so that θ₁ = θ₀ − lr λ and d(θ₁²)/dλ = −2 lr θ₀.
    def loss(model, meta, batch):
        return meta.value * model.value

    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(0.0), loss, lambda m, _, b: m.value**2)
    inner = Clipped(SGD(lr=0.1), max_norm=1.0, norm_type=norm_type)
    for estimator in (hg.Unrolled(1), hg.ForwardMode(1)):
        result = estimator(problem, inner, inner.init(problem), [None], None)
        assert float(result.gradient["value"]) == pytest.approx(-0.2)


def loss(model, meta, batch):
    return meta.value * sum(parameter.abs().sum() for parameter in model.values())


def clip(gradients, steps=0, **options):
    """Return gradients as they are clipped: what SGD with the rate 1 moves zeros by."""
    model = nn.ParameterDict({n: nn.Parameter(torch.zeros_like(g)) for n, g in gradients.items()})
    problem = mt.BilevelProblem(model, bank.Value(0.7), loss, loss)
    inner = Clipped(SGD(lr=1.0), **options)
    state = inner.init(problem).replaced(step=steps)
    after = inner.apply(problem, state, problem.meta_parameters(), gradients)
    assert after.step == steps + 1
    return {name: -tensor for name, tensor in after.parameters.items()}


F64 = torch.float64
GIVEN = {
    "large": {"a": torch.tensor([3.0, -4.0], dtype=F64), "b": torch.tensor(12.0, dtype=F64)},
    "tiny": {"a": torch.tensor([3e-7, -4e-7], dtype=F64), "b": torch.zeros(2, dtype=F64)},
    "two types": {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([12.0], dtype=F64)},
    "complex": {"a": torch.tensor([3.0 - 4.0j, 1j]).to(torch.complex128)},
    "complex beside real": {"a": torch.tensor([3.0 - 4.0j]), "b": torch.tensor([12.0, 5.0])},
}


@pytest.mark.parametrize("gradients", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("limit", [1e-7, 2.0, 13.0, 100.0])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, INF])
def test_given_gradients_are_scaled_as_in_torch(gradients, limit, norm_type):
    found = clip(gradients, max_norm=limit, norm_type=norm_type)
    expected = {name: nn.Parameter(torch.zeros_like(g)) for name, g in gradients.items()}
    for name, parameter in expected.items():
        parameter.grad = gradients[name].clone()
    clip_grad_norm_(expected.values(), limit, norm_type)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].grad)


def test_the_norm_of_halves_is_that_of_their_values():
    # 300² is beyond float16, whose largest number is 65504.
    halves = {"a": torch.full((4,), 300.0, dtype=torch.float16)}
    for norm_type in (2.0, 3.0):
        found = clip(halves, max_norm=4 ** (1 / norm_type), norm_type=norm_type)["a"]
        assert found.dtype == torch.float16 and found.tolist() == pytest.approx([1.0] * 4, rel=1e-3)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, INF])
def test_where_there_is_nothing_to_clip(norm_type):
    empty = {"a": torch.zeros(0, 3), "b": torch.zeros(0)}
    assert [t.shape for t in clip(empty, max_norm=1.0, norm_type=norm_type).values()] == [
        (0, 3),
        (0,),
    ]
    beside = empty | {"c": torch.tensor([3.0])}
    found = clip(beside, max_norm=1.0, norm_type=norm_type)["c"]
    assert float(found) == pytest.approx(1.0, rel=1e-6)
    assert clip({"c": torch.tensor([3.0])}, max_norm=0.0)["c"].tolist() == [0.0]
    problem = reference.make_problem()
    inner = Clipped(SGD(lr=1.0), max_norm=1.0, norm_type=norm_type)
    after = inner.apply(problem, inner.init(problem), problem.meta_parameters(), {})
    assert after.step == 1 and set(after.missed) == set(problem.parameter_names)


@pytest.mark.parametrize("maximize", [False, True])
def test_values_are_cut_on_both_sides_and_have_the_slope_zero_beyond(maximize):
    values = [0.5, -0.5, 1.0, -1.0, 1.5, -1.5]
    gradient = torch.tensor(values, dtype=F64)
    cut = [0.5, -0.5, 1.0, -1.0, 1.0, -1.0]
    assert clip({"a": gradient}, max_value=1.0)["a"].tolist() == cut
    assert clip({"a": gradient}, max_value=torch.tensor(1.0, dtype=F64))["a"].tolist() == cut
    # The limit of the second step is 1.25.
    late = clip({"a": gradient}, 1, max_value=lambda meta, step: 1.0 + 0.25 * step)["a"]
    assert late.tolist() == [*cut[:4], 1.25, -1.25]
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(6, dtype=F64))})
    problem = mt.BilevelProblem(model, bank.Value(0.7), loss, loss)
    inner = Clipped(SGD(lr=0.1, maximize=maximize), max_value=1.0)
    slope = inner.gradient_sensitivity(
        problem, inner.init(problem), problem.meta_parameters(), {"a": gradient}
    )["a"]
    rate = 0.1 if maximize else -0.1
    assert slope.tolist() == [rate] * 4 + [0.0] * 2
    with pytest.raises(UnsupportedError, match="complex gradient cannot be cut"):
        clip({"a": torch.ones(2, dtype=torch.complex64)}, max_value=1.0)


def test_the_sensitivity_is_that_of_the_clipped_gradient():
    # Adam's closed form reads the gradient: a cut one is another.
    problem, batches = reference.make_problem(), reference.make_batches(1)
    plain = Adam(lr=0.1, eps=0.1)
    inner = Clipped(plain, max_value=0.05)
    state, meta = inner.init(problem), problem.meta_parameters()
    leaves = state.map(lambda tensor: tensor.detach().requires_grad_())
    _, gradients, _ = inner.gradients(problem, leaves, meta, batches[0])
    found = inner.gradient_sensitivity(problem, state, meta, gradients)
    cut = {name: gradient.clamp(-0.05, 0.05) for name, gradient in gradients.items()}
    inside = plain.gradient_sensitivity(problem, state, meta, cut)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], inside[name] * (gradient.abs() <= 0.05))
    outside = {name: gradient.abs() > 0.05 for name, gradient in gradients.items()}
    assert any(o.any() for o in outside.values()) and not all(o.all() for o in outside.values())


def test_a_clipped_learner_is_made_of_the_one_inside():
    groups = [{"params": ["head.*"], "lr": 0.3}]
    plain = Adam(lr=0.1, groups=groups)
    inner = Clipped(plain, max_value=0.5, norm_type=3)
    assert inner.hyperparameters == plain.hyperparameters | {"max_value": 0.5}
    assert inner.groups == groups and inner.flags == {"maximize"}
    assert inner.options() == {"inner": plain, "max_value": 0.5, "norm_type": 3.0}
    assert Clipped(plain, 1).options() == {"inner": plain, "max_norm": 1, "norm_type": 2.0}
    text = f"Clipped(inner={plain!r}, max_value=0.5, norm_type=3.0)"
    assert repr(inner) == text
    parameters = {"p": torch.ones(2)}
    slots = inner.init_slots(parameters)
    assert set(slots) == {"first_moment", "second_moment"}
    own = {slot: tensors["p"] for slot, tensors in slots.items()}
    # An update gets a gradient that is clipped already.
    arguments = (parameters["p"], torch.tensor([5.0, -7.0]), own, plain.hyperparameters, 0)
    assert torch.equal(inner.update(*arguments)[0], plain.update(*arguments)[0])
    with pytest.raises(ConfigurationError, match=r"'body' matches no inner parameter"):
        Clipped(SGD(0.1, groups=[{"params": ["body"], "lr": 1.0}]), 1.0).init(
            reference.make_problem()
        )
    for norm_type in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="norm_type is"):
            Clipped(plain, 1.0, norm_type=norm_type)
