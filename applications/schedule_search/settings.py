"""Configurations of the search for schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.configuration import (
    Among,
    Count,
    CountOrZero,
    Field,
    Positive,
    Settings,
    Text,
    entry,
)
from metatoolkit.experiments.settings import MethodSettings
from metatoolkit.hypergradients import estimators
from metatoolkit.networks import NETWORKS

LEARNING = ("fds", "greedy", "truncated", "reversible", "replay", "es")
BLACK_BOX = ("random", "tpe", "cma_es", "hyperband", "dehb")
METHODS = ("fixed", *LEARNING, *BLACK_BOX)

SCHEDULES = {"learning_rate": "lr", "momentum": "momentum", "weight_decay": "weight_decay"}
"""Groups of entries, and the hyper-parameter of an inner learner that each is the course of."""


class ScheduleSettings(Settings):
    """Course of a hyper-parameter over the training."""

    start: float | Annotated[list[float], Field(min_length=1)] = entry(
        0.0, "Value of all steps before anything is learned, or one for each share."
    )
    shares: Count = entry(1, "Contiguous parts of the training, each with a value of its own.")
    step: Positive = entry(0.1, "First step of sign descent.")
    bounds: Annotated[list[float], Field(min_length=2, max_length=2)] = entry(
        [0.0, 1.0], "Lowest and highest value."
    )


class Network(Settings):
    """Classifier; an option that is None keeps the network's own default."""

    name: Annotated[str, Among(NETWORKS)] = entry("mlp", "Network.")
    hidden: list[Count] | None = entry([32], "Widths of hidden layers; None for its own.")
    activation: Text | None = entry(None, "Activation; None for its own.")
    depth: Count | None = entry(None, "Depth; None for the network's own.")
    width: Count | None = entry(None, "Width factor; None for the network's own.")


class EvolutionSettings(Settings):
    """Options of evolution strategies."""

    pairs: Count = entry(5, "Antithetic pairs, each of two trainings.")
    sigma: Positive = entry(0.3, "Standard deviation of what λ is moved by.")


class ScheduleSearchSettings(MethodSettings):
    """Configuration of the application."""

    learning: ClassVar[tuple[str, ...]] = (*LEARNING, "meta")

    method: Literal[
        "meta",
        "fixed",
        "fds",
        "greedy",
        "truncated",
        "reversible",
        "replay",
        "es",
        "random",
        "tpe",
        "cma_es",
        "hyperband",
        "dehb",
    ] = entry("fds", "How schedules are learned, if at all.")
    dataset: Text = entry("digits", "Data set, such as digits, mnist5000 or cifar10.")
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    valid_per_class: Count = entry(24, "Validation images of a class, for the outer loss.")
    augment: bool = entry(False, "Whether training images are shifted and flipped.")
    network: Network = entry(Network(), "Classifier.")
    horizon: Count = entry(200, "Inner steps of a training.")
    window: Count | None = entry(
        None,
        "Steps that greedy looks ahead and truncated looks back; None for a share of the rate.",
    )
    steps: Count = entry(2000, "Inner steps of all trainings that are learned from.")
    batch_size: Count = entry(64, "Training images of a step.")
    valid_batch_size: Count = entry(240, "Validation images of an outer loss.")
    clip: Positive | None = entry(None, "Largest entry of an inner gradient; None for no clipping.")
    learning_rate: ScheduleSettings = entry(
        ScheduleSettings(start=0.01, shares=5, step=0.05), "Learning rate."
    )
    momentum: ScheduleSettings = entry(ScheduleSettings(start=0.1, bounds=[1e-3, 0.9]), "Momentum.")
    weight_decay: ScheduleSettings = entry(
        ScheduleSettings(start=1e-4, step=3e-4, bounds=[0.0, 5e-3]), "Weight decay."
    )
    meta_optimizer: Literal["sign_descent", "adam"] | None = entry(
        None,
        "What moves λ: sign descent on the values, or Adam on what a sigmoid keeps between the "
        "bounds; None for Adam with es, and sign descent with the others.",
    )
    meta_lr: Positive = entry(0.3, "Learning rate of Adam.")
    es: EvolutionSettings = entry(EvolutionSettings(), "Options of evolution strategies.")
    # None is filled in before anything reads it.
    evaluate_every: CountOrZero | None = entry(  # type: ignore[assignment]
        None, "Outer steps between evaluations; None for one after each training, 0 for the last."
    )
    log_every: Count = entry(1, "Outer steps between values of the training's metrics.")
    checkpoint_every: CountOrZero = entry(10, "Outer steps between checkpoints; 0 for the last.")

    @classmethod
    @override
    def settle(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Check a configuration, and fill in what follows from the method and the horizon.

        Returns:
            The configuration with its window, its optimizer of λ and its rhythm of evaluations.

        Raises:
            ConfigurationError: Bounds are turned round, or a start lies outside; or shares or
                windows do not divide the horizon.
        """
        settled = super().settle(config)
        horizon = config["horizon"]
        for name in SCHEDULES:
            _check_schedule(name, config[name], horizon)
        if settled["window"] is None:
            settled["window"] = horizon // config["learning_rate"]["shares"]
        _check_parts("window", settled["window"], horizon)
        _check_parts("horizon", horizon, config["steps"], "steps")
        if settled["meta_optimizer"] is None:
            settled["meta_optimizer"] = "adam" if settled["method"] == "es" else "sign_descent"
        if settled["evaluate_every"] is None:
            settled["evaluate_every"] = max(1, horizon // _outer_step(settled))
        return settled


def _outer_step(config: Mapping[str, Any]) -> int:
    """Return how many inner steps an outer step takes."""
    chosen, horizon = config["estimator"], int(config["horizon"])
    if config["method"] == "meta":
        usual = horizon if "steps" in estimators.options(chosen["name"]) else 1
        return int(chosen.get("steps", usual))
    return {"fixed": 1, "greedy": int(config["window"])}.get(config["method"], horizon)


def _check_schedule(name: str, given: Mapping[str, Any], horizon: int) -> None:
    (low, high), shares = given["bounds"], given["shares"]
    starts = given["start"] if isinstance(given["start"], list) else [given["start"]]
    if not low < high:
        raise ConfigurationError(
            f"{name}.bounds is {[low, high]}; two numbers are needed, the lower one first."
        )
    if not all(low <= start <= high for start in starts):
        raise ConfigurationError(
            f"{name}.start is {given['start']}, outside of {name}.bounds={[low, high]}; start "
            "between them, or widen them."
        )
    if shares > horizon or horizon % shares:
        raise ConfigurationError(
            f"{name}.shares is {shares}, which does not divide horizon={horizon} into equal parts; "
            f"give a divisor of {horizon}, or another horizon."
        )
    if isinstance(given["start"], list) and len(starts) != shares:
        raise ConfigurationError(
            f"{name}.start has {len(starts)} values, and {name}.shares is {shares}; give one "
            "value, or one for each share."
        )


def _check_parts(name: str, part: int, whole: int, of: str = "horizon") -> None:
    if part > whole or whole % part:
        raise ConfigurationError(
            f"{name} is {part}, which does not divide {of}={whole}; give numbers that do."
        )


DEFAULT = ScheduleSearchSettings.defaults()

NAMED: dict[str, dict[str, Any]] = {
    # The paper's protocol of 10,000 steps on CIFAR-10: 5 rates, all from zero, ten outer steps;
    # validation on 5 % of the training images.
    "cifar10": {
        "dataset": "cifar10",
        "valid_per_class": 250,
        "augment": True,
        "network": {"name": "wide_resnet", "hidden": None, "depth": 16, "width": 1},
        "horizon": 10_000,
        "steps": 10 * 10_000,
        "batch_size": 256,
        "valid_batch_size": 500,
        "clip": 3.0,
        "learning_rate": {"start": 0.0, "shares": 5, "step": 0.1},
        "momentum": {"start": 0.0, "step": 0.3, "bounds": [0.0, 0.99]},
        "weight_decay": {"start": 0.0, "step": 4e-4},
    },
    # All from zero, as published, on the digits.
    "from_zero": {
        "learning_rate": {"start": 0.0, "step": 0.1},
        "momentum": {"start": 0.0, "bounds": [0.0, 0.99]},
        "weight_decay": {"start": 0.0},
    },
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "horizon": 10,
        "steps": 30,
        "network": {"hidden": [8]},
        "es": {"pairs": 1},
    },
}
