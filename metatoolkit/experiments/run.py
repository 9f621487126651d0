"""Training under record: one call for checkpoint, resume, measurements, artifacts and metrics."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metatoolkit import records
from metatoolkit.diagnostics.measure import count_flops, least_seconds, peak_memory
from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.experiments.components import COMPONENT_SETTINGS
from metatoolkit.experiments.figures import draw_curves
from metatoolkit.inner import InnerLearner
from metatoolkit.records.fields import flatten
from metatoolkit.records.home import data_home
from metatoolkit.records.terminal import say
from metatoolkit.training import Anneal, Evaluate, MetaTrainer
from metatoolkit.training.batch_stream import Stateful
from metatoolkit.training.ranks import started_processes
from metatoolkit.training.task_batches import TaskBatch

_REPEATS = 5
_GIVEN = ("log_every", "evaluate_every", "checkpoint_every", "resume", "progress")
_PASSING = {"checkpoint", "checkpoint_every", "resume", "progress", "device", "workers"}


@dataclass(frozen=True)
class Assembly:
    """What a configuration stands for, put together and not yet trained.

    Attributes:
        trainer: The trainer.
        train_batches: Batches for the inner loss.
        valid_batches: Batches for the outer loss; ``None`` where λ does not move.
        task: What the batches come from, for evaluation.
        refined: Inner learner that adapts to held-out tasks, where it is not the trainer's.
        anneal: What sets the estimator before each outer step, as ``MetaTrainer.fit`` takes it.
        measured: Whether memory, operations and time of a hypergradient are measured before the
            training, by several of them; not where one of them is a training by itself.
    """

    trainer: MetaTrainer
    train_batches: Iterable[Any]
    valid_batches: Iterable[Any] | None = None
    task: Any = None
    refined: InnerLearner | None = None
    anneal: Anneal | None = None
    measured: bool = True

    def outer_steps(self, steps: int) -> int:
        """Return how many outer steps a training takes.

        An outer step takes the inner steps of the estimator's horizon, once for each hypergradient
        that is accumulated. Across tasks, steps are outer steps.

        Args:
            steps: Inner steps of the training.

        Raises:
            ConfigurationError: These are no whole number of outer steps.
        """
        each = self.steps_of_each()
        if steps % each:
            raise ConfigurationError(
                f"steps is {steps}, but an outer step takes {each} inner steps, as many as the "
                f"estimator looks ahead; give a multiple of {each}."
            )
        return steps // each

    def steps_of_each(self) -> int:
        """Return how many of the configuration's steps one outer step takes."""
        trainer = self.trainer
        if trainer.tasks is not None:
            return 1
        return trainer.accumulate * (1 if trainer.estimator is None else trainer.estimator.horizon)


def configuration_digest(config: Mapping[str, Any]) -> str:
    """Return a short name of a configuration, seed included.

    Entries that say how a run is carried out and change no number, such as the place of its
    checkpoint, have no say.

    Args:
        config: A run's configuration.
    """
    return hashlib.sha256(_lasting(config).encode()).hexdigest()[:16]


def _lasting(config: Mapping[str, Any]) -> str:
    """Return the entries that change numbers, as JSON."""
    # A component that is not chosen by name is the application's own, as where there is no choice.
    unchosen = {name for name, value in config.items() if value == COMPONENT_SETTINGS.get(name, {})}
    lasting = {n: value for n, value in config.items() if n not in _PASSING and n not in unchosen}
    return json.dumps(lasting, sort_keys=True, default=str)


def checkpoint_path(experiment: str, config: Mapping[str, Any]) -> Path:
    """Return the file in which a run of this configuration is stored until it is done.

    Args:
        experiment: The experiment's name.
        config: The run's configuration.
    """
    if config["checkpoint"] is not None:
        return Path(config["checkpoint"])
    return data_home() / "checkpoints" / f"{experiment}-{configuration_digest(config)}.pt"


def resumes(experiment: str, config: Mapping[str, Any]) -> bool:
    """Tell whether a run will go on from a checkpoint, which replaces what it begins with.

    Args:
        experiment: The experiment's name.
        config: The run's configuration.
    """
    return bool(config["resume"]) and checkpoint_path(experiment, config).exists()


def _begin(run: Any, name: str, config: Mapping[str, Any], path: Path, leads: bool) -> Path:
    """Note beside the checkpoint which run writes it and how, after a look at who did before."""
    note = path.with_name(f"{path.name}.json")
    if resumes(name, config):
        if note.exists():
            former = json.loads(note.read_text())
            _check_same(path, former["configuration"], json.loads(_lasting(config)))
            if former["run"] is not None:
                records.mark_resumed(run, former["run"])
    elif config["resume"]:
        say(f"there is no checkpoint {path}; the training starts from the beginning")
    if not leads:
        return note
    content = {"run": records.run_uuid(run), "configuration": json.loads(_lasting(config))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        note.write_text(json.dumps(content))
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path} ({error}); give another file as checkpoint."
        ) from error
    return note


def _check_same(path: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    before, now = flatten(stored), flatten(given)
    names = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    if names:
        told, asked = (", ".join(f"{n}={x.get(n)!r}" for n in names) for x in (before, now))
        raise CheckpointError(
            f"{path} was written with {told}, but this run has {asked}; give the stored values, "
            "or start without resume."
        )


def fit_recorded(
    run: Any,
    assembly: Assembly,
    *,
    evaluate: Evaluate | None = None,
    write_artifacts: Callable[[Path], Iterable[Path]] | None = None,
) -> dict[str, float]:
    """Train as the run's configuration says, and record what happens.

    Metrics go to the record as they come, with ``lambda_distance``, the distance of λ from where it
    started. Before training, peak memory and floating-point operations of one meta step and one
    base step are measured, without a trace in the training. The metrics' curves and the checkpoint
    are artifacts in the end; a run that stopped leaves its checkpoint behind, and the same
    configuration with ``resume=True`` goes on from it bitwise. ``steps_done`` in its ``info`` tells
    how many steps it took. Where processes share tasks, the first one records and writes.

    Args:
        run: The Sacred run. Its configuration has the entries of
            :class:`metatoolkit.experiments.settings.RunSettings`; ``steps`` are inner steps, or
            outer ones across tasks; the other rhythms count outer ones.
        assembly: What to train.
        evaluate: Called with the trainer whenever an evaluation is due; returns metrics.
        write_artifacts: Called with a folder after training; returns the files it wrote there,
            which are stored with the run.

    Returns:
        The last value of each metric.

    Raises:
        ConfigurationError: Batches cannot be read twice, a setting is out of range, or the steps
            are no whole number of outer steps.
        CheckpointError: The checkpoint to resume from was written with other settings, or none can
            be written.
    """
    config, trainer = dict(run.config), assembly.trainer
    steps = assembly.outer_steps(config["steps"])
    name = str(run.experiment_info["name"])
    path = checkpoint_path(name, config)
    if trainer.tasks is None and started_processes() > 1:
        raise ConfigurationError(
            f"torchrun started {started_processes()} processes, but {name} has no tasks that "
            "they could share; start one process."
        )
    leads = trainer.tasks is None or trainer.tasks.leads
    note = _begin(run, name, config, path, leads)
    if assembly.measured:
        run.info.update(measure_costs(assembly))
    start = {n: p.detach().clone() for n, p in trainer.problem.meta_parameters().items()}

    def evaluate_all(trained: MetaTrainer) -> dict[str, float]:
        values = {} if evaluate is None else dict(evaluate(trained))
        live = trained.problem.meta_parameters()
        moved = [(live[n].detach() - start[n]).norm() for n in start]
        return values | {"lambda_distance": float(torch.stack(moved).norm())}

    method = config.get("method", config.get("algorithm", ""))
    started = time.perf_counter()
    try:
        last = trainer.fit(
            assembly.train_batches,
            assembly.valid_batches,
            steps=steps,
            anneal=assembly.anneal,
            log=run.log_scalar,
            evaluate=evaluate_all,
            checkpoint=path,
            description=f"{name} {method} seed {config['seed']}",
            **{entry: config[entry] for entry in _GIVEN},
        )
    finally:
        run.info["steps_done"] = trainer.steps_done * assembly.steps_of_each()
    if not leads:
        return last
    run.info["seconds"] = time.perf_counter() - started
    run.info["milliseconds_per_step"] = 1e3 * trainer.seconds / config["steps"]
    with tempfile.TemporaryDirectory() as folder:
        files = [draw_curves(trainer.history, Path(folder) / "curves.png")]
        if write_artifacts is not None:
            files += write_artifacts(Path(folder))
        for file in files:
            run.add_artifact(str(file), name=file.name)
    run.add_artifact(str(path), name="checkpoint.pt")
    path.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    return last


def measure_costs(assembly: Assembly) -> dict[str, float]:
    """Measure one base step and, where there is an estimator, one hypergradient.

    Across tasks, the base step is an inner step of one task, the hypergradient that of a batch.
    Neither leaves a trace: batches, state, λ and the estimator are as before.

    Args:
        assembly: What would be trained.

    Returns:
        ``base_peak_memory_bytes``, ``base_flops`` and ``base_seconds``, and with an estimator
        ``peak_memory_bytes``, ``flops`` and ``seconds_of_meta_step``: bytes beyond what is there
        before, operations of matrix products and convolutions, and the least processor time of
        five calls.

    Raises:
        ConfigurationError: Batches cannot be read twice.
    """
    trainer = assembly.trainer
    estimator = trainer.estimator
    if trainer.tasks is not None:
        return _costs_across_tasks(trainer, assembly.train_batches)
    count = 1 if estimator is None else estimator.horizon
    batches = peek(trainer, assembly.train_batches, count)
    problem, inner, state = trainer.problem, trainer.inner, trainer.state

    def base_step() -> Any:
        return inner.step(problem, state, problem.meta_parameters(), batches[0])

    costs: dict[str, float] = {
        "base_peak_memory_bytes": peak_memory(base_step),
        "base_flops": count_flops(base_step),
        "base_seconds": least_seconds(base_step, _REPEATS),
    }
    if estimator is None or assembly.valid_batches is None:
        return costs
    (valid_batch,) = peek(trainer, assembly.valid_batches, 1)
    before = estimator.state_dict()

    def meta_step() -> Any:
        estimator.load_state_dict(before)
        return estimator(problem, inner, state, batches, valid_batch)

    # First, since what a first call finds out is no part of what each takes.
    costs["seconds_of_meta_step"] = least_seconds(meta_step, _REPEATS)
    costs |= {"peak_memory_bytes": peak_memory(meta_step), "flops": count_flops(meta_step)}
    estimator.load_state_dict(before)
    return costs


def _costs_across_tasks(trainer: MetaTrainer, batches: Iterable[Any]) -> dict[str, float]:
    """Measure an inner step on the support of one task, and the hypergradient of a batch."""
    (batch,) = peek(trainer, batches, 1)
    assert trainer.estimator is not None and trainer.tasks is not None
    supports, _ = TaskBatch(batch, trainer.estimator.horizon).task(0)
    problem, inner, state, across = trainer.problem, trainer.inner, trainer.state, trainer.tasks

    def inner_step() -> Any:
        return inner.step(problem, state, problem.meta_parameters(), supports[0])

    def meta_step() -> Any:
        return across(batch, state)

    # What is checked and chosen at the first call is no part of the cost.
    meta_step()
    return {
        "base_peak_memory_bytes": peak_memory(inner_step),
        "base_flops": count_flops(inner_step),
        "base_seconds": least_seconds(inner_step, _REPEATS),
        "peak_memory_bytes": peak_memory(meta_step),
        "flops": count_flops(meta_step),
        "seconds_of_meta_step": least_seconds(meta_step, _REPEATS),
    }


def peek(trainer: MetaTrainer, batches: Iterable[Any], count: int) -> list[Any]:
    """Return the next batches on the trainer's device, and leave the iterator where it was.

    Args:
        trainer: The trainer.
        batches: A list or a loader, or an iterator that has ``state_dict``.
        count: Number of batches.

    Raises:
        ConfigurationError: It is an iterator that cannot go back.
    """
    if iter(batches) is batches and not isinstance(batches, Stateful):
        raise ConfigurationError(
            f"the batches are a {type(batches).__name__}, which cannot be read twice; give a list, "
            "a DataLoader, or an iterator with state_dict and load_state_dict."
        )
    before = batches.state_dict() if isinstance(batches, Stateful) else None
    found = [trainer.place(batch) for batch in itertools.islice(iter(batches), count)]
    if before is not None and isinstance(batches, Stateful):
        batches.load_state_dict(before)
    return found
