"""Complex parameters against the same problem in real and imaginary parts."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import (
    GMRES,
    SAMA,
    SOBA,
    ConjugateGradient,
    EvoGrad,
    FiniteDifference,
    FirstOrder,
    FixedPoint,
    ForwardGradient,
    ForwardMode,
    Implicit,
    NormalEquationCG,
    OneStep,
    Reptile,
    Unrolled,
)
from metatoolkit.hypergradients.linearization import StepLinearization
from metatoolkit.hypergradients.products import as_real, refuse_complex
from metatoolkit.testing import bank

SIZE = 3


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 2, generator=generator, dtype=torch.float64)


def as_complex(tensor):
    return tensor if tensor.is_complex() else torch.view_as_complex(tensor)


def value(parts, is_complex):
    module = bank.Value(0.0)
    module.value = torch.nn.Parameter(as_complex(parts.clone()) if is_complex else parts.clone())
    return module


def least_squares(is_complex, inner, initial=False, complex_meta=None):
    """|Aθ − y|² + e^λ |θ|² below |Bθ − w|²; θ in the loss is complex whatever the parameter is."""

    def error(theta, batch):
        inputs, targets = (torch.view_as_complex(part) for part in batch)
        return (inputs @ theta - targets).abs().square().mean()

    def train_loss(model, meta, batch):
        theta = as_complex(model.value)
        if complex_meta is not None:
            return error(theta, batch) + (theta * as_complex(meta.value).sin()).abs().square().sum()
        return error(theta, batch) + (meta.value.exp() @ theta.abs().square()).sum()

    def valid_loss(model, meta, batch):
        return error(as_complex(model.value), batch)

    if complex_meta is None:
        meta = value(drawn(SIZE, seed=4).T - 1, False)
    else:
        meta = value(drawn(SIZE, seed=4), complex_meta)
    options = {}
    if initial:
        meta = value(drawn(SIZE, seed=5), False)
        options = {"initial": lambda m: {"value": as_complex(m.value) if is_complex else m.value}}

        def train_loss(model, meta, batch):
            return error(as_complex(model.value), batch)

    problem = mt.BilevelProblem(
        value(drawn(SIZE, seed=1), is_complex), meta, train_loss, valid_loss, **options
    )
    batches = [(drawn(5, SIZE, seed=s), drawn(5, seed=s + 10)) for s in (6, 7, 8)]
    return bank.ProblemInstance(problem, inner, batches[:2], batches[2])


def same(estimators, **options):
    """Check that a call on the complex problem gives what it gives on the one in real parts."""
    inner = options.pop("inner", mt.inner.SGD(lr=0.05, momentum=0.5))
    found, expected, objectives = [], [], []
    for results, is_complex in ((found, True), (expected, False)):
        case = least_squares(is_complex, inner, **options)
        state, _ = case.inner.step(
            case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
        )
        start = case.state if options.get("initial") else state
        estimator = estimators()
        for _ in range(2):
            results.append(case.call(estimator, start))
        there = {"value": case.problem.meta.value.detach() + 0.1}
        batches = case.batches(estimator.horizon)
        arguments = (case.problem, case.inner, start, batches, case.valid_batch, there)
        objectives.append(estimator.objective(*arguments))
    for one, other in zip(found, expected, strict=True):
        gradient, right = one.gradient["value"], other.gradient["value"]
        torch.testing.assert_close(as_real(gradient), right, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(one.valid_loss, other.valid_loss, rtol=1e-12, atol=0)
        pairs = zip(one.state.tensors(), other.state.tensors(), strict=True)
        for tensor, parts in pairs:
            torch.testing.assert_close(as_real(tensor), parts, rtol=1e-12, atol=1e-14)
        if other.cost.residual is not None:
            assert one.cost.residual == pytest.approx(other.cost.residual, rel=1e-6, abs=1e-12)
        if "distance" in other.details:
            torch.testing.assert_close(one.details["distance"], other.details["distance"])
    assert bool(right.any())
    torch.testing.assert_close(*objectives, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda: Unrolled(3),
        lambda: Unrolled(3, checkpoint="tree", arity=2),
        lambda: ForwardMode(3),
        lambda: ForwardMode(2, chunk=1),
        lambda: ForwardGradient(3, samples=4),
        lambda: OneStep(),
        lambda: OneStep(lookahead=False),
        lambda: SOBA(0.3),
        lambda: SOBA(0.3, "parameters"),
        lambda: Implicit(GMRES(4, 0.0)),
        lambda: Implicit(NormalEquationCG(4, 0.0), through="parameters"),
        lambda: Implicit(FixedPoint(5), warm_start=True),
    ],
    ids=range(12),
)
def test_complex_parameters_are_pairs_of_real_ones(estimator):
    same(estimator)


@pytest.mark.parametrize(
    "estimator",
    [Implicit(ConjugateGradient(3)), OneStep(inverse="identity")],
    ids=["Implicit", "OneStep"],
)
def test_what_divides_by_learning_rates_refuses_complex_parameters(estimator):
    case = least_squares(True, mt.inner.SGD(lr=0.05))
    with pytest.raises(UnsupportedError, match="'value' is complex"):
        case.call(estimator)


@pytest.mark.parametrize("estimator", [FirstOrder, Reptile, Unrolled, ForwardMode])
def test_a_complex_initial_state(estimator):
    same(lambda: estimator(2), initial=True)


def test_complex_meta_parameters_of_unrolled():
    inner = mt.inner.SGD(lr=0.05, momentum=0.5)
    found, right = (
        least_squares(False, inner, complex_meta=kind).call(Unrolled(3)).gradient["value"]
        for kind in (True, False)
    )
    assert found.is_complex()
    torch.testing.assert_close(torch.view_as_real(found), right, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "estimator",
    [ForwardMode(2), OneStep(), SOBA(), Implicit(GMRES(2)), FirstOrder(2), SAMA(), EvoGrad()],
    ids=lambda e: type(e).__name__,
)
def test_others_refuse_complex_meta_parameters(estimator):
    case = least_squares(False, mt.inner.SGD(lr=0.05), complex_meta=True)
    name = type(estimator).__name__
    with pytest.raises(
        UnsupportedError, match=rf"the meta-parameter 'value' is complex, and {name} takes real"
    ):
        case.call(estimator)


@pytest.mark.parametrize(
    "estimator", [FiniteDifference(), SAMA(), EvoGrad()], ids=["FD", "SAMA", "EvoGrad"]
)
def test_differences_refuse_complex_parameters(estimator):
    case = least_squares(True, mt.inner.SGD(lr=0.05))
    with pytest.raises(UnsupportedError, match="the inner parameter 'value' is complex"):
        case.call(estimator)


def test_variables_of_a_step_are_real_vectors():
    case = least_squares(True, mt.inner.SGD(lr=0.05, momentum=0.5))
    step = StepLinearization(
        case.problem, case.inner, case.state, case.problem.meta_leaves(), case.train_batches[0]
    )
    assert step.size == 4 * SIZE and step.dtype == torch.float64
    parts = drawn(2 * SIZE, seed=3)
    vector = parts.flatten()
    tensors = step.unflatten(vector)
    torch.testing.assert_close(torch.cat(tensors), torch.view_as_complex(parts), rtol=0, atol=0)
    assert torch.equal(step.flatten(tensors), vector)
    # Conjugate views read as what they stand for.
    conjugate = step.flatten([tensors[0].conj()]).view(-1, 2)[:SIZE]
    assert torch.equal(conjugate, parts[:SIZE] * torch.tensor([1.0, -1.0]))


def test_real_tensors_stay_as_they_are():
    tensor = torch.ones(3)
    assert as_real(tensor) is tensor
    refuse_complex("inner parameter", {"value": tensor}, "Penalty")
