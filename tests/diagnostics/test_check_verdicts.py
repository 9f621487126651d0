"""Wrong estimators, which a check must catch, and what it cannot judge, which it must say."""

import numpy as np
import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import (
    ConfigurationError,
    LabelError,
    NonFiniteError,
    UnsupportedError,
)
from metatoolkit.hypergradients import (
    GMRES,
    EvolutionStrategies,
    ForwardGradient,
    Implicit,
    OneStep,
    Penalty,
    Unrolled,
)
from metatoolkit.testing import bank
from tests.diagnostics.checked import (
    SGD,
    Broken,
    build,
    check,
    images,
    network,
    plain,
    weight_net,
    weighted,
)

F64 = torch.float64


class Reads(torch.autograd.Function):
    """A squared norm in float32, out of PyTorch's sight."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tensor(float((np.float32(x.tolist()) ** 2).sum())).to(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x


def rough(model, meta, batch):
    return Reads.apply(meta.value.exp()) + plain(model, meta, batch)


def test_rounding_that_nothing_can_take_away_is_measured():
    problem = build(valid_loss=rough)
    result = check(problem, SGD, Unrolled(1), images(), images(1))
    assert 1e-6 < result.reference_error < 1e-2
    assert result.relative_error < 3 * result.reference_error
    assert result.verdict == "agrees", str(result)
    # Steps that are too short show nothing but rounding, and that is said.
    short = check(problem, SGD, Unrolled(1), images(), images(1), epsilon=1e-9)
    assert short.relative_error > 0.5 and short.reference_error > 1
    assert short.verdict == "cannot tell"


class Single(torch.autograd.Function):
    """An operation that has no float64."""

    @staticmethod
    def forward(ctx, x):
        if x.dtype == F64:
            raise RuntimeError("\"single\" not implemented for 'Double'")
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def test_what_has_no_float64_is_checked_in_its_own_type():
    def train_loss(model, meta, batch):
        return Single.apply(weighted(model, meta, batch))

    def valid_loss(model, meta, batch):
        return plain(model, meta, batch) + 0.1 * meta.value.square().sum()

    problem = build(train_loss, valid_loss)
    result = check(problem, SGD, OneStep(), images(), images(1))
    assert "does not run in float64" in str(result) and "single" in result.note
    assert result.verdict != "differs" and result.relative_error < 0.05, str(result)
    broken = check(problem, SGD, Broken(lambda n, g: 1.5 * g), images(), images(1))
    assert broken.verdict == "differs", str(broken)


def test_the_error_of_a_loss_is_the_loss_its_own():
    def broken(model, meta, batch):
        raise RuntimeError("sizes do not fit")

    with pytest.raises(RuntimeError, match="sizes do not fit"):
        check(build(broken), SGD, Unrolled(1), images(), images(1))


class Blind(Unrolled):
    """Takes λ for a constant where it stands in the optimizer, its objective likewise."""

    def estimate(self, problem, inner, *arguments):
        return super().estimate(problem, self.cut(problem, inner), *arguments)

    def objective(self, problem, inner, *arguments):
        return super().objective(problem, self.cut(problem, inner), *arguments)

    @staticmethod
    def cut(problem, inner):
        return mt.inner.SGD(lr=float(problem.meta.value.detach().mean().sigmoid()))


def test_an_estimate_and_an_objective_that_are_wrong_together():
    inner = mt.inner.SGD(lr=lambda meta, step: meta.value.mean().sigmoid())
    right = check(build(), inner, Unrolled(2), images(), images(1))
    assert right.relative_error < 1e-6
    wrong = check(build(), inner, Blind(2), images(), images(1))
    assert wrong.verdict == "differs" and wrong.relative_error > 0.1


def test_a_path_that_goes_around_the_estimator():
    meta = bank.Value(torch.linspace(-1, 1, 8).tolist()).float()
    captured = list(meta.parameters())

    def train_loss(model, meta, batch):
        return weighted(model, meta, batch) + plain(model, meta, batch) * captured[0].sin().sum()

    problem = build(train_loss, meta=meta)
    # The graph of an estimate tells; where there is none, the check does.
    with pytest.raises(ConfigurationError, match=r"'meta\.value' as a tensor that was taken"):
        check(problem, SGD, Unrolled(2), images(), images(1))
    rates = mt.inner.SGD(lr=lambda meta, step: float(captured[0].detach().mean().sigmoid()))
    assert check(build(meta=meta), rates, Unrolled(2), images(), images(1)).verdict == "differs"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda n, g: 1.01 * g, 0.01),
        (lambda n, g: -g, 2.0),
        (lambda n, g: g + 0.05 * g.norm() * torch.eye(8)[3].to(g), 0.05),
        (lambda n, g: g.roll(1), None),
        (lambda n, g: torch.zeros_like(g), 1.0),
    ],
)
def test_broken_estimators_are_caught(change, error):
    result = check(build(), SGD, Broken(change), images(), images(1))
    assert result.verdict == "differs", str(result)
    if error is not None:
        assert result.relative_error == pytest.approx(error, rel=1e-3)


def test_random_estimators_are_not_blamed():
    for estimator in (EvolutionStrategies(1, 2, 0.01), ForwardGradient(1)):
        result = check(build(), SGD, estimator, images(), images(1))
        assert result.verdict == "cannot tell" and "on average" in result.note
        assert type(estimator).__name__ in str(result)
    # What it is the derivative of is the right thing all the same.
    exact = check(build(), SGD, Unrolled(1), images(), images(1))
    torch.testing.assert_close(result.reference, exact.reference, rtol=1e-6, atol=1e-9)


def test_a_loss_that_depends_on_what_is_not_rewound():
    calls = []

    def valid_loss(model, meta, batch):
        calls.append(1)
        return plain(model, meta, batch) * (1 + 0.1 * len(calls))

    result = check(build(valid_loss=valid_loss), SGD, OneStep(), images(), images(1))
    assert result.verdict == "cannot tell" and "not rewound" in result.note


def test_everything_is_as_it_was():
    model, meta = network(), weight_net()
    problem = build(mt.losses.weighted_cross_entropy, mt.losses.cross_entropy, model, meta)
    model[0].weight.grad = torch.ones(8, 6)
    tensors = [*model.parameters(), *meta.parameters()]
    before = [(t, t.data_ptr(), t.detach().clone(), t.grad) for t in tensors]
    estimator = Implicit(GMRES(20, 1e-6), warm_start=True)
    for batch in (images(), (images()[0], torch.full((8,), 7))):
        try:
            check(problem, mt.inner.SGD(lr=0.1), OneStep(), batch, images(1))
        except LabelError:
            assert int(batch[1][0]) == 7
    assert estimator.state_dict() == {}
    for (tensor, place, value, grad), now in zip(
        before, [*model.parameters(), *meta.parameters()], strict=True
    ):
        assert tensor is now and place == now.data_ptr() and grad is now.grad
        assert torch.equal(value, now) and now.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_a_carried_state_stays_as_it_is():
    penalty = Penalty(3.0)
    problem = build()
    check(problem, mt.inner.SGD(lr=0.1), penalty, images(), images(1))
    assert penalty.state_dict() == {}


@pytest.mark.parametrize("name", ["estimator", "reference"])
def test_a_class_in_the_place_of_an_estimator(name):
    options = {"estimator": Unrolled(1), "reference": Unrolled(1), name: Unrolled}
    with pytest.raises(
        ConfigurationError, match=rf"{name} is the class Unrolled.*Unrolled\(\.\.\.\)"
    ):
        mt.check_hypergradient(
            build(), SGD, options.pop("estimator"), [images()], images(1), **options
        )


def test_a_reference_that_takes_other_batches():
    with pytest.raises(ConfigurationError, match="reference, Unrolled, takes 3"):
        check(build(), SGD, Unrolled(1), images(), images(1), reference=Unrolled(3))


def test_an_objective_that_is_infinite_nearby():
    def valid_loss(model, meta, batch):
        return plain(model, meta, batch) + meta.value.sqrt().sum()

    meta = bank.Value([1e-7, 1.0]).float()
    problem = build(plain, valid_loss, meta=meta)
    with pytest.raises(NonFiniteError, match="entry 0 of 'value'"):
        check(problem, SGD, Unrolled(1), images(), images(1))


def test_complex_meta_parameters():
    meta = bank.Value(0.0)
    meta.value = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def train_loss(model, meta, batch):
        return plain(model, meta, batch) * meta.value.abs().sum()

    with pytest.raises(UnsupportedError, match="complex"):
        check(build(train_loss, meta=meta), SGD, Unrolled(1), images(), images(1))


def constant(model, meta, batch):
    return plain(model, meta, batch) + 0.0 * meta.value.sum()


def test_an_estimate_where_the_derivative_is_zero():
    wrong = Broken(lambda name, gradient: gradient + 0.1)
    result = check(build(constant, constant), SGD, wrong, images(), images(1))
    assert result.verdict == "differs", str(result)
    right = check(build(constant, constant), SGD, OneStep(), images(), images(1))
    assert right.relative_error == 0.0 and right.verdict == "agrees"
    assert "move nothing here" in right.note


class Rounded(torch.autograd.Function):
    """Rounds, and lets gradients pass straight through."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g


def test_a_backward_pass_that_is_no_derivative():
    def train_loss(model, meta, batch):
        return plain(model, meta, batch) * Rounded.apply(meta.value).exp().sum()

    result = check(build(train_loss), SGD, Unrolled(1), images(), images(1))
    assert result.relative_error > 0.5
    assert result.verdict == "cannot tell", str(result)
