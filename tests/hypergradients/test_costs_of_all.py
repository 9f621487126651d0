"""What a call of each estimator takes, so that none grows dearer without a word."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics import count_flops, peak_memory
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS, learned_as_it_takes

SIZES = (32, 64, 64, 4)
EXAMPLES = 64

# Where λ acts, forward passes over one batch, and memory in that of a base step.
COSTS = [
    ("EvoGrad", "weights", 4.7, 1.79),
    ("EvoGrad, streamed", "weights", 8.7, 1.78),
    ("EvoGrad, common constants", "weights", 5.7, 2.18),
    ("GuidedEvoGrad", "weights", 5.7, 2.06),
    ("GuidedEvoGrad, σ chosen", "weights", 5.7, 2.06),
    ("Unrolled(1)", "weights", 7.0, 3.46),
    ("Unrolled(3)", "weights", 21.8, 7.93),
    ("Unrolled(3), mixed mode", "weights", 29.8, 7.69),
    ("Unrolled(5), tree", "weights", 55.4, 5.12),
    ("Unrolled(4), truncated", "weights", 22.5, 4.73),
    ("Unrolled(3), step weights", "weights", 27.2, 9.25),
    ("Unrolled(3), first order", "initial", 16.1, 4.91),
    ("ForwardMode(3)", "weights", 67.4, 10.76),
    ("ForwardMode(3), truncated, chunks", "weights", 48.5, 7.30),
    ("ForwardGradient(3)", "weights", 67.4, 10.76),
    ("Implicit, GMRES", "weights", 57.3, 11.62),
    ("Implicit, MINRES", "weights", 39.0, 12.38),
    ("OneStep", "weights", 7.0, 4.36),
    ("OneStep, at θ", "weights", 7.0, 4.36),
    ("FiniteDifference", "weights", 7.4, 3.08),
    ("SAMA", "weights", 7.4, 3.08),
    ("SOBA", "weights", 10.1, 6.13),
    ("FirstOrder", "initial", 8.0, 1.78),
    ("Reptile", "initial", 6.4, 1.78),
    ("Reversible", "weights", 29.9, 19.22),
    ("Adjoint", "weights", 43.0, 6.29),
    ("Leap", "initial", 8.4, 3.62),
    ("WarpGrad", "weights", 14.1, 4.24),
    ("Penalty", "weights", 19.1, 2.68),
    ("EvolutionStrategies", "weights", 25.4, 1.78),
    ("PersistentES", "weights", 25.4, 2.96),
    ("NoiseReuseES", "weights", 38.2, 3.75),
]


def _case(where, steps):
    """Return a perceptron with weights of classes as λ, or with its initial values."""
    torch.manual_seed(0)
    pairs = itertools.pairwise(SIZES)
    layers = [part for sizes in pairs for part in (nn.Linear(*sizes), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])
    batch = (torch.randn(EXAMPLES, SIZES[0]), torch.randint(SIZES[-1], (EXAMPLES,)))

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def train_loss(model, meta, batch):
        return (
            meta.value[batch[1]] * F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        ).mean()

    if where == "initial":
        meta = mt.metaparameters.Initialization(model)
        problem = mt.BilevelProblem(model, meta, valid_loss, valid_loss, initial=type(meta).values)
    else:
        meta = bank.Value([1.0, 0.5, 0.8, 1.2], torch.float32)
        problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch] * steps, batch)


def _measured(name, where):
    estimator = ESTIMATORS[name]()
    case = learned_as_it_takes(_case(where, estimator.horizon), estimator)
    problem, batch = case.problem, case.valid_batch
    state = case.inner.init(problem)

    def forward():
        with torch.no_grad():
            problem.evaluate_valid(state.parameters, problem.meta_parameters(), {}, batch, 0)

    def base_step():
        mt.inner.SGD(lr=0.1).step(problem, state, problem.meta_parameters(), batch)

    before = estimator.state_dict()

    def call():
        estimator.load_state_dict(before)
        case.call(estimator)

    # What a first call finds out is no part of what each takes.
    call()
    passes = count_flops(call) / count_flops(forward)
    return passes, peak_memory(call) / peak_memory(base_step)


@pytest.mark.parametrize(("name", "where", "passes", "memory"), COSTS)
def test_what_a_call_takes(name, where, passes, memory):
    taken, held = _measured(name, where)
    assert taken == pytest.approx(passes, rel=0.03)
    assert held == pytest.approx(memory, rel=0.12)


def test_each_estimator_is_measured():
    assert [name for name, *_ in COSTS] == list(ESTIMATORS)
