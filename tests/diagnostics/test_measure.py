"""Memory and operations against what is known by construction."""

import gc
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops, least_seconds, peak_memory

on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the GPU's allocator rounds and caches"
)
MEGABYTE = 1 << 20


def filled(megabytes):
    return torch.ones(megabytes * MEGABYTE // 4)


@on_the_cpu
def test_peak_is_that_of_what_is_alive_at_once():
    def function():
        kept = filled(4)
        for _ in range(3):
            temporary = filled(8)
            del temporary
        return kept

    assert peak_memory(function) == 12 * MEGABYTE


@on_the_cpu
def test_what_is_gone_makes_room_for_something_larger():
    # A later storage may lie where an earlier one lay.
    def function():
        for megabytes in (2, 8, 3):
            temporary = filled(megabytes)
            del temporary
        return filled(1)

    assert peak_memory(function) == 8 * MEGABYTE


@on_the_cpu
def test_views_and_what_was_there_before_count_nothing():
    outside = filled(8)

    def function():
        view = outside.view(2, -1)[0]
        outside.mul_(1.0)
        return view.add(1.0)

    assert peak_memory(function) == 4 * MEGABYTE


@on_the_cpu
def test_saved_activations_count_until_the_backward_pass():
    x = filled(1).requires_grad_()

    def function():
        y = x
        for _ in range(5):
            y = y.exp()
        y.sum().backward()

    peak = peak_memory(function)
    x.grad = None
    assert 6 * MEGABYTE <= peak <= 8 * MEGABYTE


@on_the_cpu
def test_cycles_are_counted_as_long_as_they_live():
    def function():
        class Node:
            pass

        gc.disable()
        for _ in range(3):
            node = Node()
            node.me, node.tensor = node, filled(1)

    try:
        assert peak_memory(function) == 3 * MEGABYTE
    finally:
        gc.enable()


def test_flops_of_products():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert count_flops(lambda: a + 1) == 0


@on_the_cpu
def test_all_results_of_an_operation_count():
    assert peak_memory(lambda: filled(2).view(2, -1).max(0)) == 5 * MEGABYTE


@on_the_cpu
def test_what_allocates_nothing_has_no_peak():
    assert peak_memory(lambda: None) == 0
    assert count_flops(lambda: None) == 0


@on_the_cpu
def test_operations_are_called_with_all_their_arguments():
    kept = []
    numbers = {"dtype": torch.float64}
    assert peak_memory(lambda: kept.append(torch.full((MEGABYTE // 8,), 2, **numbers))) == MEGABYTE
    assert kept[0].dtype == torch.float64 and bool((kept[0] == 2).all())


def test_a_network_counts_as_by_pytorch_and_gets_no_hook_of_each_module():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    hooked = []

    def call():
        hooked.extend(
            network.modules() if torch.nn.modules.module._global_forward_pre_hooks else ()
        )
        network(torch.ones(4, 2, 4, 4)).sum().backward()

    counted = count_flops(call)
    assert not hooked
    with FlopCounterMode(display=False) as counter:
        call()
    assert hooked and counted == counter.get_total_flops() > 0


@pytest.mark.parametrize("measure", [count_flops, peak_memory])
def test_a_loss_is_not_checked_while_a_call_is_measured(measure):
    model, evaluated = torch.nn.Linear(1, 1), []

    def loss(model, meta, batch):
        evaluated.append(batch)
        return (model.weight * meta.weight).square().sum()

    problem = mt.BilevelProblem(model, torch.nn.Linear(1, 1, bias=False), loss, loss)
    inner, estimator = mt.inner.SGD(lr=0.1), mt.hypergradients.OneStep()
    state = inner.init(problem)

    def evaluations(call):
        evaluated.clear()
        call(lambda: estimator(problem, inner, state, ["train"], "valid"))
        return len(evaluated)

    bare = evaluations(measure)
    # An error, and a measurement inside of another one, leave the checks where they were.
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0)
    assert evaluations(lambda call: measure(lambda: (count_flops(list), call()))) == bare
    assert evaluations(lambda call: call()) > bare
    assert evaluations(lambda call: call()) == bare


def test_the_least_time_is_that_of_the_fastest_call():
    turns = iter([10**6, 10, 10**6])
    done = []

    def spin():
        count = next(turns)
        for _ in range(count):
            pass
        done.append(count)

    fastest = least_seconds(spin, 3)
    assert done == [10**6, 10, 10**6]
    started = time.process_time()
    for _ in range(10**6):
        pass
    assert 0 <= fastest < time.process_time() - started
