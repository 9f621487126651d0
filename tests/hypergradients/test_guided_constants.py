"""What GuidedEvoGrad takes for a constant of the training loss, and what it refuses to."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import OneStep
from metatoolkit.testing import bank
from tests.hypergradients.test_finite_difference import weighted
from tests.hypergradients.test_guided_evograd import flat, guided, relative_error, with_inner

F64 = torch.float64


@pytest.mark.parametrize("how", ["detach", "data"])
def test_what_the_loss_detaches_is_a_constant(how):
    case = with_inner(weighted(how), mt.inner.SGD(lr=1.0))
    state = case.state
    exact = case.call(OneStep(lookahead=False), state)
    errors = [
        relative_error(case.call(guided(sigma, 5.0, rescale=1.0), state), exact)
        for sigma in (1e-2, 1e-3)
    ]
    # The constants are those of θ, between the candidates: an error of the order of σ².
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] < 1e-4


class Same(torch.autograd.Function):
    """Returns its argument, which autograd gives away as a view."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("run", ["a function", "a module with a hook"])
def test_what_a_function_returns_as_it_got_it_is_no_constant(run):
    def through(x):
        if run == "a function":
            return Same.apply(x)
        module = torch.nn.Identity()
        module.register_full_backward_hook(lambda module, after, before: None)
        return module(x)

    def case(change):
        def train_loss(model, meta, batch):
            slope = torch.autograd.grad(model.value**3, model.value, create_graph=True)[0]
            return meta.value * change(model.value * 1.0) ** 2 + slope

        def valid_loss(model, meta, batch):
            return (model.value - 0.5) ** 2

        problem = mt.BilevelProblem(bank.Value(0.3), bank.Value(0.4), train_loss, valid_loss)
        return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)

    right = flat(case(lambda x: x).call(guided()))
    assert bool(right.any())
    torch.testing.assert_close(flat(case(through).call(guided())), right, rtol=1e-12, atol=0)


def _doubled(h):
    h.mul_(2)


def _entry(h):
    h[0] = 0.5


def _view(h):
    h[1:].add_(1.0)


def _kept_view(h):
    part = h.view(-1)
    part.zero_()


def _relu(h):
    torch.nn.functional.relu(h, inplace=True)


def _output(h):
    torch.add(h, 1.0, out=h)


def vector_case(train_loss):
    def valid_loss(model, meta, batch):
        return ((model.value - batch) ** 2).sum()

    problem = mt.BilevelProblem(
        bank.Value([0.3, -0.6]), bank.Value([0.4, 0.2]), train_loss, valid_loss
    )
    batch = torch.tensor([0.5, 0.1], dtype=F64)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)


@pytest.mark.parametrize("write", [_doubled, _entry, _view, _kept_view, _relu, _output])
@pytest.mark.parametrize("deep", [False, True])
def test_a_hidden_write_over_what_follows_the_parameters_is_refused(write, deep):
    def train_loss(model, meta, batch):
        h = model.value * batch
        h = torch.relu(h + 1).exp() if deep else h
        with torch.no_grad():
            write(h)
        return (meta.value * h**2).sum()

    with pytest.raises(UnsupportedError, match="hides it by"):
        vector_case(train_loss).call(guided())


def test_writes_over_what_does_not_follow_them_are_seen_as_they_are():
    def case(writes):
        def train_loss(model, meta, batch):
            mask, noise = torch.ones(2, dtype=F64), batch * 2
            if writes:
                with torch.no_grad():
                    mask[0] = 0.5
                    noise.mul_(2)
                    noise[1] = 0
                    mask[1:].mul_(2)
                    size = model.value * 2
                    size.view(-1).mul_(0.5)
            else:
                mask = torch.tensor([0.5, 2.0], dtype=F64)
                noise = batch * torch.tensor([4.0, 0.0], dtype=F64)
                size = model.value.detach()
            return (meta.value * mask * (model.value + noise) ** 2).sum() + (size**2).sum()

        return vector_case(train_loss)

    right = flat(case(False).call(guided()))
    torch.testing.assert_close(flat(case(True).call(guided())), right, rtol=1e-12, atol=0)


def test_a_write_through_a_view_of_what_may_follow_them_is_refused():
    def train_loss(model, meta, batch):
        noise = batch * 2
        with torch.no_grad():
            noise[1:].zero_()
        return (meta.value * (model.value + noise) ** 2).sum()

    with pytest.raises(UnsupportedError, match="hides it by"):
        vector_case(train_loss).call(guided())
