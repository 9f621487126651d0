"""Problems of a few coefficients, with the hypergradient in closed form or by Newton's method."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner import SGD
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing.bank.modules import Value, value_of


def illustration(x: float = 0.3, penalty: float = 0.4, inner: Any = None) -> ProblemInstance:
    """The paper's one-dimensional problem: (x−1)² + λx² below (x−½)²; both are 0-d parameters."""

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - 1) ** 2 + meta.value * model.value**2

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - 0.5) ** 2

    problem = BilevelProblem(Value(x), Value(penalty), train_loss, valid_loss)
    return ProblemInstance(problem, inner or SGD(lr=0.1), [None], None, seed=5)


def illustration_hypergradient(penalty: float) -> float:
    """The derivative of the outer loss of :func:`illustration` at the inner optimum."""
    return (penalty - 1) / (penalty + 1) ** 3


def ridge(features: int = 5, examples: int = 12) -> ProblemInstance:
    """Ridge regression with one log-penalty per feature."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = draw(features)
    batches = []
    for _ in range(2):
        inputs = draw(examples, features)
        batches.append((inputs, inputs @ truth + 0.5 * draw(examples)))

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        inputs, targets = batch
        error = (inputs @ model.value - targets).square().mean()
        return error + (meta.value.exp() * model.value.square()).sum()

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        inputs, targets = batch
        return (inputs @ model.value - targets).square().mean()

    model = Value(draw(features).tolist())
    meta = Value((draw(features) - 1).tolist())
    problem = BilevelProblem(model, meta, train_loss, valid_loss)
    return ProblemInstance(problem, SGD(lr=0.05, momentum=0.5), batches[:1], batches[1], seed=5)


def ridge_hypergradient(instance: ProblemInstance) -> Tensor:
    """The exact hypergradient of :func:`ridge` at the inner optimum, in closed form."""
    inputs, targets = instance.train_batches[0]
    valid_inputs, valid_targets = instance.valid_batch
    penalty = value_of(instance.problem.meta).exp()
    curvature = inputs.T @ inputs / len(inputs) + penalty.diag()
    weights = torch.linalg.solve(curvature, inputs.T @ targets / len(inputs))
    residual = valid_inputs @ weights - valid_targets
    outer = 2 * valid_inputs.T @ residual / len(valid_inputs)
    return -penalty * weights * torch.linalg.solve(curvature, outer)


def _log_odds(model: Any, batch: Any) -> Tensor:
    inputs, targets = batch
    return F.binary_cross_entropy_with_logits(inputs @ model.value, targets)


def logistic(features: int = 5, examples: int = 40) -> ProblemInstance:
    """Logistic regression with one log-penalty per feature; it starts at the inner optimum."""
    generator = torch.Generator().manual_seed(6)
    truth = torch.randn(features, generator=generator, dtype=torch.float64)
    batches = []
    for _ in range(2):
        inputs = torch.randn(examples, features, generator=generator, dtype=torch.float64)
        noise = torch.randn(examples, generator=generator, dtype=torch.float64)
        batches.append((inputs, (inputs @ truth + noise > 0).double()))

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return _log_odds(model, batch) + (meta.value.exp() * model.value.square()).sum()

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return _log_odds(model, batch)

    meta = Value(torch.linspace(-4, -2, features).tolist())
    optimum, _ = _newton(batches[0], meta.value.detach().exp())
    problem = BilevelProblem(Value(optimum.tolist()), meta, train_loss, valid_loss)
    return ProblemInstance(problem, SGD(lr=0.5), batches[:1], batches[1], seed=5)


def _newton(batch: Any, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalized optimum of logistic regression and the Hessian there."""
    inputs, targets = batch
    theta = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for _ in range(50):
        chance = torch.sigmoid(inputs @ theta)
        gradient = inputs.T @ (chance - targets) / len(inputs) + 2 * penalty * theta
        weights = chance * (1 - chance) / len(inputs)
        hessian = inputs.T @ (weights.unsqueeze(1) * inputs) + 2 * penalty.diag()
        theta = theta - torch.linalg.solve(hessian, gradient)
    assert float(gradient.norm()) < 1e-13
    return theta, hessian


def logistic_hypergradient(instance: ProblemInstance) -> Tensor:
    """The exact hypergradient of :func:`logistic`, from Newton's method."""
    penalty = value_of(instance.problem.meta).exp()
    theta, hessian = _newton(instance.train_batches[0], penalty)
    inputs, targets = instance.valid_batch
    outer = inputs.T @ (torch.sigmoid(inputs @ theta) - targets) / len(inputs)
    return -2 * penalty * theta * torch.linalg.solve(hessian, outer)
