"""Products with the Jacobian of one inner step against differences of the step."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.hypergradients.linearization import (
    StepLinearization,
    carried_vector,
    learning_rates,
    relative_residual,
)
from tests import bank

F64 = torch.float64


@pytest.mark.parametrize("through", ["state", "parameters"])
@pytest.mark.parametrize("name", ["small_net", "inside_model", "tied", "learned_rates"])
def test_products_are_those_of_the_jacobian(name, through):
    case = bank.CASES[name]()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    batch = case.train_batches[1]
    step = StepLinearization(
        case.problem, case.inner, state, case.problem.meta_leaves(), batch, through
    )
    generator = torch.Generator().manual_seed(0)
    x, u = torch.randn(2, step.size, generator=generator, dtype=F64)

    def after(vector):
        tensors = [*step.unflatten(vector), *state.tensors()[len(step.names) :]]
        moved, _ = case.inner.step(
            case.problem,
            state.with_tensors(tensors),
            case.problem.meta_parameters(),
            batch,
        )
        return step.flatten(moved.tensors()[: len(step.names)])

    point = step.flatten(state.tensors()[: len(step.names)])
    size = 1e-6
    numeric = x - (after(point + size * x) - after(point - size * x)) / (2 * size)
    torch.testing.assert_close(step.product(x), numeric, rtol=1e-6, atol=1e-7)
    transposed = step.transposed_product(u)
    assert float(u.dot(step.product(x))) == pytest.approx(float(transposed.dot(x)), rel=1e-10)
    again, _ = step.pull_back(u)
    assert torch.equal(again, transposed)


def linearized(case, state, through="state", batch=None):
    batch = case.train_batches[0] if batch is None else batch
    meta = case.problem.meta_leaves()
    return StepLinearization(case.problem, case.inner, state, meta, batch, through)


def test_an_initial_state_leads_to_meta():
    case = bank.started()
    state = case.state
    with torch.no_grad():
        case.problem.meta.value.add_(0.5)
    step = linearized(case, state, batch=2.0)
    assert float(step.after.parameters["value"]) == pytest.approx(1.3 * 0.8, rel=1e-14)
    (through,) = step.meta_product(torch.tensor([3.0], dtype=F64))
    assert float(through) == pytest.approx(3 * 0.8, rel=1e-14)
    # A later state is a point of its own: Φ = θ − lr b λ.
    later = linearized(case, step.after, batch=2.0)
    (through,) = later.meta_product(torch.tensor([3.0], dtype=F64))
    assert float(through) == pytest.approx(-3 * 0.2, rel=1e-14)
    assert float(later.transposed_product(torch.tensor([3.0], dtype=F64))) == 0.0


@pytest.mark.parametrize("through", ["state", "parameters"])
@pytest.mark.parametrize("name", ["small_net", "learned_rates", "inside_model"])
def test_products_with_meta_are_differences(name, through):
    case = bank.CASES[name]()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    batch = case.train_batches[1]
    step = linearized(case, state, through, batch)
    generator = torch.Generator().manual_seed(4)
    u = torch.randn(step.size, generator=generator, dtype=F64)
    found = step.meta_product(u)
    image, also = step.pull_back(u)
    assert torch.equal(image, step.transposed_product(u)) and step.transposed_products == 2
    radius = 1e-6
    live = {n: t.detach() for n, t in case.problem.meta_parameters().items()}
    for (key, value), one, two in zip(live.items(), found, also, strict=True):
        along = torch.randn(value.shape, generator=generator, dtype=F64)
        sides = []
        for sign in (1, -1):
            moved = live | {key: value + sign * radius * along}
            after, _ = case.inner.step(case.problem, state, moved, batch)
            sides.append(step.flatten(after.tensors()[: len(step.names)]))
        expected = float(u @ (sides[0] - sides[1])) / (2 * radius)
        for part in (one, two):
            assert float((part * along).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_the_state_after_is_that_of_the_step():
    case = bank.small_net()
    state = case.state
    step = linearized(case, state)
    after, _ = case.inner.step(
        case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
    )
    assert (step.after.step, step.after.key) == (after.step, after.key)
    for one, other in zip(step.after.tensors(), after.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
        assert not one.requires_grad
    for key, buffer in step.after.buffers.items():
        torch.testing.assert_close(buffer, after.buffers[key])


def test_vectors_and_tensors():
    case = bank.inside_model()
    step = linearized(case, case.state)
    parts = [torch.full_like(t, i + 1.0) for i, t in enumerate(case.state.tensors())]
    vector = step.flatten(parts)
    assert vector.shape == (step.size,) and vector.dtype == F64
    for one, other in zip(step.unflatten(vector), parts, strict=True):
        assert torch.equal(one, other)
    # What is missing is zero, also at the end.
    short = step.unflatten(step.flatten([None, parts[1]]))
    assert torch.equal(short[1], parts[1])
    assert not any(bool(t.any()) for place, t in enumerate(short) if place != 1)
    assert len(step.names) == len(parts) and "velocity of first.weight" in step.names
    vector[-1] = torch.nan
    with pytest.raises(NonFiniteError, match=step.names[-1]):
        step.check("a vector", vector)


def test_learning_rates_are_the_factors_of_the_gradient():
    case = bank.inside_model()
    rates = learning_rates(case.problem, case.inner, case.state)
    # A first step moves by lr times the gradient, with a rate for each group.
    assert {n: float(r.unique()) for n, r in rates.items()} == {
        "temperature": 0.05,
        "first.weight": 0.3,
        "first.bias": 0.3,
        "last.weight": 0.05,
    }
    assert all(r.shape == case.state.parameters[n].shape for n, r in rates.items())


def test_carried_vectors_and_residuals():
    vector = torch.tensor([3.0, 4.0], dtype=F64)
    carried = carried_vector("Implicit", vector, torch.zeros(2))
    assert carried.dtype == torch.float32 and carried.tolist() == [3.0, 4.0]
    assert carried_vector("Implicit", None, vector) is None
    with pytest.raises(ConfigurationError, match="make a new Implicit"):
        carried_vector("Implicit", vector, torch.zeros(3))
    assert relative_residual(vector, 2 * vector) == pytest.approx(0.5)
    assert relative_residual(vector, torch.zeros(2)) == 0.0
