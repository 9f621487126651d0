"""What Unrolled says of itself, how many passes each setting takes, and what it refuses."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.testing import bank

PLAIN = Unrolled(1).traits


def test_defaults():
    estimator = Unrolled()
    assert estimator.horizon == 1 and estimator.truncation is None
    assert estimator.checkpoint == "every" and estimator.product == "auto"
    assert estimator.arity == 8 and estimator.keep_graphs == "auto"
    assert Unrolled.complex_meta is True
    assert estimator.traits == Unrolled.traits and Unrolled(7).traits == Unrolled.traits


def changed(**entries):
    return dataclasses.replace(PLAIN, **entries)


MIXED = {
    "assumes": "second derivatives of the training loss, in forward mode and symmetric",
    "passes": "12 F for each step, 3 F for the outer loss",
    "memory": "T inner states and gradients, and the graph of one pass",
    "paper": "Kemaev et al. 2025, arXiv 2505.00793",
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PLAIN),
        ({"truncation": 5}, PLAIN),
        ({"product": "forward_over_reverse"}, changed(**MIXED)),
        (
            {"checkpoint": "sqrt"},
            changed(
                passes=f"{PLAIN.passes}; up to 3 F more for each step",
                memory="2 √T inner states and the graph of one step, or of those kept",
            ),
        ),
        (
            {"checkpoint": "sqrt", "product": "forward_over_reverse"},
            changed(
                **MIXED
                | {
                    "passes": f"{MIXED['passes']}; up to 3 F more for each step",
                    "memory": "2 √T inner states and the graph of one pass",
                }
            ),
        ),
        (
            {"checkpoint": "tree", "arity": 3},
            changed(
                passes=f"{PLAIN.passes}; up to 3 (log_3 T − 1) F more for each step",
                memory="3 log_3 T inner states and the graph of one step, or of those kept",
                paper="Engstrom et al. 2025, arXiv 2503.13751",
            ),
        ),
        (
            {"truncation": 2},
            changed(
                kind="approximate",
                computes="derivative through the last 2 of T inner steps",
                assumes=f"{PLAIN.assumes}; steps that forget where they started",
                passes=f"{PLAIN.passes}; 3 F for each step before the last 2",
                paper="Shaban et al. 2019, arXiv 1810.10667",
            ),
        ),
    ],
)
def test_what_it_says_of_itself(options, expected):
    assert Unrolled(5, **options).traits == expected
    # An instance leaves what the class says alone.
    assert Unrolled.traits == PLAIN and PLAIN.kind == "exact"


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"steps": 1}, False),
        ({"steps": 2}, False),
        ({"steps": 2, "keep_graphs": 1}, True),
        ({"steps": 3, "keep_graphs": 3}, False),
        ({"steps": 3, "keep_graphs": 2}, True),
        ({"steps": 3, "keep_graphs": 7}, False),
        ({"steps": 9, "truncation": 1}, False),
        ({"steps": 9, "truncation": 2, "keep_graphs": 1}, True),
        ({"steps": 1, "product": "forward_over_reverse"}, True),
        ({"steps": 3, "product": "forward_over_reverse", "keep_graphs": 3}, True),
    ],
)
def test_whether_steps_are_taken_twice(options, again):
    assert Unrolled(**options).repeats_steps is again


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"steps": 1}, 2),
        # T steps to the last state but one, T with their graphs, and the outer loss.
        ({"steps": 17, "keep_graphs": 1}, 16 + 17 + 1),
        ({"steps": 17}, 17 + 1),
        ({"steps": 3, "keep_graphs": 2}, 1 + 3 + 1),
        ({"steps": 3, "keep_graphs": 3}, 3 + 1),
        ({"steps": 3, "keep_graphs": 5}, 3 + 1),
        ({"steps": 6, "truncation": 2}, 4 + 2 + 1),
        ({"steps": 6, "truncation": 2, "keep_graphs": 1}, 4 + 1 + 2 + 1),
        # 17 states in 5 parts: 16 steps to their beginnings, 3 more in each full one.
        ({"steps": 17, "checkpoint": "sqrt"}, 16 + 4 * 3 + 17 + 1),
        # 15 in 4 parts: 12 steps to the last beginning, 2 in the last part, 3 in each other.
        ({"steps": 15, "checkpoint": "sqrt"}, 12 + 2 + 3 * 3 + 15 + 1),
        ({"steps": 2, "checkpoint": "sqrt"}, 1 + 2 + 1),
        # 9 states in 3 parts, each of which is cut in 3.
        ({"steps": 9, "checkpoint": "tree", "arity": 3}, 6 + 3 * 2 + 9 + 1),
    ],
)
def test_how_many_passes_a_setting_takes(options, passes):
    case = bank.illustration()
    result = case.call(Unrolled(**options))
    assert result.cost.forward == result.cost.backward == passes
    assert result.cost.hvp == options.get("truncation", options["steps"])
    plain = Unrolled(options["steps"], options.get("truncation"))
    assert torch.equal(result.gradient["value"], case.call(plain).gradient["value"])


@pytest.mark.parametrize("product", ["reverse_over_reverse", "forward_over_reverse"])
def test_what_is_returned_holds_no_graph(product):
    case = bank.small_net()
    result = case.call(Unrolled(2, product=product))
    tensors = [*result.state.tensors(), *result.state.buffers.values(), result.valid_loss]
    tensors += result.gradient.values()
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_batch_of_each_step_by_hand():
    # θ ← θ − 0.1 b λ: the derivative through the last k steps is −0.1 times their batches.
    def train_loss(model, meta, batch):
        return batch * model.value * meta.value

    problem = mt.BilevelProblem(
        bank.Value(0.5), bank.Value(2.0), train_loss, lambda model, meta, batch: model.value * batch
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [1.0, 10.0, 100.0, 1000.0], 3.0)
    for window, through in ((1, 1000.0), (2, 1100.0), (3, 1110.0), (None, 1111.0)):
        for keep in (1, 2, 4):
            for product in ("reverse_over_reverse", "forward_over_reverse"):
                estimator = Unrolled(4, window, product=product, keep_graphs=keep)
                result = case.call(estimator)
                assert float(result.gradient["value"]) == pytest.approx(-0.3 * through, rel=1e-13)
                assert float(result.state.parameters["value"]) == pytest.approx(0.5 - 222.2)
                there = {"value": torch.tensor(5.0, dtype=torch.float64)}
                objective = estimator.objective(
                    problem, case.inner, case.state, case.batches(4), 3.0, there
                )
                expected = 3 * (0.5 - 0.1 * (2 * (1111 - through) + 5 * through))
                assert float(objective) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 3, "truncation": 4}, "truncation is 4 with steps=3"),
        ({"steps": 3, "truncation": 0}, "truncation is 0"),
        ({"checkpoint": "all"}, "checkpoint is 'all'; accepted: every, sqrt, tree"),
        ({"product": "forward"}, "product is 'forward'"),
        ({"arity": 1}, "arity is 1"),
        ({"keep_graphs": 0}, "keep_graphs is 0; accepted: 'auto', or a number"),
        ({"keep_graphs": "all"}, "keep_graphs is 'all'"),
        ({"memory_budget": -1}, "memory_budget is -1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Unrolled(**arguments)
