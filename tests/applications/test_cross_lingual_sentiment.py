"""The cross-lingual application on documents, and that nothing is learned from dev and test."""

from __future__ import annotations

import importlib

import pytest
import torch

from applications.cross_lingual.figures import transform_changes
from applications.cross_lingual.settings import DEFAULT, METHODS, NAMED
from metatoolkit.errors import DataError, LabelError
from metatoolkit.evaluation import label_accuracy
from metatoolkit.tasks import Corpus, Document, generated_languages, generated_reviews
from tests.applications.cross_lingual import merged

# The package has an attribute of the same name: the experiment that this module defines.
experiment = importlib.import_module("applications.cross_lingual.experiment")


def smoke(*named, **updates):
    config = {**DEFAULT, "seed": 1}
    for name in ("smoke", *named):
        config = merged(config, NAMED[name])
    return merged(config, {"data": {"source_examples": 30}} | updates)


def trained(config, steps=2):
    """Return a fresh assembly after some steps."""
    assembly = experiment.assemble(config)
    assembly.trainer.fit(
        assembly.train_batches, assembly.valid_batches, steps=steps, progress=False
    )
    return assembly


def parameters(assembly):
    problem = assembly.trainer.problem
    return [*problem.model.parameters(), *problem.meta.parameters()]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_documents(method):
    config = smoke("sentiment", method=method)
    first, second = experiment.assemble(config), trained(config)
    assert first.task.score == "accuracy"
    assert first.task.labels == ["negative", "positive"]
    untouched = [p.detach().clone() for p in parameters(first)]
    first.trainer.fit(first.train_batches, first.valid_batches, steps=2, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(untouched, parameters(first), strict=True))
    pairs = zip(parameters(first), parameters(second), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    score = experiment.score(first.trainer.problem.model, first.task, "test")
    assert score == experiment.score(second.trainer.problem.model, second.task, "test")


@pytest.mark.parametrize("make", [generated_languages, generated_reviews])
def test_nothing_is_learned_from_dev_and_test(make, monkeypatch):
    sizes = {"train": 60, "dev": 12, "test": 12}
    corpora = list(make(2, 0, **sizes).values())
    others = list(make(2, 5, **sizes).values())
    swapped = [
        Corpus(a.language, {**b.splits, "train": a["train"]}, a.labels)
        for a, b in zip(corpora, others, strict=True)
    ]
    results = []
    for given in (corpora, swapped):
        monkeypatch.setattr(experiment, "load_corpora", lambda data, given=given: given)
        results.append(trained(smoke(method="evograd")))
    first, second = results
    assert not torch.equal(first.task.test.input_ids, second.task.test.input_ids)
    assert all(
        torch.equal(a, b) for a, b in zip(parameters(first), parameters(second), strict=True)
    )


def test_padding_has_no_part_in_the_loss():
    assembly = experiment.assemble(smoke("sentiment", method="second_order"))
    problem = assembly.trainer.problem
    problem.model.eval()
    batch = next(assembly.train_batches)
    pad = assembly.task.tokenizer.pad_token_id
    longer = {
        language: {
            "input_ids": torch.nn.functional.pad(part["input_ids"], (0, 5), value=pad),
            "attention_mask": torch.nn.functional.pad(part["attention_mask"], (0, 5)),
            "labels": part["labels"],
        }
        for language, part in batch.items()
    }
    losses = [problem.train_loss(problem.model, problem.meta, b) for b in (batch, longer)]
    torch.testing.assert_close(*losses)
    for language, part in batch.items():
        assert part["labels"].shape == part["input_ids"].shape[:1], language


def test_the_target_can_be_learned():
    config = smoke("sentiment", method="target_only", lr=1e-2, tuned=False, steps=80)
    assembly = trained(config, steps=80)
    assert label_accuracy(assembly.trainer.problem.model, assembly.task.target) > 0.9


def test_the_figure_counts_tokens_of_documents_but_no_padding():
    assembly = experiment.assemble(smoke("sentiment", method="evograd"))
    changes = transform_changes(assembly.trainer, assembly.task)
    assert list(changes) == ["negative", "positive"]
    total = sum(len(values) for values in changes.values())
    assert total == int(assembly.task.source.attention_mask.sum())


def test_languages_with_other_labels_or_another_task(monkeypatch):
    first, second = generated_reviews(2, train=60, dev=12, test=12).values()
    stars = Corpus("x", {s: [Document("a", "one")] * 30 for s in second.splits}, ["one"])
    entities = generated_languages(1, train=60, dev=12, test=12)["generated-0"]
    for other, error, message in (
        (stars, LabelError, "'x' lacks negative, positive"),
        (entities, DataError, "some hold sentences"),
    ):
        monkeypatch.setattr(experiment, "load_corpora", lambda data, o=other: [first, o])
        with pytest.raises(error, match=message):
            experiment.assemble(smoke("sentiment"))
