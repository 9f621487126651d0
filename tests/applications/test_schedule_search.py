"""Schedules that are learned over whole trainings, by every method of the application."""

import dataclasses
import math

import pytest
import torch

import metatoolkit as mt
from applications.schedule_search.experiment import assemble, experiment, shared_values, train_anew
from applications.schedule_search.settings import (
    BLACK_BOX,
    DEFAULT,
    LEARNING,
    METHODS,
    NAMED,
    ScheduleSearchSettings,
)
from applications.schedule_search.study import SEARCH
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.hypergradients import ForwardMode
from tests.drawings import bars, lines

QUIET = {"progress": False}


def merged(*named, **updates):
    """The default with named configurations and single entries over it, filled in."""
    config = {"seed": 1}
    for given in (DEFAULT, *(NAMED[name] for name in named), updates):
        for name, value in given.items():
            deep = isinstance(value, dict) and isinstance(config.get(name), dict)
            config[name] = {**config[name], **value} if deep else value
    return ScheduleSearchSettings.settle(config)


def _run(**updates):
    return experiment.run(named_configs=["smoke"], config_updates={**QUIET, **updates})


def learned(config, outer_steps):
    """The assembly after some outer steps."""
    assembly = assemble(config)
    batches = assembly.train_batches, assembly.valid_batches
    assembly.trainer.fit(*batches, steps=outer_steps, progress=False)
    return assembly


@pytest.mark.parametrize("method", ["fixed", *LEARNING])
def test_every_method_moves_schedules_and_counts_what_it_spends(method):
    config = merged("smoke", method=method)
    before = shared_values(assemble(config).trainer.problem.meta)
    outer = {"greedy": 5, "fixed": 10}.get(method, 1)
    assembly = learned(config, outer)
    after, spent = shared_values(assembly.trainer.problem.meta), assembly.trainer.passes
    if method == "fixed":
        assert after == before and spent == 30
        return
    assert after["lr"] != before["lr"]
    assert ("weight_decay" in after) == (method != "reversible")
    # Ten steps and an outer loss of 3 F each, and 6 F for each product.
    if method == "fds":
        # Rates begin at steps 0, 2, 4, 6 and 8, the decay at 0 and the momentum at 1.
        assert spent == 3 * 11 + 6 * (9 + 7 + 5 + 3 + 1 + 9 + 8)
    elif method == "greedy":
        # Windows of two steps, in the second of which what moved in the first has a product: a
        # rate, the decay and, once there is a velocity, the momentum.
        assert spent == 5 * 3 * 3 + 6 * (2 + 4 * 3)
    elif method == "truncated":
        # A rate, the decay and the momentum, in the last of the two steps; no share before them.
        assert spent == 3 * 11 + 6 * 3
        assert after["lr"][:4] == before["lr"][:4]
    elif method == "es":
        # Two trainings with their losses, and one that goes on with what was learned.
        assert spent == 2 * (3 * 10 + 1) + 3 * 10
    else:
        # Each step is taken twice, with the tree some of them once more.
        assert spent >= 3 * 21 + 6 * 10
        assert (spent == 3 * 21 + 6 * 10) == (method == "reversible")


def test_runs_are_recorded_with_their_schedules():
    run = _run(method="greedy", seed=3)
    assert run.status == "COMPLETED"
    assert set(run.result) == {"test_accuracy", "valid_accuracy", "inner_steps", "lambda_distance"}
    assert run.info["first_schedules"]["lr"] == [pytest.approx(0.01)] * 5
    assert len(run.info["schedules"]["lr"]) == 5
    with records.connect() as database:
        stored = database[records.run_id(run)]
        spent = stored.metrics["inner_steps"]
        # An evaluation before the search, and one after each training of five windows.
        assert spent.index.tolist() == [0, 5, 10, 15]
        assert spent.is_monotonic_increasing and spent.iloc[0] == 0
        assert spent.iloc[-1] == run.result["inner_steps"]


def test_an_interrupted_search_resumes_bitwise(interrupt):
    whole = _run(seed=7).result
    interrupt(lambda: _run(seed=7), 2)
    assert _run(seed=7, resume=True).result == whole


def test_the_network_that_is_tested_is_another_one_and_the_same_for_all_methods():
    config = merged("smoke", method="fixed")
    one, other = assemble(config), assemble(merged("smoke", method="fds"))
    assert train_anew(config, one) == train_anew(config, other)
    first = one.trainer.problem.parameters()
    train_anew({**config, "horizon": 1}, one)
    again = one.trainer.problem.parameters()
    assert all(not torch.equal(first[n], again[n]) for n in first if n.endswith("weight"))
    # The search goes on from its own.
    assert all(torch.equal(one.trainer.start.parameters[n], p) for n, p in again.items()) is False


def test_schedules_from_zero_are_learned_within_some_outer_steps():
    """Ten outer steps through 60 inner ones, all schedules from zero as in the paper."""
    config = merged("from_zero", horizon=60, steps=600, network={"hidden": [16]})
    before = train_anew(config, assemble(config))["test_accuracy"]
    assembly = learned(config, 10)
    assert before < 0.2
    assert train_anew(config, assembly)["test_accuracy"] > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_hundred_steps_from_zero_are_learned_by_few_signs(seed):
    """One move of five rates, and ten of all seven values, on digits."""
    config = merged("from_zero", seed=seed, horizon=500, steps=5000, network={"hidden": [16]})
    assembly = assemble(config)
    batches = assembly.train_batches, assembly.valid_batches
    found = []
    for outer_steps in (1, 9):
        assembly.trainer.fit(*batches, steps=outer_steps, progress=False)
        found.append(train_anew(config, assembly)["test_accuracy"])
    assert found[0] >= 0.90 and found[1] >= 0.94


def test_forward_and_reverse_mode_move_schedules_alike():
    found = [
        shared_values(learned(merged("smoke", method=method), 3).trainer.problem.meta)
        for method in ("fds", "replay")
    ]
    assert found[0] == found[1]


def test_a_hypergradient_that_is_nan_moves_nothing_and_is_said():
    config = merged("smoke", learning_rate={"start": 1e30, "bounds": [0.0, 2e30]})
    assembly = assemble(config)
    before = shared_values(assembly.trainer.problem.meta)
    history = []
    told = "moves nothing, and θ starts over: the validation loss is not finite"
    with pytest.warns(UserWarning, match=told) as warned:
        assembly.trainer.fit(
            assembly.train_batches,
            assembly.valid_batches,
            steps=2,
            progress=False,
            log=lambda *entry: history.append(entry),
        )
    assert [str(one.message)[:12] for one in warned] == ["outer step 1", "outer step 2"]
    assert shared_values(assembly.trainer.problem.meta) == before
    assert [entry for entry in history if entry[0] == "skipped"] == [
        ("skipped", 1.0, 1),
        ("skipped", 1.0, 2),
    ]
    assert all(math.isfinite(value) for _, value, _ in history)


def test_estimators_and_learners_of_the_registries_can_be_named():
    updates = {
        "method": "meta",
        "estimator": {"name": "ForwardGradient", "samples": 2},
        "inner": {"name": "AdamW", "betas": [0.8, 0.9]},
    }
    config = merged("smoke", **updates)
    assembly = assemble(config)
    assert assembly.trainer.estimator.horizon == 10
    assert set(assembly.trainer.problem.meta.keys()) == {"lr", "weight_decay"}
    assert config["evaluate_every"] == 1
    batches = assembly.train_batches, assembly.valid_batches
    assembly.trainer.fit(*batches, steps=1, progress=False)


def test_the_papers_protocol_on_cifar(monkeypatch):
    images = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(50_000) % 10
    names = tuple(str(number) for number in range(10))
    statistics = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    cifar = mt.tasks.Classification(
        "cifar10", images, labels, images[:20], labels[:20], names, *statistics
    )
    monkeypatch.setattr(mt.tasks, "load_dataset", lambda name, root: cifar)
    config = merged("cifar10")
    assembly = assemble(config)
    trainer = assembly.trainer
    assert isinstance(trainer.estimator, ForwardMode) and trainer.estimator.horizon == 10_000
    assert assembly.outer_steps(config["steps"]) == 10
    assert sum(p.numel() for p in trainer.problem.model.parameters()) == 175_066
    assert {name: s.shares for name, s in trainer.problem.meta.items()} == {
        "lr": 5,
        "momentum": 1,
        "weight_decay": 1,
    }
    assert len(assembly.task.valid.labels) == 2500
    # A batch holds places, not images: ten thousand of them are 20 MiB.
    (places,) = next(iter(assembly.train_batches))
    assert places.shape == (256,) and places.dtype == torch.int64


def test_missing_data_are_told(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(self):
        raise OSError("no route")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match="no route"):
        assemble(merged("cifar10", data_root=str(tmp_path / "none")))


def test_the_figure_is_drawn_from_the_records(tmp_path, drawn):
    rows = {
        label: dataclasses.replace(
            row, named=("smoke",), updates={k: v for k, v in row.updates.items() if k == "method"}
        )
        for label, row in SEARCH.rows.items()
        if label in ("fixed start", "FDS", "reversible", "random search")
    }
    study = dataclasses.replace(SEARCH, rows=rows, claims=(), seeds=(1, 2))
    jobs = jobs_of(study)
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert len(frame) == 8
        study.draw(frame, tmp_path / "schedule_search.png")
        lr, _, decay, curves, accuracy = drawn.axes("schedule_search.png", tmp_path)
        assert [*lines(lr)] == [*lines(curves)] == [*rows]
        assert [*lines(decay)] == ["fixed start", "FDS", "random search"]
        runs = frame[frame["row"] == "FDS"]["run"]
        steps, values = lines(lr)["FDS"]
        assert steps == [0, 2, 4, 6, 8, 10]
        shares = zip(*(run.info["schedules"]["lr"] for run in runs), strict=True)
        means = [sum(pair) / 2 for pair in shares]
        assert values == pytest.approx([*means, means[-1]])
        spent, reached = lines(curves)["FDS"]
        assert spent[0] == 0 and len(spent) == 4
        last = [run.result["test_accuracy"] for run in runs]
        assert reached[-1] == pytest.approx(50 * sum(last))
        least = lines(curves)["random search"][1][-1] - 1
        legend = curves.get_legend()
        assert legend.get_title().get_text() == f"inner steps to {least:.1f} %"
        for text in legend.get_texts():
            row, told = text.get_text().split(": ")
            pairs = zip(*lines(curves)[row], strict=True)
            needed = next((f"{step:,.0f}" for step, value in pairs if value >= least), "–")
            assert told == needed
        expected = frame.groupby("row")["test accuracy [%]"].mean().to_dict()
        assert bars(accuracy) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"method": "greedi"}, UnknownNameError, "Did you mean 'greedy'"),
        ({"horizon": 0}, ConfigurationError, "horizon is 0"),
        ({"learning_rate": {"shares": 3}}, ConfigurationError, "learning_rate.shares is 3.*equal"),
        ({"momentum": {"shares": 20}}, ConfigurationError, "momentum.shares is 20.*divide"),
        (
            {"weight_decay": {"bounds": [0.1, 0.0]}},
            ConfigurationError,
            r"weight_decay.bounds is \[0.1, 0.0\]; .*the lower one first",
        ),
        (
            {"learning_rate": {"start": 2.0}},
            ConfigurationError,
            "learning_rate.start is 2.0, outside of",
        ),
        (
            {"learning_rate": {"start": [0.1, 0.2]}},
            ConfigurationError,
            "learning_rate.start has 2 values, and learning_rate.shares is 5",
        ),
        (
            {"learning_rate": {"start": [0.1, 0.2, 0.3, 0.4, 1.5]}},
            ConfigurationError,
            "outside of learning_rate.bounds",
        ),
        ({"learning_rate": {"bounds": [0.5]}}, ConfigurationError, "learning_rate.bounds is"),
        ({"window": 3}, ConfigurationError, "window is 3, which does not divide horizon=10"),
        ({"steps": 35}, ConfigurationError, "horizon is 10, which does not divide steps=35"),
        ({"batch_size": 5000}, ConfigurationError, "batch_size is 5000, but there are 1198"),
        ({"valid_per_class": 4000}, DataError, "4000"),
        (
            {"method": "es", "momentum": {"start": 1e-3}},
            ConfigurationError,
            "between the bounds is needed",
        ),
        (
            {"estimator": {"name": "ForwardMode", "steps": 3}},
            ConfigurationError,
            "takes 3 inner steps, and horizon=10 is no multiple",
        ),
        (
            {"method": "fixed", "estimator": {"name": "ForwardMode"}},
            ConfigurationError,
            "method is 'fixed', which takes no estimator",
        ),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        assemble(merged("smoke", **updates))


def test_the_command_line_tells_what_is_accepted(command_line):
    code, told = command_line("schedule_search", "with", "smoke", "learning_rate.shares=4")
    assert code == 2
    assert "learning_rate.shares is 4, which does not divide horizon=10" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("method", ["fixed", "fds", "es"])
def test_each_share_may_start_at_a_value_of_its_own(method):
    starts = [0.5, 0.4, 0.3, 0.2, 0.1]
    config = merged("smoke", method=method, learning_rate={"start": starts})
    found = shared_values(assemble(config).trainer.problem.meta)
    assert found["lr"] == pytest.approx(starts)


def test_every_learning_method_is_a_method():
    assert {"fixed", *LEARNING, *BLACK_BOX} == set(METHODS)
