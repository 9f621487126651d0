"""A hypergradient that reaches nothing: the message tells why, and what would."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnusedMetaParameterError
from metatoolkit.hypergradients import (
    GMRES,
    SAMA,
    EvoGrad,
    FiniteDifference,
    FirstOrder,
    GuidedEvoGrad,
    Implicit,
    OneStep,
    Penalty,
    Unrolled,
)
from metatoolkit.hypergradients.base import fill_gradients
from metatoolkit.testing import bank


class Named(nn.Module):
    """Meta-parameters with names of one's own."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def values(self):
        return dict(self.named_parameters())


def plain(model, meta, batch):
    return (model.value - 1).square().sum()


def message_of(estimator, meta, train=plain, valid=plain, inner=None, steps=0, **options):
    problem = mt.BilevelProblem(bank.Value([0.3, 0.1]), meta, train, valid, **options)
    inner = inner or mt.inner.SGD(lr=0.1)
    state = inner.init(problem)
    for _ in range(steps):
        state, _ = inner.step(problem, state, problem.meta_parameters(), None)
    with pytest.raises(UnusedMetaParameterError) as caught:
        estimator(problem, inner, state, [None] * estimator.horizon, None)
    return str(caught.value)


@pytest.mark.parametrize(
    "estimator", [EvoGrad(2, 0.1, 0.5), GuidedEvoGrad(0.1, 0.5)], ids=["EvoGrad", "GuidedEvoGrad"]
)
@pytest.mark.parametrize("way", ["tensor", "function", "group"])
def test_a_rate_that_the_estimator_does_not_differentiate(estimator, way):
    meta = Named(rate=0.1)
    if way == "tensor":
        inner = mt.inner.SGD(lr=meta.rate)
    elif way == "function":
        inner = mt.inner.SGD(lr=0.1, momentum=lambda meta, step: meta.rate.sigmoid())
    else:
        inner = mt.inner.SGD(lr=0.1, groups=[{"params": ["value"], "lr": meta.rate}])
    told = message_of(estimator, meta, inner=inner)
    name = "momentum" if way == "function" else "lr"
    assert f"λ enters through {name} of SGD, and {type(estimator).__name__} does not" in told
    assert "use ForwardMode or Unrolled" in told


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ({"lr": 0.1}, "lr"),
        ({"log_lr": [0.1, 0.2]}, "lr"),
        ({"rate": 0.1}, "lr"),
        ({"log_rates": [0.1, 0.2]}, "lr"),
        ({"lrs": [0.1, 0.2]}, "lr"),
        ({"RAW_LR": [0.1, 0.2]}, "lr"),
        ({"momentum": 0.5}, "momentum"),
        ({"raw_weight_decay": 0.5}, None),
        ({"weight_decay": [0.5, 0.5]}, "weight_decay"),
    ],
)
def test_a_number_where_lambda_was_meant(values, known):
    told = message_of(Unrolled(2), Named(**values))
    (name,) = values
    if known is None:
        assert "If λ is a hyper-parameter of SGD, pass it there: lr=lambda meta, step" in told
    else:
        number = 0.1 if known == "lr" else 0.0
        assert f"meta holds {name!r}, but {known} of SGD is the number {number}." in told
        assert f"{known}=lambda meta, step: meta.{name}.exp()" in told


def test_a_number_is_found_by_the_last_part_of_a_name():
    meta = nn.Module()
    meta.deep = nn.Module()
    meta.deep.lr = Named(momentum=[0.1])
    told = message_of(Unrolled(1), meta)
    assert "meta holds 'deep.lr.momentum', but momentum of SGD is the number 0.0" in told


def test_an_initialization_that_the_problem_does_not_know():
    model = bank.Value([0.3, 0.1])
    told = message_of(Unrolled(1), mt.metaparameters.Initialization(model))
    assert "names and shapes of inner parameters (value)" in told
    assert "initial=Initialization.values" in told


def test_maml_without_episodes():
    options = {"initial": lambda meta: meta.values()}
    told = message_of(Unrolled(2), Named(value=[0.3, 0.1]), steps=2, **options)
    assert "step 0 alone, and this one is of step 2" in told and "reset_every=" in told
    trainer_case = mt.BilevelProblem(
        bank.Value([0.3, 0.1]), Named(value=[0.3, 0.1]), plain, plain, **options
    )
    optimizer = torch.optim.SGD(trainer_case.meta.parameters(), lr=0.1)
    trainer = mt.MetaTrainer(trainer_case, mt.inner.SGD(lr=0.1), Unrolled(1), optimizer)
    with (
        pytest.warns(UserWarning, match=r"first outer step alone.*reset_every=1\)"),
        pytest.raises(UnusedMetaParameterError, match=r"MetaTrainer\(reset_every="),
    ):
        trainer.fit([None], [None], 3, progress=False)
    assert trainer.steps_done == 1


@pytest.mark.parametrize("estimator", [Unrolled(1), FirstOrder(1), OneStep()])
def test_initial_values_of_another_module(estimator):
    other, meta = Named(value=[0.3, 0.1]), Named(value=[0.3, 0.1])
    told = message_of(estimator, meta, initial=lambda _: other.values())
    assert "initial returns do not depend on the meta that it is called with" in told
    told = message_of(
        estimator, meta, initial=lambda meta: {n: v.detach() for n, v in meta.values().items()}
    )
    assert "initial returns do not depend on the meta that it is called with" in told


def test_estimators_that_do_not_look_at_the_initial_state():
    told = message_of(Penalty(), Named(value=[0.3, 0.1]), initial=lambda meta: meta.values())
    assert "sets the initial state, the one of step 0, which Penalty does not" in told


class DirectOnly(Unrolled):
    """Somebody's estimator that differentiates the outer loss alone."""

    def estimate(self, problem, inner, state, train_batches, valid_batch):
        missing = dict.fromkeys(problem.meta_parameter_names)
        fill_gradients(problem, missing, "valid_loss")


def test_lambda_in_the_training_loss_where_only_the_outer_one_is_read():
    told = message_of(
        DirectOnly(1),
        Named(scale=0.2),
        train=lambda model, meta, batch: meta.scale * plain(model, meta, batch),
    )
    assert "λ acts in train_loss, which DirectOnly does not differentiate in λ; use Unr" in told


EVERY = [
    Unrolled(2),
    EvoGrad(2, 0.1, 0.5),
    FiniteDifference(),
    SAMA(),
    Implicit(GMRES(2)),
    OneStep(),
    Penalty(),
]


@pytest.mark.parametrize("estimator", EVERY, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    ("cut", "word"),
    [
        (lambda scale: scale.detach(), "detach()"),
        (lambda scale: scale.exp().data, ".data"),
        (lambda scale: scale.item(), ".item()"),
        (lambda scale: scale.clone().detach_(), "detach_()"),
        (lambda scale: sum(torch.atleast_1d(scale).tolist()), ".tolist()"),
        (lambda scale: torch.no_grad()(lambda: scale * 2)(), "torch.no_grad()"),
    ],
)
def test_a_loss_that_cuts_lambda_off(estimator, cut, word):
    def train(model, meta, batch):
        return cut(meta.scale) * plain(model, meta, batch)

    told = message_of(estimator, Named(scale=0.2), train=train)
    assert f"train_loss cuts off what depends on λ, by {word}" in told


@pytest.mark.parametrize("estimator", EVERY, ids=lambda e: type(e).__name__)
def test_a_meta_from_an_outer_scope(estimator):
    outer = Named(scale=[0.2, 0.1])

    def loss(model, meta, batch):
        return outer.scale.square().sum() * plain(model, meta, batch)

    told = message_of(estimator, Named(scale=[0.2, 0.1]), train=loss)
    assert "train_loss reads a tensor that requires a gradient and belongs to neither" in told
    assert "(of shape (2,))" in told and "outer scope" in told


def test_frozen_meta_parameters_are_pointed_at():
    meta = Named(scale=0.2, spare=[1.0])
    meta.scale.requires_grad_(False)
    told = message_of(
        Unrolled(1), meta, train=lambda model, meta, batch: meta.scale * plain(model, meta, batch)
    )
    assert "meta holds: spare" in told and "frozen parameters (scale)" in told
    assert "requires_grad_(True)" in told


def test_a_loss_that_just_ignores_lambda_gets_the_general_advice():
    told = message_of(Unrolled(1), Named(scale=[0.2]))
    assert "Use the `meta` that is passed to the loss" in told and "detach" in told


def test_only_what_belongs_to_neither_module_is_told():
    outer = Named(scale=[0.2, 0.1, 0.3])

    def valid(model, meta, batch):
        return (meta.scale.sum() * outer.scale.sum()) * plain(model, meta, batch)

    told = message_of(DirectOnly(1), Named(scale=[0.2, 0.1]), valid=valid)
    assert "valid_loss reads a tensor" in told and "(of shape (3,))" in told
