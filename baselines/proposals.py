"""How black-box methods choose what to evaluate next, from the losses of what came before."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from metatoolkit.errors import ConfigurationError, optional_import
from metatoolkit.experiments.search_space import Choice, Space
from metatoolkit.randomness import Stream, fold_in


@dataclass(frozen=True)
class Fidelity:
    """How many inner steps an evaluation takes.

    Attributes:
        high: Steps of an evaluation in full.
        low: The fewest steps; ``None`` where no evaluation is to take fewer than ``high``.
        entries: Configuration entries that say how many, each of which is given this number.
        eta: Factor from the steps of one rung to those of the next.
        multiple: What steps must be a multiple of, such as the horizon of an estimator.
    """

    high: int
    low: int | None = None
    entries: tuple[str, ...] = ("steps",)
    eta: int = 3
    multiple: int = 1

    def rungs(self) -> list[int]:
        """Return the steps of each rung, rising by ``eta`` up to ``high``.

        Raises:
            ConfigurationError: There is one rung alone, so that methods of several fidelities have
                nothing to choose.
        """
        if self.low is None or self.low * self.eta > self.high:
            raise ConfigurationError(
                f"low is {self.low}, but methods of several fidelities need one of at most "
                f"{self.high // self.eta}: high is {self.high}, and eta {self.eta}."
            )
        count = 1
        while self.low * self.eta**count <= self.high:
            count += 1
        exact = [self.high / self.eta**place for place in range(count)[::-1]]
        return [max(1, round(steps / self.multiple)) * self.multiple for steps in exact]

    def __post_init__(self) -> None:
        for name, least in (("high", 1), ("low", 1), ("eta", 2), ("multiple", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ConfigurationError(f"{name} is {number}; at least {least} is needed.")
        if self.low is not None and self.low > self.high:
            raise ConfigurationError(
                f"low is {self.low} and high {self.high}: reversed; exchange them."
            )
        if self.high % self.multiple:
            raise ConfigurationError(
                f"high is {self.high}, but a multiple of {self.multiple} is needed."
            )


@dataclass(frozen=True)
class Proposal:
    """What is to be evaluated next.

    Attributes:
        positions: Point of the unit cube.
        steps: Inner steps.
    """

    positions: tuple[float, ...]
    steps: int


Proposals = Generator[Proposal, float, None]
"""Yields what to evaluate, and is sent its loss, of which less is better and all are finite."""


def random(space: Space, fidelity: Fidelity, seed: int) -> Proposals:
    """Draw each point anew."""
    return _always_in_full(_optuna().samplers.RandomSampler(seed=_key(seed)), space, fidelity)


def tpe(space: Space, fidelity: Fidelity, seed: int) -> Proposals:
    """Take points where good ones are denser than others (Bergstra et al. 2011), by Optuna."""
    return _always_in_full(_optuna().samplers.TPESampler(seed=_key(seed)), space, fidelity)


def cma_es(space: Space, fidelity: Fidelity, seed: int) -> Proposals:
    """Adapt the covariance of a normal distribution (Hansen 2016), by Optuna and ``cmaes``.

    A choice is a part of its coordinate, as long as those of the other values.

    Raises:
        ConfigurationError: The space has one coordinate.
    """
    if len(space.coordinates) < 2:
        raise ConfigurationError(
            "cma_es needs two coordinates or more, and the space has one; take another method, "
            "such as tpe."
        )
    with optional_import("the search by cma_es"):
        import cmaes as cmaes
    sampler = _optuna().samplers.CmaEsSampler(seed=_key(seed))
    return _always_in_full(sampler, space, fidelity, continuous=True)


def hyperband(space: Space, fidelity: Fidelity, seed: int) -> Proposals:
    """Halve random points (Li et al. 2018), in brackets that begin with more or fewer steps.

    A bracket of s halvings draws (S + 1) / (s + 1) · η^s points, S being the most halvings, and
    Optuna says which of them go on: those among the best η-th of what was seen at their rung so
    far, so that no point waits for others (Li et al. 2020).
    """
    optuna, rungs = _optuna(), fidelity.rungs()
    most = len(rungs) - 1
    sampler = optuna.samplers.RandomSampler(seed=_key(seed))
    studies = [
        _study(sampler, optuna.pruners.SuccessiveHalvingPruner(1, fidelity.eta)) for _ in rungs
    ]
    while True:
        for halvings in range(most, -1, -1):
            study = studies[halvings]
            for _ in range(math.ceil((most + 1) / (halvings + 1) * fidelity.eta**halvings)):
                trial = study.ask(_distributions(space))
                for rung, steps in enumerate(rungs[most - halvings :]):
                    loss = yield Proposal(_positions(trial, space), steps)
                    trial.report(loss, fidelity.eta**rung)
                    if rung < halvings and trial.should_prune():
                        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                        break
                else:
                    study.tell(trial, loss)


def dehb(space: Space, fidelity: Fidelity, seed: int) -> Proposals:
    """Evolve a population at each rung of Hyperband (DEHB, Awad et al. 2021), by its authors' code.

    It has the settings of its authors: rand1_bin, F = 0.5, Cr = 0.5.
    """
    with optional_import("the search by dehb"):
        import loguru
        from dehb import DEHB

    rungs = fidelity.rungs()
    exact = [fidelity.high / fidelity.eta**place for place in range(len(rungs))[::-1]]
    with tempfile.TemporaryDirectory() as folder:
        optimizer = DEHB(
            dimensions=len(space.coordinates),
            # It takes the logarithm, whose rounding must not cost the lowest rung.
            min_fidelity=exact[0] * (1 - 1e-9),
            max_fidelity=fidelity.high,
            eta=fidelity.eta,
            seed=_key(seed),
            n_workers=1,
            save_freq=None,
            output_path=folder,
        )
        try:
            while True:
                job = optimizer.ask()
                near = min(range(len(rungs)), key=lambda place: abs(exact[place] - job["fidelity"]))
                loss = yield Proposal(tuple(map(float, job["config"])), rungs[near])
                optimizer.tell(job, {"fitness": loss, "cost": rungs[near]})
        finally:
            # It has put its own in the place of the process's, one of them in the folder.
            loguru.logger.remove()
            loguru.logger.add(sys.stderr)


METHODS: Mapping[str, Callable[[Space, Fidelity, int], Proposals]] = {
    "random": random,
    "tpe": tpe,
    "cma_es": cma_es,
    "hyperband": hyperband,
    "dehb": dehb,
}
"""Methods by name: called with the space, the fidelity and the seed."""


def _key(seed: int) -> int:
    return fold_in(seed, Stream.BLACK_BOX) % 2**32


def _optuna() -> Any:
    with optional_import("a search by Optuna"):
        import optuna
    return optuna


def _study(sampler: Any, pruner: Any = None) -> Any:
    """Return a new study, without a word about it."""
    optuna = _optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=sampler, pruner=pruner)
    finally:
        optuna.logging.set_verbosity(level)


def _always_in_full(
    sampler: Any, space: Space, fidelity: Fidelity, continuous: bool = False
) -> Proposals:
    study = _study(sampler)
    while True:
        trial = study.ask(_distributions(space, continuous))
        loss = yield Proposal(_positions(trial, space), fidelity.high)
        study.tell(trial, loss)


def _distributions(space: Space, continuous: bool = False) -> dict[str, Any]:
    """Return the coordinates as Optuna has them: positions, and the places of values."""
    distributions = _optuna().distributions
    return {
        name: distributions.CategoricalDistribution(range(len(coordinate.values)))
        if isinstance(coordinate, Choice) and not continuous
        else distributions.FloatDistribution(0.0, 1.0)
        for name, coordinate in space.coordinates.items()
    }


def _positions(trial: Any, space: Space) -> tuple[float, ...]:
    """Return the point of a trial, the middle of a value's part standing for the value."""
    return tuple(
        (value + 0.5) / len(coordinate.values)
        if isinstance(coordinate, Choice) and isinstance(value, int)
        else value
        for coordinate, value in (
            (coordinate, trial.params[name]) for name, coordinate in space.coordinates.items()
        )
    )
