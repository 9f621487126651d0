"""The adjoint of a gradient flow: that of its steps, that of the flow, and what it keeps."""

from __future__ import annotations

import itertools
import math
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn

import metatoolkit as mt
from metatoolkit.errors import (
    ConfigurationError,
    MissingDependencyError,
    NonFiniteError,
    StiffnessError,
    UnsupportedError,
)
from metatoolkit.hypergradients import Adjoint, ProblemInstance, Unrolled, adjoint, stored_flow
from metatoolkit.inner import SGD, GradientFlow, InnerLearner
from metatoolkit.metaparameters import Initialization
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import seeded
from metatoolkit.testing import bank, estimator_checks
from tests.hypergradients.given_bank import give_bank


def flow(inner: InnerLearner) -> InnerLearner:
    return GradientFlow(inner.hyperparameters["lr"], 3)


@pytest.mark.parametrize("check", estimator_checks(), ids=str)
def test_conforms_with_its_learner(monkeypatch, check):
    """The suite over all estimators, on problems that have the learner it takes."""
    give_bank(monkeypatch, flow)
    reason = check(lambda: Adjoint(2))
    if reason:
        assert "GradientFlow" not in reason
        pytest.skip(reason)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("name", bank.CONFORMANCE)
def test_the_discrete_adjoint_is_unrolled(name, solver):
    instance = bank.CONFORMANCE[name]()
    instance.inner = GradientFlow(instance.inner.hyperparameters["lr"], 4, solver)
    found, wanted = instance.call(Adjoint(2)), instance.call(Unrolled(2))
    for key, gradient in wanted.gradient.items():
        torch.testing.assert_close(found.gradient[key], gradient, rtol=1e-10, atol=1e-13)
    for one, other in zip(found.state.tensors(), wanted.state.tensors(), strict=True):
        assert torch.equal(one, other)
    assert found.state.step == 2
    assert found.cost.hvp == 2 * 4 * (1 if solver == "euler" else 2)


def regression(time: object, steps: int, solver: str = "euler", penalty: float = 0.0):
    """Initial values, a penalty and the time are λ, for a tanh network on a smooth function."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 12, 1, generator=generator).double() * 4 - 2
    support, query = ((x, (2 * x).sin()) for x in points)

    class Meta(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.start = Initialization(model)
            self.strength = nn.Parameter(torch.tensor(penalty).double())
            self.time = nn.Parameter(torch.tensor(0.0).double())

    def loss(model: nn.Module, meta: Meta, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean() / 2

    def train_loss(model: nn.Module, meta: Meta, batch: tuple[Tensor, Tensor]) -> Tensor:
        start = meta.start.values()
        pull = sum((p - start[n]).square().sum() for n, p in model.named_parameters())
        return loss(model, meta, batch) + meta.strength / 2 * pull

    with seeded(1):
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    problem = BilevelProblem(
        model, Meta(model), train_loss, loss, initial=lambda meta: meta.start.values()
    )
    if time == "learned":
        inner = GradientFlow(lambda meta, step: meta.time.exp(), steps, solver)
    else:
        inner = GradientFlow(time, steps, solver)
    return ProblemInstance(problem, inner, [support], query)


def vector(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in gradient.values()])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_two_hundred_steps_are_those_of_unrolled_gradient_descent(penalty):
    """A-MAML's proximal term included, against Unrolled over SGD with h as learning rate."""
    instance = regression(2.0, 200, penalty=penalty)
    found = instance.call(Adjoint())
    instance.inner = SGD(lr=0.01)
    wanted = instance.call(Unrolled(200))
    off = vector(found.gradient) - vector(wanted.gradient)
    assert float(off.norm() / vector(wanted.gradient).norm()) < 1e-10


@pytest.fixture(scope="module")
def fine() -> Tensor:
    """The derivative through 160 steps of Heun, whose own error is less than a tenth of others."""
    return vector(regression("learned", 160, "heun", 0.5).call(Adjoint()).gradient)


@pytest.mark.parametrize(
    ("solver", "forward", "least", "most"),
    [("heun", "heun", 3.5, 4.5), ("euler", "euler", 1.7, 2.2), ("euler", "heun", 1.7, 2.2)],
)
def test_the_continuous_adjoint_has_the_order_of_its_solver(fine, solver, forward, least, most):
    """The error against a fine flow falls by 4 or 2 as h is halved, in θ_0, a penalty and T."""
    estimator, found = Adjoint(method="continuous", solver=solver), []
    for steps in (10, 20, 40):
        off = vector(regression("learned", steps, forward, 0.5).call(estimator).gradient) - fine
        found.append(float(off.norm() / fine.norm()))
    assert found[-1] < (5e-4 if solver == "heun" else 3e-2)
    for one, half in itertools.pairwise(found):
        assert least < one / half < most, found


def test_a_backward_step_too_many_would_be_seen():
    """Heun at h = 0.01, whose error one more or one fewer backward step would multiply."""
    estimator = Adjoint(method="continuous", solver="heun")
    instance = regression("learned", 100, "heun", 0.5)
    wanted = vector(instance.call(Adjoint()).gradient)
    found = vector(instance.call(estimator).gradient)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_the_continuous_adjoint_agrees_with_differences_of_its_objective():
    instance = quadratic(1.0, 0.5, 20, "heun")
    problem, inner, state, batches, valid = instance.arguments(1)
    estimator = Adjoint(method="continuous")
    found = mt.check_hypergradient(problem, inner, estimator, batches, valid, state)
    assert found.verdict == "agrees", found


def quadratic(curvature: float, time: float, steps: int, solver: str = "euler") -> ProblemInstance:
    """L = c θ²/2, whose flow is θ_0 exp(−c T), so that dθ_T/dθ_0 = exp(−c T)."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)

    def train_loss(model: nn.Module, meta: nn.Module, batch: None) -> Tensor:
        return curvature / 2 * model.weight.square().sum()

    def valid_loss(model: nn.Module, meta: nn.Module, batch: None) -> Tensor:
        return model.weight.sum()

    meta = Initialization(model)
    initial = Initialization.values
    problem = BilevelProblem(model, meta, train_loss, valid_loss, initial=initial)
    return ProblemInstance(problem, GradientFlow(time, steps, solver), [None], None)


@pytest.mark.parametrize(
    ("method", "forward", "factor"),
    [
        ("discrete", "euler", 1 - 0.1),
        ("discrete", "heun", 1 - 0.1 + 0.005),
        ("continuous", "euler", 1 - 0.1 + 0.005),
    ],
)
def test_the_derivative_of_a_quadratic_is_known(method, forward, factor):
    result = quadratic(1.0, 2.0, 20, forward).call(Adjoint(method=method))
    assert float(vector(result.gradient)) == pytest.approx(factor**20, rel=1e-13)
    if method == "continuous":
        assert result.details["stiffness"] == pytest.approx(0.1, rel=1e-12)


def test_stiff_flows_are_told_with_the_remedy():
    """h c = 2.5: explicit steps grow where the flow decays."""
    stiff = quadratic(250.0, 1.0, 100)
    told = r"too stiff for 100 steps of euler: h ‖H p‖ is 2.5 ‖p‖.*steps=\) more than 100"
    with pytest.raises(StiffnessError, match=told):
        stiff.call(Adjoint(method="continuous"))
    # What was taken has a derivative, though it is far from the flow's.
    result = stiff.call(Adjoint())
    assert float(vector(result.gradient)) == pytest.approx(1.5**100, rel=1e-10)
    far = quadratic(1e9, 1.0, 100)
    told = "gradient flow is not finite at its end .*'weight'.* 100 steps"
    with pytest.raises(NonFiniteError, match=told):
        far.call(Adjoint())


@pytest.mark.parametrize("method", ["discrete", "continuous"])
def test_the_states_are_stored_and_no_graph(monkeypatch, method):
    """K + 1 times θ, none of them with a graph, and the graph of one step at a time."""
    flows: list[stored_flow.StoredFlow] = []
    graphs: weakref.WeakSet[stored_flow._StepGraph] = weakref.WeakSet()
    most: list[int] = []

    class Seen(stored_flow.StoredFlow):
        def __init__(self, *args):
            super().__init__(*args)
            flows.append(self)

    class Counted(stored_flow._StepGraph):
        def __init__(self, *args):
            most.append(len(graphs))
            super().__init__(*args)
            graphs.add(self)

    monkeypatch.setattr(adjoint, "StoredFlow", Seen)
    monkeypatch.setattr(stored_flow, "_StepGraph", Counted)
    instance = regression(2.0, 30)
    instance.call(Adjoint(method=method))
    (flow,) = flows
    tensors = [tensor for point in flow.points for tensor in point.values()]
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in tensors)
    size = sum(p.nbytes for p in instance.problem.parameters().values())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(storages.values()) == 31 * size
    # That of Heun's corrector is the next step's, after which nothing is left of its graph.
    assert max(most) == (0 if method == "discrete" else 1)


@pytest.mark.parametrize("inner", [SGD(0.1), "changed"])
def test_other_learners_are_refused(inner):
    class Changed(GradientFlow):
        def gradients(self, *args):
            return super().gradients(*args)

    instance = bank.ridge()
    instance.inner = Changed(0.1) if inner == "changed" else inner
    with pytest.raises(UnsupportedError, match=r"follows a gradient flow.*use GradientFlow\(time="):
        instance.call(Adjoint())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "exact"}, "method is 'exact'; accepted: discrete, continuous"),
        ({"solver": "rk4"}, "solver is 'rk4'; accepted: heun, euler, dopri5"),
        ({"tolerance": 0.0}, "tolerance is 0.0; accepted"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ConfigurationError, match=told):
        Adjoint(**options)


def test_torchdiffeq_solves_the_adjoint_to_its_tolerance(fine):
    """Its own error is far below that of the states, which Heun gives."""
    pytest.importorskip("torchdiffeq", reason="extra ode is not installed")
    estimator = Adjoint(method="continuous", solver="dopri5", tolerance=1e-8)
    result = quadratic(1.0, 2.0, 20).call(estimator)
    assert float(vector(result.gradient)) == pytest.approx(math.exp(-2.0), rel=1e-6)
    off = vector(regression("learned", 40, "heun", 0.5).call(estimator).gradient) - fine
    assert float(off.norm() / fine.norm()) < 5e-4


def test_torchdiffeq_that_gives_up_is_told():
    pytest.importorskip("torchdiffeq", reason="extra ode is not installed")
    stiff = quadratic(5e3, 1.0, 10)
    with pytest.raises(StiffnessError, match=r"too stiff for 10 steps of euler: dopri5 gives up"):
        stiff.call(Adjoint(method="continuous", solver="dopri5"))


def test_torchdiffeq_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingDependencyError, match=r"solver='dopri5'.*ode"):
        quadratic(1.0, 1.0, 5).call(Adjoint(method="continuous", solver="dopri5"))
