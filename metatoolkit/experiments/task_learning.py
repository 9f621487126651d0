"""Learning across tasks under record: what applications on families of tasks have in common."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from metatoolkit.algorithms import algorithms, build
from metatoolkit.evaluation import mean_with_interval
from metatoolkit.experiments.configuration import (
    Among,
    Count,
    CountOrZero,
    Field,
    OpenSettings,
    Positive,
    entry,
)
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.experiments.settings import RunSettings
from metatoolkit.hypergradients import Estimator
from metatoolkit.stateless.passes import Loss
from metatoolkit.tasks import ConvertedTasks, PrefetchedTasks, TaskSource
from metatoolkit.training import MetaTrainer, TaskBatching, TaskScores, join_ranks
from metatoolkit.training.ranks import started_processes

SCRATCH = "scratch"
"""The control: tasks are learned from the first initial values, and nothing across tasks."""

# Validation and test tasks are the same for all seeds and algorithms.
HELD_OUT_SEED = 2020

_AT_ONCE = 100


class _Algorithms:
    """The registered algorithms and the control, as names that an entry accepts."""

    def __contains__(self, name: object) -> bool:
        return name == SCRATCH or name in algorithms

    def __iter__(self) -> Iterator[str]:
        yield SCRATCH
        yield from algorithms

    def __len__(self) -> int:
        return 1 + len(algorithms)


class AlgorithmOptions(OpenSettings):
    """Options of the algorithm, beyond its losses, rate and steps."""


class TaskLearningSettings(RunSettings):
    """Entries of a training across tasks; an application overrides defaults, and adds its own."""

    algorithm: Annotated[str, Among(_Algorithms())] = entry(
        "maml", "What is learned across tasks, and how; `scratch` for nothing."
    )
    options: AlgorithmOptions = entry(AlgorithmOptions(), "Options of the algorithm.")
    library: Literal["metatoolkit", "learn2learn"] = entry(
        "metatoolkit", "Whose meta-gradients are taken; learn2learn for comparison."
    )
    shots: Count = entry(5, "Examples to adapt to; of each class where there are classes.")
    queries: Count = entry(10, "Examples that are asked of an adapted model, likewise.")
    tasks: Count = entry(16, "Tasks of a meta step.")
    dtype: Literal["float32", "float64"] = entry(
        "float32", "Floating-point type of parameters and tasks."
    )
    batching: Literal["auto", "vmap", "loop"] = entry("auto", "How the tasks run.")
    workers: CountOrZero = entry(0, "Processes that make training tasks ahead; 0 for none.")
    inner_steps: Count = entry(5, "Inner steps of a task.")
    lr: Positive = entry(0.01, "Inner learning rate; the first value where rates are learned.")
    meta_optimizer: Literal["adam", "sgd"] = entry("adam", "Optimizer across tasks.")
    meta_lr: Positive = entry(1e-3, "Its learning rate.")
    rates_lr: Positive = entry(1e-4, "The same for inner learning rates that are learned.")
    valid_tasks: Annotated[int, Field(ge=2)] = entry(100, "Tasks of an evaluation while training.")
    test_tasks: Annotated[int, Field(ge=2)] = entry(1000, "Tasks of the test.")


def join_torchrun() -> bool:
    """Join the processes that torchrun started, if it did and this one has not joined yet.

    It chooses the GPU of this process, so that it comes before data are put there.

    Returns:
        Whether there are others, to share tasks with.

    Raises:
        RankError: Not all of the others come.
    """
    if started_processes() == 1:
        return False
    if not torch.distributed.is_initialized():
        join_ranks()
        atexit.register(torch.distributed.destroy_process_group)
    return True


def assemble_across_tasks(
    config: dict[str, Any],
    model: nn.Module,
    loss: Loss,
    batches: TaskSource,
    peer: Callable[[str, int], Estimator],
) -> Assembly:
    """Put a model, its algorithm and the tasks to learn from together.

    Under torchrun the processes share the tasks of each batch.

    Args:
        config: A configuration with the entries of :class:`TaskLearningSettings`.
        model: Network; its present parameters are the first initial values.
        loss: Inner and outer loss.
        batches: Batches of training tasks.
        peer: Returns another library's estimator for an algorithm and a number of inner steps.

    Raises:
        ConfigurationError: An option of the algorithm is out of range.
        UnknownNameError: The algorithm has no such option.
        RankError: Other processes do not join.
    """
    name, steps, dtype = config["algorithm"], config["inner_steps"], dtype_of(config)
    own = build(
        "maml" if name == SCRATCH else name,
        model.to(dtype),
        loss,
        loss,
        lr=config["lr"],
        steps=steps,
        **config["options"],
    )
    estimator = own.estimator if config["library"] == "metatoolkit" else peer(name, steps)
    rates = list(own.meta["rates"].parameters()) if "rates" in own.meta else []
    rates = [rate for rate in rates if rate.requires_grad]
    learned = {id(rate) for rate in rates}
    others = [one for one in own.meta.parameters() if id(one) not in learned]
    groups = [{"params": others}, *([{"params": rates, "lr": config["rates_lr"]}] if rates else [])]
    kind = torch.optim.SGD if config["meta_optimizer"] == "sgd" else torch.optim.Adam
    trainer = MetaTrainer(
        own.problem,
        own.inner,
        estimator,
        kind(groups, lr=config["meta_lr"]),
        device=config["device"],
        seed=config["seed"],
        tasks=TaskBatching(config["batching"], sharded=join_torchrun()),
    )
    converted = ConvertedTasks(batches, dtype)
    return Assembly(trainer, converted, refined=own.refined, anneal=own.anneal)


def dtype_of(config: dict[str, Any]) -> torch.dtype:
    """Return the floating-point type of parameters and tasks that a configuration names.

    Args:
        config: A configuration with the entries of :class:`TaskLearningSettings`.
    """
    dtype: torch.dtype = getattr(torch, config["dtype"])
    return dtype


def run_across_tasks(
    run: Any,
    assembly: Assembly,
    held_out: Callable[[str], TaskSource],
    score: Loss,
    name: str,
    *,
    of_support: bool = False,
) -> dict[str, float]:
    """Train across tasks and test on others, both under record.

    Validation and test tasks are adapted to by the algorithm's ``refined`` learner where it has
    one, as ARUBA++ does.

    Args:
        run: The Sacred run, with a configuration of :class:`TaskLearningSettings`.
        assembly: What :func:`assemble_across_tasks` returned.
        held_out: Returns the tasks of the split ``"valid"`` or ``"test"``.
        score: Score of an adapted model on a query set, ``(model, meta, query) -> scalar``.
        name: What the score is called, such as ``"accuracy"``.
        of_support: Whether adapted models are scored on what they adapted to, too.

    Returns:
        The mean score on test tasks, ``test_…``, the half width of its 95 % interval over tasks,
        ``test_interval``, and the last metrics of the training; with ``of_support`` also
        ``support_…``, the mean score on the support sets of the test tasks.
    """
    config, trainer = dict(run.config), assembly.trainer
    inner = assembly.refined or trainer.inner
    assert trainer.estimator is not None
    steps = trainer.estimator.horizon
    scores = TaskScores(trainer.problem, inner, steps, score, config["batching"])

    def scored(split: str, count: int, on_support: bool = False) -> Tensor:
        source = ConvertedTasks(held_out(split), dtype_of(config))
        parts = range(0, count, _AT_ONCE)
        batches = (source.batch(first, min(_AT_ONCE, count - first)) for first in parts)
        pairs = ((support, support if on_support else query) for support, query in batches)
        return torch.cat([scores(trainer.place(pair)).cpu() for pair in pairs])

    def evaluate(trained: MetaTrainer) -> dict[str, float]:
        return {f"valid_{name}": float(scored("valid", config["valid_tasks"]).mean())}

    last: dict[str, float] = {}
    if config["algorithm"] != SCRATCH:
        with contextlib.ExitStack() as stack:
            if config["workers"]:
                ahead = PrefetchedTasks(cast(TaskSource, assembly.train_batches), config["workers"])
                assembly = dataclasses.replace(assembly, train_batches=stack.enter_context(ahead))
            last = fit_recorded(run, assembly, evaluate=evaluate)
    mean, half_width = mean_with_interval(scored("test", config["test_tasks"]))
    result = {f"test_{name}": mean, "test_interval": half_width, **last}
    if of_support:
        result[f"support_{name}"] = float(scored("test", config["test_tasks"], True).mean())
    return result
