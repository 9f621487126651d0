"""One weight for each training example, as λ."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.hypergradients import Implicit, Unrolled
from metatoolkit.hypergradients.linear_solvers import ConjugateGradient
from metatoolkit.losses import cross_entropy, reweighted_cross_entropy, sample_losses
from metatoolkit.metaparameters import ExampleWeights

EXAMPLES = 12


def make(train_loss=reweighted_cross_entropy):
    torch.manual_seed(0)
    model, meta = nn.Linear(3, 4).double(), ExampleWeights(EXAMPLES).double()
    with torch.no_grad():
        meta.logits.copy_(torch.randn(EXAMPLES, dtype=torch.float64))
    inputs, labels = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 4
    batches = mt.tasks.Batches(
        inputs[:EXAMPLES], labels[:EXAMPLES], torch.arange(EXAMPLES), batch_size=5, seed=3
    )
    valid = inputs[EXAMPLES:], labels[EXAMPLES:]
    return mt.BilevelProblem(model, meta, train_loss, cross_entropy), batches, valid


def test_a_weight_is_the_logistic_function_of_its_own_number():
    meta = ExampleWeights(4, value=0.2)
    assert meta(torch.tensor([3, 0])).tolist() == pytest.approx([0.2, 0.2])
    with torch.no_grad():
        meta.logits.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    expected = (1 / (1 + torch.exp(-meta.logits))).tolist()
    assert meta.values().tolist() == pytest.approx(expected)
    assert meta(torch.tensor([[2], [1]])).flatten().tolist() == pytest.approx(expected[2:0:-1])
    assert not meta.values().requires_grad


def test_one_step_moves_a_weight_by_how_its_gradient_fits_the_validation_gradient():
    """dL/dλ_i = −lr/B σ'(λ_i) ⟨∇L_i(θ), ∇L(θ⁺)⟩ for an example of the batch, else 0."""
    problem, batches, valid = make()
    inner, batch = mt.inner.SGD(lr=0.3), next(batches)
    state = inner.init(problem)
    found = Unrolled(1)(problem, inner, state, [batch], valid).gradient["logits"]

    model, weights = problem.model, problem.meta.values()
    parameters = list(model.parameters())
    losses = sample_losses(model, batch[:2]).unbind()
    own = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    pulled = [
        sum(weights[place] * g[k] for place, g in zip(batch[2], own, strict=True)) / 5
        for k in range(2)
    ]
    with torch.no_grad():
        for parameter, pull in zip(parameters, pulled, strict=True):
            parameter -= 0.3 * pull
    outer = torch.autograd.grad(cross_entropy(model, problem.meta, valid), parameters)
    expected = torch.zeros(EXAMPLES, dtype=torch.float64)
    for place, gradients in zip(batch[2], own, strict=True):
        fit = sum((g * o).sum() for g, o in zip(gradients, outer, strict=True))
        expected[place] = -0.3 / 5 * weights[place] * (1 - weights[place]) * fit
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert (found != 0).sum() == 5


def test_through_several_batches_it_is_that_of_finite_differences():
    problem, batches, valid = make()
    train = [next(batches) for _ in range(4)]
    check = mt.check_hypergradient(problem, mt.inner.SGD(lr=0.3), Unrolled(4), train, valid)
    assert check.relative_error < 1e-7


def test_at_the_optimum_it_is_that_of_the_whole_training_set():
    def penalized(model, meta, batch):
        decay = sum(parameter.square().sum() for parameter in model.parameters())
        return reweighted_cross_entropy(model, meta, batch) + 0.1 * decay

    problem, batches, valid = make(penalized)
    whole = (*(tensor[:EXAMPLES] for tensor in batches.tensors),)
    estimator = Implicit(ConjugateGradient(100, tolerance=1e-12), steps=400)
    inner = mt.inner.SGD(lr=1.0)
    state = inner.init(problem)
    found = estimator(problem, inner, state, [whole] * 400, valid).gradient["logits"]
    exact = Unrolled(400)(problem, inner, state, [whole] * 400, valid).gradient["logits"]
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-12)


def test_wrong_input_is_answered():
    for examples in (0, -2, 1.5, True):
        with pytest.raises(ConfigurationError, match="number of training examples"):
            ExampleWeights(examples)
    for value in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            ExampleWeights(3, value)
    with pytest.raises(DataError, match=r"places are torch\.float32; int64 is needed"):
        ExampleWeights(3)(torch.zeros(2))
    with pytest.raises(DataError, match="places are list"):
        ExampleWeights(3)([0, 1])
