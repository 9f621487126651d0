"""Modules that change after the problem was made are noticed, and passes leave them alone."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.stateless.places import Places
from metatoolkit.testing import bank


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def network_case(model=None):
    torch.manual_seed(0)
    model = (Network() if model is None else model).double()

    def train_loss(model, meta, batch):
        return model(batch).square().mean() * meta.value

    problem = mt.BilevelProblem(model, bank.Value(1.0), train_loss, train_loss)
    batch = torch.randn(4, 2, dtype=torch.float64)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)


def freeze(model):
    model.first.requires_grad_(False)


def add_a_head(model):
    model.other = nn.Linear(3, 1).double()


def exchange_the_head(model):
    model.head = nn.Linear(3, 1, bias=False).double()


def tie(model):
    model.second.weight = model.first.weight


def add_a_buffer(model):
    model.register_buffer("count", torch.zeros(()))


def add_a_parametrization(model):
    nn.utils.parametrizations.orthogonal(model.second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (freeze, r"frozen: model\.first\.weight, model\.first\.bias"),
        (add_a_head, r"new: model\.other\.weight"),
        (exchange_the_head, r"gone: model\.head\.bias"),
        (tie, "gone: model.second.weight"),
        (add_a_buffer, r"new: model\.count"),
        (add_a_parametrization, "model.second.parametrizations"),
    ],
)
def test_a_changed_structure_is_an_error(change, words):
    case = network_case()
    state = case.state
    change(case.problem.model)
    with pytest.raises(ConfigurationError, match=f"{words}.*Make the BilevelProblem"):
        case.call(Unrolled(1), state)
    with pytest.raises(ConfigurationError, match="have changed since the problem was made"):
        case.inner.init(case.problem)


def test_a_parameter_that_is_no_longer_frozen_is_an_error():
    model = Network()
    model.first.requires_grad_(False)
    case = network_case(model)
    model.first.bias.requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"\(no longer frozen: model\.first\.bias\)"):
        case.inner.init(case.problem)


class Holding(nn.Module):
    """Holds a part of the model, tied or not."""

    def __init__(self, tensor):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.shared = tensor
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))


def test_other_ties_between_the_modules_are_an_error():
    def train_loss(model, meta, batch):
        return model(batch).square().mean() * meta.value

    model = Network().double()
    meta = Holding(model.head.weight)
    model.register_buffer("scale", meta.scale)
    problem = mt.BilevelProblem(model, meta, train_loss, train_loss)
    assert problem.buffer_names == ["model.scale"]
    mt.inner.SGD(lr=0.1).init(problem)
    meta.shared = nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(ConfigurationError, match="tied in another way"):
        mt.inner.SGD(lr=0.1).init(problem)


def test_frozen_meta_parameters_are_an_error():
    case = network_case()
    case.problem.meta.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"frozen: meta\.value"):
        case.call(Unrolled(1), None)


def test_other_values_and_modes_are_no_other_structure():
    case = network_case()
    model = case.problem.model
    model.load_state_dict({name: tensor / 2 for name, tensor in model.state_dict().items()})
    model.eval()
    with torch.no_grad():
        model.head.bias.fill_(0.25)
    assert case.state.parameters["head.bias"].item() == 0.25
    case.call(Unrolled(1))


def test_a_copy_of_a_problem_stands_for_itself():
    case = network_case()
    copied = copy.deepcopy(case.problem)
    right = case.call(Unrolled(2)).gradient["value"]
    case.problem.model.first.requires_grad_(False)
    other = dataclasses.replace(case, problem=copied)
    torch.testing.assert_close(other.call(Unrolled(2)).gradient["value"], right, rtol=0, atol=0)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_are_an_error(register):
    case = network_case()
    weight = case.problem.model.first.weight
    handle = getattr(weight, register)(lambda gradient: None)
    with pytest.raises(ConfigurationError, match=r"model\.first\.weight'.*requires_grad_\(False\)"):
        case.inner.init(case.problem)
    handle.remove()
    case.call(Unrolled(1))


class Lazy(nn.Module):
    """Fills a buffer, or a parameter, that is None at first."""

    def __init__(self, kind):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        if kind == "buffer":
            self.register_buffer("mask", None)
        else:
            self.register_parameter("mask", None)
        self.kind = kind

    def forward(self, x):
        if self.mask is None:
            mask = torch.ones_like(x)
            self.mask = nn.Parameter(mask) if self.kind == "parameter" else mask
        return self.linear(x * self.mask)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_what_a_pass_fills_is_refused_and_empty_again(kind):
    case = network_case(Lazy(kind))
    state = case.state
    with pytest.raises(UnsupportedError, match=r"fills 'model\.mask'.*one forward pass"):
        case.call(Unrolled(1), state)
    assert case.problem.model.mask is None
    if kind == "buffer":
        filled = Lazy(kind).double()
        filled(case.valid_batch)
        network_case(filled).call(Unrolled(1))


COMPUTED = {
    "spectral_norm": (torch.nn.utils.spectral_norm, "weight_hh_l0"),
    "weight_norm": (torch.nn.utils.weight_norm, "weight_hh_l0"),
    "pruned": (
        lambda layer, name: prune.l1_unstructured(layer, name, 2) and layer,
        "weight_hh_l0",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
@pytest.mark.parametrize("wrap, name", COMPUTED.values(), ids=COMPUTED.keys())
def test_weights_that_hooks_compute_are_left_as_they_were(wrap, name):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = wrap(nn.LSTM(2, 3), name)

        def forward(self, x):
            return self.lstm(x.unsqueeze(0))[0]

    case = network_case(Recurrent())
    lstm = case.problem.model.lstm
    before = getattr(lstm, name)
    values, flat = before.detach().clone(), list(lstm._flat_weights)
    case.call(Unrolled(2))
    assert getattr(lstm, name) is before
    assert all(one is other for one, other in zip(lstm._flat_weights, flat, strict=True))
    torch.testing.assert_close(before.detach(), values, rtol=0, atol=0)


def test_another_buffer_stands_in_every_place_of_the_former_one():
    model = nn.Module()
    model.one, model.two = nn.Module(), nn.Module()
    model.one.register_buffer("seen", torch.zeros(1))
    model.two.register_buffer("seen", model.one.seen)
    places = Places(model, nn.Linear(1, 1))
    longer = torch.ones(3)
    places.replace("model.one.seen", longer)
    assert model.one.seen is longer and model.two.seen is longer
    assert places.tensor("model.one.seen") is longer
    # The structure is the one from before: what was looked up still holds.
    assert Places(model, nn.Linear(1, 1)).structure == places.structure


def test_hooks_with_names_of_something_else_are_nobodys_business():
    class Named:
        name, _tensor_name = "unknown", 3

        def __call__(self, module, arguments):
            return None

    case = network_case()
    case.problem.model.head.register_forward_pre_hook(Named())
    places = Places(case.problem.model, case.problem.meta)
    assert places.computed == []
    with_hook = network_case(case.problem.model)
    assert with_hook.call(Unrolled(1)).gradient["value"].isfinite()


def test_a_place_is_named_by_its_module():
    model = Network()
    places = Places(model, bank.Value(1.0))
    assert places.name((model.head._parameters, "bias")) == "model.head.bias"
    assert places.name((vars(model.head), "computed")) == "computed"
    assert places.name(places.sites["meta.value"][0]) == "meta.value"


def test_changes_are_told_in_full():
    model, meta = Network(), bank.Value(1.0)
    before = Places(model, meta)
    assert before.changes(before) == "parameters are tied in another way"
    model.first.weight.requires_grad_(False)
    model.head = nn.Linear(3, 1, bias=False)
    model.extra = nn.Linear(1, 1, bias=False)
    told = before.changes(Places(model, meta))
    assert told == "new: model.extra.weight; gone: model.head.bias; frozen: model.first.weight"
    model.many = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(7))
    told = before.changes(Places(model, meta))
    names = [f"model.many.{index}.weight" for index in range(4)]
    assert told.startswith(f"new: model.extra.weight, {', '.join(names)}; gone")
