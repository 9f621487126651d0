"""How many graphs of steps are kept where the estimator chooses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import metatoolkit as mt
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.hypergradients import Unrolled
from metatoolkit.hypergradients.kept_graphs import graph_bytes
from metatoolkit.inner import SGD
from metatoolkit.testing import bank

WIDTH, BATCH = 32, 512
REVERSE = "reverse_over_reverse"


def _case(train_loss=None, layers=4, width=WIDTH):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def loss(model, meta, batch):
        return meta.value.exp() * model(batch).tanh().square().mean()

    problem = mt.BilevelProblem(model, bank.Value(0.1, torch.float32), train_loss or loss, loss)
    batch = torch.randn(BATCH, width)
    return bank.ProblemInstance(problem, SGD(lr=0.1), [batch], batch)


def _kept(case, estimator):
    return case.call(estimator).details["keep_graphs"]


def test_a_graph_holds_what_its_nodes_saved():
    x = torch.randn(10, 10, requires_grad=True)
    y = torch.randn(10, 10)
    product = x * y
    assert graph_bytes([product]) == 400
    assert graph_bytes([product], [y]) == 0
    # exp keeps its result, and the product keeps it, too: it is counted once.
    assert graph_bytes([product.exp() * y]) == 800
    assert graph_bytes([x.detach()]) == 0
    assert graph_bytes([torch.cat([x, x]).sum()]) == 0


def test_it_is_what_the_memory_of_a_step_grows_by():
    case = _case()

    def peak(steps):
        estimator = Unrolled(steps, keep_graphs=steps)
        return peak_memory(lambda: case.call(estimator))

    growth = (peak(9) - peak(3)) / 6
    estimator = Unrolled(3)
    case.call(estimator)
    (size,) = estimator._plans.graphs._sizes.values()
    assert 0.8 * growth < size < 1.25 * growth


def test_graphs_are_kept_as_far_as_they_fit():
    case = _case()
    estimator = Unrolled(6)
    assert _kept(case, estimator) == 6
    (size,) = estimator._plans.graphs._sizes.values()
    expected = case.call(Unrolled(6, keep_graphs=1))
    for budget, kept in ((0, 1), (size, 1), (3 * size + 1, 3), (6 * size, 6), (100 * size, 6)):
        estimator = Unrolled(6, memory_budget=budget)
        first, second = case.call(estimator), case.call(estimator)
        assert first.details == second.details == {"product": REVERSE, "keep_graphs": kept}
        assert estimator.repeats_steps is (kept < 6)
        # The step whose graph was measured is taken once more where it is not kept.
        assert second.cost.forward == 6 + (6 - kept) + 1
        assert first.cost.forward == second.cost.forward + (kept < 6)
        for found in (first, second):
            assert torch.equal(found.gradient["value"], expected.gradient["value"])
            assert torch.equal(found.valid_loss, expected.valid_loss)


def test_other_shapes_are_measured_anew():
    estimator = Unrolled(4, memory_budget=2_000_000)
    small, large = _case(width=8), _case(width=64)
    assert _kept(small, estimator) == 4 and _kept(large, estimator) == 1
    assert _kept(small, estimator) == 4 and not estimator.repeats_steps


def test_what_was_named_is_not_measured():
    for options in ({"keep_graphs": 2}, {"keep_graphs": 9}):
        assert _case().call(Unrolled(3, **options)).details == {"product": REVERSE}
    estimator = Unrolled(1)
    assert _kept(_case(), estimator) == 1 and not estimator._plans.graphs._sizes


@pytest.mark.parametrize("checkpoint", ["sqrt", "tree"])
def test_who_keeps_few_states_keeps_one_graph(checkpoint):
    estimator = Unrolled(5, checkpoint=checkpoint)
    assert estimator.repeats_steps and _kept(_case(), estimator) == 1
    assert not Unrolled(5, checkpoint=checkpoint, keep_graphs=5).repeats_steps


def test_weights_of_steps_keep_all_graphs():
    assert _kept(_case(), Unrolled(3, step_weights=[1.0, 1.0, 1.0], memory_budget=0)) == 3


@pytest.mark.parametrize("options", [{"product": "forward_over_reverse"}, {"first_order": True}])
def test_without_graphs_of_steps_none_is_kept(options):
    case = _case() if "product" in options else bank.initialized()
    assert _kept(case, Unrolled(3, **options)) == 1


def test_checkpoints_of_activations_are_not_kept():
    calls = 0

    def loss(model, meta, batch):
        def body(batch):
            nonlocal calls
            calls += 1
            return model(batch)

        return meta.value.exp() * checkpoint(body, batch, use_reentrant=False).square().mean()

    case, plain = _case(loss), _case(lambda m, meta, b: meta.value.exp() * m(b).square().mean())
    estimator = Unrolled(3)
    assert _kept(case, estimator) == 1
    calls = 0
    found = case.call(estimator)
    expected = plain.call(Unrolled(3))
    torch.testing.assert_close(found.gradient["value"], expected.gradient["value"])
    again = Unrolled(3, keep_graphs=1)
    case.call(again)
    calls, ours = 0, calls
    case.call(again)
    # Nothing was unpacked to be measured.
    assert ours == 2 * calls or ours >= calls


def test_tasks_side_by_side_count_all_of_them():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    meta = mt.metaparameters.Initialization(model)

    def loss(model, meta, batch):
        return F.mse_loss(model(batch), batch)

    problem = mt.BilevelProblem(model, meta, loss, loss, initial=type(meta).values)
    tasks = (torch.randn(10, 20, 8), torch.randn(10, 20, 8))

    def size(batching):
        estimator = Unrolled(3)
        mt.over_tasks(problem, SGD(lr=0.1), estimator, tasks, batching)
        return max(estimator._plans.graphs._sizes.values())

    assert size("vmap") > 8 * size("loop")
