"""SGD against torch.optim.SGD, autograd and finite differences."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError, UnknownNameError, UnsupportedError
from metatoolkit.inner import SGD, InnerLearner, multistep
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
        {"parameters": [f"{prefix}.*"], **own}
        for prefix, own in zip(("head", "tied"), special, strict=True)
    ]
    inner = SGD(**options, groups=groups)
    reference.assert_follows(inner, torch.optim.SGD, options, special)


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
            groups=[{"parameters": ["head.*"], "lr": lambda meta, step: meta["lr"].square()}],
            **dampening,
        )

    reference.assert_differences(make, values)


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
        ({"lr": 1.0, "nesterov": True}, "Nesterov"),
        ({"lr": 1.0, "momentum": 0.9, "dampening": 0.1, "nesterov": True}, "Nesterov"),
        ({"lr": 1.0, "groups": [{"lr": 0.1}]}, "no list 'parameters'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        SGD(**arguments)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="'rate'"):
        SGD(lr=0.1, groups=[{"parameters": ["head.*"], "rate": 0.1}])
    with pytest.raises(ConfigurationError, match=r"'body\.\*' matches no inner parameter"):
        SGD(lr=0.1, groups=[{"parameters": ["body.*"]}]).init(reference.make_problem())
