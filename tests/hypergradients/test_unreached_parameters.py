"""Hypergradients where batches reach different parameters, against loops of torch.optim."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.inner import SGD
from metatoolkit.testing import bank
from tests.inner import heads


@heads.settings()
@pytest.mark.parametrize(
    "make",
    [
        lambda steps: hg.Unrolled(steps),
        lambda steps: hg.Unrolled(steps, product="forward_over_reverse"),
        lambda steps: hg.Unrolled(steps, product="forward_over_reverse", keep_graphs=2),
        lambda steps: hg.ForwardMode(steps),
        lambda steps: hg.ForwardMode(steps, chunk=1),
    ],
    ids=["reverse", "mixed", "mixed, kept", "forward", "forward, one by one"],
)
def test_exact_estimators_equal_differences_of_torch(ours, theirs, options, make):
    batches, valid_batch = heads.make_batches("baaba")
    problem, inner = heads.make_problem(), ours(**options)
    result = make(5)(problem, inner, inner.init(problem), batches, valid_batch)

    def objective(logits):
        model = heads.run_torch(theirs, options, batches, logits)
        return heads.valid_loss(model, None, valid_batch).detach()

    expected = heads.differences(objective)
    torch.testing.assert_close(result.gradient["logits"], expected, rtol=2e-6, atol=1e-9)
    heads.assert_equal(result.state, heads.run_torch(theirs, options, batches))
    assert result.state.missed == {"a": 2, "bias_a": 2, "b": 3, "bias_b": 3, "never": 5}


@heads.settings("momentum", "dampening", "Adam", "AdamW", "centered")
@pytest.mark.parametrize(
    ("estimator", "lookahead"),
    [
        (hg.OneStep(), True),
        (hg.OneStep(lookahead=False), False),
        (hg.FiniteDifference(), True),
        (hg.SAMA(), False),
    ],
    ids=["OneStep", "OneStep, at θ", "FiniteDifference", "SAMA"],
)
def test_one_step_estimators_begin_where_each_parameter_stands(
    ours, theirs, options, estimator, lookahead
):
    batches, valid_batch = heads.make_batches("aaab")
    problem, inner = heads.make_problem(), ours(**options)
    state = heads.run(inner, problem, inner.init(problem), batches[:3])
    result = estimator(problem, inner, state, batches[3:], valid_batch)
    steps = 4 if lookahead else 3
    at = heads.run_torch(theirs, options, batches[:steps])
    outer = torch.autograd.grad(heads.valid_loss(at, None, valid_batch), list(at.parameters()))

    def last_step(logits):
        model = heads.Heads()
        stepper = theirs(model.parameters(), **options)
        for index, batch in enumerate(batches):
            meta = heads.Weights()
            if index == 3:
                meta.logits.data.copy_(logits)
            stepper.zero_grad()
            heads.train_loss(model, meta, batch).backward()
            stepper.step()
        pairs = zip(outer, model.parameters(), strict=True)
        return sum((v * p.detach()).sum() for v, p in pairs)

    expected = heads.differences(last_step)
    torch.testing.assert_close(result.gradient["logits"], expected, rtol=1e-4, atol=1e-8)
    heads.assert_equal(result.state, heads.run_torch(theirs, options, batches))


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (hg.ConjugateGradient(5), {}),
        (hg.MINRES(5), {"through": "parameters"}),
        (hg.Nystrom(2, damping=1e-9), {"through": "parameters"}),
        (hg.GMRES(8), {}),
        (hg.NormalEquationCG(20), {}),
        (hg.FixedPoint(400), {}),
        (hg.GMRES(8), {"warm_start": True}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, hg.LinearSolver) else None,
)
def test_implicit_holds_what_the_batch_does_not_reach(solver, options):
    # θ₂ = (λ + 0.1) / 1.1 at the fixed point, and the outer loss θ₁ θ₂ sees θ₁ = 1 − 0.1 · 0.1.
    def train_loss(model, meta, batch):
        return (getattr(model, batch) ** 2 / 2 - (meta.value + 0.1) * getattr(model, batch)).sum()

    def valid_loss(model, meta, batch):
        return model.one * model.two + model.one**2

    momentum = 0.5 if options.get("through") == "parameters" or not solver.symmetric else 0.0
    problem = mt.BilevelProblem(heads.Two(), bank.Value(0.4), train_loss, valid_loss)
    inner = SGD(lr=0.2, weight_decay=0.1, momentum=momentum, dampening=momentum)
    state = heads.run(inner, problem, inner.init(problem), ["one", *["two"] * 400])
    one = 1 - 0.2 * (1 - 0.5 + 0.1)
    assert float(state.parameters["one"]) == pytest.approx(one)
    estimator = hg.Implicit(solver, **options)
    for _ in range(2):
        result = estimator(problem, inner, state, ["two"], None)
        assert float(result.gradient["value"]) == pytest.approx(one / 1.1, rel=1e-6)
        assert result.cost.residual < 1e-6


class Start(torch.nn.Module):
    """λ as the initial value of both heads and of a bias, beside the weights."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))
        self.a = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor([-0.2, 0.6], dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor([0.9, -0.5], dtype=torch.float64))


@heads.settings("momentum", "Adam", "AdamW")
@pytest.mark.parametrize(
    "estimator",
    [hg.Unrolled(3), hg.Unrolled(3, product="forward_over_reverse"), hg.ForwardMode(3)],
    ids=["reverse", "mixed", "forward"],
)
def test_an_initial_state_goes_through_steps_that_skip_it(ours, theirs, options, estimator):
    batches, valid_batch = heads.make_batches("aaa")

    def initial(meta):
        return {"a": meta.a.exp(), "b": meta.b.sin(), "bias_b": meta.bias.tanh().sum()}

    problem = heads.make_problem(initial, Start())
    inner = ours(**options)
    result = estimator(problem, inner, inner.init(problem), batches, valid_batch)

    def objective(a, b, bias):
        model = heads.Heads()
        model.a.data.copy_(a.exp())
        model.b.data.copy_(b.sin())
        model.bias_b.data.copy_(bias.tanh().sum())
        stepper = theirs(model.parameters(), **options)
        for batch in batches:
            stepper.zero_grad()
            heads.train_loss(model, heads.Weights(), batch).backward()
            stepper.step()
        return heads.valid_loss(model, None, valid_batch).detach()

    start = Start()
    at = {name: getattr(start, name).detach() for name in ("a", "b", "bias")}
    for name in at:
        expected = []
        for row in 1e-6 * torch.eye(2, dtype=torch.float64):
            up, down = (
                objective(**at | {name: at[name] + row}),
                objective(**at | {name: at[name] - row}),
            )
            expected.append((up - down) / 2e-6)
        torch.testing.assert_close(
            result.gradient[name], torch.stack(expected), rtol=1e-5, atol=1e-8
        )
        assert float(result.gradient[name].abs().max()) > 0


@heads.settings("momentum", "AdamW")
def test_first_order_estimators_of_an_initial_state(ours, theirs, options):
    batches, valid_batch = heads.make_batches("aab")
    problem = heads.make_problem(lambda meta: {"a": meta.a, "b": meta.b}, StartAlone())
    inner = ours(**options)
    state = inner.init(problem)
    model = heads.run_torch(theirs, options, batches)
    for estimator in (hg.FirstOrder(3), hg.Reptile(3)):
        result = estimator(problem, inner, state, batches, valid_batch)
        heads.assert_equal(result.state, model)
        for name in "ab":
            tensor = getattr(model, name)
            if isinstance(estimator, hg.Reptile):
                expected = (problem.meta_parameters()[name] - tensor).detach()
            else:
                loss = heads.valid_loss(model, None, valid_batch)
                (expected,) = torch.autograd.grad(loss, tensor)
            torch.testing.assert_close(result.gradient[name], expected)


class StartAlone(torch.nn.Module):
    """λ as the initial value of both heads, the weights fixed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("logits", torch.tensor([0.3, -0.5], dtype=torch.float64))
        self.a = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor([-0.2, 0.6], dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: hg.Penalty(3.0, 4),
        lambda: hg.EvolutionStrategies(4, 2, 0.1),
        lambda: hg.PersistentES(4, 2, 0.1),
        lambda: hg.SOBA(),
    ],
    ids=["Penalty", "EvolutionStrategies", "PersistentES", "SOBA"],
)
@heads.settings("momentum", "AdamW")
def test_estimators_that_step_return_the_state_of_torch(ours, theirs, options, make):
    batches, valid_batch = heads.make_batches("abba")
    estimator, problem, inner = make(), heads.make_problem(), ours(**options)
    result = estimator(
        problem, inner, inner.init(problem), batches[: estimator.horizon], valid_batch
    )
    steps = result.state.step
    heads.assert_equal(result.state, heads.run_torch(theirs, options, batches[:steps]))


class Weighed(torch.autograd.Function):
    """x · w, with no gradient for w."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        return x * w

    @staticmethod
    def backward(ctx, gradient):
        (w,) = ctx.saved_tensors
        return gradient * w, None


class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = torch.nn.Parameter(torch.tensor([0.7, -1.1], dtype=torch.float64))
        self.value = torch.nn.Parameter(torch.tensor([0.4, 0.9], dtype=torch.float64))

    def forward(self):
        return Weighed.apply(torch.tanh(self.value), self.gate)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}),
        (mt.inner.AdamW, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}),
    ],
)
def test_a_parameter_to_which_a_function_returns_no_gradient_is_skipped(ours, theirs, options):
    target = torch.tensor([0.2, -0.3], dtype=torch.float64)

    def train_loss(model, meta, batch):
        return ((model() - meta.value * batch) ** 2).sum() + (meta.value * model.value**2).sum()

    def valid_loss(model, meta, batch):
        return ((model() - 2 * batch) ** 2).sum()

    def run(values):
        model, meta = Gated(), bank.Value(values)
        optimizer = theirs(model.parameters(), **options)
        for _ in range(3):
            optimizer.zero_grad()
            train_loss(model, meta, target).backward()
            optimizer.step()
        return model, float(valid_loss(model, None, target).detach())

    problem = mt.BilevelProblem(Gated(), bank.Value([0.8, 1.3]), train_loss, valid_loss)
    inner = ours(**options)
    result = hg.Unrolled(3)(problem, inner, inner.init(problem), [target] * 3, target)
    expected = [
        (run([0.8 + a, 1.3 + b])[1] - run([0.8 - a, 1.3 - b])[1]) / 2e-5
        for a, b in ((1e-5, 0.0), (0.0, 1e-5))
    ]
    assert result.gradient["value"].tolist() == pytest.approx(expected, rel=1e-6)
    model, _ = run([0.8, 1.3])
    torch.testing.assert_close(dict(model.named_parameters()), result.state.parameters)
    assert result.state.missed == {"gate": 3}
