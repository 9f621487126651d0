"""Parameters that a batch does not reach: torch.optim skips them, and so does every estimator."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.inner import SGD, Adam, AdamW, RMSprop
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState
from tests import bank
from tests.draws import recorded
from tests.inner import heads

SETTINGS = {
    "SGD": (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "dampening": (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    "nesterov": (
        SGD,
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "Adam": (Adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1}),
    "RMSprop": (RMSprop, torch.optim.RMSprop, {"lr": 0.02, "weight_decay": 0.1}),
    "centered": (
        RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.02, "centered": True, "momentum": 0.7, "alpha": 0.9},
    ),
}
ORDERS = ["abab", "aaabb", "baaab"]


def settings(*names):
    chosen = names or tuple(SETTINGS)
    return pytest.mark.parametrize(
        ("ours", "theirs", "options"), [SETTINGS[n] for n in chosen], ids=chosen
    )


def run(inner, problem, state, batches):
    meta = problem.meta_parameters()
    for batch in batches:
        state, _ = inner.step(problem, state, meta, batch)
    return state


def assert_equal(state, model):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            state.parameters[name], parameter.detach(), rtol=1e-12, atol=1e-14
        )


@settings()
@pytest.mark.parametrize("order", ORDERS)
def test_the_trajectory_is_that_of_torch(ours, theirs, options, order):
    batches, _ = heads.make_batches(order)
    problem, inner = heads.make_problem(), ours(**options)
    state = run(inner, problem, inner.init(problem), batches)
    assert_equal(state, heads.run_torch(theirs, options, batches))
    missed = {"a": order.count("b"), "b": order.count("a"), "never": len(order), "trunk": 0}
    assert {name: state.missed.get(name, 0) for name in missed} == missed
    assert state.steps_of("a") == order.count("a") and state.steps_of("still") == len(order)


class Two(torch.nn.Module):
    """Two parameters, of which a batch reaches the one that it names."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.two = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("inner", "order", "expected"),
    [
        # AdamW's first step is lr against the gradient's sign, after a decay by lr · 0.01.
        (AdamW(lr=0.1), ["one", "two"], (0.899, 0.899)),
        (AdamW(lr=0.1), ["two", "two", "one"], (0.899, 0.899 * 0.999 - 0.1)),
        (SGD(lr=0.5, weight_decay=0.1), ["two"], (1.0, 0.45)),
        (SGD(lr=0.5, momentum=0.9), ["one", "two", "two"], (0.5, 1 - 0.5 - 0.5 * 1.9)),
    ],
)
def test_heads_in_turns_by_hand(inner, order, expected):
    def loss(model, meta, batch):
        return meta.value * getattr(model, batch)

    problem = mt.BilevelProblem(Two(), bank.Value(1.0), loss, loss)
    state = run(inner, problem, inner.init(problem), order)
    found = tuple(float(state.parameters[name]) for name in ("one", "two"))
    assert found == pytest.approx(expected, abs=1e-7)


@settings()
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
    assert_equal(result.state, heads.run_torch(theirs, options, batches))
    assert result.state.missed == {"a": 2, "bias_a": 2, "b": 3, "bias_b": 3, "never": 5}


@settings("momentum", "dampening", "Adam", "AdamW", "centered")
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
    state = run(inner, problem, inner.init(problem), batches[:3])
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
    assert_equal(result.state, heads.run_torch(theirs, options, batches))


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
    problem = mt.BilevelProblem(Two(), bank.Value(0.4), train_loss, valid_loss)
    inner = SGD(lr=0.2, weight_decay=0.1, momentum=momentum, dampening=momentum)
    state = run(inner, problem, inner.init(problem), ["one", *["two"] * 400])
    one = 1 - 0.2 * (1 - 0.5 + 0.1)
    assert float(state.parameters["one"]) == pytest.approx(one)
    estimator = hg.Implicit(solver, **options)
    for _ in range(2):
        result = estimator(problem, inner, state, ["two"], None)
        assert float(result.gradient["value"]) == pytest.approx(one / 1.1, rel=1e-6)
        assert result.cost.residual < 1e-6


class Start(torch.nn.Module):
    """λ as the initial value of both heads, beside the weights."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))
        self.a = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor([-0.2, 0.6], dtype=torch.float64))


@settings("momentum", "Adam", "AdamW")
@pytest.mark.parametrize(
    "estimator",
    [hg.Unrolled(3), hg.Unrolled(3, product="forward_over_reverse"), hg.ForwardMode(3)],
    ids=["reverse", "mixed", "forward"],
)
def test_an_initial_state_goes_through_steps_that_skip_it(ours, theirs, options, estimator):
    batches, valid_batch = heads.make_batches("aaa")
    initial = lambda meta: {"a": meta.a.exp(), "b": meta.b.sin()}  # noqa: E731
    problem = heads.make_problem(initial, Start())
    inner = ours(**options)
    result = estimator(problem, inner, inner.init(problem), batches, valid_batch)

    def objective(a, b):
        model = heads.Heads()
        model.a.data.copy_(a.exp())
        model.b.data.copy_(b.sin())
        stepper = theirs(model.parameters(), **options)
        for batch in batches:
            stepper.zero_grad()
            heads.train_loss(model, heads.Weights(), batch).backward()
            stepper.step()
        return heads.valid_loss(model, None, valid_batch).detach()

    start = Start()
    for name in "ab":
        at = {"a": start.a.detach(), "b": start.b.detach()}
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


@settings("momentum", "AdamW")
def test_first_order_estimators_of_an_initial_state(ours, theirs, options):
    batches, valid_batch = heads.make_batches("aab")
    problem = heads.make_problem(lambda meta: {"a": meta.a, "b": meta.b}, StartAlone())
    inner = ours(**options)
    state = inner.init(problem)
    model = heads.run_torch(theirs, options, batches)
    for estimator in (hg.FirstOrder(3), hg.Reptile(3)):
        result = estimator(problem, inner, state, batches, valid_batch)
        assert_equal(result.state, model)
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
@settings("momentum", "AdamW")
def test_estimators_that_step_return_the_state_of_torch(ours, theirs, options, make):
    batches, valid_batch = heads.make_batches("abba")
    estimator, problem, inner = make(), heads.make_problem(), ours(**options)
    result = estimator(
        problem, inner, inner.init(problem), batches[: estimator.horizon], valid_batch
    )
    steps = result.state.step
    assert_equal(result.state, heads.run_torch(theirs, options, batches[:steps]))


@settings("momentum", "Adam")
def test_a_saved_state_goes_on_as_torch_does(ours, theirs, options, tmp_path):
    batches, _ = heads.make_batches("aabab")
    problem, inner = heads.make_problem(), ours(**options)
    state = run(inner, problem, inner.init(problem), batches[:2])
    torch.save(state.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    state = run(inner, problem, InnerState.from_state_dict(saved), batches[2:])
    assert_equal(state, heads.run_torch(theirs, options, batches))
    for copy in (state.clone(), state.detach(), state.to(torch.float64)):
        assert copy.missed == state.missed == {"a": 2, "bias_a": 2, "b": 3, "bias_b": 3, "never": 5}


def test_a_training_resumes_with_the_steps_of_each_parameter(tmp_path):
    batches, _ = heads.make_batches("aabab")
    options = {"lr": 0.1, "weight_decay": 0.1}

    def trainer():
        return mt.MetaTrainer(heads.make_problem(), AdamW(**options))

    trainer().fit(batches, steps=2, checkpoint=tmp_path / "c.pt", progress=False)
    resumed = trainer()
    resumed.fit(batches, steps=5, checkpoint=tmp_path / "c.pt", resume=True, progress=False)
    assert_equal(resumed.state, heads.run_torch(torch.optim.AdamW, options, batches))


def test_a_state_that_was_saved_without_steps_of_its_parameters_is_read():
    problem, inner = heads.make_problem(), Adam()
    saved = inner.init(problem).state_dict()
    del saved["missed"]
    assert InnerState.from_state_dict(saved).missed == {}


def test_every_step_and_seed_draws_from_a_key_of_its_own():
    case = recorded()
    meta, draws = case.problem.meta_parameters(), []
    for seed in (0, 1):
        state = case.inner.init(case.problem, seed)
        for _ in range(4):
            before = len(case.seen)
            after, _ = case.inner.step(case.problem, state, meta, 1.0)
            again, _ = case.inner.step(case.problem, state, meta, 1.0)
            one, two = case.seen[before:]
            assert one == two and torch.equal(*(s.parameters["value"] for s in (after, again)))
            draws.append(one.draw)
            state = after
    assert len(set(draws)) == 8


def test_a_step_by_hand_moves_nothing_that_was_given():
    case = bank.small_net()
    state, meta = case.state, case.problem.meta_parameters()
    before = state.clone()
    batch = case.train_batches[0]
    key = fold_in(state.key, state.step)
    loss, buffers = case.problem.evaluate_train(
        {n: t.requires_grad_() for n, t in state.clone().parameters.items()},
        meta, state.buffers, batch, key,
    )  # fmt: skip
    after, told = case.inner.step(case.problem, state, meta, batch)
    assert float(told) == pytest.approx(float(loss.detach()), rel=1e-14)
    assert not told.requires_grad and (after.step, after.key) == (1, state.key)
    for name, buffer in after.buffers.items():
        torch.testing.assert_close(buffer, buffers[name])
    pairs = zip(
        [*state.tensors(), *state.buffers.values()],
        [*before.tensors(), *before.buffers.values()],
        strict=True,
    )
    assert all(torch.equal(one, two) and not one.requires_grad for one, two in pairs)
    assert not any(tensor.requires_grad for tensor in after.tensors())


def test_with_a_graph_the_values_are_the_same_and_lead_to_state_and_meta():
    for name in ("small_net", "learned_rates", "adapted"):
        case = getattr(bank, name)()
        meta = case.problem.meta_leaves()
        state = case.state
        for batch in case.train_batches[:2]:
            plain, loss = case.inner.step(case.problem, state, meta, batch)
            points = [tensor.clone().requires_grad_() for tensor in state.tensors()]
            entry = state.with_tensors(points)
            graph, told = case.inner.step(case.problem, entry, meta, batch, True)
            torch.testing.assert_close(told, loss, rtol=1e-14, atol=0)
            for one, two in zip(graph.tensors(), plain.tensors(), strict=True):
                assert one.requires_grad
                torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-15)
            total = sum(tensor.sum() for tensor in graph.tensors())
            sources = [*points, *meta.values()]
            found = torch.autograd.grad(total, sources, allow_unused=True)
            # Where λ stands in the place of parameters, these have no part in the first step.
            missing = [gradient is None for gradient in found]
            assert not any(missing) or name == "adapted"
            state = plain


def test_the_first_state_is_a_copy_and_has_a_key_for_each_seed():
    case = bank.small_net()
    states = [case.inner.init(case.problem, seed) for seed in (0, 0, 1, 2)]
    assert states[0].key == states[1].key and len({s.key for s in states}) == 3
    assert all(state.step == 0 for state in states)
    live = dict(case.problem.model.named_parameters())
    for name, tensor in states[0].parameters.items():
        assert torch.equal(tensor, live[name]) and tensor.data_ptr() != live[name].data_ptr()
    started = bank.started()
    state = started.state
    assert float(state.parameters["value"]) == 0.8 and not state.parameters["value"].requires_grad
    with torch.no_grad():
        started.problem.meta.value.zero_()
    assert float(state.parameters["value"]) == 0.8


def test_meta_at_the_start_is_no_part_of_the_gradient_in_theta():
    # L = b θ λ with θ = λ: the gradient in θ is b λ, and not 2 b λ.
    case = bank.started()
    meta = case.problem.meta_leaves()
    for create_graph in (False, True):
        after, loss = case.inner.step(case.problem, case.state, meta, 2.0, create_graph)
        assert float(after.parameters["value"].detach()) == pytest.approx(0.8 - 0.1 * 2 * 0.8)
        assert float(loss.detach()) == pytest.approx(2 * 0.8 * 0.8)
    (slope,) = torch.autograd.grad(after.parameters["value"], [meta["value"]])
    assert float(slope) == pytest.approx(1 - 0.1 * 2)
    # A later state is its own.
    later, _ = case.inner.step(case.problem, after.detach(), meta, 2.0)
    assert float(later.parameters["value"]) == pytest.approx(0.64 - 0.2 * 0.8)
