"""λ as the initial state: names, values, and the derivative through the inner steps."""

import copy
import pickle

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import (
    ConfigurationError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients import (
    GMRES,
    SAMA,
    SOBA,
    EvoGrad,
    FiniteDifference,
    ForwardMode,
    GuidedEvoGrad,
    Implicit,
    OneStep,
    Penalty,
    Unrolled,
)
from metatoolkit.metaparameters import Initialization
from metatoolkit.testing import bank


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def maml(inner=None, size=6, condition=5.0):
    """A quadratic whose inner parameters start from λ; the model itself holds other values."""
    case = bank.quadratic(condition, size)
    curvature, _, shift = case.train_batches[0]
    meta = Initialization(case.problem.model)
    with torch.no_grad():
        meta.value += torch.linspace(-1, 1, size, dtype=torch.float64)
    problem = mt.BilevelProblem(
        case.problem.model,
        meta,
        lambda model, meta, batch: (
            model.value.dot(batch[0] @ model.value) / 2 - model.value.dot(batch[1])
        ),
        case.problem.valid_loss,
        initial=Initialization.values,
    )
    inner = inner or mt.inner.SGD(lr=0.1)
    return bank.ProblemInstance(problem, inner, [(curvature, shift)], case.valid_batch)


def test_holds_copies_under_the_names_of_the_model():
    model = network()
    model[2].bias.requires_grad_(False)
    meta = Initialization(model)
    assert [name for name, _ in meta.named_parameters()] == ["0.weight", "0.bias", "2.weight"]
    for name, value in meta.values().items():
        parameter = model.get_parameter(name)
        assert torch.equal(value, parameter) and value is not parameter
    # The model may move on without them.
    before = {name: value.detach().clone() for name, value in meta.values().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in meta.values().items())
    some = Initialization(model, ["0.*"])
    assert set(some.values()) == {"0.weight", "0.bias"}
    again = Initialization(network())
    again.load_state_dict(Initialization(network()).state_dict())
    assert copy.deepcopy(meta).values().keys() == meta.values().keys()
    assert pickle.loads(pickle.dumps(meta)).values().keys() == meta.values().keys()


def test_the_first_state_comes_from_it_and_the_model_stays():
    case = maml()
    before = case.problem.model.value.detach().clone()
    state = case.state
    assert torch.equal(state.parameters["value"], case.problem.meta.value)
    assert state.parameters["value"].data_ptr() != case.problem.meta.value.data_ptr()
    assert torch.equal(case.problem.model.value, before)
    # The values are those of λ at the time of the step, not at that of init.
    with torch.no_grad():
        case.problem.meta.value.zero_()
    after, _ = case.inner.step(
        case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
    )
    torch.testing.assert_close(after.parameters["value"], 0.1 * case.train_batches[0][1])
    later, _ = case.inner.step(
        case.problem, after, case.problem.meta_parameters(), case.train_batches[0]
    )
    assert not torch.equal(later.parameters["value"], after.parameters["value"])


@pytest.mark.parametrize("steps", [1, 4])
def test_maml_in_closed_form(steps):
    case = maml()
    curvature, shift = case.train_batches[0]
    shrink = torch.eye(6, dtype=torch.float64) - 0.1 * curvature
    theta = case.problem.meta.value.detach().clone()
    for _ in range(steps):
        theta = shrink @ theta + 0.1 * shift
    expected = torch.linalg.matrix_power(shrink, steps) @ (theta - case.valid_batch)
    result = case.call(Unrolled(steps))
    torch.testing.assert_close(result.gradient["value"], expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(result.state.parameters["value"], theta)
    if steps == 1:
        torch.testing.assert_close(case.call(OneStep()).gradient["value"], expected)


@pytest.mark.parametrize(
    "estimator",
    [
        Unrolled(1),
        Unrolled(3),
        Unrolled(4, checkpoint="sqrt"),
        Unrolled(3, product="forward_over_reverse"),
        ForwardMode(2),
        OneStep(),
    ],
    ids=["T=1", "T=3", "sqrt", "mixed mode", "forward mode", "one step"],
)
@pytest.mark.parametrize("inner", [None, mt.inner.Adam(lr=0.01)], ids=["momentum", "Adam"])
def test_through_the_steps_of_a_network(estimator, inner):
    case = bank.adapted()
    inner = inner or case.inner
    check = mt.check_hypergradient(
        *(case.problem, inner, estimator, case.batches(estimator.horizon), case.valid_batch),
        coordinates=24,
    )
    assert check.relative_error < 1e-6


def test_implicit_differentiation_sees_the_pull_alone():
    # The inner optimum does not depend on where it was started from.
    case = bank.adapted()
    result = case.call(Implicit(GMRES(20), steps=3))
    assert bool((result.gradient["start.4.weight"] == 0).all())
    assert float(result.gradient["start.0.weight"].norm()) > 0


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (EvoGrad(), "EvoGrad"),
        (GuidedEvoGrad(), "GuidedEvoGrad"),
        (SAMA(), "finite difference"),
        (FiniteDifference(), "finite difference"),
        (SOBA(), "SOBA"),
        (Implicit(GMRES()), "Implicit with steps=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_estimators_that_miss_the_initial_state_say_so(estimator, name):
    case = bank.adapted()
    with pytest.raises(UnsupportedError, match=f"{name}.*Unrolled"):
        case.call(estimator)


def test_a_state_that_does_not_depend_on_meta_is_an_error():
    case = maml()
    after, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    for estimator in (Unrolled(1), OneStep()):
        with pytest.raises(UnusedMetaParameterError, match="step 0"):
            case.call(estimator, after)
    with pytest.raises(UnusedMetaParameterError, match="step 0"):
        case.call(Penalty())


def test_arguments():
    model = network()
    with pytest.raises(ConfigurationError, match=r"'5\.\*' matches no parameter"):
        Initialization(model, ["5.*"])
    with pytest.raises(ConfigurationError, match="give a list"):
        Initialization(model, "0.*")

    def build(initial):
        return mt.BilevelProblem(
            model, Initialization(model), lambda *_: None, lambda *_: None, initial=initial
        )

    with pytest.raises(ConfigurationError, match="initial is"):
        build({"0.weight": torch.zeros(4, 3)})
    inner = mt.inner.SGD(lr=0.1)
    with pytest.raises(UnknownNameError, match=r"'0\.weigth'.*'0\.weight'"):
        inner.init(build(lambda meta: {"0.weigth": torch.zeros(4, 3)}))
    with pytest.raises(ShapeError, match=r"\(3, 4\); the parameter has \(4, 3\)"):
        inner.init(build(lambda meta: {"0.weight": torch.zeros(3, 4)}))
