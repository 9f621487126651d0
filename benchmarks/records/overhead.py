"""What logging a value costs, and by how much it slows a training loop down.

Prints, and with --write keeps in overhead.md: the time of one `_run.log_scalar`, and the time of
a small training run that logs its loss at every step against the same run that logs nothing, in
turns in one process. It is CPU time, since what else runs on a shared machine would drown it.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import processor
from metatoolkit import records
from metatoolkit.records.server import ManagedServer

STEPS = 300
ROUNDS = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        home = Path(name)
        server = ManagedServer(home)
        server.start()
        experiment = records.experiment("bench", interactive=True, home=home)
        experiment.add_config({"seed": 1})

        @experiment.main
        def body(_run):
            calls = []
            for _ in range(20):
                begun = time.perf_counter()
                for step in range(1000):
                    _run.log_scalar("scalar", 0.5, step)
                calls.append((time.perf_counter() - begun) / 1000)
            found["scalar"] = statistics.median(calls)
            value = torch.tensor(0.5)
            begun = time.perf_counter()
            for step in range(1000):
                _run.log_scalar("tensor", value, step)
            found["tensor"] = (time.perf_counter() - begun) / 1000
            times = {"with": [], "without": [], "control": []}
            for number in range(ROUNDS):
                # In turns, so that none of the three is always the first.
                order = list(times)[number % 3 :] + list(times)[: number % 3]
                for name in order:
                    times[name].append(train(_run if name == "with" else None))
            found["step"] = statistics.median(times["without"]) / STEPS
            for name in ("with", "control"):
                pairs = zip(times[name], times["without"], strict=True)
                median = statistics.median(one / other for one, other in pairs)
                found[name] = median, min(times[name]) / min(times["without"])

        try:
            experiment.run()
            with records.connect(home=home) as connection:
                assert len(connection[1].metrics["scalar"]) == 20_000
                assert len(connection[1].metrics["loss"]) == STEPS * ROUNDS
        finally:
            server.stop()
    text = "# The cost of logging\n\n| what | measured |\n|---|---:|\n"
    text += f"| `_run.log_scalar` of a float, in a loop | {found['scalar'] * 1e6:.1f} µs |\n"
    text += f"| the same of a 0-d tensor on the CPU | {found['tensor'] * 1e6:.1f} µs |\n"
    text += f"| one training step without logging | {found['step'] * 1e3:.2f} ms |\n\n"
    text += f"Training for {STEPS} steps, {ROUNDS} times each in turns; ratios of its CPU time, "
    text += "its pushing thread included, to that of training that logs nothing:\n\n"
    text += "| | median of the rounds | least of the rounds |\n|---|---:|---:|\n"
    for name, label in {"with": "a value logged at every step", "control": "nothing"}.items():
        text += f"| {label} | {found[name][0]:.4f} | {found[name][1]:.4f} |\n"
    text += "\nThe second row is how far the machine alone is from 1.\n"
    text += f"\n{processor()}, {os.cpu_count()} cores shared with other work, one thread; the "
    text += "values go to the spool at once and to a managed server at every beat, as always.\n"
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text)


def train(run):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(256, 256), torch.randint(10, (256,))
    begun = time.process_time()
    for step in range(STEPS):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.log_scalar("loss", loss, step)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
