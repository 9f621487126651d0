"""Black-box search of an application's settings, its budget counted in inner steps.

What gradient-based methods are compared with: methods that see no more of an application than what
its runs score. An evaluation is one recorded run, of as many inner steps as its fidelity says, and
costs these steps; a search ends where the next evaluation would go beyond its budget.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from baselines.proposals import METHODS
from baselines.proposals import Fidelity as Fidelity
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.applications import check_entries, module_of
from metatoolkit.experiments.jobs import Job, Outcome, configuration_of, run_job
from metatoolkit.experiments.search_space import Space, score_of
from metatoolkit.experiments.words import nested
from metatoolkit.records.fields import flatten

FAILED = 1e300
"""Loss of an evaluation that failed, above any other; NaN and infinity would upset methods."""


@dataclass(frozen=True)
class Evaluation:
    """One run of a search.

    Attributes:
        settings: Configuration entries of its point, nested.
        steps: Inner steps that it was to take.
        spent: Inner steps of the search so far, its own included; a run that fails counts those
            that it took, where it noted them, and else all.
        score: Its score; NaN where it failed.
        error: Why it failed; empty where it did not.
        run: Number of the run in the database; ``None`` where it has none there.
    """

    settings: Mapping[str, Any]
    steps: int
    spent: int
    score: float
    error: str = ""
    run: int | None = None


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        evaluations: All of its runs, in their order.
        minimize: Whether a lower score is better.
    """

    evaluations: tuple[Evaluation, ...]
    minimize: bool

    @property
    def incumbents(self) -> list[Evaluation]:
        """The best evaluation from each change of it on, in their order.

        It is the best one of those with the most steps so far: a score after fewer steps is another
        quantity, whose luckiest value would never be beaten. So the first one with more steps than
        any before takes the place of the best, whatever its score.
        """
        best: list[Evaluation] = []
        for one in self.evaluations:
            if not one.error and (not best or self._better(one, best[-1])):
                best.append(one)
        return best

    @property
    def best(self) -> Evaluation | None:
        """The incumbent at the end; ``None`` where every evaluation failed."""
        return self.incumbents[-1] if self.incumbents else None

    def at(self, spent: int) -> Evaluation | None:
        """Return the incumbent after so many inner steps; ``None`` before the first one.

        Args:
            spent: Inner steps.
        """
        reached = [one for one in self.incumbents if one.spent <= spent]
        return reached[-1] if reached else None

    def _better(self, one: Evaluation, other: Evaluation) -> bool:
        if one.steps != other.steps:
            return one.steps > other.steps
        return one.score < other.score if self.minimize else one.score > other.score


def search(
    application: str,
    space: Space,
    *,
    method: str,
    score: str,
    budget: int,
    fidelity: Fidelity,
    seed: int,
    minimize: bool = False,
    run: Callable[[Job], Outcome] = run_job,
    progress: bool = True,
) -> Found:
    """Search settings of an application by evaluations alone.

    Points follow from the seed and from the scores. A run's ``info`` tells of its search: method,
    seed and number of the evaluation. A run that fails, or scores NaN or infinity, counts as worse
    than any other, and the search goes on.

    Args:
        application: Name of the application, or the path of its file or folder.
        space: What is searched.
        method: ``"random"``, ``"tpe"``, ``"cma_es"``, ``"hyperband"`` or ``"dehb"``. The last two
            try more settings with fewer steps, and begin each run anew; the others take all
            steps always.
        score: Entry of the result that is compared, dotted, measured on data that no run trains on.
        budget: Inner steps of all evaluations.
        fidelity: Entries that say how many inner steps a run takes, and what that may be.
        seed: Seed of the search and of each run.
        minimize: Whether a lower score is better.
        run: Runs a job; by default in this process.
        progress: Whether a progress bar is shown.

    Returns:
        All evaluations, and what was best after how many inner steps.

    Raises:
        ConfigurationError: The budget is below one run, a bound of the fidelity is missing, or the
            application does not accept a point.
        UnknownNameError: There is no such method, application, configuration entry or entry of the
            result.
        MissingDependencyError: Optuna or DEHB is not installed.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if budget < fidelity.high:
        raise ConfigurationError(
            f"budget is {budget}, but one run takes {fidelity.high} inner steps; give as many or "
            "more."
        )
    middle = space.point([0.5] * len(space.coordinates))
    entries = [*flatten(middle.updates), *fidelity.entries]
    check_entries(application, entries, {}, space.named)
    module, label = module_of(application), f"{method}, seed {seed}"

    def job_at(positions: Sequence[float], steps: int, number: int = 0) -> Job:
        point = space.point(positions)
        info = {"method": method, "seed": seed, "number": number, "budget": budget}
        updates = nested(point.updates, dict.fromkeys(fidelity.entries, steps))
        return Job(module, label, seed, updates, point.named, {"search": info})

    for corner in (0.0, 1.0):
        # What the application does not accept is told before anything runs.
        configuration_of(job_at([corner] * len(space.coordinates), fidelity.high))
    spent = 0
    evaluations: list[Evaluation] = []
    proposals = METHODS[method](space, fidelity, seed)
    bar = tqdm(total=budget, desc=label, unit="step", disable=not progress)
    with contextlib.closing(proposals), bar:
        proposal = next(proposals)
        while spent + proposal.steps <= budget:
            job = job_at(proposal.positions, proposal.steps, len(evaluations) + 1)
            outcome = run(job)
            value, error = score_of(outcome, score), outcome.error
            if not error and not math.isfinite(value):
                value, error = math.nan, f"{score} is {value}"
            taken = _taken(outcome, proposal.steps)
            spent += taken
            bar.update(taken)
            settings = space.point(proposal.positions).updates
            made = Evaluation(settings, proposal.steps, spent, value, error, outcome.run)
            evaluations.append(made)
            proposal = proposals.send(FAILED if error else value if minimize else -value)
    return Found(tuple(evaluations), minimize)


def _taken(outcome: Outcome, steps: int) -> int:
    """Return the inner steps that a run took."""
    if outcome.error and outcome.steps is not None:
        # One at least, or a space where all points fail at once would be searched for ever.
        return min(max(outcome.steps, 1), steps)
    return steps
