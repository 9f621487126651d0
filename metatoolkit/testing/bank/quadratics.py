"""Problems whose inner steps are linear, so that their hypergradient is a product of matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner import SGD
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing.bank.modules import Value, value_of


def quadratic(condition: float = 10.0, size: int = 12, inner: Any = None) -> ProblemInstance:
    """½ θᵀHθ − θᵀ(Bλ + c) below ½ ‖θ − t‖², the eigenvalues of H from 1 to ``condition``.

    The model starts at the inner optimum H⁻¹(Bλ + c).
    """
    generator = torch.Generator().manual_seed(size)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(draw(size, size)).Q
    eigenvalues = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    curvature = basis @ eigenvalues.diag() @ basis.T
    batch = ((curvature + curvature.T) / 2, draw(size, 3), draw(size))
    meta = Value(draw(3).tolist())

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        curvature, mixing, shift = batch
        pull = mixing @ meta.value + shift
        return model.value.dot(curvature @ model.value) / 2 - model.value.dot(pull)

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - batch).square().sum() / 2

    optimum = torch.linalg.solve(batch[0], batch[1] @ meta.value.detach() + batch[2])
    problem = BilevelProblem(Value(optimum.tolist()), meta, train_loss, valid_loss)
    return ProblemInstance(problem, inner or SGD(lr=1 / condition), [batch], draw(size), seed=5)


def quadratic_hypergradient(instance: ProblemInstance) -> Tensor:
    """The exact hypergradient of :func:`quadratic` at the inner optimum, in closed form."""
    curvature, mixing, shift = instance.train_batches[0]
    pull = mixing @ value_of(instance.problem.meta) + shift
    optimum = torch.linalg.solve(curvature, pull)
    return mixing.T @ torch.linalg.solve(curvature, optimum - instance.valid_batch)


def quadratic_hypergradient_after(instance: ProblemInstance, steps: int) -> Tensor:
    """The hypergradient of :func:`quadratic` after ``steps`` steps of SGD, in closed form.

    With θ, the velocity, λ and 1 in one vector, a step is one matrix.
    """
    (curvature, mixing, shift), target = instance.train_batches[0], instance.valid_batch
    theta, meta = value_of(instance.problem.model), value_of(instance.problem.meta)
    size, width = mixing.shape
    inner: Any = instance.inner
    values = inner.hyperparameters
    lr, momentum, decay = values["lr"], values["momentum"], values["weight_decay"]
    eye = torch.eye(size, dtype=torch.float64)
    curvature = curvature + decay * eye
    velocity = [curvature, momentum * eye, -mixing, -shift.unsqueeze(1)]
    direction = velocity
    if inner.nesterov:
        gradient = [curvature, 0 * eye, -mixing, -shift.unsqueeze(1)]
        direction = [g + momentum * v for g, v in zip(gradient, velocity, strict=True)]
    constants = torch.eye(2 * size + width + 1, dtype=torch.float64)[2 * size :]
    moved = torch.cat([eye, torch.zeros(size, size + width + 1).double()], 1)
    step = torch.cat([moved - lr * torch.cat(direction, 1), torch.cat(velocity, 1), constants])
    power = torch.linalg.matrix_power(step, steps)[:size]
    start = torch.cat([theta, torch.zeros_like(theta), meta, torch.ones(1).double()])
    return power[:, 2 * size : -1].T @ (power @ start - target)


def schedule(steps: int = 6, momentum: float = 0.6) -> ProblemInstance:
    """Linear dynamics with a learned learning rate for each step; λ is in the optimizer alone."""
    instance = quadratic(size=5)
    model = Value(torch.linspace(-1, 2, 5, dtype=torch.float64).tolist())
    meta = Value(torch.linspace(0.06, 0.02, steps, dtype=torch.float64).tolist())

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return 0.5 * model.value @ batch @ model.value

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return 0.5 * (model.value - batch).square().sum()

    problem = BilevelProblem(model, meta, train_loss, valid_loss)

    def rate(meta: Any, step: int) -> Tensor:
        return meta.value[step]

    inner = SGD(lr=rate, momentum=momentum)
    batches = [scale * instance.train_batches[0][0] for scale in (1.0, 0.7, 1.3)]
    return ProblemInstance(problem, inner, batches, instance.valid_batch, seed=5)


def schedule_hypergradient(instance: ProblemInstance, momentum: float = 0.6) -> Tensor:
    """The hypergradient of :func:`schedule`: products of the matrices of all steps but one."""
    rates, theta = value_of(instance.problem.meta), value_of(instance.problem.model)
    size, steps = theta.numel(), rates.numel()
    eye, zero = torch.eye(size).double(), torch.zeros(size, size).double()
    curvatures = instance.batches(steps)

    def block(rows: list[list[Tensor]]) -> Tensor:
        return torch.cat([torch.cat(row, 1) for row in rows])

    matrices = [
        block([[eye - rate * a, -rate * momentum * eye], [a, momentum * eye]])
        for rate, a in zip(rates, curvatures, strict=True)
    ]
    slopes = [block([[-a, -momentum * eye], [zero, zero]]) for a in curvatures]
    start = torch.cat([theta, torch.zeros_like(theta)])

    def final(chosen: int | None) -> Tensor:
        z = start
        for step in range(steps):
            z = (slopes if step == chosen else matrices)[step] @ z
        return z[:size]

    outer = final(None) - instance.valid_batch
    return torch.stack([final(step) @ outer for step in range(steps)])


def started(inner: Any = None) -> ProblemInstance:
    """θ_0 = λ, L_T = b θ λ, L_V = ½ (θ − v)²: after steps of SGD θ is λ (1 − lr Σ b).

    The training loss reads λ beside θ, though both are one number at the start.
    """

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return batch * model.value * meta.value

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - batch).square() / 2

    meta = Value(0.8)
    problem = BilevelProblem(
        Value(5.0), meta, train_loss, valid_loss, initial=lambda meta: {"value": meta.value}
    )
    return ProblemInstance(problem, inner or SGD(lr=0.1), [1.0, 2.0, 4.0], 0.25, seed=5)


def started_hypergradient(instance: ProblemInstance, steps: int, rate: float = 0.1) -> float:
    """The hypergradient of :func:`started` at the present λ."""
    factor = 1 - rate * sum(instance.batches(steps))
    return factor * (factor * float(value_of(instance.problem.meta)) - instance.valid_batch)
