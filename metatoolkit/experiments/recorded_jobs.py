"""Which jobs the database holds completed runs of: by their configurations, seeds included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from metatoolkit.experiments.jobs import Job, configuration_of
from metatoolkit.experiments.run import configuration_digest

if TYPE_CHECKING:
    from metatoolkit.records import Database, Run


def placed(jobs: Sequence[Job], name: str) -> list[Job]:
    """Let jobs tell their runs where they belong, so that these are found.

    Args:
        jobs: The jobs; their labels are the rows of a table.
        name: Name of what they belong to, a study or a sweep.

    Raises:
        ConfigurationError: A job has no valid configuration.
        UnknownNameError: A job has an entry or a named configuration that the experiment has not.
    """
    return [
        replace(
            job,
            info={
                "study": {
                    "name": name,
                    "row": job.label,
                    "configuration": configuration_digest(configuration_of(job)),
                }
            },
        )
        for job in jobs
    ]


def digest(job: Job) -> str:
    """Return by what the runs of a job are found.

    Args:
        job: The job, of :func:`placed`.
    """
    return str(job.info["study"]["configuration"])


def completed_runs(database: Database, experiment: str, name: str | None = None) -> dict[str, Run]:
    """Return the newest completed run of each configuration, by :func:`digest`.

    Args:
        database: Where to look.
        experiment: Name of the experiment.
        name: What they must belong to; ``None`` for anything.
    """
    newest = {}
    for run in database.find("status == 'COMPLETED'", experiment=experiment).sort("start_time"):
        # Where no run has such a place, a query for the field would take it for misspelled.
        place = run.info.get("study") or {}
        if name is None or place.get("name") == name:
            newest[str(place.get("configuration", ""))] = run
    return newest
