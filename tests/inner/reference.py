"""What all inner learners are compared with: torch.optim, autograd and finite differences."""

import contextlib
import copy

import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics import check_hypergradient
from metatoolkit.hypergradients import Unrolled
from metatoolkit.testing import bank

F64 = torch.float64


class Autoencoder(nn.Module):
    """Tied weights, a head and a 0-d parameter."""

    def __init__(self):
        super().__init__()
        self.tied = bank.Tied()
        self.head = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, inputs):
        return self.scale * self.head(self.tied(inputs))


class Penalty(nn.Module):
    """λ of the loss: a penalty for each of two features."""

    def __init__(self):
        super().__init__()
        self.log_penalty = nn.Parameter(torch.tensor([-1.0, -2.0], dtype=F64))


def regression(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def make_problem(meta=None):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = Autoencoder().double()

    def train_loss(model, meta, batch):
        penalty = 0.0
        if isinstance(meta, Penalty):
            penalty = (meta.log_penalty.exp() * model.head.weight.square().sum(1)).sum()
        return regression(model, batch) + penalty

    def valid_loss(model, meta, batch):
        return regression(model, batch)

    return mt.BilevelProblem(model, meta or Penalty(), train_loss, valid_loss)


def make_batches(steps, dead=()):
    """Batches of a regression problem; the features in ``dead`` are always zero."""
    generator = torch.Generator().manual_seed(12)
    batches = []
    for _ in range(steps):
        inputs = torch.randn(7, 6, generator=generator, dtype=F64)
        inputs[:, list(dead)] = 0.0
        batches.append((inputs, torch.randn(7, 2, generator=generator, dtype=F64)))
    return batches


@contextlib.contextmanager
def float64_by_default():
    """What torch.optim needs to keep its own numbers (of NAdam and ASGD) in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_follows(
    inner, optimizer, options, group_options=(), schedule=None, steps=50, change=None
):
    """Assert that an inner learner equals a torch optimizer for ``steps`` steps in float64.

    The parameters of ``head`` and of ``tied`` take the options in ``group_options``, one mapping
    each; the others take ``options``. ``change`` does to the gradients what it will.
    """
    problem = make_problem()
    model = copy.deepcopy(problem.model)
    names = dict(model.named_parameters())
    prefixes = ("head.", "tied.")[: len(group_options)]
    rest = [p for name, p in names.items() if not name.startswith(prefixes)]
    groups = [{"params": rest, **options}] if prefixes else [{"params": model.parameters()}]
    for prefix, own in zip(prefixes, group_options, strict=True):
        members = [p for name, p in names.items() if name.startswith(prefix)]
        groups.append({"params": members, **options, **own})
    reference = optimizer(groups, **options)
    state = inner.init(problem)
    meta = problem.meta_parameters()
    for step, batch in enumerate(make_batches(steps)):
        if schedule is not None:
            for group in reference.param_groups:
                group.update(schedule(step))
        reference.zero_grad()
        problem.train_loss(model, problem.meta, batch).backward()
        if change is not None:
            change(model.parameters())
        with float64_by_default():
            reference.step()
        state, _ = inner.step(problem, state, meta, batch)
    for name, parameter in names.items():
        torch.testing.assert_close(state.parameters[name], parameter.data, rtol=1e-11, atol=1e-13)
    moved = max(
        float((p - q).detach().abs().max())
        for p, q in zip(model.parameters(), problem.model.parameters(), strict=True)
    )
    assert moved > 1e-2


def groups_of(options):
    """The groups of an inner learner that correspond to ``group_options``."""
    pairs = zip(("head", "tied"), options, strict=False)
    return [{"params": [f"{prefix}.*"], **own} for prefix, own in pairs]


def assert_sensitivity(inner, steps=2):
    """Assert that ``gradient_sensitivity`` is the derivative of the update, which is diagonal."""
    problem = make_problem()
    meta = problem.meta_parameters()
    state = inner.init(problem)
    batches = make_batches(steps, dead=(2,))
    for batch in batches:
        leaves = state.map(lambda tensor: tensor.detach().requires_grad_())
        _, gradients, _ = inner.gradients(problem, leaves, meta, batch)
        found = inner.gradient_sensitivity(problem, state, meta, gradients)
        for name, parameter in state.parameters.items():

            def after(gradient, name=name, state=state, gradients=gradients):
                moved = inner.apply(problem, state, meta, gradients | {name: gradient})
                return moved.parameters[name]

            jacobian = torch.autograd.functional.jacobian(after, gradients[name])
            size = parameter.numel()
            expected = found[name].reshape(size).diag()
            torch.testing.assert_close(
                jacobian.reshape(size, size), expected, rtol=1e-9, atol=1e-12
            )
            assert found[name].shape == parameter.shape
            assert float(found[name].abs().min()) > 0 or name == "tied.encoder.weight"
        state, _ = inner.step(problem, state, meta, batch)


def assert_differences(make_inner, values, steps=4, dead=(), epsilon=1e-6, tolerance=1e-6):
    """Assert that the hypergradient of learned hyper-parameters equals finite differences.

    ``make_inner`` gets a module with one 0-d meta-parameter for each entry of ``values``.
    """
    meta = nn.ParameterDict(
        {name: nn.Parameter(torch.tensor(value, dtype=F64)) for name, value in values.items()}
    )
    problem = make_problem(meta)
    batches = make_batches(steps + 1, dead)
    check = check_hypergradient(
        problem, make_inner(meta), Unrolled(steps), batches[:-1], batches[-1], epsilon=epsilon
    )
    assert check.relative_error < tolerance, check
    assert float(check.estimate.abs().min()) > 0


def loss_check(inner, steps=4, dead=(), epsilon=1e-5):
    """Compare the hypergradient of λ in the loss with finite differences."""
    batches = make_batches(steps + 1, dead)
    return check_hypergradient(
        make_problem(), inner, Unrolled(steps), batches[:-1], batches[-1], epsilon=epsilon
    )


class Two(nn.Module):
    """Two coordinates, one of which starts and stays where its gradient is zero."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([0.4, 0.0], dtype=F64))


def resting(inner, penalty=0.0, steps=1):
    """A coordinate whose gradient is zero at this λ, but not at others: dg/dλ = −1.

    Returns the hypergradient after ``steps`` steps, and the outer loss as a function of λ.
    """

    def train_loss(model, meta, batch):
        first, second = model.value
        return (first - 1.0) ** 2 + 0.5 * second**2 - meta.value * second

    def valid_loss(model, meta, batch):
        return model.value.sum() + model.value.square().sum()

    problem = mt.BilevelProblem(Two(), bank.Value(penalty), train_loss, valid_loss)
    estimator = Unrolled(steps)
    state = inner.init(problem)
    result = estimator(problem, inner, state, [None] * steps, None)

    def objective(value):
        meta = {"value": torch.tensor(value, dtype=F64)}
        return float(estimator.objective(problem, inner, state, [None] * steps, None, meta))

    return float(result.gradient["value"]), objective


def assert_defaults(ours, theirs, own=(), **needed):
    """Assert that what is left out has the value that an optimizer of torch has for it.

    ``own`` names what torch has no option for.
    """
    defaults = theirs([nn.Parameter(torch.ones(2, 2))], **needed).defaults
    learner = ours(**needed)
    found = learner.hyperparameters | learner.options()
    if "betas" in defaults:
        defaults["beta1"], defaults["beta2"] = defaults["betas"]
    assert {n: v for n, v in found.items() if n not in own} == {
        n: v for n, v in defaults.items() if n in found
    }
    assert learner.groups == []


def assert_rest(inner, expected, step=0):
    """Assert the derivative of a step where gradient and optimizer state are zero.

    That of the update and the closed form are ``expected`` in each coordinate.
    """
    parameter = torch.tensor([0.4, -0.3], dtype=F64)
    gradient = torch.zeros(2, dtype=F64, requires_grad=True)
    slots = {slot: own["p"] for slot, own in inner.init_slots({"p": parameter}).items()}
    values = inner.hyperparameters
    after, _ = inner.update(parameter, gradient, slots, values, step)
    (slope,) = torch.autograd.grad(after.sum(), gradient)
    closed = inner.sensitivity(parameter, gradient.detach(), slots, values, step)
    for found in (slope, closed.expand_as(parameter)):
        torch.testing.assert_close(found, torch.full((2,), expected, dtype=F64), rtol=1e-12, atol=0)
