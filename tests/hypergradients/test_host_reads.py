"""How often a call reads a number from a tensor: on a GPU, the host waits for it each time."""

import pytest
import torch

from metatoolkit.hypergradients import SAMA, EvoGrad, FiniteDifference, OneStep, Unrolled
from tests.hypergradients.compiled_calls import Calls

READING = ("__bool__", "__float__", "__int__", "cpu", "item", "numpy", "tolist")


@pytest.fixture
def reads(monkeypatch):
    """Names of the functions that have read a tensor."""
    found = []

    def counted(name, read):
        def call(tensor, *args, **options):
            found.append(name)
            return read(tensor, *args, **options)

        return call

    for name in READING:
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    return found


class Caller:
    """Calls of one estimator at one state."""

    def __init__(self, estimator, compile=False):
        self.calls = Calls(estimator, compile=compile)
        self.train = [self.calls.batch() for _ in range(estimator.horizon)]
        self.valid = self.calls.batch()

    def call(self, times=1):
        problem, inner, state = self.calls.problem, self.calls.inner, self.calls.state
        for _ in range(times):
            result = self.calls.estimator(problem, inner, state, self.train, self.valid)
        return result


@pytest.mark.parametrize("estimator", [OneStep, EvoGrad, FiniteDifference, SAMA])
def test_a_compiled_call_reads_once_whether_all_is_finite(reads, estimator):
    caller = Caller(estimator(), "graph")
    # The second one compiles, and the third is the program's second, which is compared.
    caller.call(3)
    reads.clear()
    caller.call()
    assert reads == ["__bool__"]
    assert [program.calls for program in caller.calls.programs] == [3]


def test_steps_whose_graphs_are_kept_are_read_once(reads):
    caller = Caller(Unrolled(3, keep_graphs=3))
    caller.call()
    reads.clear()
    caller.call()
    assert reads == ["tolist"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
def test_a_gpu_is_waited_for_once():
    with torch.device("cuda"):
        caller = Caller(OneStep(), "graph")
        caller.call(3)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchroniz") as found:
                caller.call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(found) == 1


def test_graphs_can_be_held_elsewhere():
    expected = Caller(Unrolled(3, keep_graphs=3)).call()
    caller = Caller(Unrolled(3, keep_graphs=3))
    with torch.autograd.graph.save_on_cpu():
        result = caller.call()
    torch.testing.assert_close(result.gradient, expected.gradient)
