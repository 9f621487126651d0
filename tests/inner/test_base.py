"""Inner steps: parameters that a batch does not reach, keys, copies and graphs."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner import SGD, Adagrad, Adam, AdamW
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded
from tests.inner import heads

ORDERS = ["abab", "aaabb", "baaab"]


@heads.settings()
@pytest.mark.parametrize("order", ORDERS)
def test_the_trajectory_is_that_of_torch(ours, theirs, options, order):
    batches, _ = heads.make_batches(order)
    problem, inner = heads.make_problem(), ours(**options)
    state = heads.run(inner, problem, inner.init(problem), batches)
    heads.assert_equal(state, heads.run_torch(theirs, options, batches))
    missed = {"a": order.count("b"), "b": order.count("a"), "never": len(order), "trunk": 0}
    assert {name: state.missed.get(name, 0) for name in missed} == missed
    assert state.steps_of("a") == order.count("a") and state.steps_of("still") == len(order)


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

    problem = mt.BilevelProblem(heads.Two(), bank.Value(1.0), loss, loss)
    state = heads.run(inner, problem, inner.init(problem), order)
    found = tuple(float(state.parameters[name]) for name in ("one", "two"))
    assert found == pytest.approx(expected, abs=1e-7)


@heads.settings("momentum", "Adam")
def test_a_saved_state_goes_on_as_torch_does(ours, theirs, options, tmp_path):
    batches, _ = heads.make_batches("aabab")
    problem, inner = heads.make_problem(), ours(**options)
    state = heads.run(inner, problem, inner.init(problem), batches[:2])
    torch.save(state.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    state = heads.run(inner, problem, InnerState.from_state_dict(saved), batches[2:])
    heads.assert_equal(state, heads.run_torch(theirs, options, batches))
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
    heads.assert_equal(resumed.state, heads.run_torch(torch.optim.AdamW, options, batches))


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


def test_what_a_loss_must_reach():
    state = SGD(lr=0.1).init(heads.make_problem())
    for loss in (
        lambda model, meta, batch: torch.ones((), dtype=torch.float64),
        lambda model, meta, batch: meta.logits.sum() + 0.0 * model.trunk.detach().sum(),
    ):
        problem = mt.BilevelProblem(heads.Heads(), heads.Weights(), loss, loss)
        with pytest.raises(UnsupportedError, match="no gradient in any inner parameter"):
            SGD(lr=0.1).step(problem, state, problem.meta_leaves(), None, create_graph=True)
    model = torch.nn.Embedding(3, 2, sparse=True)
    problem = mt.BilevelProblem(
        model, bank.Value(1.0), lambda m, meta, b: (meta.value * m(b)).sum(), lambda *_: None
    )
    with pytest.raises(UnsupportedError, match="sparse=False"):
        SGD(0.1).step(
            problem, SGD(0.1).init(problem), problem.meta_parameters(), torch.tensor([0, 2])
        )
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="inference_mode"):
        SGD(0.1).gradients(problem, state, problem.meta_parameters(), torch.tensor([0]))


def test_a_model_that_changed_has_no_first_state():
    problem = heads.make_problem()
    problem.model.trunk.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="trunk"):
        SGD(lr=0.1).init(problem)


def test_a_step_works_without_gradients_around_it():
    case = bank.small_net()
    meta = case.problem.meta_parameters()
    expected, _ = case.inner.step(case.problem, case.state, meta, case.train_batches[0])
    with torch.no_grad():
        found, loss = case.inner.step(case.problem, case.state, meta, case.train_batches[0])
    assert not loss.requires_grad
    for one, other in zip(found.tensors(), expected.tensors(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad


def test_a_gradient_is_applied_to_the_parameters_that_have_one():
    problem = heads.make_problem()
    inner = SGD(lr=0.5, momentum=0.5, maximize=True)
    state = inner.init(problem).replaced(step=3, missed={"a": 1, "b": 2})
    slots = {name: torch.ones_like(t) for name, t in state.parameters.items()}
    state = state.replaced(optimizer={"velocity": slots})
    gradient = torch.tensor([0.2, -0.4], dtype=torch.float64)
    after = inner.apply(problem, state, problem.meta_parameters(), {"a": gradient})
    # v = 0.5 · 1 − g, and θ moves by −0.5 v.
    velocity = 0.5 - gradient
    torch.testing.assert_close(after.optimizer["velocity"]["a"], velocity)
    torch.testing.assert_close(after.parameters["a"], state.parameters["a"] - 0.5 * velocity)
    for name, parameter in state.parameters.items():
        if name != "a":
            assert after.parameters[name] is parameter
            assert after.optimizer["velocity"][name] is slots[name]
    others = {name: 1 for name in state.parameters if name not in ("a", "b")}
    assert after.step == 4 and after.missed == {"a": 1, "b": 3} | others
    assert state.missed == {"a": 1, "b": 2} and bool((slots["a"] == 1).all())


def test_the_sensitivity_at_the_steps_of_each_parameter():
    # 1 / (1 + lr_decay · steps) with three steps of `a` and one of `b`, at the value of λ given.
    meta = torch.nn.ParameterDict({"lr": torch.nn.Parameter(torch.tensor(0.1).double())})
    problem = heads.make_problem(meta=meta)
    inner = Adagrad(lr=meta["lr"], lr_decay=0.5, eps=2.0, initial_accumulator_value=1.0)
    state = inner.init(problem).replaced(step=3, missed={"b": 2})
    zero = torch.zeros(2, dtype=torch.float64)
    given = {"lr": torch.tensor(0.3).double()}
    found = inner.gradient_sensitivity(problem, state, given, {"a": zero, "b": zero})
    assert set(found) == {"a", "b"}
    # At g = 0: −lr / (√1 + 2).
    assert found["a"].tolist() == pytest.approx([-0.3 / 2.5 / 3] * 2)
    assert found["b"].tolist() == pytest.approx([-0.3 / 1.5 / 3] * 2)


def test_description_and_settings():
    groups = [{"params": ["a"], "lr": 0.3}, {"params": ["b"], "momentum": 0.5}]
    inner = SGD(lr=0.1, groups=groups)
    assert inner.settings("lr") == [0.1, 0.3, 0.1]
    assert inner.settings("momentum") == [0.0, 0.0, 0.5]
    assert inner.options() == {}
    assert repr(inner) == (
        "SGD(lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, "
        "maximize=False, groups=2)"
    )
    state = inner.init(heads.make_problem())
    assert state.key == inner.init(heads.make_problem(), 0).key == fold_in(0, 0)
    assert inner.init(heads.make_problem(), 7).key == fold_in(7, 0)


def test_functions_are_checked_at_the_first_step():
    seen = []

    def rate(meta, step):
        seen.append(step)
        return 0.1

    problem = heads.make_problem()
    state = SGD(lr=rate).init(problem)
    assert seen == [0]
    SGD(lr=rate).apply(problem, state.replaced(step=3), problem.meta_parameters(), {})
    assert seen == [0, 3]


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_step_records_what_it_is_asked_for(create_graph, monkeypatch):
    seen, watched = [], []

    def loss(model, meta, batch):
        seen.append(meta.value.requires_grad)
        return meta.value * model.value**2

    problem = mt.BilevelProblem(bank.Value(3.0), bank.Value(0.5), loss, loss)
    monkeypatch.setattr(
        problem, "watch_second_derivatives", lambda value, points: watched.append((value, points))
    )
    inner, meta = SGD(lr=0.1), problem.meta_leaves()
    state = inner.init(problem)
    inner.step(problem, state, meta, None, create_graph)
    assert seen[0] is create_graph and len(watched) == create_graph
    leaves = state.map(lambda tensor: tensor.detach().requires_grad_())
    _, gradients, _ = inner.gradients(problem, leaves, meta, None, create_graph)
    assert gradients["value"].requires_grad is create_graph
    assert float(gradients["value"].detach()) == pytest.approx(2 * 0.5 * 3.0)
    if create_graph:
        ((_, first), (value, points)) = watched
        assert float(value.detach()) == 4.5 and points[0] is leaves.parameters["value"]
        assert len(first) == len(points) == 1
    else:
        plain = inner.gradients(problem, leaves, meta, None)[1]["value"]
        assert not plain.requires_grad and not watched
