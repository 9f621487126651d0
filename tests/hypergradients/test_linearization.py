"""Products with the Jacobian of one inner step against differences of the step."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, NonFiniteError, UnsupportedError
from metatoolkit.hypergradients.adjoint_systems import carried_vector
from metatoolkit.hypergradients.arguments import check_through
from metatoolkit.hypergradients.learning_rates import learning_rates
from metatoolkit.hypergradients.linearization import StepLinearization
from metatoolkit.hypergradients.solution_share import relative_residual
from metatoolkit.testing import bank
from tests.hypergradients import engine_calls

F64 = torch.float64


@pytest.mark.parametrize("through", ["state", "parameters"])
@pytest.mark.parametrize("name", ["small_net", "inside_model", "tied", "learned_rates"])
def test_products_are_those_of_the_jacobian(name, through):
    case = bank.PROBLEMS[name]()
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
    torch.testing.assert_close(again, transposed, rtol=1e-12, atol=1e-15)


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
    case = bank.PROBLEMS[name]()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    batch = case.train_batches[1]
    step = linearized(case, state, through, batch)
    generator = torch.Generator().manual_seed(4)
    u = torch.randn(step.size, generator=generator, dtype=F64)
    found = step.meta_product(u)
    image, also = step.pull_back(u)
    torch.testing.assert_close(image, step.transposed_product(u), rtol=1e-12, atol=1e-15)
    assert step.transposed_products == 2
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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rates_of_a_linearized_step(decay):
    grouped = bank.inside_model()
    batch = grouped.train_batches[0]
    args = (grouped.problem, grouped.inner, grouped.state, grouped.problem.meta_leaves(), batch)
    step = StepLinearization(*args, "parameters")
    told = learning_rates(grouped.problem, grouped.inner, grouped.state)
    torch.testing.assert_close(
        step.learning_rates(), step.flatten(list(told.values())), rtol=1e-14, atol=0
    )
    case = bank.ridge()
    for sign in (1.0, -1.0):
        inner = mt.inner.SGD(lr=0.05, weight_decay=decay, maximize=sign < 0)
        args = (case.problem, inner, inner.init(case.problem), case.problem.meta_leaves())
        rate = StepLinearization(*args, case.train_batches[0], "parameters").learning_rates()
        assert rate.dim() == 0 and float(rate) == sign * 0.05
    inner = mt.inner.SGD(lr=lambda meta, step: torch.tensor(0.0, dtype=F64))
    args = (case.problem, inner, inner.init(case.problem), case.problem.meta_leaves())
    step = StepLinearization(*args, case.train_batches[0], "parameters")
    with pytest.raises(UnsupportedError, match="learning rate of 'value' is not above 0"):
        step.learning_rates()


@pytest.mark.parametrize(
    "inner",
    [
        mt.inner.SGD(lr=0.05),
        mt.inner.SGD(lr=0.05, weight_decay=0.1),
        mt.inner.SGD(lr=0.05, momentum=0.9),
        mt.inner.SGD(lr=0.05, maximize=True),
    ],
    ids=["plain", "decay", "momentum", "ascent"],
)
@pytest.mark.parametrize("kind", ["none", "rates", "numbers"])
def test_a_divided_vector_is_that_vector(inner, kind):
    case = bank.PROBLEMS["small_net"]()
    meta = case.problem.meta_leaves()
    state = inner.init(case.problem)
    arguments = (case.problem, inner, state, meta, case.train_batches[0], "parameters")
    step, plain = StepLinearization(*arguments), StepLinearization(*arguments)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(step.size, dtype=F64, generator=generator)
    rates = step.flatten(list(learning_rates(case.problem, inner, state).values()))
    numbers = torch.rand(step.size, dtype=F64, generator=generator) + 0.5
    divisor = {"none": None, "rates": rates, "numbers": numbers}[kind]
    expected, _ = plain.pull_back(u if divisor is None else u / divisor)
    for _ in range(2):
        found = step.transposed_product(u, divisor)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    # Another divisor is another product.
    torch.testing.assert_close(step.transposed_product(u, numbers), plain.pull_back(u / numbers)[0])
    if kind == "rates":
        assert float(found.norm()) > 0.01


def test_carried_vectors_and_residuals():
    vector = torch.tensor([3.0, 4.0], dtype=F64)
    carried = carried_vector("Implicit", vector, torch.zeros(2))
    assert carried.dtype == torch.float32 and carried.tolist() == [3.0, 4.0]
    assert carried_vector("Implicit", None, vector) is None
    with pytest.raises(ConfigurationError, match="make a new Implicit"):
        carried_vector("Implicit", vector, torch.zeros(3))
    assert relative_residual(vector, 2 * vector) == pytest.approx(0.5)
    assert relative_residual(vector, torch.zeros(2)) == 0.0


def test_products_are_counted_and_taken_again():
    case = bank.ridge()
    step = linearized(case, case.state)
    assert (step.transposed_products, step.products) == (0, 0)
    x = torch.linspace(-1, 1, step.size, dtype=F64)
    images = [step.transposed_product(x), step.pull_back(x)[0], step.transposed_product(x)]
    images.append(step.pull_back(x)[0])
    assert step.transposed_products == 4 and step.products == 0
    assert all(torch.equal(image, images[0]) and not image.requires_grad for image in images)
    one, other = step.product(x), step.product(x)
    assert step.products == 2 and step.transposed_products == 4
    assert torch.equal(one, other) and not one.requires_grad
    assert all(g is None or not g.requires_grad for g in step.meta_product(x))


class Mixed(torch.nn.Module):
    def __init__(self, *dtypes):
        super().__init__()
        self.parts = torch.nn.ModuleList([bank.Value([1.0, 2.0], dtype) for dtype in dtypes])


@pytest.mark.parametrize(
    ("dtypes", "vector", "least"),
    [
        ((torch.float64, torch.float32), F64, torch.float32),
        ((torch.float32, torch.bfloat16), torch.float32, torch.bfloat16),
        ((torch.bfloat16, torch.bfloat16), torch.float32, torch.bfloat16),
        ((F64, F64), F64, F64),
    ],
)
def test_the_type_of_vectors_and_the_rounding_of_products(dtypes, vector, least):
    def loss(model, meta, batch):
        return sum((meta.value * part.value).square().sum().double() for part in model.parts)

    problem = mt.BilevelProblem(Mixed(*dtypes), bank.Value(2.0), loss, loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    step = linearized(case, case.state)
    assert step.dtype == vector and step.rounding == torch.finfo(least).eps
    whole = step.flatten([None, case.state.tensors()[1]])
    assert whole.dtype == vector and whole.tolist() == [0.0, 0.0, 1.0, 2.0]
    assert [part.dtype for part in step.unflatten(whole)] == list(dtypes)


@pytest.mark.parametrize("through", ["state", "parameters"])
def test_what_is_not_finite_is_named(through):
    case = bank.ridge()
    inputs, targets = case.train_batches[0]
    with pytest.raises(NonFiniteError, match=r"^the training loss is not finite"):
        linearized(case, case.state, through, (inputs * torch.nan, targets))
    # The root has an infinite slope at zero, where its value is finite.
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value(1.0),
        lambda model, meta, batch: meta.value * model.value.sqrt(),
        case.problem.valid_loss,
    )
    bad = bank.ProblemInstance(problem, case.inner, [None], None)
    with pytest.raises(NonFiniteError, match=r"^'value' after an inner step is not finite"):
        linearized(bad, bad.state, through)


def test_a_state_after_another_map_holds_no_graph():
    case = bank.started()
    step = linearized(case, case.state, batch=2.0)
    assert not any(tensor.requires_grad for tensor in step.after.tensors())


def test_what_the_batch_does_not_reach_has_no_right_hand_side():
    case = bank.inside_model()
    step = linearized(case, case.state)
    adjoint = [torch.ones_like(tensor) for tensor in case.state.tensors()]
    assert bool((step.right_hand_side(adjoint) == 1).all())
    step._reached = set(case.state.parameters) - {"temperature"}
    parts = dict(zip(step.names, step.unflatten(step.right_hand_side(adjoint)), strict=True))
    assert float(parts.pop("temperature")) == 0.0
    assert all(bool((part == 1).all()) for part in parts.values())


def test_learning_rates_of_every_sign():
    case = bank.ridge()
    for inner, expected in (
        (mt.inner.SGD(lr=1.0), 1.0),
        (mt.inner.SGD(lr=1.0, maximize=True), -1.0),
        (mt.inner.SGD(lr=0.25, maximize=True), -0.25),
    ):
        (rates,) = learning_rates(case.problem, inner, case.state).values()
        assert rates.tolist() == [expected] * 5 and not rates.requires_grad
    inner = mt.inner.SGD(lr=lambda meta, step: meta.value.exp())
    (rates,) = learning_rates(case.problem, inner, case.state).values()
    torch.testing.assert_close(rates, case.problem.meta.value.detach().exp(), rtol=1e-14, atol=0)
    assert not rates.requires_grad
    for lr in (0.0, torch.inf, torch.nan):
        inner = mt.inner.SGD(lr=lambda meta, step, lr=lr: torch.tensor(lr, dtype=F64))
        with pytest.raises(UnsupportedError, match="learning rate of 'value' is not above 0"):
            learning_rates(case.problem, inner, case.state)
    with pytest.raises(UnsupportedError, match=r"step of Adam is no gradient step"):
        learning_rates(case.problem, mt.inner.Adam(lr=0.1), case.state)


def test_small_residuals_are_relative_too():
    vector = torch.tensor([3e-3, 4e-3], dtype=F64)
    assert relative_residual(vector, 2 * vector) == pytest.approx(0.5)
    assert relative_residual(0 * vector, 0 * vector) == 0.0
    for through in ("state", "parameters"):
        assert check_through(through) is None
    for through in ("slots", "STATE", "", None):
        with pytest.raises(ConfigurationError, match=r"through is .*'state', 'parameters'"):
            check_through(through)


def test_a_product_without_meta_takes_no_derivative_in_it(monkeypatch):
    case = bank.PROBLEMS["inside_model"]()
    step = linearized(case, case.state)
    vector, asked = torch.ones(step.size, dtype=F64), []
    engine_calls.watch(monkeypatch, lambda inputs, create_graph: asked.extend(inputs))
    step.transposed_product(vector)
    alone = len(asked)
    asked.clear()
    step.pull_back(vector)
    # Once through the step and once through the gradient that it takes.
    assert len(asked) == alone + 2 * len(case.problem.meta_leaves()) > alone > 0
