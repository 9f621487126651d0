import dataclasses
import signal
import subprocess
import sys
import types

import pandas
import pytest
import torch

import metatoolkit as mt
from applications.label_noise.experiment import assemble, build_estimator, experiment, settings_of
from applications.label_noise.settings import DEFAULT, METHODS, TUNED, UNTUNED
from applications.label_noise.study import COMPARISON, SCALING
from applications.label_noise.tuning import SEARCH
from metatoolkit import records
from metatoolkit.errors import DataError, UnknownNameError
from metatoolkit.experiments.jobs import Job, run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.experiments.tuning import trials
from metatoolkit.hypergradients import EvoGrad, Unrolled
from tests.drawings import legend, lines

QUIET = {"progress": False}


def _run(**updates):
    return experiment.run(named_configs=["smoke"], config_updates={**QUIET, **updates})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_records(method):
    run = _run(method=method, seed=3)
    assert run.status == "COMPLETED"
    # The same training once more, scored by hand.
    assembly = assemble(dict(run.config))
    batches = assembly.train_batches, assembly.valid_batches
    assembly.trainer.fit(*batches, steps=run.config["steps"], progress=False)
    task, model = assembly.task, assembly.trainer.problem.model.eval()
    with torch.no_grad():
        guesses = model(task.dataset.transform()(task.test.images)).argmax(1)
    share = float((guesses == task.test.labels).double().mean())
    assert run.result["test_accuracy"] == pytest.approx(share, abs=1e-12)
    assert run.info["milliseconds_per_step"] > 0
    meta_learns = method in ("evograd", "second_order")
    assert (run.result["lambda_distance"] > 0) == meta_learns
    assert ("peak_memory_bytes" in run.info) == meta_learns


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_weighted_where_the_method_weights(method):
    problem = assemble({**DEFAULT, "seed": 0, "method": method}).trainer.problem
    weighted = method not in ("plain", "uniform_weights")
    losses = mt.losses.cross_entropy, mt.losses.weighted_cross_entropy
    assert problem.train_loss is losses[weighted]
    assert problem.valid_loss is mt.losses.cross_entropy


def test_figures_and_checkpoint_are_in_the_database(tmp_path):
    run = _run(method="second_order", seed=8)
    with records.connect() as database:
        stored = database[records.run_id(run)]
        assert set(stored.artifacts) == {
            "weights.png",
            "weights.csv",
            "curves.png",
            "checkpoint.pt",
        }
        assert len(stored.metrics["valid_loss"]) == 3
        path = stored.artifacts["weights.csv"].save(tmp_path)
    rows = path.read_text().splitlines()
    assert rows[0] == "loss,weight,corrupted"
    corrupted = sum(row.endswith("True") for row in rows[1:])
    assert 0.35 < corrupted / (len(rows) - 1) < 0.45


def test_an_interrupted_run_resumes_bitwise_and_another_seed_gives_another_result(home, interrupt):
    whole = _run(seed=7).result
    interrupt(lambda: _run(seed=7), 17)
    assert list((home / "checkpoints").glob("*.pt"))
    resumed = _run(seed=7, resume=True)
    assert resumed.result == whole
    assert not list((home / "checkpoints").iterdir())
    assert _run(seed=6).result != whole


# The command line of the application in a process that is killed after 17 steps.
KILLED = """
import os, runpy, signal, sys
from metatoolkit.training import MetaTrainer
original = MetaTrainer.meta_step
def kill(self, *arguments):
    if self.steps_done == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)
MetaTrainer.meta_step = kill
sys.argv = ["label_noise", "with", "smoke", *sys.argv[1:]]
runpy.run_module("applications.label_noise", run_name="__main__")
"""


@pytest.mark.slow
def test_a_killed_run_resumes_bitwise_and_its_record_tells(home):
    settings = {"seed": 11, "checkpoint_every": 5, "log_every": 1}
    whole = _run(**settings)
    entries = [f"{name}={value}" for name, value in (settings | QUIET).items()]
    command = [sys.executable, "-c", KILLED, *entries]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((home / "checkpoints").glob("*.pt"))
    resumed = _run(**settings, resume=True)
    assert resumed.result == whole.result
    with records.connect() as database:
        runs = list(database.find("config.seed == 11").sort("start_time"))
        assert [run.status for run in runs] == ["COMPLETED", "INTERRUPTED", "COMPLETED"]
        assert runs[2].result == runs[0].result
        assert runs[2].details()["meta"]["resumed_from"] == runs[1].uuid
        for name in ("train_loss", "valid_loss", "test_accuracy", "lambda_distance"):
            expected, got = runs[0].metrics[name], runs[2].metrics[name]
            assert expected.index.tolist() == got.index.tolist()
            assert expected.tolist() == got.tolist()


def test_settings_follow_the_method():
    config = {**DEFAULT, "seed": 0}
    assert isinstance(build_estimator(settings_of(config)), EvoGrad)
    assert isinstance(build_estimator(settings_of({**config, "method": "second_order"})), Unrolled)
    assert build_estimator(settings_of({**config, "method": "plain"})) is None
    chosen = settings_of({**config, "lr": 0.5})
    assert chosen["lr"] == 0.5
    assert build_estimator(chosen).learning_rate == 0.5


@pytest.mark.parametrize(("probability", "missing"), [(0.0, "corrupted"), (1.0, "clean")])
def test_without_an_example_there_is_no_mean_weight(probability, missing):
    result = _run(seed=2, noise={"probability": probability}).result
    assert f"weight_{missing}" not in result
    assert all(value == value for value in result.values())


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"method": "evogard"}, UnknownNameError, "evograd"),
        ({"dataset": "digit"}, UnknownNameError, "digits"),
        ({"meta_per_class": 500}, DataError, "examples"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        _run(**updates)


def test_command_line_names_the_nearest_method(command_line):
    code, told = command_line("label_noise", "with", "smoke", "method=evogard")
    assert code == 2
    assert "Did you mean 'evograd'?" in told
    assert "Traceback" not in told


def test_a_run_is_recorded_with_the_settings_that_it_used():
    for method, own in TUNED.items():
        chosen = {"method": method} if method in METHODS else {"estimator": {"name": method}}
        config = experiment.resolve({**chosen, "seed": 3})
        assert {name: config[name] for name in own if name != "sigma"} == {
            name: value for name, value in own.items() if name != "sigma"
        }
        assert settings_of(config) == config
    config = experiment.resolve({"method": "evograd", "seed": 3})
    assert config["evograd"]["sigma"] == TUNED["evograd"]["sigma"]
    chosen = experiment.resolve({"method": "evograd", "lr": 0.5, "evograd": {"sigma": 0.1}})
    assert (chosen["lr"], chosen["evograd"]["sigma"]) == (0.5, 0.1)
    assert chosen["meta_lr"] == TUNED["evograd"]["meta_lr"]
    assert experiment.resolve({}, ["cifar10"])["lr"] == 0.1


def test_settings_tuned_for_a_method_give_way_to_given_ones():
    config = {**DEFAULT, "seed": 0, "evograd": {**DEFAULT["evograd"], "sigma": 0.5}}
    chosen = settings_of({**config, "momentum": 0.3})
    assert (chosen["momentum"], chosen["evograd"]["sigma"]) == (0.3, 0.5)
    assert settings_of({**config, "tuned": False})["lr"] == UNTUNED["lr"]
    tuned = settings_of({**DEFAULT, "seed": 0})
    assert tuned["evograd"]["sigma"] == TUNED["evograd"]["sigma"]


@pytest.mark.parametrize("method", SEARCH.spaces)
def test_every_method_has_as_many_trials(method):
    settings = [trial.updates for trial in trials(SEARCH.spaces[method], 16)]
    assert len(settings) == 16 == len({str(trial) for trial in settings})
    assert {trial["method"] for trial in settings} == {method if method in METHODS else "meta"}
    assert {trial["momentum"] for trial in settings} == {0.0, 0.9}
    assert ("sigma" in settings[0].get("evograd", {})) == (method == "evograd")


def test_trials_can_be_run_and_are_scored_on_tuning_data():
    (trial,) = trials(SEARCH.spaces["evograd"], 1)
    updates = {**trial.updates, "steps": 2}
    result = run_job(Job(SEARCH.experiment, "evograd", 1, updates, trial.named)).result
    again = run_job(Job(SEARCH.experiment, "evograd", 1, updates, trial.named)).result
    other = run_job(Job(SEARCH.experiment, "evograd", 2, updates, trial.named)).result
    # Scored on data of the tuning, which is no part of the tests.
    assert result[SEARCH.score] == again[SEARCH.score] != other[SEARCH.score]


def test_seeds_of_the_study_were_not_tuned_on():
    assert SEARCH.first_seed > max(COMPARISON.seeds)


def test_named_sizes_join_other_configurations():
    run = experiment.run(
        named_configs=["smoke", "candidates_4", "weight_net_10"],
        config_updates={**QUIET, "seed": 2, "steps": 2, "method": "evograd"},
    )
    assert run.config["evograd"]["candidates"] == 4
    assert run.config["weight_net"]["hidden"] == 1000
    assert run.config["network"]["hidden"] == [16]


@pytest.mark.slow
def test_figure_of_the_scaling_is_drawn_from_records(tmp_path, drawn):
    study = dataclasses.replace(
        SCALING,
        rows={
            name: row
            for name, row in SCALING.rows.items()
            if name.endswith(("width 2", "net 100", "candidates 4"))
        },
        claims=(),
    )
    updates = {"steps": 1, "network": {"name": "mlp", "width": None}}
    jobs = jobs_of(study, updates={**updates, "batch_size": 4, "meta_batch_size": 4})
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert len(frame) == len(jobs)
        assert (frame["meta step [MiB]"].dropna() > 0).all()
        study.draw(frame, tmp_path / "scaling.png")
    for axis in drawn.axes("scaling.png", tmp_path)[1:3]:
        assert set() < set(lines(axis)) <= {"double backward", "second order", "EvoGrad"}


def test_the_figure_of_the_scaling(tmp_path, drawn):
    entries = {
        "width": lambda size: {"network": {"width": size}},
        "net": lambda size: {"weight_net": {"hidden": size}},
        "candidates": lambda size: {"evograd": {"candidates": size}},
    }
    none = {"network": {"width": 0}, "weight_net": {"hidden": 0}, "evograd": {"candidates": 0}}
    found = []
    for place, label in enumerate(SCALING.rows):
        *_, kind, size = label.split()
        run = types.SimpleNamespace(config=none | entries[kind](int(size)))
        # Plain training has no meta step.
        memory = None if label.startswith("plain") else 10.0 + place
        times = {"meta step [MiB]": memory, "meta step [ms]": memory and 100.0 + place}
        found.append({"row": label, "run": run, **times})
    SCALING.draw(pandas.DataFrame(found), tmp_path / "scaling.png")
    axes = drawn.axes("scaling.png", tmp_path)
    sweeps = ("width of the network", "hidden units of the weight network", "candidates K")
    assert [axis.get_xlabel() for axis in axes] == [*sweeps, *sweeps]
    for index, axis in enumerate(axes):
        kind = list(entries)[index % 3]
        header = "meta step [MiB]" if index < 3 else "meta step [ms]"
        assert axis.get_ylabel().startswith("peak memory" if index < 3 else "processor time")
        expected = {}
        for row in found:
            method, *words = row["row"].split(",")
            if words[0].split()[-2] == kind and row[header] is not None:
                sizes, values = expected.setdefault(method, ([], []))
                sizes.append(int(row["row"].split()[-1]))
                values.append(row[header])
        assert lines(axis) == expected and legend(axis) == list(expected)
