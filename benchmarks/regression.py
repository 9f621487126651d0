"""Linear models: data hyper-cleaning over the horizon, and logistic regression."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import metatoolkit as mt
from benchmarks.contenders.by_hand import conjugate_gradient_by_hand, loop_by_hand
from benchmarks.contenders.ours import ours
from benchmarks.contenders.peers import betty, higher, hypertorch, torchopt
from benchmarks.estimators import Penalties, at_optimum, logistic_loss, penalized_loss
from benchmarks.harness.declared import Benchmark, Case, Contender, Setup
from benchmarks.trajectory import ExampleWeights, plain_loss, weighted_loss
from metatoolkit.hypergradients import (
    GMRES,
    ConjugateGradient,
    Implicit,
    Neumann,
    Unrolled,
)


def hyper_cleaning(steps: int) -> Setup:
    """A linear classifier of digits with a weight for each of 1,000 examples, whole batches.

    Args:
        steps: Number of inner steps.
    """
    dataset = mt.tasks.load_dataset("digits")
    images = dataset.transform()(dataset.train.images, None).flatten(1)
    labels = dataset.train.labels.clone()
    # Every other label is wrong.
    labels[:1000:2] = (labels[:1000:2] + 1) % 10
    torch.manual_seed(0)
    model = nn.Linear(images.shape[1], 10)
    problem = mt.BilevelProblem(model, ExampleWeights(1000), weighted_loss, plain_loss)
    batch = images[:1000], labels[:1000], torch.arange(1000)
    return Setup(problem, [([batch] * steps, (images[1000:], labels[1000:]))], 0.1)


def cleaning_ways(steps: int) -> dict[str, Contender]:
    """Return ways through so many steps, and one that differentiates the last of them.

    Args:
        steps: Number of inner steps.
    """
    return {
        "by hand": loop_by_hand(),
        "Unrolled": ours(Unrolled(steps)),
        "Unrolled, one graph": ours(Unrolled(steps, keep_graphs=1)),
        "Unrolled, truncated at 10": ours(Unrolled(steps, truncation=min(10, steps))),
        "higher": higher(),
        "TorchOpt": torchopt(),
    }


def many_features(features: int, examples: int = 64) -> Setup:
    """Logistic regression with a penalty for each of many features, in float64.

    Args:
        features: Number of features.
        examples: Number of examples to train on, and of those to validate.
    """
    torch.manual_seed(0)
    inputs = torch.randn(2, examples, features, dtype=torch.float64)
    truth = torch.randn(features, dtype=torch.float64)
    targets = (inputs @ truth > 0).double()
    model = nn.Linear(features, 1, bias=False).double()
    problem = mt.BilevelProblem(model, Penalties(features), penalized_loss, logistic_loss)
    train, valid = ((x, y) for x, y in zip(inputs, targets, strict=True))
    return Setup(problem, [([train], valid)], 1e-3)


SOLVERS = {
    "CG by hand": conjugate_gradient_by_hand(100, 1e-8),
    "Implicit, CG": ours(Implicit(ConjugateGradient(100, 1e-8))),
    "Implicit, GMRES": ours(Implicit(GMRES(70, 1e-8))),
    "Implicit, Neumann of 50": ours(Implicit(Neumann(50))),
    "hypertorch, CG of 70": hypertorch("CG", 70),
    "Betty, neumann of 50": betty("neumann", 50, 1e-3),
    "Betty, cg of 70": betty("cg", 70),
}

BENCHMARKS = [
    Benchmark(
        name="hyper_cleaning",
        title="Data hyper-cleaning over the horizon",
        about="A linear classifier of scikit-learn's digits with a weight for each of 1,000 "
        "examples of which half carry a wrong label, T steps of gradient descent on all of them, "
        "float32. The error is the difference to the derivative by hand through all T steps.",
        figure="curves",
        axis="inner steps T",
        after="What `Unrolled` takes above the loop by hand is said of "
        "[logistic regression](logistic_regression.md); one step alone is as short as what is "
        "checked of a call.",
        per_size=True,
        cases={
            f"T = {steps:,}": Case(
                partial(hyper_cleaning, steps),
                cleaning_ways(steps),
                rounds=1 if steps > 100 else 5,
                size=steps,
                quick=steps < 100,
            )
            for steps in (1, 10, 100, 1000)
        },
    ),
    Benchmark(
        name="logistic_regression",
        title="Logistic regression",
        about="Unrolled gradient descent and conjugate gradient on the problem of "
        "[penalties per feature](estimators.md), and implicit differentiation with 100,000 "
        "features and as many meta-parameters, 64 examples, float64, where θ is as it was drawn: "
        "the linear system alone is solved. The error is the difference to the truth, or to "
        "conjugate gradient by hand at a relative residual of 1e-8.",
        cases={
            # Five turns do not tell ways apart that differ by a few hundredths.
            "100 steps, 30 features": Case(
                partial(at_optimum, 100),
                {
                    "by hand": loop_by_hand(),
                    "Unrolled": ours(Unrolled(100)),
                    'Unrolled, compile="graph"': ours(Unrolled(100), "graph"),
                    "higher": higher(),
                    "TorchOpt": torchopt(),
                },
                rounds=101,
            ),
            "conjugate gradient, 30 features": Case(
                partial(at_optimum, 1),
                {
                    # hypertorch ends at an absolute residual of 1e-10, after as many products.
                    "CG by hand": conjugate_gradient_by_hand(50, 1e-8),
                    "Implicit, CG": ours(Implicit(ConjugateGradient(50, 1e-8))),
                    "hypertorch, CG of 20": hypertorch("CG", 20),
                },
                rounds=301,
            ),
            "100,000 features": Case(
                partial(many_features, 100_000), SOLVERS, rounds=3, quick=False
            ),
        },
        after="With 30 features nearly all time is Python and the launching of small kernels, of "
        "which `Unrolled` and `higher` launch the same. Around each pass `Unrolled` exchanges "
        "parameters, sees whether the loss has drawn random numbers, and whether anything was "
        "changed in place; it takes as long as `higher`, to a few hundredths, and a program of the "
        "whole call has none of it. TorchOpt, which looks at nothing, is the floor with the loop "
        "by hand, whose parameters `functional_call` exchanges. Half of the time of conjugate "
        "gradient is outside of the solver, in and around two evaluations and a product for the "
        "residual; in it the norms of vectors are learned, to stop where rounding hides the rest. "
        "The floor is CG by hand; hypertorch takes as long as `Implicit`. With 100,000 features "
        "these do not count.",
    ),
]
