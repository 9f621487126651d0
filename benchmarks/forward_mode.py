"""Forward mode through schedules beside a loop that is written by hand for this one problem.

Run as ``python -m benchmarks.forward_mode``; it writes a page to ``docs/benchmarks``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.machine import describe_machine
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.hypergradients import ForwardMode
from metatoolkit.metaparameters import Schedule

RATES = 7
BATCH = 64
FIRST = {"lr": 0.1, "momentum": 0.5, "weight_decay": 1e-4}


class Digits:
    """A perceptron on scikit-learn's digits, with seven rates, a momentum and a weight decay.

    Args:
        steps: Number of inner steps.
        hidden: Width of the hidden layer.
    """

    def __init__(self, steps: int, hidden: int) -> None:
        data = mt.tasks.load_dataset("digits")
        torch.manual_seed(0)
        self.steps = steps
        self.model = mt.networks.MLP(64, (hidden,), 10, activation="tanh")
        self.meta = nn.ModuleDict(
            {
                name: Schedule(value, steps, RATES if name == "lr" else 1)
                for name, value in FIRST.items()
            }
        )
        batches = mt.tasks.Batches(*data.train, batch_size=BATCH)
        few = [next(batches) for _ in range(min(steps, 1000))]
        self.train = [few[step % len(few)] for step in range(steps)]
        self.valid = tuple(data.test)


def by_toolkit(digits: Digits) -> Callable[[], Tensor]:
    """Return a function that takes the hypergradient by ForwardMode."""

    def of(name: str) -> Callable[[Any, int], Tensor]:
        return lambda meta, step: meta[name].at(step)

    loss = mt.losses.cross_entropy
    problem = mt.BilevelProblem(digits.model, digits.meta, loss, loss)
    inner = mt.inner.SGD(**{name: of(name) for name in FIRST})
    state, estimator = inner.init(problem), ForwardMode(digits.steps)

    def call() -> Tensor:
        found = estimator(problem, inner, state, digits.train, digits.valid)
        return torch.cat(list(found.gradient.values()))

    return call


def by_hand(digits: Digits) -> Callable[[], Tensor]:
    """Return a function that carries the tangents of SGD along, with nothing checked."""
    names = [name for name, _ in digits.model.named_parameters()]
    courses = {name: schedule.values().tolist() for name, schedule in digits.meta.items()}
    momentum, decay, count = RATES, RATES + 1, RATES + 2

    def loss_of(weights: Sequence[Tensor], batch: Any) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return F.cross_entropy(torch.func.functional_call(digits.model, named, batch[0]), batch[1])

    def call() -> Tensor:
        weights = [p.detach().clone() for p in digits.model.parameters()]
        speeds = [torch.zeros_like(w) for w in weights]
        moved, turned = ([w.new_zeros(count, *w.shape) for w in weights] for _ in range(2))
        share = -1
        for step, batch in enumerate(digits.train):
            rate, m, d = (courses[name][step] for name in FIRST)
            # What has moved by now has a product.
            active = [*range(share + 1), *([momentum] if step > 1 else [])]
            active += [decay] if step > 0 else []
            share = RATES * step // digits.steps
            leaves = [w.detach().requires_grad_() for w in weights]
            slopes = torch.autograd.grad(loss_of(leaves, batch), leaves, create_graph=True)
            bent: Sequence[Tensor | None] = [None] * len(leaves)
            if active:
                rows = [z[active] for z in moved]
                bent = torch.autograd.grad(slopes, leaves, rows, is_grads_batched=True)
            weights, after = [], []
            for w, v, g, z, c, b in zip(leaves, speeds, slopes, moved, turned, bent, strict=True):
                w, g = w.detach(), g.detach()
                c.mul_(m).add_(z, alpha=d)
                if b is not None:
                    c[active] += b
                c[momentum] += v
                c[decay] += w
                v = m * v + g + d * w
                z.sub_(c, alpha=rate)
                z[share] -= v
                weights.append(w - rate * v)
                after.append(v)
            speeds = after
        leaves = [w.requires_grad_() for w in weights]
        slopes = torch.autograd.grad(loss_of(leaves, digits.valid), leaves)
        return sum(
            (z.reshape(count, -1) @ g.reshape(-1) for z, g in zip(moved, slopes, strict=True)),
            start=torch.zeros(count),
        )

    return call


def compare(steps: int, hidden: int, repeats: int) -> dict[str, float]:
    """Take both in turn, and compare processor time, memory and what they return.

    Args:
        steps: Number of inner steps.
        hidden: Width of the hidden layer.
        repeats: Number of times that each is taken.
    """
    digits = Digits(steps, hidden)
    ours, theirs = by_toolkit(digits), by_hand(digits)
    one, other = ours(), theirs()
    seconds: dict[str, list[float]] = {"toolkit": [], "hand": []}
    for _ in range(repeats):
        for name, call in (("hand", theirs), ("toolkit", ours)):
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
    pairs = zip(seconds["toolkit"], seconds["hand"], strict=True)
    return {
        "parameters": sum(p.numel() for p in digits.model.parameters()),
        "difference": float((one - other).norm() / other.norm()),
        "hand": 1e3 * min(seconds["hand"]) / steps,
        "toolkit": 1e3 * min(seconds["toolkit"]) / steps,
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "bytes": peak_memory(ours),
    }


TEXT = """\
# Forward mode by the step

`ForwardMode` through {steps} steps of SGD on scikit-learn's digits, in seven rates, a momentum and
a weight decay, beside a loop that carries the same tangents for this one problem: a batched
Hessian-vector product per step for what has begun, and nothing checked. Processor time of each
step, the least of {repeats} calls that alternate in one process, and the median of the ratios;
batches of {batch}, float32.

| hidden units | parameters | difference | by hand (ms) | ForwardMode (ms) | ratio | memory (MiB) |
|---:|---:|---:|---:|---:|---:|---:|
{rows}

{long}Measured on {machine}, with much other work beside it.
`python -m benchmarks.forward_mode` measures again and writes this page.
"""


def long_text(steps: int, hidden: int) -> str:
    """Return a sentence on one hypergradient through many steps."""
    call = by_toolkit(Digits(steps, hidden))
    begin = time.process_time()
    call()
    seconds = time.process_time() - begin
    return (
        f"One hypergradient through {steps:,} steps with {hidden} hidden units took "
        f"{seconds:.0f} s of one processor.\n\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the page.

    Args:
        argv: Arguments; by default those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 100, 400])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--long", type=int, default=10_000, help="steps of a long run; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for hidden in given.hidden:
        found = compare(given.steps, hidden, given.repeats)
        rows.append(
            f"| {hidden} | {found['parameters']:,.0f} | {found['difference']:.0e} "
            f"| {found['hand']:.2f} | {found['toolkit']:.2f} | {found['ratio']:.2f} "
            f"| {found['bytes'] / 2**20:.1f} |"
        )
        print(rows[-1], flush=True)
    page = TEXT.format(
        steps=given.steps,
        repeats=given.repeats,
        batch=BATCH,
        rows="\n".join(rows),
        long=long_text(given.long, given.hidden[0]) if given.long else "",
        machine=describe_machine(),
    )
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "forward_mode.md").write_text(page)


if __name__ == "__main__":
    main()
