"""Losses that use the transforms of torch.func, by estimators that hold what a derivative holds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import (
    SAMA,
    EvoGrad,
    FiniteDifference,
    ForwardMode,
    GuidedEvoGrad,
    Unrolled,
)
from metatoolkit.hypergradients.transforms import (
    Outside,
    in_transform,
    put_in,
    requires_gradient,
    taken_out,
)
from metatoolkit.testing import bank


def weighed(loss, x, value):
    return loss * torch.sigmoid(value[0] * x[0] + value[1])


def per_example(model, meta, batch):
    def one(x, y):
        return weighed(((model(x) - y) ** 2).mean(), x, meta.value)

    return torch.vmap(one)(*batch).mean()


def per_example_with_a_constant(model, meta, batch):
    def one(x, y):
        loss = ((model(x) - y) ** 2).mean()
        return loss * torch.sigmoid(meta.value[0] * loss.detach() + meta.value[1])

    return torch.vmap(one, in_dims=(1, 1))(batch[0].T, batch[1].T).mean()


def slopes_of_inputs(model, meta, batch):
    slopes = torch.vmap(torch.func.grad(lambda x: (model(x) ** 2).sum()))(batch[0])
    smooth = meta.value.exp()
    return F.mse_loss(model(batch[0]), batch[1]) + smooth[0] * (slopes**2).mean() + smooth[1]


def slope_along_a_direction(model, meta, batch):
    x, y = batch
    output, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    return F.mse_loss(output, y) + meta.value[0].exp() * (slope**2).mean() + meta.value[1]


def gradients_of_examples(model, meta, batch):
    parameters = dict(model.named_parameters())

    def one(point, x, y):
        return F.mse_loss(torch.func.functional_call(model, point, (x,)), y)

    found = torch.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(parameters, *batch)
    size = sum((gradient**2).mean() for gradient in found.values())
    return one(parameters, *batch) + meta.value[0].exp() * size + meta.value[1]


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

LOSSES = (
    per_example,
    per_example_with_a_constant,
    slopes_of_inputs,
    slope_along_a_direction,
    gradients_of_examples,
)
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.Hardtanh)


def case(loss, activation=nn.Tanh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 2)).double()
    batches = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(2)]

    def valid_loss(model, meta, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, bank.Value([0.7, -0.4]), loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), batches[:1], batches[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_finite_differences_are_the_derivative(loss, activation):
    right = case(loss, activation).call(Unrolled(1)).gradient["value"]
    found = case(loss, activation).call(FiniteDifference()).gradient["value"]
    assert bool(right.any())
    torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_copies_along_the_gradient_see_what_a_difference_sees(loss):
    right = case(loss).call(SAMA()).gradient["value"]
    guided = GuidedEvoGrad(sigma=1e-5, temperature=1.0, rescale=0.1)
    found = case(loss).call(guided).gradient["value"]
    assert bool(right.any())
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_candidates_whose_graphs_cannot_be_looked_at_are_streamed(loss):
    right = case(loss).call(EvoGrad(streamed=True)).gradient
    torch.testing.assert_close(case(loss).call(EvoGrad()).gradient, right, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", [Unrolled(2), EvoGrad(sigma=0.1), ForwardMode(1)])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_check_judges_them(loss, estimator):
    given = case(loss)
    batches = given.batches(estimator.horizon)
    found = mt.check_hypergradient(
        given.problem, given.inner, estimator, batches, given.valid_batch
    )
    assert found.verdict == "agrees", str(found)
    assert not found.note


def test_forward_mode_within_forward_mode_is_told():
    given = case(slope_along_a_direction)
    with pytest.raises(UnsupportedError, match="product='reverse_over_reverse'"):
        given.call(Unrolled(1, product="forward_over_reverse"))


def test_a_gradient_is_seen_through_what_wraps_a_tensor():
    w = torch.ones(2, requires_grad=True)
    seen = []

    def look(x):
        seen.append((in_transform(), requires_gradient(x), requires_gradient(x.detach())))
        return (x**2).sum()

    look(w)
    torch.vmap(look)(w)
    torch.vmap(torch.func.grad(look))(w)
    torch.func.jvp(look, (w,), (w,))
    assert seen == [(False, True, False)] + 3 * [(True, True, False)]
    assert not requires_gradient(torch.ones(2))


def test_a_tensor_outlasts_transforms_and_is_put_in_again():
    kept = []
    w = torch.arange(6.0).view(2, 3)

    def keep(x):
        kept.append(taken_out((x * 2, 1)))
        return x

    def put(x):
        (doubled, one) = put_in(kept[0])
        return doubled + x + one

    torch.vmap(torch.vmap(keep), in_dims=1)(w)
    assert isinstance(kept[0][0], Outside)
    assert [level for level, _ in kept[0][0].layers] == [2, 1]
    found = torch.vmap(torch.vmap(put), in_dims=1)(w)
    torch.testing.assert_close(found, 3 * w.T + 1)
    assert taken_out(w) is w
    assert put_in(w) is w
