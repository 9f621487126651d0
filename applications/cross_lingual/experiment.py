"""MetaXL for low-resource languages (Xia et al. 2021; EvoGrad, Bohdal et al. 2021, section 4.4).

A classifier of tokens (named entities) or of texts (sentiment) is trained on many examples of a
source language and about a hundred of the target language. A representation transformation network
behind the encoder's last layer bends the hidden states of the source; it learns from a half of each
target batch that the classifier does not train on at that step. Methods: ``target_only``, ``joint``
(both languages, no transformation), ``second_order`` (MetaXL: the exact one-step hypergradient),
``evograd``, whose candidates differ in the head alone and share the encoder's hidden states, and
for control ``frozen``, the same as these two with a transformation that stays as it was drawn.

What differs from the public code, on purpose: position ids of RoBERTa-like encoders start behind
the padding token's; special tokens are those of the encoder's own vocabulary; EvoGrad's candidates
share their dropout masks, so that they differ by the perturbation alone; nothing is chosen on test
data, and the reported F1 is that of the last step. Second order differentiates the base learner's
own step, Adam's; there it is a step of plain SGD. Gradients are not clipped.

``with xlmr`` sets the paper's protocol (XLM-R base on WikiAnn), ``with sentiment`` classifies
generated reviews and ``with amazon`` product reviews, ``with xlmr_sized`` measures an encoder of
that size without a download. Expected on the default: see docs/cross_lingual.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import metatoolkit as mt
from applications.cross_lingual import figures
from applications.cross_lingual.batches import TransferBatches
from applications.cross_lingual.losses import TransferLoss, encode_all
from applications.cross_lingual.settings import (
    LANGUAGES,
    NAMED,
    TUNED,
    UNTUNED,
    CrossLingualSettings,
)
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError
from metatoolkit.experiments.components import (
    META_METHODS,
    build_estimator,
    build_inner,
    signal_window,
    tuned_as,
)
from metatoolkit.experiments.configuration import check_at_most
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.metaparameters.representation_transform import (
    RepresentationTransform,
    find_layers,
)
from metatoolkit.networks.text_classifier import TextClassifier, build_encoder, check_positions
from metatoolkit.tasks.data_root import data_root


@dataclass(frozen=True)
class Transfer:
    """A source and a target language, encoded.

    Attributes:
        source: Training examples of the source.
        target: The few training examples of the target.
        dev: Tuning examples of the target, its split ``dev``.
        test: Test examples of the target.
        labels: Names of the classes.
        tokenizer: The tokenizer.
        languages: Names of source and target.
    """

    source: mt.tasks.TokenDataset
    target: mt.tasks.TokenDataset
    dev: mt.tasks.TokenDataset
    test: mt.tasks.TokenDataset
    labels: list[str]
    tokenizer: Any
    languages: tuple[str, str]

    @property
    def score(self) -> str:
        """Name of the score: ``"f1"`` of spans, or ``"accuracy"`` of documents."""
        return "f1" if self.target.is_tagging else "accuracy"


def fill(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with what was left open filled in.

    Args:
        config: The configuration, checked.

    Raises:
        ConfigurationError: The languages of CoNLL folders are not given, or source and target are
            the same.
    """
    data, evograd = dict(config["data"]), dict(config["evograd"])
    if data["name"] == "auto":
        found = (data_root(data["root"]) / "masakhaner").is_dir()
        data["name"] = "masakhaner" if found else "generated"
    own = UNTUNED
    if config["tuned"]:
        guided = config["method"] == "evograd" and evograd["guided"]
        alike = "generated" if data["name"].startswith("generated") else "masakhaner"
        tuned = TUNED[alike]
        own = {**UNTUNED, **tuned["guided" if guided else tuned_as(config, tuned)]}
    filled = {
        name: own[name] if config[name] is None else config[name] for name in ("lr", "meta_lr")
    }
    if evograd["sigma"] is None:
        evograd["sigma"] = own["sigma"]
    for role, language in zip(("source", "target"), LANGUAGES[data["name"]], strict=True):
        data[role] = data[role] or language
        if data[role] is None:
            raise ConfigurationError(
                f"data.{role} is None; name the language, the folder in data.root that holds it."
            )
    if data["source"] == data["target"]:
        raise ConfigurationError(
            f"data.source and data.target are both {data['target']!r}; name two languages."
        )
    return {**config, **filled, "data": data, "evograd": evograd}


experiment = records.experiment("cross_lingual")
settings_of = configure(experiment, CrossLingualSettings, NAMED, fill)


def load_corpora(data: dict[str, Any]) -> list[mt.tasks.Corpus]:
    """Return the corpora of source and target.

    Args:
        data: Settings of the data as :func:`settings_of` returns them.

    Raises:
        UnknownNameError: There is no such language.
    """
    names, root = [data["source"], data["target"]], data["root"]
    if data["name"] == "masakhaner":
        return list(mt.tasks.load_masakhaner(names, root).values())
    if data["name"] == "conll":
        return [mt.tasks.load_conll(Path(root or ".") / name) for name in names]
    if data["name"] in ("generated", "generated_reviews"):
        options = dict(data["generated"])
        if data["name"] == "generated":
            corpora = mt.tasks.generated_languages(**options)
        else:
            options.pop("shared_names")  # reviews name nobody
            corpora = mt.tasks.generated_reviews(**options)
        for name in names:
            if name not in corpora:
                raise UnknownNameError("generated language", name, corpora)
        return [corpora[name] for name in names]
    load = mt.tasks.load_wikiann if data["name"] == "wikiann" else mt.tasks.load_amazon_reviews
    return [load(name) if root is None else load(name, root) for name in names]


def load_task(config: dict[str, Any]) -> Transfer:
    """Load both languages, and encode them.

    Args:
        config: Settings as :func:`settings_of` returns them.

    Raises:
        LabelError: The languages have different labels.
        ConfigurationError: A language has fewer examples than are asked for.
        DataError: There is no span to score predictions by.
    """
    data = config["data"]
    source, target = load_corpora(data)
    labels = mt.tasks.common_labels([source, target], data["labels"])
    if config["encoder"]["pretrained"] is None:
        tokenizer: Any = mt.tasks.train_tokenizer([source, target], data["vocabulary"])
    else:
        tokenizer = mt.tasks.load_tokenizer(config["encoder"]["pretrained"])
    seed = config["seed"] if data["sample_seed"] is None else data["sample_seed"]
    count = min(data["source_examples"], len(source["train"]))
    wanted, there = data["target_examples"], len(target["train"])
    check_at_most("data.target_examples", wanted, there, f"training examples of {target.language}")
    examples = {
        "source": source.sample("train", count, seed),
        "target": target.sample("train", wanted, seed),
        "dev": target["dev"],
        "test": target["test"],
    }
    encoded = {
        name: mt.tasks.encode(part, tokenizer, labels, data["max_length"])
        for name, part in examples.items()
    }
    for entry, role in (("batch_size", "source"), ("target_batch_size", "target")):
        check_at_most(entry, config[entry], len(encoded[role]), f"{role} rows")
    spans = torch.tensor([index for index, label in enumerate(labels) if label != "O"])
    for name in ("dev", "test"):
        part = encoded[name]
        if part.is_tagging and not torch.isin(part.labels, spans).any():
            raise DataError(
                f"{name} of {target.language!r} holds no span, so that its F1 is not defined; "
                "give a split with spans."
            )
    languages = (source.language, target.language)
    return Transfer(**encoded, labels=labels, tokenizer=tokenizer, languages=languages)


def build_model(config: dict[str, Any], task: Transfer) -> TextClassifier:
    """Return encoder and head, after checking that they fit the tokenizer.

    Args:
        config: Settings as :func:`settings_of` returns them.
        task: The task.

    Raises:
        ConfigurationError: Encoder and tokenizer do not fit.
    """
    torch.manual_seed(config["seed"])
    encoder = build_encoder(task.tokenizer, config["data"]["max_length"], **config["encoder"])
    mt.tasks.check_tokenizer(task.tokenizer, encoder)
    check_positions(encoder, config["data"]["max_length"])
    return TextClassifier(
        encoder,
        len(task.labels),
        "token" if task.target.is_tagging else "sequence",
        config["head_dropout"],
    )


def assemble(config: dict[str, Any]) -> Assembly:
    """Put data, encoder, head, transformation, losses, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its batches, not yet trained; the task is a :class:`Transfer`.
    """
    config = settings_of(config)
    seed, device, meta_learns = config["seed"], config["device"], config["method"] in META_METHODS
    task = load_task(config)
    model = build_model(config, task)
    layers = config["transform"]["layers"]
    meta = RepresentationTransform.attach(
        model.encoder, layers=layers, bottleneck=config["transform"]["bottleneck"]
    )
    last = len(find_layers(model.encoder)) - 1
    inside = [index % (last + 1) for index in layers] != [last]
    halved = meta_learns or config["method"] == "frozen"
    loss = TransferLoss(transformed=halved, inside=inside)
    problem = mt.BilevelProblem(model, meta, train_loss=loss, valid_loss=loss)
    steps, warmup = config["steps"], config["warmup"]
    lr = mt.inner.warmup_linear(config["lr"], steps, warmup)
    inner = build_inner(config, lr) or mt.inner.Adam(lr=lr, weight_decay=config["weight_decay"])
    shared = config["evograd"]["prefix"] and not inside
    estimator = build_estimator(config, prefix=encode_all if shared else None)
    optimizer = None
    if estimator is not None:
        optimizer = torch.optim.Adam(
            meta.parameters(), lr=config["meta_lr"], weight_decay=config["meta_weight_decay"]
        )
    window = signal_window(estimator)
    trainer = mt.MetaTrainer(
        problem, inner, estimator, optimizer, device=device, seed=seed, signal_window=window
    )

    def target_batches() -> mt.tasks.TokenBatches:
        return mt.tasks.TokenBatches(task.target, config["target_batch_size"], seed, device)

    source = None
    if config["method"] != "target_only":
        source = mt.tasks.TokenBatches(task.source, config["batch_size"], seed + 1, device)
    train = TransferBatches(target_batches(), source, "first" if halved else "all")
    valid = TransferBatches(target_batches(), part="second") if meta_learns else None
    assembly = Assembly(trainer, train, valid, task)
    if optimizer is not None:
        schedule_optimizer(optimizer, assembly.outer_steps(steps), warmup)
    return assembly


def schedule_optimizer(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> None:
    """Let an optimizer's learning rate rise and fall as the base learner's does.

    Its place in the schedule is a part of the optimizer's state.

    Args:
        optimizer: The optimizer, with the learning rate of the peak.
        steps: Number of its steps in all.
        warmup: Fraction of them in which the rate rises.
    """
    factor = mt.inner.warmup_linear(1.0, steps, warmup)
    for group in optimizer.param_groups:
        group |= {"peak_lr": group["lr"], "taken": 0}

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor(nn.Identity(), group["taken"])
            group["taken"] += 1

    optimizer.register_step_pre_hook(before_step)


def score(model: nn.Module, task: Transfer, split: str) -> float:
    """Return the F1 of spans, or the accuracy of documents, of a split of the target.

    Args:
        model: Encoder and head.
        task: The task.
        split: ``"dev"`` or ``"test"``.
    """
    dataset = getattr(task, split)
    if dataset.is_tagging:
        return mt.evaluation.span_f1(model, dataset)
    return mt.evaluation.label_accuracy(model, dataset)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one method with one seed, and record curves, figure and costs.

    Returns:
        Score on test and tuning data after the last step.
    """
    config = settings_of(dict(_config))
    assembly = assemble(dict(_config))
    task, trainer = assembly.task, assembly.trainer
    _run.info["settings"] = {
        "lr": config["lr"],
        "meta_lr": config["meta_lr"],
        "sigma": config["evograd"]["sigma"],
    }
    _run.info["data"] = {
        "name": config["data"]["name"],
        "source": task.languages[0],
        "target": task.languages[1],
        "labels": task.labels,
    }

    def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
        return {f"dev_{task.score}": score(trained.problem.model, task, "dev")}

    def write_artifacts(folder: Path) -> list[Path]:
        return figures.write(trainer, task, folder)

    last = fit_recorded(_run, assembly, evaluate=evaluate, write_artifacts=write_artifacts)
    return {
        f"test_{task.score}": score(trainer.problem.model, task, "test"),
        f"dev_{task.score}": last[f"dev_{task.score}"],
        "train_loss": last["train_loss"],
        "lambda_distance": last["lambda_distance"],
    }
