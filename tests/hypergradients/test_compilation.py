"""Compiled calls give the numbers of others, without a break in their graph."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import fx

import metatoolkit as mt
from metatoolkit.hypergradients import SAMA, EvoGrad, FiniteDifference, OneStep, Unrolled
from tests.hypergradients.compiled_calls import Calls, assert_same

ESTIMATORS = {
    "evograd": lambda: EvoGrad(sigma=0.1),
    "evograd_gaussian": lambda: EvoGrad(candidates=3, sigma=0.1, noise="gaussian", streamed=True),
    "evograd_mapped": lambda: EvoGrad(candidates=3, sigma=0.1, streamed="vmap"),
    "one_step": OneStep,
    "one_step_before": lambda: OneStep(lookahead=False, inverse="identity"),
    "finite_difference": FiniteDifference,
    "sama": SAMA,
    "sama_radius": lambda: SAMA(radius=0.01),
    "unrolled": lambda: Unrolled(2),
    "unrolled_tree": lambda: Unrolled(2, keep_graphs=1),
    "unrolled_mixed": lambda: Unrolled(2, product="forward_over_reverse"),
    "unrolled_truncated": lambda: Unrolled(3, truncation=1),
    "unrolled_weighted": lambda: Unrolled(2, step_weights=[0.3, 0.7]),
}


FEW = {
    *(("perceptron", name) for name in ("evograd_mapped", "finite_difference", "one_step")),
    *(("convolutional", name) for name in ("evograd", "sama", "unrolled")),
}
CASES = [
    pytest.param(*case, marks=[] if case in FEW else pytest.mark.slow)
    for case in itertools.product(("perceptron", "convolutional"), ESTIMATORS)
]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_a_compiled_call_gives_the_same_numbers(name, model):
    calls = Calls(ESTIMATORS[name](), model=model)
    calls.check()
    (program,) = calls.programs
    assert program.calls == 2
    # One graph of operators: there is nothing that it could break at.
    graph = program.traced.graph
    assert isinstance(graph, fx.GraphModule) and not list(graph.children())
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert all(isinstance(t, torch._ops.OpOverload) or t.__name__ == "getitem" for t in targets)


@pytest.mark.parametrize("name", ["one_step"])
def test_the_numbers_are_the_same_in_float32(name):
    calls = Calls(ESTIMATORS[name](), dtype=torch.float32)
    calls.check()
    assert len(calls.programs) == 1


@pytest.mark.slow
def test_generated_code_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.utils.counters.clear()
    for compile in (True, "cuda_graphs"):
        calls = Calls(OneStep(), dtype=torch.float32, compile=compile)
        calls.check(4)
        (program,) = calls.programs
        assert program.run is not program.traced.graph
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    "name", ["evograd", "sama", pytest.param("unrolled", marks=pytest.mark.slow)]
)
def test_dropout_masks_are_those_of_calls_that_are_not_compiled(name):
    calls = Calls(ESTIMATORS[name](), model="dropping")
    before = torch.get_rng_state()
    calls.call()
    after = torch.get_rng_state()
    calls.check(4)
    assert len(calls.programs) == 1 and not torch.equal(before, after)
    losses = {float(calls.call()[0].valid_loss) for _ in range(2)}
    assert len(losses) == 2


def test_candidates_with_masks_of_their_own():
    calls = Calls(EvoGrad(sigma=0.1, common_random_numbers=False), model="dropping")
    calls.check(4)
    assert len(calls.programs) == 1


def test_calls_at_one_state_draw_anew():
    calls = Calls(EvoGrad(sigma=0.1))
    start, found = calls.state, []
    for _ in range(4):
        calls.state = start
        one, other = calls.call()
        assert_same(one, other)
        found.append(float(one.details["coefficients"][0]))
    assert len(set(found)) == 4


LEARNERS = {
    "sgd": lambda: mt.inner.SGD(lr=0.1, weight_decay=0.01),
    "nesterov": lambda: mt.inner.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "dampened": lambda: mt.inner.SGD(lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda: mt.inner.Adam(lr=0.02),
    "adamw": lambda: mt.inner.AdamW(lr=0.02, weight_decay=0.1),
    "rmsprop": lambda: mt.inner.RMSprop(lr=0.01),
    "scheduled": lambda: mt.inner.SGD(lr=mt.inner.schedules.cosine(0.3, 20), momentum=0.9),
    "warm": lambda: mt.inner.Adam(lr=mt.inner.schedules.warmup_linear(0.1, 30)),
    "grouped": lambda: mt.inner.SGD(lr=0.1, groups=[{"params": ["*.bias"], "lr": 0.01}]),
    "learned": lambda: mt.inner.SGD(lr=lambda meta, step: 0.1 * meta.decay.exp()),
}


QUICK = ("adam", "scheduled")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LEARNERS]
)
def test_the_number_of_the_step_is_an_input(name):
    calls = Calls(OneStep(), LEARNERS[name]())
    calls.check(6)
    # The first call of a trajectory may be of another kind: a velocity begins as the gradient.
    assert len(calls.programs) == 1


def test_a_step_that_is_read_has_programs_of_its_own():
    def halved(meta, step):
        return 0.1 / (1 + step // 3) * meta.decay.exp()

    calls = Calls(OneStep(), mt.inner.SGD(lr=halved))
    calls.check(4)
    assert len(calls.programs) == 3


def test_a_loss_that_is_not_finite_is_an_error():
    calls = Calls(OneStep())
    calls.check(3)
    inputs, *rest = calls.batch()
    arguments = (calls.problem, calls.inner, calls.state)
    bad = (torch.full_like(inputs, torch.nan), *rest)
    with pytest.raises(mt.errors.NonFiniteError, match=r"training loss|validation loss|hypergr"):
        calls.estimator(*arguments, [bad], calls.batch())
    with pytest.raises(mt.errors.NonFiniteError, match="validation loss"):
        calls.estimator(*arguments, [calls.batch()], bad)
    calls.check(2)
    assert len(calls.programs) == 1


def test_a_perturbation_that_is_lost_is_an_error():
    calls = Calls(EvoGrad(sigma=1e-3, noise=lambda k, name, p: (1 - 2 * k) * torch.ones_like(p)))
    calls.check(3)
    with torch.no_grad():
        calls.state = calls.state.map(lambda t: t + 1e20 if t.is_floating_point() else t)
    arguments = (calls.problem, calls.inner, calls.state, [calls.batch()], calls.batch())
    with pytest.raises((mt.errors.ConfigurationError, mt.errors.NonFiniteError)):
        calls.plain(*arguments)
    with pytest.raises((mt.errors.ConfigurationError, mt.errors.NonFiniteError)):
        calls.estimator(*arguments)


def test_the_first_call_checks_that_losses_can_be_repeated():
    generator = torch.Generator().manual_seed(0)

    def drifting(model, meta, batch):
        noise = torch.randn(3, generator=generator, dtype=torch.float64)
        return (model(batch[0]) + noise).square().mean() * meta.decay.exp()

    calls = Calls(Unrolled(2), losses=(drifting, drifting))
    with pytest.raises(mt.errors.ReplayError):
        calls.call()


def test_copies_begin_without_programs():
    calls = Calls(OneStep())
    calls.check(2)
    assert len(calls.programs) == 1
    for other in (calls.estimator.duplicate(), pickle.loads(pickle.dumps(calls.estimator))):
        assert other.compile == "graph" and not other._compiler.programs
    assert copy.copy(calls.estimator) is not calls.estimator


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_the_value_is_checked(value):
    calls = Calls(OneStep(), compile=value)
    with pytest.raises(mt.errors.ConfigurationError, match=r"compile is .*accepted: False, True"):
        calls.call()


def test_losses_of_the_toolkit_are_compiled_and_check_labels_all_the_same():
    torch.manual_seed(0)
    model, weights = torch.nn.Linear(5, 3), mt.metaparameters.WeightNet(hidden=4)
    losses = mt.losses.weighted_cross_entropy, mt.losses.cross_entropy
    problem, inner = mt.BilevelProblem(model, weights, *losses), mt.inner.SGD(lr=0.1)
    state, inputs, labels = inner.init(problem), torch.randn(6, 5), torch.arange(6) % 3
    compiled, plain = Unrolled(1), Unrolled(1)
    compiled.compile = "graph"
    for move in range(5):
        arguments = problem, inner, state, [(inputs + move, labels)], (inputs, labels)
        assert_same(compiled(*arguments), plain(*arguments))
    assert [program.calls for kind in compiled._compiler.programs.values() for program in kind] == [
        4
    ]
    for train, valid in ((3, 0), (0, 3)):
        with pytest.raises(mt.errors.LabelError, match="labels of the batch hold"):
            compiled(problem, inner, state, [(inputs, labels + train)], (inputs, labels + valid))
