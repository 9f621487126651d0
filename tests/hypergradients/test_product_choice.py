"""Which product an unroll takes where it chooses."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics import count_flops, peak_memory
from metatoolkit.hypergradients import Unrolled
from metatoolkit.inner import SGD
from metatoolkit.testing import bank


class _Straight(torch.autograd.Function):
    """Rounds, and passes gradients on as if it did not."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent


def _case(layer=nn.Conv2d, change=lambda out: out, steps=1):
    """Return losses weighted per example on a network of convolutions, or of matrix products."""
    torch.manual_seed(0)
    if layer is nn.Conv2d:
        layers = [nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(3)]
        head = [nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    else:
        layers, head = [nn.Linear(64, 64) for _ in range(3)], []
    body = [part for layer in layers for part in (layer, nn.Tanh())]
    start = [] if head else [nn.Flatten()]
    model = nn.Sequential(*start, *body, *head, nn.Linear(64, 3)).double()
    weights = mt.metaparameters.ExampleWeights(20).double()

    def train_loss(model, weights, batch):
        images, labels, indices = batch
        losses = F.cross_entropy(change(model(images)), labels, reduction="none")
        return (weights(indices) * losses).sum()

    def valid_loss(model, weights, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, weights, train_loss, valid_loss)
    batch = (torch.randn(20, 1, 8, 8).double(), torch.arange(20) % 3, torch.arange(20))
    return bank.ProblemInstance(problem, SGD(lr=0.1), [batch] * steps, batch)


def _scaled_hook(out):
    if out.requires_grad:
        out.register_hook(lambda gradient: gradient * gradient.detach().abs())
    return out


def _without_forward_mode(out):
    grid = torch.tanh(out[None, :, :2, None].expand(-1, -1, -1, 2))
    return out + F.grid_sample(out[None, None], grid, align_corners=True).sum()


def test_one_step_of_convolutions_is_taken_in_mixed_mode():
    case, estimator = _case(), Unrolled(1)
    first, second = case.call(estimator), case.call(estimator)
    assert first.details == second.details == {"product": "forward_over_reverse", "keep_graphs": 1}
    named = case.call(Unrolled(1, product="forward_over_reverse"))
    exact = case.call(Unrolled(1, product="reverse_over_reverse"))
    for name, gradient in named.gradient.items():
        assert torch.equal(first.gradient[name], gradient)
        assert torch.equal(second.gradient[name], gradient)
        torch.testing.assert_close(gradient, exact.gradient[name], rtol=1e-10, atol=1e-14)
    assert second.cost == named.cost and estimator.repeats_steps
    assert first.cost.forward == named.cost.forward + 3 and first.cost.hvp == named.cost.hvp + 2


def test_the_choice_costs_less_from_the_second_call_on():
    case, estimator = _case(), Unrolled(1)
    first = count_flops(lambda: case.call(estimator))
    reverse = Unrolled(1, product="reverse_over_reverse")
    flops = [count_flops(lambda e=e: case.call(e)) for e in (estimator, reverse)]
    assert flops[0] < 0.97 * flops[1] and first > 1.2 * sum(flops)
    memory = [peak_memory(lambda e=e: case.call(e)) for e in (estimator, reverse)]
    assert memory[0] < memory[1]


@pytest.mark.parametrize(
    "case",
    [
        _case(nn.Linear),
        _case(steps=2),
        _case(change=_Straight.apply),
        _case(change=_scaled_hook),
        _case(change=_without_forward_mode),
    ],
    ids=["matrix products", "two steps", "custom function", "hook", "no forward mode"],
)
def test_elsewhere_it_is_the_double_backward(case):
    steps = len(case.train_batches)
    estimator, named = Unrolled(steps), Unrolled(steps, product="reverse_over_reverse")
    for _ in range(2):
        found, expected = case.call(estimator), case.call(named)
        assert found.details["product"] == "reverse_over_reverse"
        assert torch.equal(found.gradient["logits"], expected.gradient["logits"])


def test_matrix_products_take_no_more_passes():
    case, estimator = _case(nn.Linear), Unrolled(1)
    assert case.call(estimator).cost == case.call(Unrolled(1, product="reverse_over_reverse")).cost


def test_each_problem_and_shape_is_looked_at():
    estimator = Unrolled(1)
    plain, changed = _case(), _case(change=_scaled_hook)
    products = [case.call(estimator).details["product"][:7] for case in (plain, changed, plain)]
    assert products == ["forward", "reverse", "forward"]
    for again in (estimator.duplicate(), pickle.loads(pickle.dumps(estimator))):
        assert plain.call(again).details == plain.call(estimator).details


def test_what_is_named_is_taken():
    for product in ("reverse_over_reverse", "forward_over_reverse"):
        result = _case().call(Unrolled(1, product=product, keep_graphs=1))
        assert result.details == {}
