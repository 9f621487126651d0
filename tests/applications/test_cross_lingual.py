"""The cross-lingual application: every method, resume, and what is answered to wrong input."""

import itertools
import json

import pytest
import torch

import metatoolkit as mt
from applications.cross_lingual import figures, study
from applications.cross_lingual.batches import TransferBatches
from applications.cross_lingual.experiment import assemble, experiment, load_task, settings_of
from applications.cross_lingual.losses import TransferLoss, encode_all
from applications.cross_lingual.settings import (
    DEFAULT,
    METHODS,
    NAMED,
    TUNED,
    UNTUNED,
)
from applications.cross_lingual.study import STUDIES
from applications.cross_lingual.tuning import SEARCH
from metatoolkit import records
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.components import META_METHODS
from metatoolkit.experiments.jobs import Job, configuration_of
from metatoolkit.experiments.tuning import trials
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad, Unrolled
from tests.applications.cross_lingual import merged, smoke
from tests.drawings import bars

QUIET = {"progress": False}


def run(*named, **updates):
    return experiment.run(named_configs=["smoke", *named], config_updates={**QUIET, **updates})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_records(method):
    done = run(method=method, seed=3)
    assert done.status == "COMPLETED"
    # The same training once more: what is recorded is the score of the model that it leads to.
    assembly = assemble(dict(done.config))
    batches = assembly.train_batches, assembly.valid_batches
    assembly.trainer.fit(*batches, steps=done.config["steps"], progress=False)
    model, task = assembly.trainer.problem.model, assembly.task
    for split in ("test", "dev"):
        found = mt.evaluation.span_f1(model, getattr(task, split))
        assert done.result[f"{split}_f1"] == pytest.approx(found, abs=1e-12)
    meta_learns = method in META_METHODS
    assert (done.result["lambda_distance"] > 0) == meta_learns
    assert ("peak_memory_bytes" in done.info) == meta_learns
    assert done.info["base_flops"] > 0
    assert done.info["data"]["name"] == "generated"


def test_figures_and_checkpoint_are_in_the_database(tmp_path):
    done = run(method="evograd", seed=8)
    with records.connect() as database:
        stored = database[records.run_id(done)]
        names = {"transform.png", "transform.csv", "curves.png", "checkpoint.pt"}
        assert set(stored.artifacts) == names
        assert stored.metrics["dev_f1"].index.tolist() == [6, 12]
        rows = stored.artifacts["transform.csv"].save(tmp_path).read_text().splitlines()
    assert rows[0] == "label,tokens,mean,std"
    assert rows[1].startswith("O,") and len(rows) > 3


@pytest.mark.parametrize(
    ("entries", "row"),
    [
        ({}, TUNED["generated"]["evograd"]),
        ({"evograd": {"guided": True}}, TUNED["generated"]["guided"]),
        ({"data": {"name": "wikiann"}}, TUNED["masakhaner"]["evograd"]),
        ({"tuned": False}, UNTUNED),
        ({"lr": 0.5, "evograd": {"sigma": 0.2}}, {"lr": 0.5, "sigma": 0.2}),
    ],
)
def test_settings_that_are_left_open_are_those_of_the_tuning(entries, row):
    def merged(name):
        return {**DEFAULT[name], **entries.get(name, {})}

    config = {**DEFAULT, **entries, "evograd": merged("evograd"), "data": merged("data")}
    if "data" not in entries:
        config["data"]["name"] = "generated"
    filled = settings_of({**config, "seed": 1})
    found = {"lr": filled["lr"], "meta_lr": filled["meta_lr"], **filled["evograd"]}
    assert {name: found[name] for name in row} == row


def test_trials_leave_the_reported_seeds_alone():
    assert SEARCH.first_seed > max(seed for study in STUDIES for seed in study.seeds)
    for method, space in SEARCH.spaces.items():
        for trial in trials(space, 3):
            job = Job(SEARCH.experiment, method, 1, trial.updates, trial.named)
            assert settings_of(configuration_of(job))["lr"] == trial.updates["lr"]


@pytest.mark.slow
def test_an_interrupted_run_resumes_bitwise_and_another_seed_gives_another(home, interrupt):
    whole = run(seed=7, method="evograd").result
    interrupt(lambda: run(seed=7, method="evograd"), 9)
    assert list((home / "checkpoints").glob("cross_lingual-*.pt"))
    assert run(seed=7, method="evograd", resume=True).result == whole
    assert not list((home / "checkpoints").iterdir())
    assert run(seed=6, method="evograd").result["train_loss"] != whole["train_loss"]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A folder as the hub holds the reviews, with two languages."""
    folder = tmp_path_factory.mktemp("reviews")
    words = {"en": ("good fine great", "bad poor awful"), "ja": ("yoi umai", "warui hidoi")}
    for language, (good, bad) in words.items():
        for split, count in (("train", 24), ("validation", 8), ("test", 8)):
            lines = [
                json.dumps({"text": f"{(bad, good)[n % 2]} {n}", "label": 4 * (n % 2)})
                for n in range(count)
            ]
            path = folder / language / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines))
    entries = [
        f"- config_name: {language}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {language}/{split}.jsonl\n"
            for split in ("train", "validation", "test")
        )
        for language in words
    ]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")
    return folder


@pytest.mark.parametrize("method", ["second_order", "evograd"])
def test_sentiment(method):
    data = {"name": "generated_reviews", "source_examples": 30}
    done = run("sentiment", method=method, seed=1, data=data)
    assert done.status == "COMPLETED"
    assembly = assemble(dict(done.config))
    batches = assembly.train_batches, assembly.valid_batches
    assembly.trainer.fit(*batches, steps=done.config["steps"], progress=False)
    found = mt.evaluation.label_accuracy(assembly.trainer.problem.model, assembly.task.test)
    assert done.result["test_accuracy"] == pytest.approx(found, abs=1e-12)
    assert "test_f1" not in done.result
    assert done.info["data"]["labels"] == ["negative", "positive"]


def test_reviews_as_the_hub_holds_them(reviews, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    data = {"name": "amazon_reviews", "root": str(reviews), "target_examples": 16}
    task = load_task(settings_of(smoke(data={**data, "source_examples": 20})))
    assert not task.target.is_tagging
    assert (len(task.source), len(task.target), len(task.dev)) == (20, 16, 8)
    assert task.languages == ("en", "ja")


def test_halves_of_a_step_are_of_one_target_batch_and_disjoint():
    assembly = assemble(smoke(method="evograd"))
    whole = assemble(smoke(method="joint"))
    for _ in range(7):
        train, valid = next(assembly.train_batches), next(assembly.valid_batches)
        both = next(whole.train_batches)
        assert set(train) == {"source", "target"} and set(valid) == {"target"}
        assert torch.equal(train["source"]["input_ids"], both["source"]["input_ids"])
        for name, tensor in both["target"].items():
            assert torch.equal(torch.cat([train["target"][name], valid["target"][name]]), tensor)


def test_the_control_trains_as_the_meta_learning_methods_do():
    control, meta = assemble(smoke(method="frozen")), assemble(smoke(method="evograd"))
    batch, other = next(control.train_batches), next(meta.train_batches)
    for language in ("source", "target"):
        assert torch.equal(batch[language]["input_ids"], other[language]["input_ids"])
    losses = [assembly.trainer.base_step(batch) for assembly in (control, meta)]
    assert torch.equal(*losses)
    assert control.trainer.estimator is None and control.valid_batches is None


def test_batches_go_on_where_they_were_stored():
    batches = assemble(smoke(method="evograd")).train_batches
    for _ in range(3):
        next(batches)
    place = batches.state_dict()
    expected = [next(batches) for _ in range(9)]
    batches.load_state_dict(place)
    for batch, other in zip(expected, itertools.islice(batches, 9), strict=True):
        for language in batch:
            assert all(torch.equal(batch[language][n], other[language][n]) for n in batch[language])


def test_the_loss_is_the_mean_of_both_languages():
    assembly = assemble(smoke(method="second_order"))
    model, meta = assembly.trainer.problem.model.eval(), assembly.trainer.problem.meta
    batch = next(assembly.train_batches)

    def part(name, transformed):
        hidden = model.encoder(
            input_ids=batch[name]["input_ids"], attention_mask=batch[name]["attention_mask"]
        ).last_hidden_state
        logits = model.classifier(meta(hidden) if transformed else hidden)
        scored = batch[name]["labels"] >= 0
        chosen = logits.log_softmax(-1)[scored]
        return -chosen.gather(1, batch[name]["labels"][scored].unsqueeze(1)).mean()

    for transformed in (True, False):
        expected = (part("source", transformed) + part("target", False)) / 2
        for inside in (True, False):
            loss = TransferLoss(transformed, inside)
            torch.testing.assert_close(loss(model, meta, batch), expected)
    features = encode_all(model, meta, batch)
    torch.testing.assert_close(
        TransferLoss(True, False)(model, meta, features),
        (part("source", True) + part("target", False)) / 2,
    )
    assert encode_all(model, meta, features)["source"] is features["source"]


def test_cached_hidden_states_change_no_number_and_save_passes():
    costs, gradients = [], []
    for cached in (True, False):
        config = smoke(method="evograd", evograd={"prefix": cached})
        assembly = assemble(config)
        trainer = assembly.trainer
        batches = [next(assembly.train_batches)], next(assembly.valid_batches)

        def call(trainer=trainer, batches=batches):
            return trainer.estimator(trainer.problem, trainer.inner, trainer.state, *batches)

        gradients.append(call().gradient)
        costs.append(count_flops(call))
    assert costs[0] < 0.6 * costs[1]
    for name, gradient in gradients[0].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=2e-3 * scale + 1e-12)


def test_a_transformation_inside_of_the_encoder():
    config = smoke(method="second_order", transform={"layers": [0, 1]})
    trainer = assemble(config).trainer
    assert trainer.problem.train_loss.inside
    assert "alpha" in trainer.problem.meta_parameter_names
    config = smoke(method="evograd", transform={"layers": [0]})
    assembly = assemble(config)
    assert assembly.trainer.estimator.prefix is None
    last = assembly.trainer.fit(
        assembly.train_batches, assembly.valid_batches, steps=2, progress=False
    )
    assert last["hypergradient_norm"] > 0


def test_estimators_follow_the_method():
    evograd = assemble(smoke(method="evograd")).trainer.estimator
    assert isinstance(evograd, EvoGrad) and evograd.perturb == ["classifier.*"]
    assert isinstance(assemble(smoke(method="second_order")).trainer.estimator, Unrolled)
    guided = merged(smoke(), NAMED["guided"])
    assert isinstance(assemble(guided).trainer.estimator, GuidedEvoGrad)
    joint = assemble(smoke(method="joint"))
    assert joint.trainer.estimator is None and joint.valid_batches is None
    assert set(next(assemble(smoke(method="target_only")).train_batches)) == {"target"}


def test_the_figure_of_the_study(tmp_path, drawn):
    import pandas

    frame = pandas.DataFrame(
        [
            {
                "row": row,
                "seed": seed,
                "test F1 [%]": 40.0 + seed,
                "meta step [MiB]": 5.0 if "MetaXL" in row else None,
            }
            for row in study.STUDIES[0].rows
            for seed in (1, 2, 3)
        ]
    )
    figures.draw_comparison(frame, tmp_path / "figure.png")
    score, memory = drawn.axes("figure.png", tmp_path)
    rows = list(study.STUDIES[0].rows)
    assert bars(score) == dict.fromkeys(rows, 42.0)
    assert bars(memory) == {row: 5.0 for row in rows if "MetaXL" in row}
    # A point for each seed, in the row of its method.
    for place, line in enumerate(score.lines[-len(rows) :]):
        assert list(line.get_xdata()) == [41.0, 42.0, 43.0]
        assert {round(float(height)) for height in line.get_ydata()} == {place}
    assert score.get_xlabel().startswith("test F1 [%]")
    assert memory.get_xlabel().startswith("meta step [MiB]")


def test_batches_refuse_what_has_no_halves():
    task = load_task(settings_of(smoke()))
    from metatoolkit.tasks import TokenBatches

    with pytest.raises(ConfigurationError, match="target_batch_size is 1"):
        TransferBatches(TokenBatches(task.target, 1), part="first")
