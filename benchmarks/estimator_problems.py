"""The three problems on which all estimators are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.tasks import load_dataset


class Penalties(nn.Module):
    """λ: one log-penalty per feature."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((features,), -3.0))


def penalties() -> dict[str, Any]:
    """Logistic regression with a penalty per feature, near its optimum; the truth by Newton."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    inputs = torch.tensor(data.data)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = torch.tensor(data.target).double()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    train, valid = order[:300], order[300:]
    batch, valid_batch = (inputs[train], targets[train]), (inputs[valid], targets[valid])

    def plain_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return plain_loss(model, meta, batch) + (meta.log.exp() * model.weight.square()).sum()

    torch.manual_seed(0)
    model = nn.Linear(inputs.shape[1], 1, bias=False).double()
    problem = mt.BilevelProblem(model, Penalties(inputs.shape[1]).double(), train_loss, plain_loss)

    # Newton's method to rounding, then the implicit function theorem with dense matrices.
    penalty = problem.meta.log.detach().exp()  # type: ignore[operator]
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for _ in range(30):
        odds = torch.sigmoid(batch[0] @ weights)
        slope = batch[0].T @ (odds - batch[1]) / len(train) + 2 * penalty * weights
        curvature = (batch[0].T * (odds * (1 - odds))) @ batch[0] / len(train) + 2 * penalty.diag()
        weights = weights - torch.linalg.solve(curvature, slope)
    outer = valid_batch[0].T @ (torch.sigmoid(valid_batch[0] @ weights) - valid_batch[1])
    adjoint = torch.linalg.solve(curvature, outer / len(valid))
    truth = {"log": -2 * penalty * weights * adjoint}

    with torch.no_grad():
        model.weight.copy_(weights.unsqueeze(0))
    inner = mt.inner.SGD(lr=0.3)
    steps = 100
    estimators: dict[str, hg.Estimator] = {
        f"Unrolled({steps})": hg.Unrolled(steps),
        f"Unrolled({steps}), truncated at 10": hg.Unrolled(steps, truncation=10),
        f"ForwardMode({steps})": hg.ForwardMode(steps),
        f"ForwardGradient({steps})": hg.ForwardGradient(steps),
        "Implicit, conjugate gradient": hg.Implicit(hg.ConjugateGradient(50, 1e-12)),
        "Implicit, GMRES": hg.Implicit(hg.GMRES(30, 1e-12)),
        "Implicit, MINRES": hg.Implicit(hg.MINRES(50, 1e-12)),
        "Implicit, Neumann of 50": hg.Implicit(hg.Neumann(50)),
        "Implicit, fixed point of 50": hg.Implicit(hg.FixedPoint(50)),
        "Implicit, Nyström of rank 20": hg.Implicit(hg.Nystrom(20, damping=0.1)),
        "SOBA, first step": hg.SOBA(),
        "OneStep": hg.OneStep(),
        "FiniteDifference": hg.FiniteDifference(),
        "SAMA": hg.SAMA(),
        "EvoGrad": hg.EvoGrad(2, 1e-3, 0.05, rescale=0.3),
        "GuidedEvoGrad": hg.GuidedEvoGrad(1e-3, 0.05, rescale=0.3),
        "Penalty of 100": hg.Penalty(100.0, steps),
        f"EvolutionStrategies({steps})": hg.EvolutionStrategies(steps, 4, 0.01),
    }
    return {
        "title": "Penalties per feature, at the optimum",
        "about": "Logistic regression on the breast cancer data (30 features), one log-penalty "
        "per feature as λ, plain gradient descent, float64, θ at its optimum. The reference is "
        "the exact derivative of the optimum, by Newton's method and dense matrices. One step sees "
        "one step of it: its size is wrong, and its direction only roughly right. The conjugate "
        "gradient of Betty's release updates its direction with the residual before the step, and "
        "does not converge.",
        "problem": problem,
        "inner": inner,
        "estimators": estimators,
        "train_batches": [batch] * steps,
        "valid_batch": valid_batch,
        "reference": truth,
        "peer_steps": steps,
    }


def _digits(examples: int) -> tuple[Tensor, Tensor]:
    dataset = load_dataset("digits")
    images = dataset.transform()(dataset.train.images, None)
    return images[:examples], dataset.train.labels[:examples]


def weights() -> dict[str, Any]:
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
    inner = mt.inner.SGD(lr=0.05)
    transform = dataset.transform()
    stream = mt.tasks.Batches(*task.train, batch_size=100, seed=0, transform=transform)
    valid_batches = mt.tasks.Batches(*task.valid, batch_size=100, seed=1, transform=transform)
    state = inner.init(problem)
    batches = iter(stream)
    for _ in range(10):
        state, _ = inner.step(problem, state, problem.meta_parameters(), next(batches))
    estimators: dict[str, hg.Estimator] = {
        "Unrolled(1)": hg.Unrolled(1),
        "Unrolled(1), mixed mode": hg.Unrolled(1, product="forward_over_reverse"),
        "ForwardGradient(1)": hg.ForwardGradient(1),
        "FiniteDifference": hg.FiniteDifference(),
        "SAMA": hg.SAMA(),
        "OneStep": hg.OneStep(),
        "EvoGrad, graphs kept": hg.EvoGrad(2, 0.03, 0.05, rescale=0.05, streamed=False),
        "EvoGrad, streamed": hg.EvoGrad(2, 0.03, 0.05, rescale=0.05, streamed=True),
        "EvoGrad of 8": hg.EvoGrad(8, 0.03, 0.05, rescale=0.05),
        "GuidedEvoGrad": hg.GuidedEvoGrad(0.03, 0.05, rescale=0.05),
        "EvolutionStrategies(1)": hg.EvolutionStrategies(1, 8, 0.1),
    }
    return {
        "title": "Example weights, one step",
        "about": "Meta-Weight-Net (301 meta-parameters) on digits of which 40 % carry a wrong "
        "label, a perceptron with 100 hidden units, batches of 100, float32. The reference is the "
        "exact derivative through one step of SGD.",
        "problem": problem,
        "inner": inner,
        "state": state,
        "estimators": estimators,
        "train_batches": [next(batches)],
        "valid_batch": next(iter(valid_batches)),
        "reference": None,
        "peer_steps": 1,
    }


class Rates(nn.Module):
    """λ: learning rate, momentum and weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.05, 0.9, 1e-3]))


def rates() -> dict[str, Any]:
    """Three hyper-parameters of SGD over 50 steps."""
    steps = 50
    images, labels = _digits(1000)
    torch.manual_seed(0)
    model = mt.networks.build_network("mlp", 10, tuple(images.shape[1:]))
    problem = mt.BilevelProblem(model, Rates(), mt.losses.cross_entropy, mt.losses.cross_entropy)
    inner = mt.inner.SGD(
        lr=lambda meta, step: meta.values[0],  # type: ignore[index]
        momentum=lambda meta, step: meta.values[1],  # type: ignore[index]
        weight_decay=lambda meta, step: meta.values[2],  # type: ignore[index]
    )
    batches = [(images[100 * i : 100 * i + 100], labels[100 * i : 100 * i + 100]) for i in range(9)]
    estimators: dict[str, hg.Estimator] = {
        f"Unrolled({steps})": hg.Unrolled(steps),
        f"Unrolled({steps}), sqrt": hg.Unrolled(steps, checkpoint="sqrt"),
        f"Unrolled({steps}), tree": hg.Unrolled(steps, checkpoint="tree"),
        f"Unrolled({steps}), truncated at 10": hg.Unrolled(steps, truncation=10),
        f"ForwardMode({steps})": hg.ForwardMode(steps),
        f"ForwardGradient({steps})": hg.ForwardGradient(steps),
        "ForwardMode(1)": hg.ForwardMode(1),
        f"EvolutionStrategies({steps})": hg.EvolutionStrategies(steps, 2, 1e-3),
        f"NoiseReuseES({steps})": hg.NoiseReuseES(steps, 2, 1e-3),
        "EvoGrad": hg.EvoGrad(2, 0.03, 0.05),
        "Implicit, GMRES": hg.Implicit(hg.GMRES(20)),
    }
    return {
        "title": "Hyper-parameters of the optimizer, 50 steps",
        "about": "Learning rate, momentum and weight decay of SGD as λ, a perceptron on digits, "
        "batches of 100, float32. The reference is the exact derivative through 50 steps from the "
        "start. What looks at one step, or takes θ for a fixed point, is wrong here.",
        "problem": problem,
        "inner": inner,
        "estimators": estimators,
        "train_batches": [batches[i % len(batches)] for i in range(steps)],
        "valid_batch": (images[900:], labels[900:]),
        "reference": hg.Unrolled(steps),
        "peer_steps": None,
    }


PROBLEMS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "penalties": penalties,
    "weights": weights,
    "rates": rates,
}
