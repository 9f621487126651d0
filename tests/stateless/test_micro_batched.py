"""A large batch that is taken in pieces: the numbers of the whole, in the memory of a piece."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.errors import ConfigurationError, DataError, ShapeError, UnsupportedError
from metatoolkit.hypergradients import (
    SAMA,
    ConjugateGradient,
    FirstOrder,
    ForwardMode,
    Implicit,
    NormalEquationCG,
    OneStep,
    Penalty,
    Reptile,
    Unrolled,
)
from metatoolkit.stateless.micro_batches import Pieces
from tests.training.across_tasks import largest_difference

EXAMPLES = 7
SGD = mt.inner.SGD(lr=0.1, momentum=0.5)


class Meta(nn.Module):
    """λ at the input, in the loss, as a learning rate and, apart from these, unused."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.9, 1.2, 0.7]))
        self.decay = nn.Parameter(torch.tensor(-2.0))
        self.rate = nn.Parameter(torch.tensor(0.1))
        self.weigh = nn.Linear(1, 1)
        self.idle = nn.Parameter(torch.tensor(1.0))
        self.double()


def train_loss(model, meta, batch):
    inputs, targets = batch["inputs"], batch["targets"]
    errors = (model(inputs * meta.scale) - targets).square()
    weights = meta.weigh(errors.detach()).sigmoid()
    decay = sum(parameter.square().sum() for parameter in model.parameters())
    return (weights * errors).mean() + meta.decay.exp() * decay


def valid_loss(model, meta, batch):
    return (model(batch["inputs"]) - batch["targets"]).square().mean()


def problem(micro_batch, *middle, train=train_loss, valid=valid_loss, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, 1)).double()
    return mt.BilevelProblem(model, Meta(), train, valid, micro_batch=micro_batch, **options)


def batch(count=EXAMPLES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return {"inputs": draw[:, :3], "targets": draw[:, 3:], "none": None}


def hypergradient(given, estimator, inner=SGD):
    batches = [batch(seed=number) for number in range(estimator.horizon)]
    return estimator(given, inner, inner.init(given), batches, batch(EXAMPLES + 4, seed=9))


def learned_rate():
    return mt.inner.SGD(lr=lambda meta, step: meta.rate)


ESTIMATORS = {
    "Unrolled": (lambda: Unrolled(3), SGD),
    "Unrolled, graphs kept": (lambda: Unrolled(3, keep_graphs=3), SGD),
    "Unrolled, mixed mode": (lambda: Unrolled(2, product="forward_over_reverse"), SGD),
    "Unrolled, learned rate": (lambda: Unrolled(2), learned_rate()),
    "OneStep": (lambda: OneStep(), mt.inner.Adam(lr=0.1)),
    "ForwardMode": (lambda: ForwardMode(2), SGD),
    "ForwardMode, chunk": (lambda: ForwardMode(2, chunk=1), SGD),
    "Implicit": (
        lambda: Implicit(ConjugateGradient(4, damping=1.0), steps=2, through="parameters"),
        SGD,
    ),
    "Implicit, both products": (lambda: Implicit(NormalEquationCG(4), steps=2), SGD),
    "Penalty": (lambda: Penalty(3.0, steps=2), SGD),
}


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 3) for name in ESTIMATORS), ("Unrolled", 1), ("Unrolled", EXAMPLES)]
)
def test_the_hypergradient_is_that_of_whole_batches(name, size):
    make, inner = ESTIMATORS[name]
    expected = hypergradient(problem(None), make(), inner)
    found = hypergradient(problem(size), make(), inner)
    assert largest_difference(found.gradient, expected.gradient) < 1e-12
    assert abs(float(found.valid_loss - expected.valid_loss)) < 1e-12
    assert largest_difference(found.state.parameters, expected.state.parameters) < 1e-12
    assert found.cost == expected.cost or name.startswith("Implicit")


@pytest.mark.parametrize("estimator", [Reptile(2), FirstOrder(2), Unrolled(2)])
def test_an_initial_state_is_learned_likewise_over_tasks(estimator):
    found = {}
    for size in (None, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        meta = mt.metaparameters.Initialization(model)
        start = type(meta).values
        given = mt.BilevelProblem(
            model, meta, valid_loss, valid_loss, initial=start, micro_batch=size
        )
        pairs = [(batch(5, n), batch(3, n + 5)) for n in range(3)]
        whole = tuple(
            {k: torch.stack([pair[part][k] for pair in pairs]) for k in ("inputs", "targets")}
            for part in range(2)
        )
        for way in ("loop", "vmap", mt.TaskBatching("vmap", chunk=2)):
            found[size, way] = mt.over_tasks(given, SGD, estimator, whole, way)
    expected, *others = found.values()
    for other in others:
        assert largest_difference(other.gradient, expected.gradient) < 1e-12
        losses = other.details["task_losses"], expected.details["task_losses"]
        assert torch.allclose(*losses, rtol=0, atol=1e-12)


def test_a_derivative_of_any_order_is_right():
    x = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    y = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pieces = Pieces(lambda k, at: (at[0] @ rows[k]).sin() * at[1].exp(), [0.5, 0.3, 0.2], len)
    pieces._watch = lambda loss, tensors: None

    def function(x, y):
        # The second tensor is computed from the first one, which must not be counted twice.
        return pieces.mean([x, y * x[0]])

    torch.autograd.gradcheck(function, (x, y), check_undefined_grad=False)
    torch.autograd.gradgradcheck(function, (x, y), check_undefined_grad=False)

    def slope(x, y):
        return torch.autograd.grad(function(x, y), (x, y), create_graph=True)

    torch.autograd.gradgradcheck(slope, (x, y), check_undefined_grad=False)


def test_dropout_draws_for_each_piece_and_the_hypergradient_is_exact():
    def scaled(model, meta, batch):
        return valid_loss(model, meta, batch | {"inputs": batch["inputs"] * meta.scale})

    given = problem(3, nn.Dropout(0.5), train=scaled)
    one, other = (hypergradient(given, Unrolled(2)) for _ in range(2))
    assert largest_difference(one.gradient, other.gradient) == 0
    batches, inner = [batch(seed=0), batch(seed=1)], mt.inner.SGD(lr=0.1)
    found = mt.check_hypergradient(given, inner, Unrolled(2), batches, batch(seed=2))
    assert found.relative_error < 1e-6
    # Equal examples in two pieces do not have the same mask.
    rows = torch.ones(6, 3, dtype=torch.float64)
    losses = []

    def noted(model, meta, batch):
        losses.append(model(batch[0]).detach())
        return losses[-1].mean() + sum(p.sum() for p in model.parameters())

    given = problem(3, nn.Dropout(0.5), train=noted)
    SGD.step(given, SGD.init(given), given.meta_parameters(), (rows,))
    assert not torch.equal(losses[-2], losses[-1])


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, inputs):
        for _ in range(6):
            inputs = self.first(inputs).tanh()
        return self.last(inputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unrolled(2),
        lambda: FirstOrder(2),
        lambda: OneStep(),
        lambda: Implicit(ConjugateGradient(2, damping=10.0), steps=1),
    ],
)
def test_peak_memory_is_that_of_a_piece(make):
    rows = torch.randn(512, 17, generator=torch.Generator().manual_seed(0))
    whole = {"inputs": rows[:, :16], "targets": rows[:, 16:]}
    peaks = {}
    for size in (None, 32):
        torch.manual_seed(0)
        meta = nn.Module()
        meta.scale = nn.Parameter(torch.ones(16))

        def scaled(model, meta, batch):
            return valid_loss(model, meta, batch | {"inputs": batch["inputs"] * meta.scale})

        given = mt.BilevelProblem(Wide(), meta, scaled, scaled, micro_batch=size)
        estimator, inner = make(), mt.inner.SGD(lr=0.1)
        batches, state = [whole] * estimator.horizon, inner.init(given)
        if isinstance(estimator, FirstOrder):
            given.train_loss = valid_loss
        estimator(given, inner, state, batches, whole)
        call = lambda: estimator(given, inner, state, batches, whole)  # noqa: B023, E731
        peaks[size] = peak_memory(call)
    assert peaks[32] < peaks[None] / 5


def summed(model, meta, batch):
    return (model(batch["inputs"]) - batch["targets"]).square().sum()


def coupled(model, meta, batch):
    outputs = model(batch["inputs"])
    return (outputs - outputs.mean()).square().mean()


def noisy(model, meta, batch):
    return valid_loss(model, meta, batch) + torch.randn(()).double()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return inputs


REFUSED = {
    "a sum": ({"train": summed}, (), "train_loss is no mean over the examples"),
    "coupled": ({"train": coupled}, (), "train_loss is no mean over the examples"),
    "an outer sum": ({"valid": summed}, (), "valid_loss is no mean over the examples"),
    "noise": ({"train": noisy}, (), "draws random numbers in evaluation mode"),
    "BatchNorm": ({}, (nn.BatchNorm1d(5),), "'1' is a BatchNorm1d that normalizes"),
    "a buffer": ({}, (Counting(),), "changes the buffer 'model.1.calls'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mean_over_examples_is_refused(name):
    losses, layers, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        hypergradient(problem(2, *layers, **losses), Unrolled(1))


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return 2 * inputs.detach() * gradient.detach()


def test_a_function_that_cuts_second_derivatives_is_found_in_a_piece():
    def cut(model, meta, batch):
        return Cut.apply(model(batch["inputs"] * meta.scale) - batch["targets"]).mean()

    with pytest.raises(UnsupportedError, match="the function Cut has a backward pass without"):
        hypergradient(problem(3, train=cut), Unrolled(2))


def test_a_name_leaves_the_other_loss_whole_and_evaluation_mode_frees_batch_norm():
    sizes = {"train_loss": 2}
    expected = hypergradient(problem(None, valid=summed), Unrolled(2))
    found = hypergradient(problem(sizes, valid=summed), Unrolled(2))
    assert largest_difference(found.gradient, expected.gradient) < 1e-12
    given = problem({"valid_loss": 2}, nn.BatchNorm1d(5).double(), valid_mode="eval")
    expected = hypergradient(problem(None, nn.BatchNorm1d(5), valid_mode="eval"), Unrolled(2))
    assert largest_difference(hypergradient(given, Unrolled(2)).gradient, expected.gradient) < 1e-12


def test_batches_that_cannot_be_cut_are_refused():
    given = problem(2)
    state, meta = SGD.init(given), given.meta_parameters()
    with pytest.raises(ShapeError, match="the same leading dimension"):
        SGD.step(given, state, meta, batch() | {"weights": torch.ones(3)})
    with pytest.raises(DataError, match="the batch holds a str"):
        SGD.step(given, state, meta, batch() | {"names": ["a"] * EXAMPLES})
    with pytest.raises(UnsupportedError, match="holds what one pass"):
        hypergradient(given, SAMA())


@pytest.mark.parametrize("size", [0, 1.5, True, {"test_loss": 3}, {"train_loss": None}])
def test_sizes_that_are_none(size):
    with pytest.raises(ConfigurationError, match="micro_batch is"):
        problem(size)
