"""Small experiments for the tests, and processes that run them."""

import multiprocessing
import sys
from pathlib import Path

from metatoolkit import records

UNREACHABLE = "mongodb://somebody:secret@127.0.0.1:9/nowhere"


def make(main, **config):
    experiment = records.experiment("tested", interactive=True)
    experiment.add_config({"method": "evograd", "seed": 3, **config})
    experiment.main(main)
    return experiment


def run(main, **config):
    return make(main, **config).run()


def count_up(_run, values=20):
    for step in range(values):
        _run.log_scalar("loss", 1.0 / (step + 1), step)
    return {"accuracy": 0.9}


def stored(database, run_uuid, name="loss"):
    """The run's document and the values of one of its metrics."""
    document = database["runs"].find_one({"run_uuid": run_uuid})
    found = database["metrics"].find({"run_id": document["_id"], "name": name}).sort("part", 1)
    return document, [value for part in found for value in part["values"]]


def processes():
    # The test runner may import this package without its parent being on the path.
    parent = str(Path(__file__).parent.parent)
    if parent not in sys.path:
        sys.path.append(parent)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preloaded"])
    return context
