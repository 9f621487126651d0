"""Forward mode through schedules beside a loop that is written by hand for this one problem."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.contenders.by_hand import ModuleAt, loop_by_hand
from benchmarks.contenders.ours import ours
from benchmarks.harness.declared import Benchmark, Call, Case, Contender, Setup
from benchmarks.trajectory import plain_loss
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.metaparameters import Schedule

RATES = 7
BATCH = 64
FIRST = {"lr": 0.1, "momentum": 0.5, "weight_decay": 1e-4}


def digits(steps: int, hidden: int) -> Setup:
    """A perceptron on digits, with seven rates, a momentum and a weight decay as schedules.

    Args:
        steps: Number of inner steps.
        hidden: Width of the hidden layer.
    """
    data = mt.tasks.load_dataset("digits")
    torch.manual_seed(0)
    model = mt.networks.MLP(64, (hidden,), 10, activation="tanh")
    meta = nn.ModuleDict(
        {
            name: Schedule(value, steps, RATES if name == "lr" else 1)
            for name, value in FIRST.items()
        }
    )
    batches = mt.tasks.Batches(*data.train, batch_size=BATCH)
    few = [next(batches) for _ in range(min(steps, 1000))]
    problem = mt.BilevelProblem(model, meta, plain_loss, plain_loss)
    train = [few[step % len(few)] for step in range(steps)]
    rates = {name: _course(name) for name in FIRST}
    return Setup(problem, [(train, tuple(data.test))], **rates)


def _course(name: str) -> Any:
    return lambda meta, step: meta[name].at(step)


def _tangents(setup: Setup) -> Call:
    """Carry the tangents of SGD along, with nothing checked."""
    ((train, valid),) = setup.tasks
    names = [name for name, _ in setup.problem.model.named_parameters()]
    meta: Any = setup.problem.meta
    courses = {name: meta[name].values().tolist() for name in FIRST}
    momentum, decay, count = RATES, RATES + 1, RATES + 2

    def loss_of(weights: Sequence[Tensor], batch: Any) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return plain_loss(ModuleAt(setup, named), None, batch)

    def call() -> list[Tensor]:
        weights = [p.detach().clone() for p in setup.problem.model.parameters()]
        speeds = [torch.zeros_like(w) for w in weights]
        moved, turned = ([w.new_zeros(count, *w.shape) for w in weights] for _ in range(2))
        share = -1
        for step, batch in enumerate(train):
            rate, m, d = (courses[name][step] for name in FIRST)
            # What has moved by now has a product.
            active = [*range(share + 1), *([momentum] if step > 1 else [])]
            active += [decay] if step > 0 else []
            share = RATES * step // len(train)
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
        slopes = torch.autograd.grad(loss_of(leaves, valid), leaves)
        pairs = zip(moved, slopes, strict=True)
        return [sum((z.reshape(count, -1) @ g.reshape(-1) for z, g in pairs), torch.zeros(count))]

    return call


TANGENTS = Contender(_tangents)
"""A loop for SGD with these schedules alone."""

BENCHMARKS = [
    Benchmark(
        name="forward_mode",
        title="Forward mode by the step",
        about="`ForwardMode` through 300 steps of SGD on scikit-learn's digits, in seven rates, a "
        "momentum and a weight decay, beside a loop that carries the same tangents for this one "
        "problem: a batched Hessian-vector product per step for what has begun, and nothing "
        "checked; and with a product of its own for each number (`chunk=1`), as what cannot be "
        f"batched needs it. Batches of {BATCH}, float32; perceptrons 64-h-10.",
        cases={
            label: Case(
                partial(digits, steps, hidden),
                {
                    "by hand": TANGENTS,
                    "ForwardMode": ours(ForwardMode(steps)),
                    "ForwardMode, one by one": ours(ForwardMode(steps, chunk=1)),
                },
                rounds=5,
                quick=steps < 300,
            )
            for label, steps, hidden in (
                ("h = 16, 30 steps", 30, 16),
                ("h = 16", 300, 16),
                ("h = 100", 300, 100),
                ("h = 400", 300, 400),
            )
        },
    ),
    Benchmark(
        name="horizon",
        title="Forward and reverse mode over the horizon",
        about="The schedules of [forward mode by the step](forward_mode.md) (nine numbers: "
        "forward-mode differentiation with sharing) for a perceptron 64-16-10 through T steps: "
        "forward mode holds nine tangents whatever T, reverse mode what it keeps of the steps.",
        figure="curves",
        axis="inner steps T",
        per_size=True,
        cases={
            f"T = {steps:,}": Case(
                partial(digits, steps, 16),
                {
                    "forward, by hand": TANGENTS,
                    "ForwardMode": ours(ForwardMode(steps)),
                    **(
                        {
                            "reverse, by hand": loop_by_hand(),
                            "Unrolled": ours(Unrolled(steps)),
                            "Unrolled, tree": ours(Unrolled(steps, checkpoint="tree")),
                        }
                        if steps <= 1000
                        else {}
                    ),
                },
                rounds=1 if steps > 100 else 5,
                size=steps,
                quick=steps < 100,
                counted=steps <= 1000,
            )
            for steps in (10, 100, 1000, 10_000)
        },
    ),
]
