"""All estimators on three problems, beside other libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.contenders.by_hand import (
    conjugate_gradient_by_hand,
    evograd_by_hand,
    loop_by_hand,
)
from benchmarks.contenders.ours import ours
from benchmarks.contenders.peers import betty, higher, hypertorch, torchopt
from benchmarks.harness.declared import Benchmark, Case, Contender, Setup
from metatoolkit import hypergradients as hg
from metatoolkit.tasks import load_dataset


class Penalties(nn.Module):
    """λ: one log-penalty per feature.

    Args:
        features: Number of features.
        value: What all begin with.
    """

    def __init__(self, features: int, value: float = -3.0) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((features,), value, dtype=torch.float64))


def logistic_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the logistic loss without a penalty."""
    return F.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])


def penalized_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the logistic loss with a penalty of each feature."""
    penalty = (meta.log.exp() * model.weight.square()).sum()
    return logistic_loss(model, meta, batch) + penalty


def cancer_batches() -> tuple[Any, Any]:
    """Return 300 examples of the breast cancer data to train on, and the others, in float64."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    inputs = torch.tensor(data.data)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = torch.tensor(data.target).double()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return tuple((inputs[part], targets[part]) for part in (order[:300], order[300:]))


def at_optimum(steps: int = 100) -> Setup:
    """Logistic regression with a penalty per feature at its optimum, and the truth, by Newton.

    Args:
        steps: Number of inner steps.
    """
    batch, valid = cancer_batches()
    features = batch[0].shape[1]
    model, meta = nn.Linear(features, 1, bias=False).double(), Penalties(features)

    # Newton's method to rounding, then the implicit function theorem with dense matrices.
    penalty = meta.log.detach().exp()
    weights = torch.zeros(features, dtype=torch.float64)
    for _ in range(30):
        odds = torch.sigmoid(batch[0] @ weights)
        slope = batch[0].T @ (odds - batch[1]) / len(odds) + 2 * penalty * weights
        curvature = (batch[0].T * (odds * (1 - odds))) @ batch[0] / len(odds) + 2 * penalty.diag()
        weights = weights - torch.linalg.solve(curvature, slope)
    outer = valid[0].T @ (torch.sigmoid(valid[0] @ weights) - valid[1]) / len(valid[1])
    truth = -2 * penalty * weights * torch.linalg.solve(curvature, outer)
    with torch.no_grad():
        model.weight.copy_(weights.unsqueeze(0))
    problem = mt.BilevelProblem(model, meta, penalized_loss, logistic_loss)
    return Setup(problem, [([batch] * steps, valid)], lr=0.3, truth=[truth])


PENALTIES: dict[str, Contender] = {
    "Unrolled(100)": ours(hg.Unrolled(100)),
    "Unrolled(100), truncated at 10": ours(hg.Unrolled(100, truncation=10)),
    "ForwardMode(100)": ours(hg.ForwardMode(100)),
    "ForwardGradient(100)": ours(hg.ForwardGradient(100)),
    "Implicit, conjugate gradient": ours(hg.Implicit(hg.ConjugateGradient(50, 1e-12))),
    "Implicit, GMRES": ours(hg.Implicit(hg.GMRES(30, 1e-12))),
    "Implicit, MINRES": ours(hg.Implicit(hg.MINRES(50, 1e-12))),
    "Implicit, Neumann of 50": ours(hg.Implicit(hg.Neumann(50))),
    "Implicit, fixed point of 50": ours(hg.Implicit(hg.FixedPoint(50))),
    "Implicit, Nyström of rank 20": ours(hg.Implicit(hg.Nystrom(20, damping=0.1))),
    "SOBA, first step": ours(hg.SOBA()),
    "OneStep": ours(hg.OneStep()),
    "FiniteDifference": ours(hg.FiniteDifference()),
    "SAMA": ours(hg.SAMA()),
    "EvoGrad": ours(hg.EvoGrad(2, 1e-3, 0.05, rescale=0.3)),
    "GuidedEvoGrad": ours(hg.GuidedEvoGrad(1e-3, 0.05, rescale=0.3)),
    "Penalty of 100": ours(hg.Penalty(100.0, 100)),
    "EvolutionStrategies(100)": ours(hg.EvolutionStrategies(100, 4, 0.01)),
    "by hand, 100 steps": loop_by_hand(),
    "by hand, conjugate gradient": conjugate_gradient_by_hand(50, 1e-12),
    "by hand, EvoGrad": evograd_by_hand(2, 1e-3, 0.05, 0.3),
    "higher, 100 steps": higher(),
    "TorchOpt, 100 steps": torchopt(),
    "Betty, cg of 20": betty("cg", 20),
    "Betty, cg of 20, cg_alpha=0.1": betty("cg", 20, 0.1),
    "Betty, neumann of 50": betty("neumann", 50, 0.3),
    "hypertorch, CG of 20": hypertorch("CG", 20),
    "hypertorch, fixed_point of 50": hypertorch("fixed_point", 50),
}


def noisy_digits() -> Setup:
    """Meta-Weight-Net on noisy digits, one step."""
    dataset = load_dataset("digits")
    task = mt.tasks.label_noise_task(dataset, kind="flip", probability=0.4, valid_per_class=10)
    torch.manual_seed(0)
    model = mt.networks.build_network("mlp", task.classes, task.input_shape)
    problem = mt.BilevelProblem(
        model,
        mt.metaparameters.WeightNet(),
        mt.losses.weighted_cross_entropy,
        mt.losses.cross_entropy,
    )
    transform = dataset.transform()
    batches = mt.tasks.Batches(*task.train, batch_size=100, seed=0, transform=transform)
    valid = mt.tasks.Batches(*task.valid, batch_size=100, seed=1, transform=transform)
    setup = Setup(problem, [([next(batches)], next(valid))], lr=0.05)
    state = setup.state
    for _ in range(10):
        state, _ = setup.inner.step(problem, state, problem.meta_parameters(), next(batches))
    setup.start = state
    return setup


WEIGHTS: dict[str, Contender] = {
    "Unrolled(1)": ours(hg.Unrolled(1)),
    "Unrolled(1), mixed mode": ours(hg.Unrolled(1, product="forward_over_reverse")),
    "ForwardGradient(1)": ours(hg.ForwardGradient(1)),
    "FiniteDifference": ours(hg.FiniteDifference()),
    "SAMA": ours(hg.SAMA()),
    "OneStep": ours(hg.OneStep()),
    "EvoGrad, graphs kept": ours(hg.EvoGrad(2, 0.03, 0.05, rescale=0.05, streamed=False)),
    "EvoGrad, streamed": ours(hg.EvoGrad(2, 0.03, 0.05, rescale=0.05, streamed=True)),
    "EvoGrad of 8, mapped": ours(hg.EvoGrad(8, 0.03, 0.05, rescale=0.05, streamed="vmap")),
    "EvoGrad of 8": ours(hg.EvoGrad(8, 0.03, 0.05, rescale=0.05)),
    "GuidedEvoGrad": ours(hg.GuidedEvoGrad(0.03, 0.05, rescale=0.05)),
    "EvolutionStrategies(1)": ours(hg.EvolutionStrategies(1, 8, 0.1)),
    "by hand, 1 step": loop_by_hand(),
    "by hand, EvoGrad": evograd_by_hand(2, 0.03, 0.05, 0.05),
    "higher, 1 step": higher(),
    "TorchOpt, 1 step": torchopt(),
    "Betty, darts": betty("darts", scale=0.01),
}


class Rates(nn.Module):
    """λ: learning rate, momentum and weight decay of SGD.

    Args:
        values: What they begin with.
    """

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    @staticmethod
    def rates() -> dict[str, Any]:
        """Return functions of λ and the step, as :class:`Setup` takes them."""
        names = ("lr", "momentum", "weight_decay")
        return {name: Rates._part(place) for place, name in enumerate(names)}

    @staticmethod
    def _part(place: int) -> Any:
        return lambda meta, step: meta.values[place]


def optimizer_rates(steps: int = 50) -> Setup:
    """Three hyper-parameters of SGD over 50 steps on digits.

    Args:
        steps: Number of inner steps.
    """
    dataset = load_dataset("digits")
    images = dataset.transform()(dataset.train.images, None)[:1000]
    labels = dataset.train.labels[:1000]
    torch.manual_seed(0)
    model = mt.networks.build_network("mlp", 10, tuple(images.shape[1:]))
    loss = mt.losses.cross_entropy
    problem = mt.BilevelProblem(model, Rates(0.05, 0.9, 1e-3), loss, loss)
    parts = [slice(100 * i, 100 * i + 100) for i in range(10)]
    batches = [(images[part], labels[part]) for part in parts]
    train = [batches[i % 9] for i in range(steps)]
    return Setup(problem, [(train, batches[9])], **Rates.rates())


RATES: dict[str, Contender] = {
    "Unrolled(50)": ours(hg.Unrolled(50)),
    "Unrolled(50), sqrt": ours(hg.Unrolled(50, checkpoint="sqrt")),
    "Unrolled(50), tree": ours(hg.Unrolled(50, checkpoint="tree")),
    "Unrolled(50), truncated at 10": ours(hg.Unrolled(50, truncation=10)),
    "ForwardMode(50)": ours(hg.ForwardMode(50)),
    "ForwardGradient(50)": ours(hg.ForwardGradient(50)),
    "ForwardMode(1)": ours(hg.ForwardMode(1)),
    "EvolutionStrategies(50)": ours(hg.EvolutionStrategies(50, 2, 1e-3)),
    "NoiseReuseES(50)": ours(hg.NoiseReuseES(50, 2, 1e-3)),
    "EvoGrad": ours(hg.EvoGrad(2, 0.03, 0.05)),
    "Implicit, GMRES": ours(hg.Implicit(hg.GMRES(20))),
    "by hand, 50 steps": loop_by_hand(),
}

BENCHMARKS = [
    Benchmark(
        name="estimators",
        title="Estimators side by side",
        about="Relative error and cosine compare a call with what is right, on average over the "
        "draws where an estimator is random; the error of the mean over its draws is the small "
        "mark in a figure. higher and TorchOpt unroll SGD, Betty and hypertorch differentiate "
        "implicitly, and what is written by hand in plain PyTorch checks nothing.",
        figure="errors",
        cases={
            "penalties": Case(at_optimum, PENALTIES),
            "weights": Case(noisy_digits, WEIGHTS),
            "rates": Case(optimizer_rates, RATES),
        },
        told={
            "penalties": "**Penalties per feature, at the optimum.** Logistic regression on the "
            "breast cancer data (30 features), one log-penalty per feature as λ, plain gradient "
            "descent, float64, θ at its optimum. What is right is the exact derivative of the "
            "optimum, by Newton's method and dense matrices. One step sees one step of it: its "
            "size is wrong, and its direction only roughly right. The conjugate gradient of "
            "Betty's release updates its direction with the residual before the step, and does not "
            "converge.",
            "weights": "**Example weights, one step.** Meta-Weight-Net (301 meta-parameters) on "
            "digits of which 40 % carry a wrong label, a perceptron with 100 hidden units, batches "
            "of 100, float32. What is right is the exact derivative through one step of SGD.",
            "rates": "**Hyper-parameters of the optimizer, 50 steps.** Learning rate, momentum and "
            "weight decay of SGD as λ, a perceptron on digits, batches of 100, float32. What is "
            "right is the exact derivative through 50 steps from the start. What looks at one "
            "step, or takes θ for a fixed point, is wrong here. The other libraries' steps take no "
            "λ in the optimizer as it is used here.",
        },
    )
]
