"""Learned feature-wise transformation (Tseng et al. 2020, arXiv 2001.08735) with EvoGrad.

A metric-based few-shot classifier is trained on episodes of several domains and tested on a domain
that it has not seen. Behind BatchNorm layers of the encoder each channel is scaled and shifted at
random; how strongly is learned (λ), so that a step on a pseudo-seen domain with transforms lowers
the loss on a pseudo-unseen one without them. Methods: ``no_transform``, ``fixed_transform`` (λ as
it starts), ``second_order`` (the exact one-step hypergradient) and ``evograd`` (Bohdal et al. 2021,
arXiv 2106.10575, section 4.2).

What differs from the public code, on purpose: EvoGrad's candidates share the noise of the
transforms, which is drawn anew for each of them there and outweighs what the perturbations do; its
σ is a setting of its own, there it is the learning rate; second order differentiates the very step
that the inner learner takes; the auxiliary loss is part of the training loss in both; classes of a
split follow from their sorted names; every draw is seeded. As published, relation and graph heads
use the statistics of the test episode; ``head.running_statistics=True`` does not.
``with resnet10``, ``resnet18`` or ``resnet34`` sets the paper's protocol.

Expected on the default: see docs/cross_domain_few_shot.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import metatoolkit as mt
from applications.cross_domain_few_shot import figures
from applications.cross_domain_few_shot.horizons import check_horizons, measure
from applications.cross_domain_few_shot.settings import NAMED, FewShotSettings
from applications.cross_domain_few_shot.training_parts import (
    AuxiliaryBatches,
    add_auxiliary_head,
    episode_and_auxiliary_loss,
    load_encoder,
    warm_up,
)
from metatoolkit import records
from metatoolkit.errors import DataError, UnknownNameError
from metatoolkit.evaluation import domain_accuracy
from metatoolkit.experiments.components import build_estimator, build_inner, signal_window
from metatoolkit.experiments.configuration import check_at_most
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded, resumes
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks import Domain, EpisodeBatches
from metatoolkit.tasks.labeled_batches import LabeledBatches

experiment = records.experiment("cross_domain_few_shot")
settings_of = configure(experiment, FewShotSettings, NAMED)

# Test episodes are the same for all seeds and methods.
_EPISODE_SEED = 2020


@dataclass(frozen=True)
class Domains:
    """Domains of a run.

    Attributes:
        seen: Domains to learn on, by name.
        unseen: Domain to test on.
        transform: Transform of test images.
        train_transform: Transform of training images.
    """

    seen: dict[str, Domain]
    unseen: Domain
    transform: Any
    train_transform: Any


def load_domains(config: dict[str, Any]) -> Domains:
    """Load the domains, and leave one out.

    Args:
        config: A configuration of this experiment.

    Raises:
        UnknownNameError: The unseen domain is not among them.
    """
    names, unseen = list(config["domains"]), config["unseen"]
    if unseen not in names:
        raise UnknownNameError("unseen domain", unseen, names)
    if config["source"] == "photos":
        domains = mt.tasks.photo_domains(names, root=config["data_root"])
        size = config["image_size"]
        plain = mt.tasks.PhotoTransform(size)
        train = mt.tasks.PhotoTransform(size, augment=True) if config["augment"] else plain
        seen = {name: domain for name, domain in domains.items() if name != unseen}
        return Domains(seen, domains[unseen], plain, train)
    domains = mt.tasks.default_domains(names, config["image_size"], config["data_root"])
    padding = 2 if config["augment"] else 0
    seen = {name: domain for name, domain in domains.items() if name != unseen}
    plain_small = mt.tasks.ImageTransform((0.5,), (0.5,))
    moved = mt.tasks.ImageTransform((0.5,), (0.5,), padding=padding)
    return Domains(seen, domains[unseen], plain_small, moved)


def inner_learner(config: dict[str, Any]) -> mt.inner.InnerLearner:
    """Return the inner learner.

    Args:
        config: A configuration of this experiment.
    """
    length = config["reset_every"] or config["steps"]
    boundaries = [round(fraction * length) for fraction in config["milestones"]]
    lr = mt.inner.multistep(config["lr"], boundaries)
    adam = config["optimizer"] == "adam"
    own = mt.inner.Adam(lr=lr) if adam else mt.inner.SGD(lr=lr, momentum=0.9)
    return build_inner(config, lr) or own


def meta_optimizer(config: dict[str, Any], meta: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the transforms.

    Args:
        config: A configuration of this experiment.
        meta: The transforms.
    """
    options: dict[str, Any] = {"lr": config["meta_lr"], "weight_decay": config["meta_weight_decay"]}
    momentum = config["meta_momentum"]
    if config["meta_optimizer"] == "sgd":
        return torch.optim.SGD(meta.parameters(), momentum=momentum, **options)
    return torch.optim.Adam(meta.parameters(), betas=(momentum, 0.999), **options)


def check_test(config: dict[str, Any], unseen: Domain) -> None:
    """Raise unless the unseen domain has what the episodes of evaluation and test take.

    Args:
        config: A configuration of this experiment.
        unseen: Domain to test on.

    Raises:
        DataError: It has too few classes, or a class too few images.
    """
    sizes = {name: config[name] for name in ("ways", "shots", "test_queries")}
    for split in ("valid", "test"):
        try:
            mt.tasks.EpisodeBatches(unseen, split, *sizes.values())
        except DataError as error:
            told = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise DataError(f"no test is possible with {told}: {error}") from None


def build_network(config: dict[str, Any], domains: Domains) -> mt.networks.FewShotNetwork:
    """Build backbone and head, the backbone's parameters from a file if one is named.

    Args:
        config: A configuration of this experiment.
        domains: Domains of the run.

    Raises:
        CheckpointError: The file cannot be read, or belongs to another backbone.
    """
    backbone, head = (
        {name: value for name, value in config[part].items() if value is not None}
        for part in ("backbone", "head")
    )
    sample = domains.transform(domains.unseen.train.load([0]), None)
    torch.manual_seed(config["seed"])
    network = mt.networks.build_few_shot_network(
        backbone.pop("name"),
        head.pop("name"),
        config["ways"],
        tuple(sample.shape[1:]),
        backbone,
        head,
    )
    path = config["warm_up"]["checkpoint"]
    if path is not None and not _resumes(config):
        load_encoder(network.encoder, path)
    return network


def _resumes(config: dict[str, Any]) -> bool:
    return resumes(str(experiment.path), config)


def pseudo_episodes(
    config: dict[str, Any], domains: Domains, seed: int
) -> tuple[EpisodeBatches, EpisodeBatches]:
    """Return episodes of pseudo-seen and of pseudo-unseen domains.

    Args:
        config: A configuration of this experiment.
        domains: Domains of the run.
        seed: Seed of the episodes.
    """
    return mt.tasks.pseudo_domains(
        domains.seen,
        "train",
        config["ways"],
        config["shots"],
        config["queries"],
        seed=seed,
        transform=domains.train_transform,
        device=config["device"],
        period=config["period"],
    )


def _labeled(
    config: dict[str, Any], domains: Domains, kind: Literal["auxiliary", "warm_up"], stream: Stream
) -> LabeledBatches:
    """Return batches for classification from the seen domain that is named for it."""
    name = config[kind]["domain"]
    if name not in domains.seen:
        raise UnknownNameError(f"{kind}.domain (a seen domain)", name, domains.seen)
    size, count = config[kind]["batch_size"], len(domains.seen[name].train.labels)
    check_at_most(f"{kind}.batch_size", size, count, f"training images of {name!r}")
    return LabeledBatches(
        domains.seen[name],
        "train",
        size,
        seed=fold_in(config["seed"], stream),
        transform=domains.train_transform,
        device=config["device"],
    )


def _warm_up(config: dict[str, Any], domains: Domains, encoder: nn.Module) -> None:
    options = config["warm_up"]
    if options["checkpoint"] is not None or options["steps"] == 0:
        return
    batches = _labeled(config, domains, "warm_up", Stream.WARM_UP)
    if not _resumes(config):
        encoder.to(config["device"])
        warm_up(encoder, batches, options["steps"], options["lr"], config["progress"])


def assemble(config: dict[str, Any]) -> Assembly:
    """Put domains, network, transforms, losses, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its episodes, not yet trained but for the warm-up, which comes when all
        else is known to fit. A run that will go on from a checkpoint is not warmed up.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the method.
        DataError: A domain has too few classes, or a class too few images.
    """
    config = settings_of(config)
    estimator, inner = build_estimator(config), inner_learner(config)
    domains = load_domains(config)
    check_test(config, domains.unseen)
    network = build_network(config, domains)
    meta = mt.metaparameters.insert_feature_wise_transforms(network.encoder, **config["transform"])
    auxiliary, seed, device = config["auxiliary"], config["seed"], config["device"]
    train_loss = mt.losses.episode_cross_entropy
    episodes, valid_episodes = pseudo_episodes(config, domains, seed)
    train_batches: Any = episodes
    if auxiliary["domain"] is not None:
        labeled = _labeled(config, domains, "auxiliary", Stream.AUXILIARY)
        decay = {name: auxiliary[name] for name in ("weight", "decay", "decays")}
        train_loss = episode_and_auxiliary_loss
        train_batches = AuxiliaryBatches(episodes, labeled, steps=config["steps"], **decay)
    with meta.disabled():
        _warm_up(config, domains, network.encoder)
    if auxiliary["domain"] is not None:
        add_auxiliary_head(network, labeled.classes)
    meta.switch(config["method"] != "no_transform")
    problem = mt.BilevelProblem(
        network, meta, train_loss, mt.losses.episode_cross_entropy, valid_mode="eval"
    )
    trainer = mt.MetaTrainer(
        problem,
        inner,
        estimator,
        None if estimator is None else meta_optimizer(config, meta),
        device=device,
        seed=seed,
        accumulate=config["accumulate"],
        order=config["order"],
        keep_lookahead=config["keep_lookahead"],
        reset_every=config["reset_every"],
        signal_window=signal_window(estimator),
    )
    return Assembly(trainer, train_batches, None if estimator is None else valid_episodes, domains)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one method with one seed, test it on the unseen domain, and record both.

    Returns:
        Test accuracy with its 95 % interval over episodes, and the figures beside it.
    """
    config = dict(_config)
    assembly = assemble(config)
    domains, network = assembly.task, assembly.trainer.problem.model
    asked = config["horizons"]
    check_horizons(config, assembly)

    def test(domain: Domain, split: str, count: int) -> mt.evaluation.FewShotAccuracy:
        return domain_accuracy(
            network,
            domain,
            split,
            config["ways"],
            config["shots"],
            config["test_queries"],
            count,
            seed=_EPISODE_SEED,
            transform=domains.transform,
            progress=config["progress"],
        )

    def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
        found = test(domains.unseen, "valid", config["tuning_episodes"])
        transforms: Any = trained.problem.meta
        layers = transforms.layers().values()
        scale, shift = (
            torch.cat(deviations).detach().mean()
            for deviations in zip(*(layer.deviations() for layer in layers), strict=True)
        )
        return {
            "tuning_accuracy": found.mean,
            "scale_deviation": float(scale),
            "shift_deviation": float(shift),
            **measure(trained, asked, lambda: pseudo_episodes(config, domains, _EPISODE_SEED)),
        }

    def write_artifacts(folder: Path) -> list[Path]:
        return figures.write(assembly.trainer, folder, config["method"])

    last = fit_recorded(_run, assembly, evaluate=evaluate, write_artifacts=write_artifacts)
    found = test(domains.unseen, "test", config["test_episodes"])
    kept = ("train_loss", "tuning_accuracy", "scale_deviation", "shift_deviation")
    measured = [name for name in last if name.startswith("slope_") or name == "outer_loss"]
    return {
        "test_accuracy": found.mean,
        "test_interval": found.interval,
        **{name: last[name] for name in (*kept, "lambda_distance", *measured)},
    }
