"""How quickly 10,000 runs with 1,000,000 metric values are listed, filtered, ranked and compared.

Each answer is timed through `metatoolkit.records` and beside it as a bare pymongo query that an
index serves; the medians and their ratio are printed, and with --write kept in queries.md.
"""

import argparse
import copy
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import pymongo

from benchmarks.machine import processor
from metatoolkit import records
from metatoolkit.records.metrics import metric_id
from metatoolkit.records.server import ManagedServer

RUNS, VALUES = 10_000, 100
REPEATS = 7


def template(home):
    """A run as recording writes it, to be multiplied."""
    experiment = records.experiment("bench", interactive=True, home=home)
    experiment.add_config(
        {"method": "evograd", "seed": 0, "lr": 0.1, "opt": {"sigma": 1e-3, "candidates": 2},
         "data": {"name": "cifar", "noise": 0.4, "classes": 10}, "steps": 10_000}
    )  # fmt: skip

    @experiment.main
    def main(_run):
        for step in range(VALUES):
            _run.log_scalar("valid_loss", 1.0 / (step + 1), step)
        print("a line of output\n" * 100)
        return {"test_accuracy": 0.5, "test_loss": 1.0}

    experiment.run()


def fill(database):
    """Multiply the run; ids, configurations, results and curves differ."""
    run = database["runs"].find_one()
    metric = database["metrics"].find_one({"run_id": run["_id"]})
    database["runs"].delete_many({})
    database["metrics"].delete_many({})
    draw = numpy.random.default_rng(0)
    start = datetime.datetime(2026, 1, 1)
    for first in range(0, RUNS, 1000):
        runs, metrics = [], []
        for number in range(first + 1, first + 1001):
            one = copy.deepcopy(run)
            uuid = f"{number:032x}"
            begun = start + datetime.timedelta(minutes=number)
            values = (draw.random(VALUES) + 1 / numpy.arange(1, VALUES + 1)).tolist()
            accuracy = float(draw.random())
            one.update(
                _id=number, run_uuid=uuid, start_time=begun, heartbeat=begun, stop_time=begun,
                result={"test_accuracy": accuracy, "test_loss": 1 - accuracy},
            )  # fmt: skip
            one["experiment"]["name"] = f"experiment{number % 10}"
            one["config"].update(
                seed=number % 5, lr=float(10 ** draw.uniform(-4, 0)),
                method=("evograd", "unrolled", "implicit", "plain")[number % 4],
            )  # fmt: skip
            one["summary"]["valid_loss"].update(last=values[-1], min=min(values), max=max(values))
            runs.append(one)
            metrics.append(
                {**metric, "_id": metric_id(uuid, "valid_loss", 0), "run_id": number,
                 "values": values}
            )  # fmt: skip
        database["runs"].insert_many(runs)
        database["metrics"].insert_many(metrics)
    for path in ("config.method", "result.test_accuracy", "summary.valid_loss.min"):
        # For the bare queries that ours are measured against; ours must do without.
        database["runs"].create_index(path, name=f"bare {path}")


def median(function):
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def measure(connection, database, home):
    runs, metrics = database["runs"], database["metrics"]
    light = {"captured_out": 0, "fail_trace": 0, "experiment.sources": 0}
    expression = "config.method == 'evograd' and result.test_accuracy > 0.9"
    filter_ = {"config.method": "evograd", "result.test_accuracy": {"$gt": 0.9}}
    ids = list(range(1, 11))

    def bare_compare():
        list(runs.find({"_id": {"$in": ids}}, {"config": 1, "result": 1}))
        list(metrics.find({"run_id": {"$in": ids}, "name": "valid_loss"}))

    def compare():
        comparison = records.compare(ids, "valid_loss", connection)
        comparison.differences()
        comparison.table()

    cases = {
        "list the newest 30": (
            lambda: connection.find().sort("-start_time").limit(30).runs(),
            lambda: list(runs.find({}, light).sort("start_time", -1).limit(30)),
        ),
        "filter: method and accuracy, a table of all matches": (
            lambda: connection.find(expression).table(["id", "config.lr", "result.test_accuracy"]),
            lambda: list(runs.find(filter_, {"config.lr": 1, "result.test_accuracy": 1})),
        ),
        "best by a result": (
            lambda: connection.best("result.test_accuracy"),
            lambda: runs.find_one({}, light, sort=[("result.test_accuracy", -1)]),
        ),
        "best by a metric's minimum": (
            lambda: connection.best("valid_loss", mode="min", at="min"),
            lambda: runs.find_one({}, light, sort=[("summary.valid_loss.min", 1)]),
        ),
        "compare 10 runs: configuration and curves": (compare, bare_compare),
        "mean and interval per method of one experiment": (
            lambda: connection.find(experiment="experiment3").group(
                "config.method", "result.test_accuracy"
            ),
            lambda: list(
                runs.aggregate(
                    [
                        {"$match": {"experiment.name": "experiment3"}},
                        {"$group": {"_id": "$config.method",
                                    "mean": {"$avg": "$result.test_accuracy"},
                                    "std": {"$stdDevSamp": "$result.test_accuracy"}}},
                    ]
                )
            ),
        ),
    }  # fmt: skip
    rows = []
    for name, (ours, bare) in cases.items():
        found = median(ours), median(bare)
        rows.append((name, f"{found[0]:.4f}", f"{found[1]:.4f}", f"{found[0] / found[1]:.1f}"))
    commands = {
        "`metatoolkit runs list`": ["runs", "list"],
        "`metatoolkit runs list --where ... --limit 50`": [
            "runs", "list", "--where", expression, "--limit", "50"],
        "`metatoolkit runs best result.test_accuracy`": ["runs", "best", "result.test_accuracy"],
        "`metatoolkit runs compare 1 2 3`": ["runs", "compare", "1", "2", "3"],
    }  # fmt: skip
    for name, words in commands.items():
        command = [sys.executable, "-m", "metatoolkit.cli", *words]
        environment = {**os.environ, "METATOOLKIT_HOME": str(home)}
        seconds = median(
            lambda command=command, environment=environment: subprocess.run(
                command, check=True, capture_output=True, env=environment
            )
        )
        rows.append((f"{name}, the whole process", f"{seconds:.3f}", "", ""))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        home = Path(name)
        server = ManagedServer(home)
        server.start()
        try:
            template(home)
            with pymongo.MongoClient(server.running_uri()) as client:
                database = client.get_default_database()
                fill(database)
                count = database["metrics"].aggregate(
                    [{"$group": {"_id": None, "n": {"$sum": {"$size": "$values"}}}}]
                )
                values = next(iter(count))["n"]
                with records.connect(home=home) as connection:
                    rows = measure(connection, database, home)
        finally:
            server.stop()
    text = f"# Queries of {RUNS:,} runs with {values:,} metric values\n\n"
    text += "Medians of seven repetitions, in seconds. The bare query is one of pymongo's that an\n"
    text += "index serves, on the same server; the ratio is ours over it.\n\n"
    text += "| question | metatoolkit | bare, indexed | ratio |\n|---|---:|---:|---:|\n"
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text += f"\n{processor()}, {os.cpu_count()} cores shared with other work; Python "
    text += f"{platform.python_version()}, managed mongod.\n"
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
