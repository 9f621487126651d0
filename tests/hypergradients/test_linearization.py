"""Products with the Jacobian of one inner step against differences of the step."""

import pytest
import torch

from metatoolkit.hypergradients.linearization import StepLinearization
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
