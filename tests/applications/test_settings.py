"""Every entry of every application's configuration has a rule, and wrong values are answered."""

import copy
import importlib
import math

import pytest

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.configuration import Rule, check_configuration

# What a resolved configuration has beside the application's own entries.
SEED = {"seed": 1}
NAMES = ("cross_domain_few_shot", "cross_lingual", "illustration", "label_noise", "rotation")


def _settings(name):
    return importlib.import_module(f"applications.{name}.settings")


def _merged(config, *changes):
    config = copy.deepcopy(config)
    for change in changes:
        for name, value in change.items():
            nested = isinstance(value, dict) and isinstance(config.get(name), dict)
            config[name] = _merged(config[name], value) if nested else value
    return config


def _entries(tree, *path):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _entries(value, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_a_rule_that_all_named_configurations_follow(name):
    settings = _settings(name)
    default = _merged(settings.DEFAULT, SEED)
    assert set(_entries(settings.RULES)) == set(_entries(default))
    for chosen in ({}, *settings.NAMED.values()):
        check_configuration(_merged(default, chosen), settings.RULES)


@pytest.mark.parametrize("name", NAMES)
def test_no_entry_takes_what_makes_no_sense_anywhere(name):
    settings = _settings(name)
    default = _merged(settings.DEFAULT, SEED)
    for path in _entries(settings.RULES):
        rule = settings.RULES
        for part in path:
            rule = rule[part]
        assert isinstance(rule, Rule)
        for value in (math.nan, math.inf, "", {}, [None], -0.5j):
            change = value
            for part in reversed(path):
                change = {part: change}
            wrong = _merged(default, change)
            with pytest.raises(ConfigurationError, match=path[-1]):
                check_configuration(wrong, settings.RULES)


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("label_noise", "lr", 0.0),
        ("label_noise", "lr", "fast"),
        ("label_noise", "meta_lr", -1e-3),
        ("label_noise", "milestones", [0.8, 0.2]),
        ("label_noise", "network.hidden", [0]),
        ("rotation", "lr", -1e-3),
        ("rotation", "meta_lr", 0.0),
        ("rotation", "degrees", math.nan),
        ("rotation", "interpolation", 3),
        ("rotation", "device", "gpu"),
        ("cross_domain_few_shot", "lr", 0),
        ("cross_domain_few_shot", "meta_lr", -1.0),
        ("cross_domain_few_shot", "meta_weight_decay", -1.0),
        ("cross_domain_few_shot", "warm_up.lr", 0.0),
        ("cross_domain_few_shot", "test_episodes", 1),
        ("cross_domain_few_shot", "tuning_episodes", 0),
        ("cross_domain_few_shot", "test_queries", 0),
        ("cross_domain_few_shot", "device", "gpu"),
        ("cross_lingual", "lr", 0.0),
        ("cross_lingual", "meta_lr", "slow"),
        ("cross_lingual", "warmup", 2),
        ("cross_lingual", "data.max_length", 0),
        ("illustration", "starts", [["a", 1.0]]),
        ("illustration", "penalties.last", -2.0),
    ],
)
def test_wrong_values_are_answered_before_anything_is_trained(name, entry, value, monkeypatch):
    def never(*arguments, **keywords):
        raise AssertionError("training began")

    monkeypatch.setattr("metatoolkit.training.MetaTrainer.fit", never)
    monkeypatch.setattr("metatoolkit.experiments.run.measure_costs", never)
    module = importlib.import_module(f"applications.{name}.experiment")
    updates = value
    for part in reversed(entry.split(".")):
        updates = {part: updates}
    config = _merged(
        _settings(name).DEFAULT, SEED, _settings(name).NAMED["smoke"], {"progress": False}, updates
    )
    main = module.main
    while hasattr(main, "__wrapped__"):
        main = main.__wrapped__

    class Run:
        info = {}

    Run.config = config
    with pytest.raises(ConfigurationError, match=entry):
        main(Run(), config)
