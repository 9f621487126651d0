"""The former EvoGrad(guided=True): the numbers of GuidedEvoGrad, with a warning."""

import inspect
import warnings

import pytest
import torch

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad, build, estimators
from metatoolkit.testing import bank


def former(make=EvoGrad, **options):
    off = options["guided"] in (False, "false")
    now = r"is EvoGrad\(\) without it now" if off else r"is GuidedEvoGrad\(\) now"
    with pytest.warns(DeprecationWarning, match=now) as told:
        estimator = make(**options)
    assert len(told) == 1
    return estimator


def by_name(**options):
    return build("EvoGrad", **options)


@pytest.mark.parametrize("make", [EvoGrad, by_name])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale": 0.7, "perturb": ["4.*"]},
        # What never had an effect beside guided=True.
        {"candidates": 2, "noise": "sign", "streamed": True, "seed": 5, "fresh": False},
    ],
)
def test_gives_the_numbers_of_its_successor(make, options):
    case = bank.small_net()
    estimator = former(make, sigma=0.1, temperature=0.5, guided=True, **options)
    assert type(estimator) is GuidedEvoGrad
    own = inspect.signature(GuidedEvoGrad).parameters
    kept = {name: value for name, value in options.items() if name in own}
    expected = case.call(GuidedEvoGrad(0.1, 0.5, **kept), case.state)
    found = case.call(estimator, case.state)
    for name, gradient in expected.gradient.items():
        assert torch.equal(found.gradient[name], gradient)
    for name, detail in expected.details.items():
        assert torch.equal(found.details[name], detail)


def test_takes_arguments_by_position():
    estimator = former(lambda **options: EvoGrad(2, 0.1, 0.5, **options), guided=True)
    assert (estimator.sigma, estimator.temperature) == (0.1, 0.5)


@pytest.mark.parametrize("make", [EvoGrad, by_name])
def test_false_is_evograd_itself(make):
    case = bank.small_net()
    estimator = former(make, candidates=3, sigma=0.1, temperature=0.5, guided=False)
    assert type(estimator) is EvoGrad
    found, expected = case.call(estimator), case.call(EvoGrad(3, 0.1, 0.5))
    for name, gradient in expected.gradient.items():
        assert torch.equal(found.gradient[name], gradient)


@pytest.mark.parametrize(
    "arguments",
    [
        {"candidates": 3},
        {"noise": "gaussian"},
        {"noise": lambda candidate, name, parameter: parameter},
        {"common_random_numbers": False},
    ],
)
def test_takes_no_argument_of_random_candidates(arguments):
    (name,) = arguments
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(ConfigurationError, match=f"guided=True with {name}=.*without this argument"),
    ):
        EvoGrad(guided=True, **arguments)


def test_takes_words_of_a_command_line():
    assert type(former(guided="true")) is GuidedEvoGrad
    assert type(former(guided="false")) is EvoGrad


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_takes_flags_alone(value):
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(ConfigurationError, match=f"guided is {value!r}; use EvoGrad or Guided"),
    ):
        EvoGrad(guided=value)


def test_is_no_option_of_evograd_any_more():
    assert "guided" not in inspect.signature(EvoGrad).parameters
    assert "guided" not in estimators.options("EvoGrad")
    assert next(iter(inspect.signature(EvoGrad).parameters)) == "candidates"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EvoGrad()
    with pytest.raises(UnknownNameError) as caught:
        build("EvoGrad", guide=True)
    assert "guided" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="guided"):
        build("GuidedEvoGrad", guided=True)


def test_a_class_of_ones_own_has_its_own_options():
    class Mine(EvoGrad):
        def __init__(self, guided="by hand"):
            super().__init__(candidates=3)
            self.guided = guided

    assert Mine(guided="elsewhere").guided == "elsewhere"
    assert list(inspect.signature(Mine).parameters) == ["guided"]
    assert Mine().candidates == 3
