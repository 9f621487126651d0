"""What a hyper-parameter may be: λ, a function of λ, or a constant."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.inner import SGD, Adam
from metatoolkit.inner.hyperparameters import (
    add_decay,
    add_quotient,
    add_scaled,
    check_values,
    checked_groups,
    hyperparameters_at,
    is_used,
)
from metatoolkit.testing import bank
from tests.inner import reference

F64 = torch.float64


class Exponential(nn.Module):
    def forward(self, raw):
        return raw.exp()


class Rates(nn.Module):
    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(-1.0, dtype=F64))
        self.rate = nn.Parameter(torch.tensor(-1.0, dtype=F64))
        parametrize.register_parametrization(self, "rate", Exponential())


def loss(model, meta, batch):
    return (model.value - 1.0).square()


def make_problem():
    return mt.BilevelProblem(bank.Value(3.0), Rates(), loss, loss)


def right():
    # θ = 3 − 4 r with r = exp(−1), and d(θ − 1)²/draw = 2 (2 − 4 r) (−4 r).
    rate = torch.tensor(-1.0, dtype=F64).exp()
    return float(2 * (2 - 4 * rate) * (-4 * rate))


def other_rate(problem):
    return nn.Parameter(torch.tensor(0.1, dtype=F64))


FOREIGN = {
    "a computed tensor": lambda problem: problem.meta.raw.exp(),
    "a parametrized tensor": lambda problem: problem.meta.rate,
    "a parameter of another module": other_rate,
    "one of another problem": lambda problem: copy.deepcopy(problem).meta.raw,
    "an inner parameter": lambda problem: problem.model.value,
    "a view": lambda problem: problem.meta.raw.view(()),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("how", ["tensor", "group", "function", "constant function", "beta"])
def test_what_requires_a_gradient_but_is_no_meta_parameter_is_an_error(make, how):
    problem = make_problem()
    value = make(problem)
    name = "momentum" if how == "group" else "beta2" if how == "beta" else "lr"
    inner = {
        "tensor": lambda: SGD(lr=value),
        "group": lambda: SGD(0.1, groups=[{"params": ["value"], "momentum": value}]),
        "function": lambda: SGD(lr=lambda meta, step: 0.5 * value + meta.raw.exp()),
        "constant function": lambda: SGD(lr=lambda meta, step: value),
        "beta": lambda: Adam(betas=(0.9, value)),
    }[how]()
    message = rf"{name} .*requires a gradient.*{name}=lambda meta, step: meta.raw.exp\(\)"
    with pytest.raises(ConfigurationError, match=message):
        inner.init(problem)
    with pytest.raises(ConfigurationError, match=message):
        mt.check_hypergradient(problem, inner, hg.Unrolled(1), [None], None)
    state = SGD(lr=0.1).init(problem)
    if how not in ("group", "beta"):
        for estimator in (hg.Unrolled(1), hg.EvolutionStrategies(1, 2, 0.1), hg.ForwardMode(1)):
            with pytest.raises(ConfigurationError, match=message):
                estimator(problem, inner, state, [None], None)
        with pytest.raises(ConfigurationError, match=message):
            inner.step(problem, state, problem.meta_parameters(), None)


@pytest.mark.parametrize(
    "make",
    [
        lambda meta: lambda meta, step: meta.raw.exp(),
        lambda meta: lambda meta, step: meta.rate,
        lambda meta: lambda _, step: meta.raw.exp(),
        lambda meta: lambda meta, step: meta.raw.exp() * torch.tensor(1.0) + 0.0 * meta.rate,
    ],
    ids=["function", "parametrized", "closing over the module", "beside constants"],
)
def test_a_function_of_meta_has_its_derivative(make):
    problem = make_problem()
    inner = SGD(lr=make(problem.meta))
    result = hg.Unrolled(1)(problem, inner, inner.init(problem), [None], None)
    assert float(sum(result.gradient.values())) == pytest.approx(right())
    after, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), None)
    assert not any(tensor.requires_grad for tensor in after.tensors())


def test_a_function_may_return_the_meta_parameter_itself():
    meta = bank.Value(0.2)
    problem = mt.BilevelProblem(bank.Value(3.0), meta, loss, loss)
    inner = SGD(lr=lambda meta, step: meta.value)
    result = hg.Unrolled(1)(problem, inner, inner.init(problem), [None], None)
    assert float(result.gradient["value"]) == pytest.approx(2 * (2 - 4 * 0.2) * -4)


def test_meta_parameters_may_be_computed_themselves():
    problem = make_problem()
    inner = SGD(lr=lambda meta, step: meta.raw.exp() + meta.rate)
    leaves = {
        name: tensor.detach().requires_grad_() for name, tensor in problem.meta_parameters().items()
    }
    computed = {name: 1.0 * leaf for name, leaf in leaves.items()}
    after, _ = inner.step(problem, inner.init(problem), computed, None, create_graph=True)
    slopes = torch.autograd.grad(after.parameters["value"], list(leaves.values()))
    assert [float(slope) for slope in slopes] == pytest.approx([-4 * math.exp(-1)] * 2)


def test_a_function_that_closes_over_the_meta_of_another_problem_is_an_error():
    problem = make_problem()
    inner = SGD(lr=lambda _, step: problem.meta.raw.exp())
    with pytest.raises(ConfigurationError, match=r"lr depends on a tensor.*lambda meta, step"):
        inner.init(copy.deepcopy(problem))


def test_a_schedule_of_a_meta_parameter_is_an_error():
    problem = make_problem()
    with pytest.raises(ConfigurationError, match="lr depends on a tensor"):
        SGD(lr=mt.inner.cosine(problem.meta.raw, 10)).init(problem)


def test_limits_and_learners_side_by_side_are_checked_too():
    problem = make_problem()
    foreign = problem.meta.raw.exp()
    for inner in (
        mt.inner.Clipped(SGD(0.1), max_norm=foreign),
        mt.inner.Clipped(SGD(0.1), max_value=lambda meta, step: foreign),
        mt.inner.Clipped(SGD(foreign), max_norm=1.0),
    ):
        with pytest.raises(ConfigurationError, match=r"requires a gradient"):
            inner.init(problem)
    model = nn.Linear(1, 1).double()
    two = mt.BilevelProblem(model, Rates(), loss, loss)
    combined = mt.inner.Combined(SGD(0.1), {"bias": SGD(two.meta.raw.exp())})
    with pytest.raises(ConfigurationError, match=r"lr is a tensor that requires a gradient"):
        combined.init(two)


def test_a_tensor_without_a_gradient_is_a_constant():
    meta = bank.Value(0.1)
    constant = torch.tensor(0.25, dtype=F64)
    problem = mt.BilevelProblem(
        bank.Value(3.0), meta, loss, lambda m, meta, b: m.value * meta.value
    )
    for given, rate in (
        (constant, 0.25),
        (lambda meta, step: constant, 0.25),
        (lambda meta, step: meta.value.detach(), 0.1),
    ):
        inner = SGD(lr=given)
        result = hg.Unrolled(1)(problem, inner, inner.init(problem), [None], None)
        assert float(result.gradient["value"]) == pytest.approx(3.0 - 4.0 * rate)


def test_the_first_group_that_matches_holds():
    problem = reference.make_problem()
    groups = [
        {"params": ["head.*"], "lr": 0.2},
        {"params": ["*.weight", "scale"], "lr": 0.3, "weight_decay": 0.5},
        {"params": ["*"], "lr": 0.4},
    ]
    inner = SGD(lr=0.1, momentum=0.9, groups=groups)
    resolved = hyperparameters_at(inner.hyperparameters, inner.groups, problem, {}, 0)
    found = {name: resolved(name) for name in problem.parameter_names}
    rates = {name: values["lr"] for name, values in found.items()}
    assert rates["head.weight"] == rates["head.bias"] == 0.2
    assert rates["tied.encoder.weight"] == rates["scale"] == 0.3
    assert rates["tied.decoder.bias"] == 0.4
    # What a group does not name is the common value, not that of another group.
    assert found["head.weight"]["weight_decay"] == 0.0
    assert found["scale"]["weight_decay"] == 0.5
    assert {values["momentum"] for values in found.values()} == {0.9}
    # Groups that are given are left as they are.
    assert groups[0] == {"params": ["head.*"], "lr": 0.2}
    assert hyperparameters_at(SGD(lr=0.1).hyperparameters, [], problem, {}, 0)("scale")["lr"] == 0.1


def test_a_function_may_return_a_value_for_each_parameter_by_name():
    case = bank.small_net()
    names = case.problem.parameter_names
    values = {name: 0.1 * (number + 1) for number, name in enumerate(names)}
    inner = SGD(lr=lambda meta, step: values, groups=[{"params": [names[0]], "momentum": 0.5}])
    resolved = hyperparameters_at(inner.hyperparameters, inner.groups, case.problem, {}, 0)
    assert [resolved(name)["lr"] for name in names] == list(values.values())
    assert resolved(names[0])["momentum"] == 0.5 and resolved(names[1])["momentum"] == 0.0
    foreign = torch.tensor(0.1, requires_grad=True)
    for given, error, message in (
        ({**values, "wieght": 0.1}, UnknownNameError, "inner parameter in the values of lr"),
        ({**values, names[0]: foreign}, ConfigurationError, "no meta-parameter of this problem"),
    ):
        with pytest.raises(error, match=message):
            SGD(lr=lambda meta, step, given=given: given).init(case.problem)


def test_names_of_groups_are_told_apart_by_case():
    case = bank.illustration()
    inner = SGD(lr=0.1, groups=[{"params": ["v*"], "lr": 0.3}])
    resolved = hyperparameters_at(inner.hyperparameters, inner.groups, case.problem, {}, 0)
    assert resolved("value")["lr"] == 0.3 and resolved("VALUE")["lr"] == 0.1


def test_functions_see_the_step_and_the_meta_that_is_passed():
    case = bank.learned_rates()
    given = {n: t.detach() + 1 for n, t in case.problem.meta_parameters().items()}
    inner = case.inner
    resolved = hyperparameters_at(inner.hyperparameters, inner.groups, case.problem, given, 3)
    common, special = resolved("0.weight"), resolved("4.bias")
    logits = given["logits"]
    assert float(common["lr"]) == float(given["lr"])
    assert float(special["lr"]) == pytest.approx(0.5 * float(given["lr"]))
    assert float(common["momentum"]) == pytest.approx(float(logits[0].sigmoid()) * 0.9**3)
    assert special["momentum"] == 0.3
    assert float(common["weight_decay"]) == pytest.approx(float(logits[1].exp()))


@pytest.mark.parametrize("make", [float, lambda value: torch.tensor(value, dtype=F64)])
def test_sums_and_quotients(make):
    one, two, three = (torch.tensor(v, dtype=F64) for v in ([1.0, 2.0], [3.0, 5.0], [2.0, 4.0]))
    factor = make(0.5)
    assert add_scaled(one, two, factor).tolist() == [2.5, 4.5]
    assert add_quotient(one, two, three, factor).tolist() == [1.75, 2.625]
    assert add_decay(one, two, factor).tolist() == [2.5, 4.5]
    # A tensor that is zero is λ, and has a derivative.
    zero = make(0.0)
    assert (add_decay(one, two, zero) is one) == isinstance(zero, float)
    assert is_used(zero) == isinstance(zero, torch.Tensor) and is_used(factor)
    assert is_used(lambda meta, step: 0.0) and not is_used(0)
    if isinstance(factor, torch.Tensor):
        factor.requires_grad_()
        for found, slopes in (
            (add_scaled(one, two, factor), two),
            (add_quotient(one, two, three, factor), two / three),
        ):
            assert float(torch.autograd.grad(found.sum(), factor)[0]) == float(slopes.sum())


def test_which_values_are_accepted():
    def check(value):
        check_values({"beta": value}, {"beta"}, {"flag"})

    for value in (0, 0.0, 0.999, torch.tensor(2.0), lambda meta, step: 3.0):
        check(value)
        check_values({"rate": value}, {"beta"}, {"flag"})
    check_values({"rate": 1, "flag": True}, {"beta"}, {"flag"})
    check_values({"rate": 1e300, "flag": False}, {"beta"}, {"flag"})
    for value in (1, 1.0, 1.5, -1e-9, math.nan, math.inf, None, "0.5", True, False, [0.5]):
        with pytest.raises(ConfigurationError, match="beta is "):
            check(value)
    for value in (-1, -1e-9, math.nan, math.inf, -math.inf, None, "1", True):
        with pytest.raises(ConfigurationError, match="rate is "):
            check_values({"fine": 0.1, "rate": value, "last": 0.1}, (), ())
    for value in (1, 0.0, None, torch.tensor(True), lambda meta, step: True):
        with pytest.raises(ConfigurationError, match=r"flag is .*; accepted: True or False"):
            check_values({"flag": value}, (), {"flag"})


def test_which_groups_are_accepted():
    given = [{"params": ("a", "b"), "lr": 0.5}, {"params": ["c"]}]
    checked = checked_groups(given, {"lr": 0.1, "beta": 0.9}, {"beta"}, ())
    assert checked == [{"params": ["a", "b"], "lr": 0.5}, {"params": ["c"]}]
    assert given[0]["params"] == ("a", "b") and checked[1] is not given[1]
    for group, error, message in (
        ({"params": "a"}, ConfigurationError, "no list 'params'"),
        ({"params": []}, ConfigurationError, "no list 'params'"),
        ({"params": ["a"], "rate": 0.5}, UnknownNameError, "rate"),
        ({"params": ["a"], "beta": 1.0}, ConfigurationError, "beta is 1.0"),
        ({"params": ["a"], "lr": -1.0}, ConfigurationError, "lr is -1.0"),
    ):
        with pytest.raises(error, match=message):
            checked_groups([given[0], group], {"lr", "beta"}, {"beta"}, ())


def test_a_whole_number_is_a_number():
    problem = make_problem()
    inner = SGD(lr=1, momentum=0)
    values = hyperparameters_at(inner.hyperparameters, inner.groups, problem, {}, 0)("value")
    assert values["lr"] == 1 and values["momentum"] == 0


def test_what_a_function_depends_on_is_known_without_gradients():
    problem = make_problem()
    with torch.no_grad():
        for inner in (
            SGD(lr=lambda meta, step: problem.model.value.exp()),
            mt.inner.Clipped(SGD(0.1), max_norm=lambda meta, step: problem.model.value.exp()),
        ):
            with pytest.raises(ConfigurationError, match="depends on a tensor that requires"):
                inner.init(problem)


def test_each_part_of_a_graph_is_looked_at_once():
    # Sixty doublings have 2⁶⁰ ways through them.
    def rate(meta, step):
        value = meta.raw.exp()
        for _ in range(60):
            value = (value + value) / 2
        return value

    problem = make_problem()
    assert SGD(lr=rate).init(problem).step == 0
