"""Recorded configurations in the hands of an experiment, which must get them equal and harmless."""

import json
import math

import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.records.clean import clean
from metatoolkit.records.sacred_compat import RERUN_VARIABLE, import_sacred

CONFIG = {
    "table": {1: "one", 2: {3: 0.5}, "1": "text", None: 1, 2.5: "half"},
    "rows": [{1: 2}, {"b": (1, 2)}],
    "none": None,
    "nan": float("nan"),
    "lr": 1,
    "output": "/nowhere/of/its/own",
    "text": "",
    "seed": 1,
}


@pytest.fixture
def experiment():
    made = records.experiment("odd", interactive=True)
    made.add_config(CONFIG)

    @made.named_config
    def other():
        none = 7  # noqa: F841

    @made.main
    def main(table, rows, none):
        return repr(none)

    @made.command(unobserved=True)
    def wipe(output):
        raise AssertionError(output)

    return made


@pytest.fixture
def hand_over(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def hand_over(config, updates=None, named=()):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        monkeypatch.setenv(RERUN_VARIABLE, str(path))
        found = experiment.resolve(updates or {}, named)
        assert not path.exists()
        return found

    return hand_over


def test_entries_come_back_equal_with_the_keys_that_they_had(hand_over, experiment):
    changed = {**CONFIG, "table": {1: "ONE", 2: {3: 0.25}, "1": "t", None: 2, 2.5: "h"}}
    changed |= {"rows": [{1: 5}, {"b": [1, 3]}], "none": {"b": [1]}, "nan": 0.5, "lr": 1, "seed": 9}
    for config in (CONFIG, changed):
        found = hand_over(clean(config))
        assert repr(clean(found)) == repr(clean(config))
        assert found["table"] == config["table"] and found["rows"][0] == config["rows"][0]
    # Once: the next run of the experiment is its own again.
    own = experiment.resolve({})
    assert own["table"] == CONFIG["table"] and math.isnan(own["nan"]) and own["seed"] == 1


def test_what_the_command_line_gives_is_stronger(hand_over):
    config = clean({**CONFIG, "none": 3, "text": "/etc/passwd", "seed": 4})
    found = hand_over(config, {"text": "mine", "seed": 5}, ["other"])
    assert (found["none"], found["text"], found["seed"]) == (7, "mine", 5)


EVIL = [
    {"py/reduce": [{"py/type": "os.system"}, {"py/tuple": ["touch FLAG"]}]},
    {"py/object": "subprocess.Popen", "py/newargs": {"py/tuple": ["touch FLAG"]}},
    {"py/object/apply:os.system": ["touch FLAG"]},
    {"py/function": "os.system"},
    {"py/repr": "os/os.system('touch FLAG')"},
    {'json://{"py/repr": "os"}': 1},
    "__import__('os').system('touch FLAG')",
    "!!python/object/apply:os.system ['touch FLAG']",
]


@pytest.mark.parametrize("place", ["entry", "list", "nested", "key", "whole"])
@pytest.mark.parametrize("evil", EVIL)
def test_nothing_is_decoded_or_executed(hand_over, tmp_path, place, evil):
    config = {
        "entry": {"none": evil},
        "list": {"rows": [[evil], {"b": [evil]}]},
        "nested": {"table": {"1": evil, "9": {"a": evil}}},
        "key": {"table": {str(evil): 1}},
        "whole": evil if isinstance(evil, dict) else {"text": evil},
    }[place]
    try:
        found = hand_over(config)
    except ConfigurationError:
        # Sacred takes no such keys; an entry changes its type, or is unknown.
        found = None
    if isinstance(evil, str) and place in ("entry", "list"):
        assert found[next(iter(config))] == next(iter(config.values()))
    assert not list(tmp_path.rglob("*FLAG*"))


@pytest.mark.parametrize(
    "config",
    [
        {"output": "victim"},
        {"output": "VICTIM"},
        {"table": {"checkpoint": "new"}},
        {"rows": ["VICTIM", {}]},
        {"rows": [{"1": 2}, {"b": ["VICTIM"]}]},
        {"none": {"save_to": "new.bin"}},
        {"none": {"output": "logs/new"}},
        {"text": "VICTIM"},
        {"text": "victim"},
        {"text": "~/victim"},
        {"text": "x/../../victim"},
        {"none": {"log_files": ["new"]}},
    ],
)
def test_no_file_that_a_record_names_is_taken(hand_over, tmp_path, config):
    (tmp_path / "victim").write_text("precious")
    config = json.loads(json.dumps(config).replace("VICTIM", str(tmp_path / "victim")))
    with pytest.raises(ConfigurationError, match=r"because a record names it.*--with"):
        hand_over(config)
    (entry,) = config.items()
    if entry[0] != "table":
        assert hand_over(config, dict([entry]))[entry[0]] == entry[1]


def test_names_of_models_and_plain_words_are_no_files(hand_over):
    config = {"text": "google/bert_uncased", "none": ["a.b", {"output": "softmax"}]}
    config["output"] = CONFIG["output"]
    found = hand_over(config)
    assert {name: found[name] for name in config} == config


def test_what_does_not_fit_is_refused_as_on_the_command_line(hand_over):
    with pytest.raises(UnknownNameError, match="configuration entry 'unknown'"):
        hand_over({"unknown": 1})
    with pytest.raises(ConfigurationError, match="'lr' takes a value of type int, not str"):
        hand_over({"lr": "fast"})
    with pytest.raises(ConfigurationError, match="is damaged"):
        hand_over({"text": {"$date": "x"}})
    with pytest.raises(ConfigurationError, match="reserved jsonpickle tags"):
        hand_over({"none": {"py/object": "x"}})


@pytest.mark.parametrize("command", ["save_config", "wipe"])
def test_commands_without_a_record_are_not_repeated(experiment, tmp_path, monkeypatch, command):
    monkeypatch.setenv(RERUN_VARIABLE, str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({"output": "x"}))
    with pytest.raises(ConfigurationError, match="makes no record"):
        experiment.run(command, options={"COMMAND": command})


def test_parts_of_an_experiment_get_their_own_back(tmp_path, monkeypatch):
    sacred = import_sacred()
    inner = sacred.Ingredient("data.source", interactive=True, save_git_info=False)
    inner.add_config({"name": "n"})
    data = sacred.Ingredient("data", [inner], interactive=True, save_git_info=False)
    data.add_config({"sizes": {"a": 1, "b": 2}})
    experiment = sacred.Experiment("parts", [data], interactive=True, save_git_info=False)
    experiment.add_config({"lr": 0.5, "seed": 1})
    records.record(experiment)
    experiment.main(lambda lr: lr)
    config = {"data": {"sizes": {"a": 3, "b": 2}, "source": {"name": "m"}}, "lr": 1, "seed": 2}
    monkeypatch.setenv(RERUN_VARIABLE, str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = experiment._create_run().config
    assert found["data"] == {"sizes": {"a": 3, "b": 2}, "source": {"name": "m"}}
    assert found["lr"] == 1 and found["seed"] == 2
