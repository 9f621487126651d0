"""A Sacred experiment and the definition of its configuration."""

import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.configuration import (
    Count,
    OpenSettings,
    Positive,
    Seed,
    Settings,
    entry,
)
from metatoolkit.experiments.configured import configure


class Part(Settings):
    sigma: Positive | None = entry(None, "Deviation.")
    kept: Count = entry(2, "Kept.")


class Mine(Settings):
    seed: Seed = entry(..., "Seed.")
    lr: Positive | None = entry(None, "Rate; None for what was tuned.")
    part: Part = entry(Part(), "Part.")
    options: OpenSettings = entry(OpenSettings(), "Options.")
    rates: Positive | list[Positive] = entry(1.0, "One rate or several.")


def _fill(config):
    part = config["part"]
    sigma = 0.5 if part["sigma"] is None else part["sigma"]
    lr = 0.1 if config["lr"] is None else config["lr"]
    return {**config, "lr": lr, "part": {**part, "sigma": sigma}}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    experiment = records.experiment("mine")
    settled = configure(experiment, Mine, {"fast": {"lr": 2.0}}, _fill)
    experiment.main(lambda _config: _config["part"]["sigma"])
    return experiment, settled


def test_what_is_left_open_is_recorded_as_it_was_used(made):
    experiment, settled = made
    run = experiment.run(config_updates={"seed": 3, "options": {"depth": 4}})
    assert run.result == 0.5
    expected = {"seed": 3, "lr": 0.1, "part": {"sigma": 0.5, "kept": 2}, "options": {"depth": 4}}
    expected["rates"] = 1.0
    assert run.config == expected
    assert settled({**expected, "lr": None}) == expected
    given = {"part": {"sigma": 0.25}}
    assert experiment.run(named_configs=["fast"], config_updates=given).config["lr"] == 2.0


def test_an_entry_takes_each_type_that_its_definition_accepts(made):
    experiment, _ = made
    rates = [0.1, 0.2]
    assert experiment.run(config_updates={"seed": 3, "rates": rates}).config["rates"] == rates
    with pytest.raises(ConfigurationError, match="rates is 'fast'"):
        experiment.run(config_updates={"seed": 3, "rates": "fast"})


def test_a_seed_that_is_not_given_is_drawn_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    experiment, filled = records.experiment("mine"), []
    configure(experiment, Mine, fill=lambda config: filled.append(config["seed"]) or config)
    experiment.main(lambda _config: _config["seed"])
    first, second = experiment.run(), experiment.run()
    assert first.result != second.result
    assert [first.result, second.result] == filled == [first.config["seed"], second.config["seed"]]
    assert experiment.run(config_updates={"seed": 7}).result == 7


def test_wrong_entries_are_answered_before_anything_runs(made):
    experiment, settled = made
    experiment.main(lambda: pytest.fail("it ran"))
    with pytest.raises(ConfigurationError, match=r"part\.sigma is -1; a finite number above 0"):
        experiment.run(config_updates={"part": {"sigma": -1}})
    with pytest.raises(UnknownNameError, match=r"Did you mean 'part\.kept'"):
        experiment.run(config_updates={"part": {"kep": 1}})
    with pytest.raises(UnknownNameError, match="Did you mean 'fast'"):
        experiment.run(named_configs=["fats"])
    with pytest.raises(ConfigurationError, match="seed is missing"):
        settled(Mine.defaults())


def test_help_tells_the_entries_before_the_options(made, capsys):
    experiment, _ = made
    with pytest.raises(SystemExit):
        experiment.run_commandline(["mine", "--help"])
    told = capsys.readouterr().out
    assert told.index("Usage:") < told.index("  part.kept=2 ") < told.index("\nOptions:\n")
    assert "  options.OPTION=VALUE            Options." in told
    assert "  fast\n" in told
