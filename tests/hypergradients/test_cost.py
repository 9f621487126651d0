"""Passes and memory on ResNet-32, in multiples of one forward pass and of one base step."""

import functools

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.hypergradients import EvoGrad, ProblemInstance, Unrolled

DOUBLE = "reverse_over_reverse"


class Shift(nn.Module):
    """λ at the input of the network."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(3, 32, 32))


def shifted_cross_entropy(model, meta, batch):
    return mt.losses.cross_entropy(model, meta, (batch[0] + meta.value, batch[1]))


class Setup(ProblemInstance):
    """A network with λ in the loss or at the input, and the cost of its base step."""

    def __init__(self, where, examples, width=1):
        torch.manual_seed(0)
        model = mt.networks.build_network("resnet32", 10, (3, 32, 32), width=width)
        if where == "loss":
            meta, train_loss = mt.metaparameters.WeightNet(), mt.losses.weighted_cross_entropy
        else:
            meta, train_loss = Shift(), shifted_cross_entropy
        problem = mt.BilevelProblem(model, meta, train_loss, mt.losses.cross_entropy)
        inner = mt.inner.SGD(lr=0.1)
        self.batch = (torch.randn(examples, 3, 32, 32), torch.randint(10, (examples,)))
        super().__init__(problem, inner, [self.batch], self.batch, inner.init(problem))
        self.base = functools.cache(lambda measure: measure(self.base_step))

    def base_step(self):
        meta = self.problem.meta_parameters()
        return self.inner.step(self.problem, self.state, meta, self.batch)

    def forward(self):
        with torch.no_grad():
            state = self.state
            self.problem.evaluate_valid(state.parameters, {}, state.buffers, self.batch, 0)

    def passes(self, estimator):
        return count_flops(lambda: self.call(estimator)) / count_flops(self.forward)

    def memory(self, estimator):
        return peak_memory(lambda: self.call(estimator)) / self.base(peak_memory)


def test_flops_with_meta_in_the_loss():
    setup = Setup("loss", 2, width=2)
    assert count_flops(setup.base_step) / count_flops(setup.forward) == pytest.approx(3, rel=0.01)
    for candidates in (2, 4):
        assert setup.passes(EvoGrad(candidates)) == pytest.approx(candidates + 3, rel=0.01)
    assert setup.passes(Unrolled(1, product=DOUBLE)) == pytest.approx(10, rel=0.01)
    chosen = Unrolled(1)
    setup.call(chosen)
    assert setup.passes(chosen) == pytest.approx(9, rel=0.01)


def test_flops_with_meta_at_the_input():
    setup = Setup("input", 2)
    for candidates in (2, 4):
        kept = EvoGrad(candidates, streamed=False)
        assert setup.passes(kept) == pytest.approx(2 * candidates + 3, rel=0.01)
        mapped = EvoGrad(candidates, streamed="vmap")
        setup.call(mapped)
        assert setup.passes(mapped) == pytest.approx(2 * candidates + 3, rel=0.01)
        streamed = EvoGrad(candidates, streamed=True)
        assert setup.passes(streamed) == pytest.approx(3 * candidates + 3, rel=0.01)
    assert setup.passes(Unrolled(1, product=DOUBLE)) == pytest.approx(11, rel=0.01)


def test_memory_with_meta_in_the_loss():
    setup = Setup("loss", 24)
    two, five = setup.memory(EvoGrad(2)), setup.memory(EvoGrad(5))
    assert two <= 1.05
    assert five <= 1.01 * two
    assert 2.5 < setup.memory(Unrolled(1, product=DOUBLE)) < 3.2
    chosen = Unrolled(1)
    setup.call(chosen)
    assert setup.memory(chosen) < 1.1


def test_memory_with_meta_at_the_input():
    setup = Setup("input", 24)
    assert setup.memory(EvoGrad(2)) <= 1.05
    assert setup.memory(EvoGrad(5)) <= 1.05
    # With graphs kept there is one set of activations for each candidate, and one more.
    kept = [setup.memory(EvoGrad(candidates, streamed=False)) for candidates in (2, 3)]
    assert kept[0] > 2.5
    assert 0.8 < kept[1] - kept[0] < 1.2


def test_noise_is_not_held_beside_the_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(12)), nn.Linear(300, 3))
    problem = mt.BilevelProblem(
        model,
        mt.metaparameters.WeightNet(),
        mt.losses.weighted_cross_entropy,
        mt.losses.cross_entropy,
    )
    inner = mt.inner.SGD(lr=0.1)
    state, batch = inner.init(problem), (torch.randn(2, 300), torch.tensor([0, 2]))
    size = sum(t.numel() * t.element_size() for t in state.parameters.values())
    peak = peak_memory(lambda: EvoGrad(4)(problem, inner, state, [batch], batch))
    # θ⁺ and the gradient there, and the noise of one layer at a time.
    assert 2 * size < peak < 2.3 * size
