"""SGD against torch.optim.SGD, autograd and finite differences."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError, UnsupportedError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.inner import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    InnerLearner,
    Lion,
    RAdam,
    RMSprop,
    multistep,
)
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing import bank
from tests.inner import reference

OPTIONS = [
    {"lr": 0.05},
    {"lr": 0.05, "weight_decay": 0.1},
    {"lr": 0.02, "momentum": 0.9},
    {"lr": 0.02, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(SGD(**options), torch.optim.SGD, options)


def test_groups_equal_torch():
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    special = [{"lr": 0.01, "momentum": 0.5}, {"weight_decay": 0.0}]
    groups = [
        {"params": [f"{prefix}.*"], **own}
        for prefix, own in zip(("head", "tied"), special, strict=True)
    ]
    inner = SGD(**options, groups=groups)
    reference.assert_follows(inner, torch.optim.SGD, options, special)


@pytest.mark.parametrize(
    ("options", "special"),
    [
        ({"lr": 0.02, "momentum": 0.9, "dampening": 0.3}, [{"momentum": 0.0}, {"dampening": 0.0}]),
        ({"lr": 0.02, "dampening": 0.3, "weight_decay": 0.1}, [{"momentum": 0.9}, {}]),
        ({"lr": 0.02, "momentum": 0.9, "nesterov": True}, [{"nesterov": False}, {"momentum": 0.0}]),
        ({"lr": 0.02, "momentum": 0.9}, [{"nesterov": True}, {"maximize": True, "lr": 1e-3}]),
        ({"lr": 0.002, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}, [{"lr": 0.001}]),
    ],
)
def test_options_of_groups_equal_torch(options, special):
    inner = SGD(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.SGD, options, special)
    reference.assert_sensitivity(inner)


def test_a_momentum_that_pauses_keeps_its_velocity_as_torch_does():
    options = {"lr": 0.02, "momentum": 0.9, "dampening": 0.2}

    def momentum(step):
        return 0.0 if 5 <= step < 9 else 0.9

    inner = SGD(**options | {"momentum": lambda meta, step: momentum(step)})
    reference.assert_follows(
        inner, torch.optim.SGD, options, schedule=lambda step: {"momentum": momentum(step)}
    )


def test_a_dampened_momentum_that_starts_late_is_an_error():
    problem = reference.make_problem()
    for late in (
        SGD(0.1, momentum=lambda meta, step: 0.1 * step, dampening=0.5),
        SGD(0.1, dampening=0.5, groups=[{"params": ["*"], "momentum": lambda m, s: 0.0}]),
    ):
        with pytest.raises(
            UnsupportedError, match=r"momentum is a function that is 0 at the first"
        ):
            late.step(problem, late.init(problem), problem.meta_parameters(), batch())
    options = {"lr": 0.02, "momentum": 0.0}
    inner = SGD(0.02, momentum=lambda meta, step: 0.01 * step)
    reference.assert_follows(
        inner, torch.optim.SGD, options, schedule=lambda step: {"momentum": 0.01 * step}
    )


def batch():
    return reference.make_batches(1)[0]


def test_schedules_equal_torch():
    rate = multistep(0.05, [10, 30], gamma=0.3)
    inner = SGD(lr=rate, momentum=lambda meta, step: 0.9 - 0.01 * step, weight_decay=0.1)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}

    def schedule(step):
        return {"lr": 0.05 * 0.3 ** ((step >= 10) + (step >= 30)), "momentum": 0.9 - 0.01 * step}

    reference.assert_follows(inner, torch.optim.SGD, options, schedule=schedule)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(SGD(**options))


@pytest.mark.parametrize("nesterov", [False, True])
def test_learned_hyperparameters(nesterov):
    values = {"lr": 0.1, "momentum": 0.8, "decay": 0.1}
    values |= {} if nesterov else {"dampening": 0.2}

    def make(meta):
        dampening = {} if nesterov else {"dampening": meta["dampening"]}
        return SGD(
            lr=meta["lr"],
            momentum=lambda meta, step: meta["momentum"] * 0.9**step,
            weight_decay=meta["decay"],
            nesterov=nesterov,
            groups=[{"params": ["head.*"], "lr": lambda meta, step: meta["lr"].square()}],
            **dampening,
        )

    reference.assert_differences(make, values)


def test_patterns_may_come_from_an_iterator():
    case = bank.illustration()
    inner = SGD(lr=0.1, groups=[{"params": iter(["value"]), "lr": 0.5}])
    state = inner.init(case.problem)
    after, _ = inner.step(case.problem, state, case.problem.meta_parameters(), None)
    assert float(after.parameters["value"]) == pytest.approx(0.3 - 0.5 * (-1.4 + 0.24))


LEARNERS = {
    "SGD": lambda rate: SGD(lr=rate, momentum=rate),
    "Adam": lambda rate: Adam(lr=rate, betas=(rate, 0.9)),
    "AdamW": lambda rate: AdamW(lr=rate, betas=(rate, 0.9)),
    "RMSprop": lambda rate: RMSprop(lr=rate, momentum=rate, alpha=rate),
    "centered": lambda rate: RMSprop(lr=rate, momentum=rate, alpha=rate, centered=True),
    "Adagrad": lambda rate: Adagrad(lr=rate, lr_decay=rate, eps=rate),
    "RAdam": lambda rate: RAdam(lr=rate, betas=(rate, 0.9), weight_decay=rate),
    "Lion": lambda rate: Lion(lr=rate, betas=(rate, rate), smoothing=rate),
}


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("value", [0.1, [0.1]], ids=["0-d", "1-d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hyperparameter_of_higher_precision_leaves_the_types_as_they_are(make, value, dtype):
    meta = bank.Value(value)

    def loss(model, meta, batch):
        return model.value.square().sum() + meta.value.sum()

    problem = BilevelProblem(bank.Value(1.0 if value == 0.1 else [1.0], dtype), meta, loss, loss)
    inner = make(meta.value)
    state = inner.init(problem)
    result = Unrolled(3)(problem, inner, state, [None] * 3, None)
    assert result.gradient["value"].dtype == torch.float64
    for one, other in zip(result.state.tensors(), state.tensors(), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_a_hyperparameter_that_would_change_a_shape_is_an_error(make):
    case = bank.illustration()
    meta = bank.Value([0.1])
    problem = BilevelProblem(
        case.problem.model, meta, case.problem.valid_loss, case.problem.valid_loss
    )
    inner = make(meta.value)
    with pytest.raises(ShapeError, match=r"'value' of shape \(\) into one of shape \(1,\).*0-d"):
        inner.step(problem, inner.init(problem), problem.meta_parameters(), None)


def test_no_closed_form_is_an_error():
    class Plain(InnerLearner):
        def init_slots(self, parameters):
            return {}

        def update(self, parameter, gradient, slots, hyperparameters, step):
            return parameter - gradient, {}

    problem = reference.make_problem()
    inner = Plain({})
    state = inner.init(problem)
    with pytest.raises(UnsupportedError, match=r"Plain does not tell.*SGD, Adam, AdamW or RMSprop"):
        inner.gradient_sensitivity(problem, state, problem.meta_parameters(), state.parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": None}, "lr is None; accepted"),
        ({"lr": "fast"}, "lr is 'fast'; accepted"),
        ({"lr": 1.0, "nesterov": True}, "Nesterov"),
        ({"lr": 1.0, "momentum": 0.9, "dampening": 0.1, "nesterov": True}, "Nesterov"),
        ({"lr": 1.0, "groups": [{"lr": 0.1}]}, "no list 'params'"),
        ({"lr": True}, "lr is True; accepted: a number"),
        ({"lr": 1.0, "maximize": 1}, "maximize is 1; accepted: True or False"),
        ({"lr": 1.0, "groups": [{"params": ["*"], "nesterov": True}]}, "Nesterov"),
        ({"lr": 1.0, "groups": [{"params": ["*"], "nesterov": 0.5}]}, "nesterov is 0.5"),
        (
            {
                "lr": 1.0,
                "momentum": 0.9,
                "groups": [{"params": ["*"], "nesterov": True, "dampening": 0.1}],
            },
            "in each group that has it",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        SGD(**arguments)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="'rate'"):
        SGD(lr=0.1, groups=[{"params": ["head.*"], "rate": 0.1}])
    with pytest.raises(ConfigurationError, match=r"'body\.\*' matches no inner parameter"):
        SGD(lr=0.1, groups=[{"params": ["body.*"]}]).init(reference.make_problem())


def test_what_is_left_out():
    reference.assert_defaults(SGD, torch.optim.SGD, lr=0.1)


def test_dampening_without_momentum_does_not_meet_nesterov():
    groups = [{"params": ["head.*"], "momentum": 0.0, "dampening": 0.1}]
    inner = SGD(lr=0.02, momentum=0.9, nesterov=True, groups=groups)
    options = {"lr": 0.02, "momentum": 0.9, "nesterov": True}
    special = [{"momentum": 0.0, "dampening": 0.1}]
    reference.assert_follows(inner, torch.optim.SGD, options, special)


def test_a_velocity_is_kept_where_there_is_momentum():
    parameters = {"p": torch.ones(2)}
    for options in ({}, {"momentum": 0}, {"groups": [{"params": ["p"], "momentum": 0.0}]}):
        assert SGD(0.1, **options).init_slots(parameters) == {}
    for options in (
        {"momentum": 0.5},
        {"momentum": torch.tensor(0.0)},
        {"groups": [{"params": ["p"], "momentum": 0.5}]},
    ):
        slots = SGD(0.1, **options).init_slots(parameters)
        assert list(slots) == ["velocity"] and not slots["velocity"]["p"].any()


@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({}, -0.1, -0.1),
        ({"dampening": 0.25}, -0.1, -0.1),
        ({"momentum": 0.5, "dampening": 0.25}, -0.1, -0.075),
        ({"momentum": 0.5, "nesterov": True}, -0.15, -0.15),
    ],
)
def test_the_sensitivity_by_hand(options, first, later):
    inner = SGD(lr=0.1, **options)
    reference.assert_rest(inner, first)
    reference.assert_rest(inner, later, step=1)
    values = inner.hyperparameters | {"lr": torch.tensor(0.1, dtype=torch.float64)}
    found = inner.sensitivity(torch.ones(2), torch.ones(2), {}, values, 0)
    assert found.dtype == torch.float32
