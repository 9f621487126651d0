"""The profile of an application: it is put together and trained for a few steps."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metatoolkit.diagnostics.profile import TrainingProfile, profile_training
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.jobs import Job
from metatoolkit.experiments.run import Assembly


def profile_application(
    job: Job, config: Mapping[str, Any], steps: int, trace: Path
) -> TrainingProfile:
    """Profile a few outer steps of what a configuration stands for, on one thread as runs are.

    Args:
        job: The run that would be made; nothing is recorded.
        config: Its whole configuration.
        steps: Number of outer steps that are timed.
        trace: File for the trace.

    Raises:
        ConfigurationError: It has no meta step.
    """
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    assembly: Assembly = importlib.import_module(job.experiment).assemble(dict(config))
    trainer = assembly.trainer
    if trainer.estimator is None:
        chosen = [f"{n}={config[n]}" for n in ("method", "algorithm") if config.get(n) is not None]
        told = f" with {chosen[0]}" if chosen else ""
        raise ConfigurationError(
            f"{job.label}{told} has no estimator, so that there is no meta step to profile; name a "
            "method that learns λ, or an estimator: estimator.name=SAMA."
        )
    return profile_training(
        trainer,
        assembly.train_batches,
        assembly.valid_batches,
        steps=steps,
        anneal=assembly.anneal,
        trace=trace,
    )
