"""Every entry of every application's configuration is defined, and wrong values are answered."""

import copy
import importlib
import math

import pytest

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.accepted import entries_of, help_of

# What a resolved configuration has beside the application's own entries.
SEED = {"seed": 1}
DEFINITIONS = {
    "cross_domain_few_shot": "FewShotSettings",
    "cross_lingual": "CrossLingualSettings",
    "data_reweighting": "DataReweightingSettings",
    "dataset_distillation": "DistillationSettings",
    "few_shot": "FewShotTaskSettings",
    "illustration": "IllustrationSettings",
    "label_noise": "LabelNoiseSettings",
    "regression_tasks": "RegressionSettings",
    "rotation": "RotationSettings",
    "schedule_search": "ScheduleSearchSettings",
}
NAMES = tuple(DEFINITIONS)


def _settings(name):
    return importlib.import_module(f"applications.{name}.settings")


def _definition(name):
    return getattr(_settings(name), DEFINITIONS[name])


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
def test_every_entry_is_defined_once_and_all_named_configurations_follow(name):
    settings = _settings(name)
    definition = _definition(name)
    default = _merged(settings.DEFAULT, SEED)
    given = dict(entries_of(definition))
    assert set(given) == {".".join(path) for path in _entries(default)}
    assert all(field.description and field.description[-1] == "." for field in given.values())
    for chosen in ({}, *settings.NAMED.values()):
        definition.check(_merged(default, chosen))


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_each_entry_with_its_default(name):
    settings, definition = _settings(name), _definition(name)
    told = help_of(definition, settings.NAMED)
    for path in _entries(settings.DEFAULT):
        value = settings.DEFAULT
        for part in path:
            value = value[part]
        assert f"\n  {'.'.join(path)}={value}" in told
    assert all(len(line) <= 100 for line in told.splitlines())
    assert all(chosen in told for chosen in settings.NAMED)


@pytest.mark.parametrize("name", NAMES)
def test_no_entry_takes_what_makes_no_sense_anywhere(name):
    settings = _settings(name)
    default = _merged(settings.DEFAULT, SEED)
    for path in _entries(default):
        for value in (math.nan, math.inf, "", {}, [None], -0.5j):
            change = value
            for part in reversed(path):
                change = {part: change}
            wrong = _merged(default, change)
            with pytest.raises(ConfigurationError, match=path[-1]):
                _definition(name).check(wrong)


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("label_noise", "lr", 0.0),
        ("label_noise", "lr", "fast"),
        ("label_noise", "meta_lr", -1e-3),
        ("label_noise", "milestones", [0.8, 0.2]),
        ("label_noise", "network.hidden", [0]),
        ("few_shot", "ways", 1),
        ("few_shot", "image_size", 8),
        ("few_shot", "library", "higher"),
        ("regression_tasks", "meta_optimizer", "lion"),
        ("regression_tasks", "inner_steps", 0),
        ("rotation", "lr", -1e-3),
        ("schedule_search", "horizon", 0),
        ("schedule_search", "momentum.step", 0.0),
        ("schedule_search", "weight_decay.bounds", [0.0]),
        ("schedule_search", "es.pairs", 0),
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
        ("data_reweighting", "decay", -0.1),
        ("data_reweighting", "horizon", 0),
        ("data_reweighting", "threshold", 1.0),
        ("data_reweighting", "batch_size", 0),
        ("dataset_distillation", "per_class", 0),
        ("dataset_distillation", "network.activation", "sine"),
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
