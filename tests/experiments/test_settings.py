"""Entries that applications have in common, and what follows from them."""

import inspect

import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.components import COMPONENT_SETTINGS, META_METHODS, build_estimator
from metatoolkit.experiments.settings import EvoGradSettings, TrainingSettings, TunedSettings
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad


def _config(**updates):
    return {**TrainingSettings.defaults(), "seed": 3, "steps": 2, **updates}


def test_an_application_needs_seed_and_steps_alone():
    defaults = TrainingSettings.defaults()
    assert set(TrainingSettings.model_fields) - set(defaults) == {"seed", "steps"}
    assert {name: defaults[name] for name in COMPONENT_SETTINGS} == COMPONENT_SETTINGS
    assert TrainingSettings.open_groups() == tuple(COMPONENT_SETTINGS)
    tuned = TunedSettings.defaults()
    assert tuned["lr"] is tuned["meta_lr"] is tuned["evograd"]["sigma"] is None
    assert set(tuned) == {*defaults, "tuned"}


def test_the_options_of_evograd_are_its_own():
    assert set(EvoGradSettings.model_fields) <= set(inspect.signature(EvoGrad).parameters)


def test_values_beside_names_are_told_with_them():
    config = _config(evograd={**TrainingSettings.defaults()["evograd"], "streamed": "vmp"})
    with pytest.raises(UnknownNameError, match=r"'vmap'\? Accepted: False, None, True, vmap"):
        TrainingSettings.settle(config)


@pytest.mark.parametrize("method", META_METHODS)
def test_a_named_estimator_takes_the_place_of_the_methods_own(method):
    chosen = {"name": "Unrolled", "steps": 2}
    config = _config(method=method, estimator=chosen)
    assert TrainingSettings.settle(config) == {**config, "method": "meta"}


@pytest.mark.parametrize(
    ("updates", "error", "told"),
    [
        ({"method": "evogard"}, UnknownNameError, "Did you mean 'evograd'"),
        ({"method": "meta"}, ConfigurationError, "estimator.name is None; name one: "),
        ({"estimator": {"name": None, "steps": 2}}, ConfigurationError, "estimator.steps is given"),
        ({"inner": {"name": "SDG"}}, UnknownNameError, "unknown inner.name 'SDG'. Did you"),
        ({"inner": {"name": "SGD", "momentm": 0}}, UnknownNameError, "Did you mean 'momentum'"),
        ({"estimator": {"name": "Unrolled", "steps": 0}}, ConfigurationError, "steps is 0"),
        (
            {"method": "plain", "estimator": {"name": "SAMA"}},
            ConfigurationError,
            "method is 'plain', which takes no estimator",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_loaded(updates, error, told):
    with pytest.raises(error) as raised:
        TrainingSettings.settle(_config(**updates))
    assert told in str(raised.value)


@pytest.mark.parametrize("rescale", [True, False])
def test_an_application_may_choose_guided_evograd(rescale):
    def config(**updates):
        options = {**TrainingSettings.defaults()["evograd"], "guided": True, "sigma": 0.1}
        return _config(method="evograd", evograd={**options, "rescale": rescale, **updates})

    guided = build_estimator(config(perturb=["a"]))
    assert isinstance(guided, GuidedEvoGrad)
    assert (guided.sigma, guided.temperature, guided.perturb) == (0.1, 0.05, ["a"])
    assert guided.learning_rate == pytest.approx(0.1 if rescale else 0.1**2 / 0.05)
    assert isinstance(build_estimator(config(guided=False)), EvoGrad)
    for name, value, remedy in (("candidates", 3, "2"), ("noise", "gaussian", "sign")):
        told = f"evograd.{name} is {value!r}, but with .*guided=True.* set evograd.{name}={remedy}"
        with pytest.raises(ConfigurationError, match=told):
            build_estimator(config(**{name: value}))
