"""Unrolled against closed forms, one graph of all steps, and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics import check_hypergradient
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.hypergradients import Unrolled
from metatoolkit.inner import SGD, Adam, AdamW, RMSprop
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.testing import bank

F64 = torch.float64
PRODUCTS = ["reverse_over_reverse", "forward_over_reverse"]
products = pytest.mark.parametrize("product", PRODUCTS)
LEARNERS = {
    "SGD": lambda: SGD(lr=0.1),
    "momentum": lambda: SGD(lr=0.1, momentum=0.8, weight_decay=0.01),
    "Nesterov": lambda: SGD(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01),
    "Adam": lambda: Adam(lr=0.05, eps=1e-3, weight_decay=0.01),
    "AdamW": lambda: AdamW(lr=0.05, betas=(0.8, 0.9), eps=1e-3),
    "RMSprop": lambda: RMSprop(lr=0.02, eps=1e-3),
    "RMSprop, centered": lambda: RMSprop(lr=0.02, eps=1e-2, centered=True, momentum=0.5),
}
learners = pytest.mark.parametrize("learner", LEARNERS)


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def error(one, other):
    return float((one - other).norm() / other.norm())


@products
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("learner", ["SGD", "momentum", "Nesterov"])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_quadratic_closed_form(steps, learner, condition, product):
    inner = LEARNERS[learner]()
    inner.hyperparameters["lr"] = 0.9 / condition
    case = bank.quadratic(condition, inner=inner)
    with torch.no_grad():
        case.problem.model.value += torch.linspace(-1, 2, 12, dtype=F64)
    found = case.call(Unrolled(steps, product=product)).gradient["value"]
    assert error(found, bank.quadratic_hypergradient_after(case, steps)) < 1e-10


@products
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_learned_schedule_closed_form(steps, product):
    case = bank.schedule(steps)
    found = case.call(Unrolled(steps, product=product)).gradient["value"]
    assert error(found, bank.schedule_hypergradient(case)) < 1e-12


@pytest.mark.parametrize(
    ("name", "rate", "steps"),
    [("quadratic", 0.1, 300), ("ridge", 0.05, 500), ("logistic", 2.0, 400)],
)
def test_tends_to_the_derivative_at_the_optimum(name, rate, steps):
    case = getattr(bank, name)()
    case.inner = SGD(lr=rate, momentum=0.5)
    expected = getattr(bank, f"{name}_hypergradient")(case)
    # The gap is what the slowest direction has not forgotten.
    errors = [
        error(case.call(Unrolled(count, checkpoint="sqrt")).gradient["value"], expected)
        for count in (3, steps)
    ]
    assert errors[0] > 1e-3 and errors[1] < 1e-9


def one_graph(case, steps, lr, momentum, decay, nesterov):
    """The hypergradient by one graph through all steps of SGD, written out."""
    problem, state = case.problem, case.state
    meta = {
        name: p.detach().clone().requires_grad_() for name, p in problem.meta_parameters().items()
    }

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.meta = problem.model, problem.meta

        def forward(self, loss, batch):
            return loss(self.model, self.meta, batch)

    both = Both()
    buffers = {name: buffer.clone() for name, buffer in both.named_buffers()}

    def evaluate(loss, theta, batch, key):
        tensors = {f"model.{name}": p for name, p in theta.items()}
        tensors |= {f"meta.{name}": p for name, p in meta.items()} | buffers
        with seeded(key):
            return torch.func.functional_call(both, tensors, (loss, batch))

    theta = {name: p.detach().clone().requires_grad_() for name, p in state.parameters.items()}
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    for step, batch in enumerate(case.batches(steps)):
        loss = evaluate(problem.train_loss, theta, batch, fold_in(state.key, step))
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        after = {}
        for (name, p), gradient in zip(theta.items(), gradients, strict=True):
            gradient = gradient + decay * p
            velocity[name] = momentum * velocity[name] + gradient
            move = gradient + momentum * velocity[name] if nesterov else velocity[name]
            after[name] = p - lr * move
        theta = after
    buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    valid = evaluate(problem.valid_loss, theta, case.valid_batch, fold_in(state.key, steps, -1))
    found = torch.autograd.grad(valid, list(meta.values()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(meta.values(), found, strict=True)
        ]
    )


class Examples(nn.Module):
    """A weight for each example of all batches."""

    def __init__(self, count):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, count, dtype=F64))


def convolution(steps=10, examples=4):
    """A convolutional network with BatchNorm; λ is one weight for each training example."""

    def train_loss(model, meta, batch):
        inputs, targets, indices = batch
        losses = F.cross_entropy(model(inputs), targets, reduction="none")
        return (meta.logits[indices].sigmoid() * losses).mean()

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16, 3),
        ).double()
        batches = [
            (torch.randn(examples, 1, 11, 11, dtype=F64), torch.randint(3, (examples,)))
            for _ in range(steps + 1)
        ]
    train = [
        (*batch, torch.arange(examples) + index * examples)
        for index, batch in enumerate(batches[:-1])
    ]
    problem = mt.BilevelProblem(model, Examples(steps * examples), train_loss, valid_loss)
    return bank.ProblemInstance(problem, SGD(lr=0.1), train, batches[-1])


@products
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_equals_one_graph_of_all_steps(momentum, nesterov, product):
    case = convolution()
    case.inner = SGD(lr=0.1, momentum=momentum, weight_decay=0.01, nesterov=nesterov)
    found = flat(case.call(Unrolled(10, product=product)))
    assert error(found, one_graph(case, 10, 0.1, momentum, 0.01, nesterov)) < 1e-12


@pytest.mark.parametrize("name", ["ridge", "small_net", "inside_model", "tied"])
def test_equals_one_graph_on_the_bank(name):
    case = bank.PROBLEMS[name]()
    case.inner = SGD(lr=0.1, momentum=0.5)
    found = flat(case.call(Unrolled(4)))
    assert error(found, one_graph(case, 4, 0.1, 0.5, 0.0, False)) < 1e-12


@learners
def test_equals_finite_differences(learner):
    case = bank.small_net()
    check = check_hypergradient(
        case.problem, LEARNERS[learner](), Unrolled(3), case.batches(3), case.valid_batch
    )
    assert check.relative_error < 1e-6, check


@pytest.mark.parametrize(
    ("name", "learner"),
    [*(("small_net", learner) for learner in LEARNERS), ("inside_model", "Adam"), ("tied", "SGD")],
)
def test_every_way_gives_the_same(name, learner):
    case = bank.PROBLEMS[name]()
    case.inner = LEARNERS[learner]()
    steps = 7
    expected = case.call(Unrolled(steps))
    ways = [
        {"checkpoint": "sqrt"},
        *({"checkpoint": "tree", "arity": k} for k in (2, 3, 8)),
        *({"keep_graphs": m} for m in (3, 7, 100)),
        {"checkpoint": "tree", "arity": 2, "keep_graphs": 2},
    ]
    for way in ways:
        result = case.call(Unrolled(steps, **way))
        assert torch.equal(flat(result), flat(expected))
        assert torch.equal(result.valid_loss, expected.valid_loss)
    mixed = [
        flat(case.call(Unrolled(steps, product="forward_over_reverse", **way)))
        for way in [{}, *ways]
    ]
    assert error(mixed[0], flat(expected)) < 1e-12
    assert all(torch.equal(other, mixed[0]) for other in mixed)


@products
def test_learned_hyperparameters(product):
    case = bank.learned_rates()
    check = check_hypergradient(
        case.problem, case.inner, Unrolled(4, product=product), case.batches(4), case.valid_batch
    )
    assert check.relative_error < 1e-7, check


@products
@pytest.mark.parametrize("learner", ["Nesterov", "Adam"])
@pytest.mark.parametrize("name", ["initialized", "adapted"])
def test_meta_parameters_in_the_initial_state(name, learner, product):
    case = getattr(bank, name)()
    case.inner = LEARNERS[learner]()
    estimator = Unrolled(3, product=product, checkpoint="tree", arity=2)
    check = check_hypergradient(
        case.problem, case.inner, estimator, case.batches(3), case.valid_batch, coordinates=12
    )
    assert check.relative_error < 1e-6, check


@products
@pytest.mark.parametrize("window", [1, 2, 5])
def test_truncation_holds_earlier_steps_constant(window, product):
    case = bank.small_net()
    estimator = Unrolled(5, truncation=window, product=product)
    result = case.call(estimator)
    middle = case.state
    batches = case.batches(5)
    for batch in batches[: 5 - window]:
        middle, _ = case.inner.step(case.problem, middle, case.problem.meta_parameters(), batch)
    expected = Unrolled(window)(
        case.problem, case.inner, middle, batches[5 - window :], case.valid_batch
    )
    assert error(flat(result), flat(expected)) < 1e-12
    check = check_hypergradient(
        case.problem, case.inner, estimator, batches, case.valid_batch, coordinates=4
    )
    assert check.relative_error < 1e-7, check
    assert (estimator.traits.kind == "exact") == (window == 5)


class Plain:
    """A network of equal layers with λ in the loss, to count passes and bytes on."""

    def __init__(self, width=64, layers=6):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.meta = bank.Value(0.1, torch.float32)

        def train_loss(model, meta, batch):
            return meta.value.exp() * (model(batch) - batch).tanh().square().mean()

        def valid_loss(model, meta, batch):
            return (model(batch) - batch).tanh().square().mean()

        self.problem = mt.BilevelProblem(model, self.meta, train_loss, valid_loss)
        self.inner = SGD(lr=0.1, momentum=0.9)
        self.state = self.inner.init(self.problem)
        self.batch = torch.randn(16, width)
        self.state_bytes = sum(t.nbytes for t in self.state.tensors())

    def call(self, estimator):
        batches = [self.batch] * estimator.horizon
        return estimator(self.problem, self.inner, self.state, batches, self.batch)

    def forward(self):
        with torch.no_grad():
            self.problem.evaluate_valid(self.state.parameters, {}, {}, self.batch, 0)

    def passes(self, estimator):
        return count_flops(lambda: self.call(estimator)) / count_flops(self.forward)


@products
def test_passes(product):
    # The layers are equal; what lies below the first one needs no gradient.
    setup = Plain(layers=12)
    assert setup.passes(Unrolled(1, product=product)) < 10

    def passes(steps, **options):
        return setup.passes(Unrolled(steps, product=product, **{"keep_graphs": 1, **options}))

    assert 11.4 < passes(4) - passes(3) <= 12
    again = passes(16, checkpoint="sqrt") - passes(16)
    assert 0 < again / 16 < (3 if product == "reverse_over_reverse" else 4)
    saved = 5.7 if product == "reverse_over_reverse" else 0
    assert saved <= passes(4) - passes(4, keep_graphs=3) <= 1.06 * saved
    assert passes(4, keep_graphs="auto") == passes(4, keep_graphs=4 if saved else 1)


@pytest.mark.parametrize("checkpoint", ["every", "sqrt", "tree"])
@pytest.mark.parametrize("kept", [1, 4])
@products
def test_cost_is_what_ran(checkpoint, kept, product, monkeypatch):
    case = bank.ridge()
    estimator = Unrolled(9, checkpoint=checkpoint, product=product, arity=3, keep_graphs=kept)
    calls = {"train": 0, "valid": 0}
    for kind in calls:
        real = getattr(case.problem, f"evaluate_{kind}")

        def counted(*args, kind=kind, real=real):
            calls[kind] += 1
            return real(*args)

        monkeypatch.setattr(case.problem, f"evaluate_{kind}", counted)
    cost = case.call(estimator).cost
    inside = 9 if product == "forward_over_reverse" else 0
    assert cost.forward == cost.backward == calls["train"] + calls["valid"] - inside
    assert cost.hvp == 9


def test_memory():
    setup = Plain()

    def peak(steps, **arguments):
        estimator = Unrolled(steps, **{"keep_graphs": 1, **arguments})
        return peak_memory(lambda: setup.call(estimator))

    state = setup.state_bytes
    base = peak(2)
    # One more state for each step, and never a second graph.
    assert peak(12) - peak(4) == 8 * state
    assert peak(26, checkpoint="sqrt") - base < 10 * state
    assert peak(65, checkpoint="tree", arity=4) - base < 10 * state
    assert peak(30, truncation=2) <= base + state
    mixed = {"product": "forward_over_reverse"}
    assert peak(12, **mixed) - peak(4, **mixed) == 8 * 1.5 * state
