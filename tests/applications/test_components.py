"""Estimators and inner learners of the registries are chosen by name on the command line."""

from __future__ import annotations

import importlib

import pytest
import torch

from applications.label_noise.settings import TUNED
from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import MetatoolkitError
from metatoolkit.experiments.components import signal_window
from metatoolkit.experiments.jobs import Job, configuration_of
from metatoolkit.experiments.run import configuration_digest
from metatoolkit.hypergradients import Unrolled, estimators
from metatoolkit.inner import learners

# What an estimator needs beside its name, and what keeps random ones quick.
OPTIONS = {
    "EvolutionStrategies": {"pairs": 1, "steps": 2},
    "ForwardGradient": {"steps": 2},
    "Implicit": {"solver": {"name": "GMRES", "iterations": 2}},
    "NoiseReuseES": {"pairs": 1, "steps": 2},
    "PersistentES": {"pairs": 1, "steps": 2},
    "Unrolled": {"steps": 2},
}
# Those that do not apply to a weight in the training loss, with what they say.
REFUSED = {
    "FirstOrder": "act where FirstOrder does not differentiate",
    "Leap": "Leap moves an initial state that λ sets",
    "Reptile": "Reptile moves an initial state that λ sets",
    "Adjoint": "Adjoint needs an inner learner that follows a gradient flow",
    "Reversible": "Reversible needs an inner learner whose steps can be taken back",
}
LEARNERS = {
    "Clipped": {"inner": {"name": "SGD", "lr": 0.1}, "max_norm": 1.0},
    "GradientFlow": {"time": 0.1, "steps": 2},
}
REFUSED_LEARNERS = {
    "Combined": "inner learner 'Combined' needs the option default",
    "Muon": "Muon moves real matrices",
    "Warped": "inner learner 'Warped' needs the option inner",
}


def _assemble(application, updates):
    job = Job(f"applications.{application}.experiment", application, 1, updates, ("smoke",))
    config = configuration_of(job)
    return config, importlib.import_module(job.experiment).assemble(config)


def _train(assembly, steps=2):
    batches = assembly.train_batches, assembly.valid_batches
    meta = assembly.trainer.problem.meta
    before = [parameter.detach().clone() for parameter in meta.parameters()]
    assembly.trainer.fit(*batches, steps=steps, progress=False)
    return [not torch.equal(a, b) for a, b in zip(before, meta.parameters(), strict=True)]


@pytest.mark.parametrize("name", sorted(estimators))
def test_label_noise_takes_each_estimator_or_says_why_not(name):
    updates = {"estimator": {"name": name, **OPTIONS.get(name, {})}}
    config, assembly = _assemble("label_noise", updates)
    assert config["method"] == "meta"
    assert config["lr"] == TUNED.get(name, TUNED["second_order"])["lr"]
    assert type(assembly.trainer.estimator) is estimators[name]
    if name in REFUSED:
        with pytest.raises(MetatoolkitError, match=REFUSED[name]):
            _train(assembly)
    else:
        assert all(_train(assembly, 2 * assembly.trainer.estimator.horizon))


@pytest.mark.parametrize("name", sorted(learners))
def test_label_noise_takes_each_inner_learner(name):
    options = LEARNERS.get(name, {})
    if name in REFUSED_LEARNERS:
        with pytest.raises(MetatoolkitError, match=REFUSED_LEARNERS[name]):
            _train(_assemble("label_noise", {"inner": {"name": name}})[1])
        return
    _, assembly = _assemble("label_noise", {"inner": {"name": name, **options}})
    inner = assembly.trainer.inner
    assert type(inner) is learners[name]
    if "lr" in inner.hyperparameters and not options:
        assert inner.hyperparameters["lr"](None, 0) == TUNED["evograd"]["lr"]
    assert all(_train(assembly))


@pytest.mark.parametrize("application", ["rotation", "cross_domain_few_shot", "cross_lingual"])
def test_the_other_applications_take_them_too(application):
    updates = {
        "estimator": {"name": "Unrolled", "steps": 2},
        "inner": {"name": "SGD", "momentum": 0.5, "lr": 1e-3},
    }
    config, assembly = _assemble(application, updates)
    trainer = assembly.trainer
    assert config["method"] == "meta"
    assert isinstance(trainer.estimator, Unrolled)
    assert trainer.estimator.horizon == 2
    assert trainer.inner.hyperparameters["momentum"] == 0.5
    assert trainer.inner.hyperparameters["lr"] == 1e-3
    assert any(_train(assembly))


def test_a_run_records_what_was_chosen(capsys):
    words = "smoke steps=2 seed=4 progress=False evaluate_every=0 estimator.name=Unrolled"
    words += " estimator.steps=2 inner.name=AdamW inner.weight_decay=0.25"
    assert main(["run", "label_noise", "with", *words.split()]) == 0
    with records.connect() as database:
        config = next(iter(database.find("config.seed == 4"))).config
    assert config["method"] == "meta"
    assert config["estimator"] == {"name": "Unrolled", "steps": 2}
    assert config["inner"] == {"name": "AdamW", "weight_decay": 0.25}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("estimator.name=Unroled", "Did you mean 'Unrolled'?"),
        ("estimator.name=Unrolled estimator.stps=3", "Did you mean 'steps'?"),
        ("estimator.name=Unrolled estimator.steps=few", "accepted: int."),
        ("estimator.steps=3", "estimator.steps is given, but estimator.name is not"),
        ("method=plain estimator.name=SAMA", "method is 'plain', which takes no estimator"),
        ("method=meta", "estimator.name is None; name one: Adjoint"),
        ("inner.name=SGD inner.momentm=0.5", "Did you mean 'momentum'?"),
        ("estimator.name=SAMA estimatr.epsilon=1", "Did you mean 'estimator.name'?"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_runs(words, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "label_noise", "with", "smoke", *words.split()])
    printed = capsys.readouterr().err
    assert told in printed
    assert "Traceback" not in printed
    assert "Started" not in printed


def test_no_choice_leaves_the_digest_of_a_configuration_alone():
    config = {"method": "evograd", "lr": 0.1}
    empty = {"estimator": {"name": None}, "inner": {"name": None}}
    assert configuration_digest({**config, **empty}) == configuration_digest(config)
    chosen = {**empty, "inner": {"name": "Adam"}}
    assert configuration_digest({**config, **chosen}) != configuration_digest(config)


def test_the_former_option_of_evograd_is_its_guided_estimator():
    words = "smoke steps=3 seed=4 progress=False evaluate_every=0 estimator.sigma=0.0125".split()
    with pytest.warns(DeprecationWarning, match="GuidedEvoGrad"):
        former = ["estimator.name=EvoGrad", "estimator.guided=true"]
        assert main(["run", "label_noise", "with", *words, *former]) == 0
    assert main(["run", "label_noise", "with", *words, "estimator.name=GuidedEvoGrad"]) == 0
    with records.connect() as database:
        one, present = database.find("config.estimator.sigma == 0.0125")
    assert one.result == present.result and present.result["lambda_distance"] > 0


def test_the_recorded_signal_looks_at_a_hundred_moves_where_lambda_moves():
    assert signal_window(None) is None
    assert signal_window(Unrolled()) == 100
