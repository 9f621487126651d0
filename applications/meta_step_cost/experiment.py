"""What one meta step of an application costs, beside a base step (EvoGrad, Bohdal et al. 2021).

Puts another application together as its configuration says, and measures peak memory and
floating-point operations of one hypergradient and of one step of the inner learner on the same
batches. Estimators: ``second_order`` (the exact one-step hypergradient), ``evograd`` (the graphs of
all candidates held at once), ``evograd_streamed`` (one candidate at a time), and any registered one
by its name, with ``options``: ``estimator=Unrolled options.steps=5``. Nothing is trained. Where λ
enters the weights of the losses alone, a candidate's graph holds nothing of the network, and the
two forms of EvoGrad hardly differ in memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from metatoolkit import records
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.applications import assembling
from metatoolkit.experiments.configuration import (
    Among,
    Device,
    Field,
    OpenSettings,
    Seed,
    Settings,
    Text,
    entry,
)
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.jobs import Job, configuration_of
from metatoolkit.experiments.run import configuration_digest, measure_costs
from metatoolkit.hypergradients import estimators


class CostSettings(Settings):
    """Configuration of the application."""

    seed: Seed = entry(..., "Seed of the application; drawn where it is not given.")
    application: Text = entry("rotation", "Whose step is measured, by its name or its path.")
    settings: list[Text] = entry([], "What would stand behind `with` on its own command line.")
    estimator: (
        Literal["second_order", "evograd", "evograd_streamed"] | Annotated[str, Among(estimators)]
    ) = entry("evograd_streamed", "Estimator.")
    options: OpenSettings = entry(OpenSettings(), "Options of a registered estimator.")
    candidates: Annotated[int, Field(ge=2)] = entry(2, "Candidates of EvoGrad.")
    device: Device = entry("cpu", "Where to measure.")
    progress: bool = entry(False, "Without effect; all applications have it.")
    measured: str | None = entry(None, "Digest of the application's own configuration.")


experiment = records.experiment("meta_step_cost")


def job_of(config: Mapping[str, Any]) -> Job:
    """Return the run of the application that is measured.

    Args:
        config: A configuration of this experiment.

    Raises:
        ConfigurationError: An entry is out of range, or the application assembles nothing.
        UnknownNameError: There is no such application or estimator.
    """
    CostSettings.check(config)
    # Only now, since `records` prepares Sacred for its import.
    from sacred.arg_parser import get_config_updates

    updates, named = get_config_updates(list(config["settings"]))
    updates["device"] = config["device"]
    if config["estimator"] in estimators:
        updates["estimator"] = {"name": config["estimator"], **config["options"]}
    elif config["options"]:
        raise ConfigurationError(
            f"options.{next(iter(config['options']))} is given, but estimator is "
            f"{config['estimator']!r}; name a registered one: {', '.join(estimators)}."
        )
    elif config["estimator"] == "second_order":
        updates["method"] = "second_order"
    else:
        streamed = config["estimator"] == "evograd_streamed"
        own = {"candidates": config["candidates"], "streamed": streamed}
        updates |= {"method": "evograd", "evograd": {**updates.get("evograd", {}), **own}}
    name = config["application"]
    return Job(assembling(name), name, config["seed"], updates, tuple(named))


def fill(config: dict[str, Any]) -> dict[str, Any]:
    """Add the name of the application's own configuration, which its defaults are a part of.

    Args:
        config: The configuration, checked.
    """
    return {**config, "measured": configuration_digest(configuration_of(job_of(config)))}


configure(experiment, CostSettings, fill=fill)


@experiment.main
def main(_config: dict[str, Any]) -> dict[str, float]:
    """Measure one meta step and one base step.

    Returns:
        Bytes and operations of both, and the meta step's as multiples of the base step's.
    """
    job = job_of(_config)
    costs = measure_costs(importlib.import_module(job.experiment).assemble(configuration_of(job)))
    return {
        **costs,
        "memory_ratio": costs["peak_memory_bytes"] / costs["base_peak_memory_bytes"],
        "flops_ratio": costs["flops"] / costs["base_flops"],
    }
