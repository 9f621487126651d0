"""What a call of any estimator checks, hands on and returns, and the sums that all share."""

import copy
import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients import (
    MINRES,
    SOBA,
    Cost,
    Estimator,
    ForwardGradient,
    ForwardMode,
    Hypergradient,
    Implicit,
    OneStep,
    Traits,
    Unrolled,
)
from metatoolkit.hypergradients.base import (
    add_gradients,
    check_finite,
    fill_gradients,
    refuse_initial_state,
)
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.testing import bank


class Fixed(Estimator):
    """Returns what it was made with, and keeps what it was called with."""

    traits = Traits("approximate", "nothing", "nothing", "0 F", "none", "nobody")

    def __init__(self, gradient=None, valid_loss=1.0, horizon=1, look=None):
        self.given = [torch.zeros(5) if gradient is None else gradient, valid_loss]
        self.horizon = horizon
        self.look = look
        self.seen = []

    def estimate(self, problem, inner, state, train_batches, valid_batch):
        self.seen.append((state, train_batches, valid_batch))
        if self.look is not None:
            self.look()
        gradient, loss = self.given
        return Hypergradient({"value": gradient}, torch.tensor(loss), state, Cost())

    def objective(self, *arguments):
        raise NotImplementedError


def test_defaults_of_what_is_returned():
    assert vars(Cost()) == {
        "forward": 0,
        "backward": 0,
        "jvp": 0,
        "hvp": 0,
        "residual": None,
        "iterations": None,
    }
    result = bank.ridge().call(Fixed())
    assert result.details == {} and result.details is not bank.ridge().call(Fixed()).details


def test_what_an_estimator_is_unless_it_says_otherwise():
    class Plain(Fixed):
        def __init__(self):
            pass

    plain = Plain()
    assert plain.horizon == 1 and plain.compared == ("train_loss",)
    assert plain.holds_constants is True and plain.complex_parameters is True
    for name in ("repeats_steps", "windows", "on_average", "complex_meta"):
        assert getattr(plain, name) is False
    assert plain._draws is None and plain.state_dict() == {}
    plain.load_state_dict({})
    plain.restart()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "0 batches"),
        ([1, 2, 3], "3 batches"),
        ((1,), "1 batches"),
        (torch.ones(2), "Tensor"),
        (iter([1, 2]), "list_iterator"),
        ({0: 1, 1: 2}, "dict"),
    ],
)
def test_batches_are_as_many_as_the_horizon_in_a_list(given, told):
    case, estimator = bank.ridge(), Fixed(horizon=2)
    with pytest.raises(ConfigurationError, match=f"train_batches is {told}; Fixed takes .* of 2"):
        estimator(case.problem, case.inner, case.state, given, case.valid_batch)
    assert not estimator.seen


@pytest.mark.parametrize("kind", [list, tuple])
def test_what_is_handed_on(kind):
    case, estimator = bank.ridge(), Fixed(torch.arange(5.0), 0.25, horizon=2)
    state = case.state
    live = state.parameters["value"].clone().requires_grad_()
    state = state.with_tensors([live * 1, *state.tensors()[1:]])
    batches = kind([case.train_batches[0], case.valid_batch])
    result = estimator(case.problem, case.inner, state, batches, case.valid_batch)
    (seen,) = estimator.seen
    assert seen[1] is batches and seen[2] is case.valid_batch
    # A graph of the caller does not come along.
    assert not any(tensor.requires_grad for tensor in seen[0].tensors())
    assert torch.equal(seen[0].parameters["value"], live) and seen[0].key == state.key
    assert result.gradient["value"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert float(result.valid_loss) == 0.25


def test_what_is_refused_before_a_pass():
    case, estimator = bank.ridge(), Fixed()
    arguments = (case.state, case.train_batches, case.valid_batch)
    optimizer = torch.optim.SGD(case.problem.model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="torch optimizer SGD"):
        estimator(case.problem, optimizer, *arguments)
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="inference_mode"):
        estimator(case.problem, case.inner, *arguments)
    case.problem.model.extra = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ConfigurationError, match="extra"):
        estimator(case.problem, case.inner, *arguments)
    assert not estimator.seen


@pytest.mark.parametrize(
    ("gradient", "loss", "told"),
    [
        (torch.zeros(5), float("nan"), r"the validation loss is not finite \(1 of 1 entries"),
        (
            torch.tensor([0.0, float("inf"), float("nan")]),
            1.0,
            r"the hypergradient of 'value' is not finite \(2 of 3 entries",
        ),
    ],
)
def test_what_is_returned_is_finite(gradient, loss, told):
    with pytest.raises(NonFiniteError, match=told):
        bank.ridge().call(Fixed(gradient, loss))


def test_a_loss_that_cannot_be_evaluated_again_is_seen_in_a_call():
    case = bank.ridge()
    calls = []

    def train_loss(model, meta, batch):
        calls.append(None)
        return model.value.square().sum() + len(calls) * meta.value.sum()

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    with pytest.raises(mt.errors.ReplayError, match="train_loss"):
        case.call(OneStep())


class Tags(Fixed):
    """Finds nothing, and is told why by the first of its batches."""

    def estimate(self, problem, inner, state, train_batches, valid_batch):
        fill_gradients(problem, {"value": None}, "these losses")


def test_why_nothing_is_reached_is_told_by_the_first_batch():
    case = bank.ridge()
    read = []

    def loss(model, meta, batch):
        read.append(batch)
        return model.value.square().sum()

    problem = mt.BilevelProblem(case.problem.model, case.problem.meta, loss, loss)
    with pytest.raises(UnusedMetaParameterError, match=r"these losses depend on no meta-param"):
        Tags(horizon=2)(problem, case.inner, case.state, ["first", "second"], "valid")
    assert "first" in read and "valid" in read and "second" not in read


def test_a_duplicate_goes_its_own_way():
    function, tensor = (lambda: None), torch.ones(2)
    one = Fixed(look=function)
    one.tensor, one.nested = tensor, {"numbers": [1, 2]}
    other = one.duplicate()
    assert type(other) is Fixed and vars(other).keys() == vars(one).keys()
    assert other.look is function and other.tensor is tensor
    other.nested["numbers"].append(3)
    other.seen.append(None)
    other.horizon = 7
    assert one.nested == {"numbers": [1, 2]} and one.seen == [] and one.horizon == 1
    drawing = ForwardGradient(2, samples=3)
    case = bank.ridge()
    case.call(drawing)
    double = drawing.duplicate()
    assert double.samples == 3 and double.horizon == 2
    one, other = (case.call(e).gradient["value"] for e in (drawing, double))
    assert torch.equal(one, other)


def test_draws_are_kept_and_forgotten():
    case = bank.ridge()
    estimator = ForwardGradient(1)
    assert estimator.state_dict() == {}
    first, second, third = (case.call(estimator).gradient["value"] for _ in range(3))
    assert not torch.equal(first, second)
    resumed = ForwardGradient(1)
    saved = copy.deepcopy(estimator.state_dict())
    assert saved.keys() == {"draws"}
    resumed.load_state_dict(saved)
    fourth = case.call(estimator).gradient["value"]
    assert torch.equal(case.call(resumed).gradient["value"], fourth)
    estimator.restart()
    again = [case.call(estimator).gradient["value"] for _ in range(3)]
    assert all(map(torch.equal, again, (first, second, third)))
    with pytest.raises(CheckpointError, match=r"ForwardGradient carries no state.*holds u, v;"):
        ForwardGradient(1).load_state_dict({**saved, "u": 1, "v": 2})
    with pytest.raises(CheckpointError, match="Fixed carries no state"):
        Fixed().load_state_dict(saved)
    assert isinstance(ForwardGradient(1)._draws, Draws) and OneStep()._draws is None


def test_the_first_of_many_that_is_not_finite():
    check_finite({"one": torch.ones(3), "two": torch.zeros(())})
    bad = torch.tensor([1.0, float("nan"), float("-inf"), 2.0])
    with pytest.raises(NonFiniteError, match=r"^two is not finite \(2 of 4 entries"):
        check_finite({"one": torch.ones(3), "two": bad, "three": bad[:2]})
    # What is finite while its sum is not, and values whose sum tells nothing of one alone.
    check_finite({"one": torch.full((3,), 6e4, dtype=torch.float16), "two": torch.zeros(())})
    both = torch.tensor([float("inf"), float("-inf")])
    with pytest.raises(NonFiniteError, match=r"^one is not finite \(2 of 2 entries"):
        check_finite({"one": both})


def test_sums_of_gradients():
    one, two, three = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), torch.tensor([5.0, 7.0])
    parts = [[one, None, None, two], [two, None, three, None], [three, None, None, None]]
    total = add_gradients(["a", "b", "c", "d"], *parts)
    assert list(total) == ["a", "b", "c", "d"]
    assert total["a"].tolist() == [16.0, 29.0] and total["b"] is None
    assert total["c"] is three and total["d"] is two
    # No operand is written to.
    assert one.tolist() == [1.0, 2.0] and two.tolist() == [10.0, 20.0]
    with pytest.raises(ValueError, match="shorter"):
        add_gradients(["a", "b"], [one])


def test_missing_gradients_are_zeros_unless_all_are():
    problem = bank.tied().problem
    names = list(problem.meta_parameters())
    live = torch.ones(problem.meta_parameters()[names[0]].shape, requires_grad=True)
    filled = fill_gradients(problem, dict.fromkeys(names) | {names[0]: live * 2}, "these losses")
    assert list(filled) == names and not any(g.requires_grad for g in filled.values())
    assert bool((filled[names[0]] == 2).all())
    for name in names[1:]:
        parameter = problem.meta_parameters()[name]
        assert not filled[name].any() and filled[name].shape == parameter.shape
        assert filled[name].dtype == parameter.dtype
    with pytest.raises(UnusedMetaParameterError, match="these losses depend on no meta-parameter"):
        fill_gradients(problem, dict.fromkeys(names), "these losses")


def test_an_initial_state_is_refused_where_it_is_forgotten():
    case = bank.started()
    state = case.state
    with pytest.raises(
        UnsupportedError, match=r"but Somebody forgets it\. Use Unrolled, FirstOrder"
    ):
        refuse_initial_state(case.problem, state, "Somebody", "forgets it")
    later, _ = case.inner.step(
        case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
    )
    refuse_initial_state(case.problem, later, "Somebody", "forgets it")
    ridge = bank.ridge()
    refuse_initial_state(ridge.problem, ridge.state, "Somebody", "forgets it")
    # Those that differentiate at an optimum.
    for estimator, name in ((SOBA(), "SOBA"), (Implicit(MINRES()), "Implicit with steps=0")):
        with pytest.raises(UnsupportedError, match=f"but {name} takes an inner optimum"):
            case.call(estimator)


def test_kinds_of_what_estimators_compute():
    kinds = {
        "exact": [Unrolled(2), ForwardMode(2)],
        "iterative": [SOBA(), Implicit(MINRES())],
        "approximate": [OneStep(), mt.hypergradients.SAMA(), mt.hypergradients.FirstOrder(2)],
        "stochastic": [ForwardGradient(2)],
    }
    kinds["approximate"].append(mt.hypergradients.Reptile(2))
    for kind, estimators in kinds.items():
        assert {e.traits.kind for e in estimators} == {kind}
    assert ForwardGradient(2).on_average is True
    assert [e.on_average for e in (*kinds["exact"], *kinds["iterative"])] == [False] * 4


@pytest.mark.parametrize(
    "estimator",
    [Unrolled(1), ForwardMode(1), ForwardGradient(1), OneStep(), SOBA(), Implicit(MINRES())],
    ids=lambda e: type(e).__name__,
)
def test_which_losses_reach_nothing(estimator):
    case = bank.ridge()
    case.problem.train_loss = case.problem.valid_loss = lambda model, meta, batch: (
        model.value.square().sum()
    )
    case.inner = mt.inner.SGD(lr=0.1)
    with pytest.raises(
        UnusedMetaParameterError, match=r"^train_loss and valid_loss depend on no meta-parameter"
    ):
        case.call(estimator)
