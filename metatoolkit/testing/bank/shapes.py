"""Problems for inner learners: matrices alone, any shape, parameters that a batch leaves out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner import SGD
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing.bank.modules import Value

_SHAPES = {"number": (), "empty": (0, 3), "vector": (3,), "matrix": (2, 3), "kernel": (2, 1, 2, 2)}


def _draw(seed: int, shapes: dict[str, tuple[int, ...]]) -> nn.ParameterDict:
    generator = torch.Generator().manual_seed(seed)
    return nn.ParameterDict(
        {
            name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for name, shape in shapes.items()
        }
    )


def matrices() -> ProblemInstance:
    """Regression by two layers without biases; λ weights the two targets."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def errors(model: Any, batch: Any) -> Tensor:
        inputs, targets = batch
        return (torch.tanh(inputs @ model["first"]) @ model["last"] - targets).square().mean(0)

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (meta.value.sigmoid() * errors(model, batch)).sum()

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return errors(model, batch).sum()

    model = _draw(7, {"first": (4, 3), "last": (3, 2)})
    batches = [(draw(9, 4), draw(9, 2)) for _ in range(4)]
    problem = BilevelProblem(model, Value([0.3, -0.8]), train_loss, valid_loss)
    return ProblemInstance(problem, SGD(lr=0.1), batches[:3], batches[3], seed=5)


def heads() -> ProblemInstance:
    """Two matrices, of which a batch reaches the one that it names."""

    def loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return meta.value * (model[batch] - 0.1).square().sum()

    problem = BilevelProblem(_draw(8, {"first": (2, 2), "last": (2, 2)}), Value(0.7), loss, loss)
    return ProblemInstance(problem, SGD(lr=0.1), ["first", "last"], "first", seed=5)


def shapes() -> ProblemInstance:
    """A number, an empty tensor, a vector, a matrix and a kernel; a batch is an angle."""

    def loss(model: Any, meta: Any, batch: Any) -> Tensor:
        total = meta.value * model["vector"].sin().sum()
        return total + sum((model[name] - batch).cos().sum() for name in _SHAPES)

    problem = BilevelProblem(_draw(9, _SHAPES), Value(0.3), loss, loss)
    return ProblemInstance(problem, SGD(lr=0.1), [0.0, 0.2, 0.5], 0.1, seed=5)
