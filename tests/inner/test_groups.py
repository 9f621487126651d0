"""Groups as in torch.optim: by the parameters themselves, by name, and by the former key."""

import copy
import warnings

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import SGD, AdamW, Clipped, Combined, Lion, Rprop
from metatoolkit.inner.groups import patterns_of

F64 = torch.float64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_parameter("scale[0]", nn.Parameter(torch.ones(())))

    def forward(self, x):
        return self.frozen(self.head(self.body(x).tanh())) * getattr(self, "scale[0]")


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.7, dtype=F64))


def make_problem():
    torch.manual_seed(0)
    return mt.BilevelProblem(
        Net().double(),
        Weight(),
        train_loss=lambda model, meta, x: meta.value * model(x).square().sum(),
        valid_loss=lambda model, meta, x: model(x).square().mean(),
    )


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, generator=generator, dtype=F64) for _ in range(count)]


BY = {
    "iterator": lambda part: part.parameters(),
    "list": lambda part: list(part.parameters()),
    "tuple": lambda part: tuple(part.parameters()),
    "set": lambda part: set(part.parameters()),
    # Their names are those of the part, and not of the model.
    "named": lambda part: part.named_parameters(),
    "names": lambda part: [{"head": "head.*"}["head"]],
    "both": lambda part: ["head.bias", part.weight],
}


@pytest.mark.parametrize("how", BY)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(SGD, torch.optim.SGD), (AdamW, torch.optim.AdamW)],
    ids=["SGD", "AdamW"],
)
def test_parameters_in_groups_move_as_in_torch_optim(ours, theirs, how):
    problem = make_problem()
    model = copy.deepcopy(problem.model)
    head = {id(p) for p in model.head.parameters()}
    rest = [p for p in model.parameters() if id(p) not in head]
    optimizer = theirs(
        [{"params": rest}, {"params": model.head.parameters(), "lr": 0.03, "weight_decay": 0.2}],
        lr=0.01,
    )
    group = {"params": BY[how](problem.model.head), "lr": 0.03, "weight_decay": 0.2}
    inner = ours(lr=0.01, groups=[group])
    state = inner.init(problem)
    meta = problem.meta_parameters()
    for batch in batches(4):
        optimizer.zero_grad()
        problem.train_loss(model, problem.meta, batch).backward()
        optimizer.step()
        state, _ = inner.step(problem, state, meta, batch)
    for name in problem.parameter_names:
        found = state.parameters[name]
        torch.testing.assert_close(found, model.get_parameter(name).data, rtol=1e-12, atol=1e-14)


def test_one_tensor_is_a_group_and_its_name_is_no_pattern():
    problem = make_problem()
    scale = getattr(problem.model, "scale[0]")
    for params in (scale, [scale]):
        inner = SGD(0.1, groups=[{"params": params, "lr": 0.5}])
        state = inner.init(problem)
        gradients = {name: torch.ones_like(t) for name, t in state.parameters.items()}
        after = inner.apply(problem, state, problem.meta_parameters(), gradients)
        assert float(after.parameters["scale[0]"]) == 0.5
        torch.testing.assert_close(
            after.parameters["head.bias"], state.parameters["head.bias"] - 0.1
        )
        assert patterns_of(inner.groups[0], problem) == ["scale[[]0]"]


def test_wrapping_learners_know_the_tensors_too():
    problem = make_problem()
    head = problem.model.head
    inner = Clipped(
        Combined(SGD(0.1, groups=[{"params": head.bias, "lr": 0.2}]), {"body.*": AdamW()}), 1e9
    )
    state = inner.init(problem)
    gradients = {name: torch.ones_like(t) for name, t in state.parameters.items()}
    after = inner.apply(problem, state, problem.meta_parameters(), gradients)
    moved = {n: float((after.parameters[n] - state.parameters[n]).mean()) for n in gradients}
    assert moved["head.bias"] == pytest.approx(-0.2)
    assert moved["head.weight"] == pytest.approx(-0.1)


def test_frozen_parameters_are_passed_over():
    problem = make_problem()
    model = problem.model
    inner = SGD(0.1, groups=[{"params": [*model.frozen.parameters(), model.head.bias], "lr": 0.5}])
    inner.init(problem)
    assert patterns_of(inner.groups[0], problem) == ["head.bias"]
    alone = SGD(0.1, groups=[{"params": model.frozen.parameters(), "lr": 0.5}])
    with pytest.raises(ConfigurationError, match="holds frozen parameters alone"):
        alone.init(problem)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            lambda problem: make_problem().model.head.parameters(),
            r"shape \(2, 4\) that is no",
        ),
        (
            lambda problem: [problem.model.head.bias, torch.zeros(7)],
            r"shape \(7,\) that is no",
        ),
        (lambda problem: copy.deepcopy(problem.model.head.bias), r"shape \(2,\) that is no"),
        (lambda problem: problem.meta.value, "holds the meta-parameter 'value'"),
        (lambda problem: ["tail.*", problem.model.head.bias], r"'tail\.\*' matches no inner"),
    ],
)
def test_what_is_no_inner_parameter_is_an_error(params, message):
    problem = make_problem()
    inner = SGD(0.1, groups=[{"params": params(problem), "lr": 0.5}])
    with pytest.raises(ConfigurationError, match=message):
        inner.init(problem)


def test_a_learner_with_tensors_of_one_problem_does_not_serve_another():
    problem, other = make_problem(), make_problem()
    inner = SGD(0.1, groups=[{"params": problem.model.head.parameters(), "lr": 0.5}])
    state = inner.init(problem)
    gradients = {name: torch.ones_like(t) for name, t in state.parameters.items()}
    with pytest.raises(ConfigurationError, match="is no inner parameter of the problem"):
        inner.apply(other, state, other.meta_parameters(), gradients)


@pytest.mark.parametrize("params", [None, "head.*", b"head", 3, [], iter(()), [3], [None, "a"]])
def test_what_a_group_must_hold(params):
    with pytest.raises(ConfigurationError, match="no list 'params' of names, patterns or param"):
        SGD(0.1, groups=[{"params": params, "lr": 0.5}])


@pytest.mark.parametrize("learner", [SGD, AdamW, Lion, Rprop])
@pytest.mark.parametrize(
    "groups", [{"params": ["head.*"]}, ["head.*"], "head.*", None, 3, [None], [[torch.ones(1)]]]
)
def test_what_is_no_list_of_mappings_is_an_error(learner, groups):
    with pytest.raises(ConfigurationError, match=r"groups is .*; give a list of mappings"):
        learner(lr=0.1, groups=groups)


def test_an_iterator_serves_one_learner_alone():
    group = {"params": make_problem().model.head.parameters(), "lr": 0.5}
    SGD(0.1, groups=[group])
    with pytest.raises(ConfigurationError, match="An iterator serves one learner alone"):
        SGD(0.1, groups=[group])


def test_the_former_key_warns_where_it_was_written():
    for make in (SGD, AdamW):
        with pytest.warns(DeprecationWarning, match="'parameters' of a group is 'params' now") as w:
            inner = make(lr=0.1, groups=[{"parameters": ["head.*"], "lr": 0.5}])
        assert [warning.filename for warning in w] == [__file__]
        assert inner.groups == [{"params": ["head.*"], "lr": 0.5}]
    with pytest.raises(ConfigurationError, match="and its former name 'parameters'; drop the lat"):
        SGD(0.1, groups=[{"parameters": ["a"], "params": ["a"]}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SGD(0.1, groups=[{"params": ["head.*"]}])


def test_gradients_of_rates_in_groups_of_tensors_are_those_of_names():
    problem = make_problem()
    estimator = mt.hypergradients.Unrolled(2)
    train, valid = batches(2), batches(3)[2]

    def gradient(params):
        def rate(meta, step):
            return 0.1 * meta.value

        inner = SGD(0.05, groups=[{"params": params, "lr": rate}])
        result = estimator(problem, inner, inner.init(problem), train, valid)
        return float(result.gradient["value"])

    assert gradient(problem.model.head.parameters()) == gradient(["head.*"]) != 0.0
