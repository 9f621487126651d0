"""Problems with known answers, each small, in float64 and made anew at every call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metatoolkit as mt


@dataclasses.dataclass
class Case:
    """A problem with all that a hypergradient call takes."""

    problem: mt.BilevelProblem
    inner: Any
    train_batches: list[Any]
    valid_batch: Any
    optimizer_only: bool = False

    @property
    def state(self) -> mt.InnerState:
        return self.inner.init(self.problem, seed=5)

    def batches(self, steps: int) -> list[Any]:
        return [self.train_batches[i % len(self.train_batches)] for i in range(steps)]

    def call(self, estimator: Any, state: mt.InnerState | None = None) -> Any:
        return estimator(
            self.problem,
            self.inner,
            self.state if state is None else state,
            self.batches(estimator.horizon),
            self.valid_batch,
        )


class Value(nn.Module):
    """One parameter, ``value``."""

    def __init__(self, value: Any, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))


def illustration(x: float = 0.3, penalty: float = 0.4, inner: Any = None) -> Case:
    """The paper's one-dimensional problem: (x−1)² + λx² below (x−½)²; both are 0-d parameters."""

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - 1) ** 2 + meta.value * model.value**2

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - 0.5) ** 2

    problem = mt.BilevelProblem(Value(x), Value(penalty), train_loss, valid_loss)
    return Case(problem, inner or mt.inner.SGD(lr=0.1), [None], None)


def illustration_hypergradient(penalty: float) -> float:
    """The derivative of the outer loss of :func:`illustration` at the inner optimum."""
    return (penalty - 1) / (penalty + 1) ** 3


def ridge(features: int = 5, examples: int = 12) -> Case:
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
    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    return Case(problem, mt.inner.SGD(lr=0.05, momentum=0.5), batches[:1], batches[1])


def ridge_hypergradient(case: Case) -> Tensor:
    """The exact hypergradient of :func:`ridge` at the inner optimum, in closed form."""
    (inputs, targets), (valid_inputs, valid_targets) = case.train_batches[0], case.valid_batch
    penalty = case.problem.meta.value.detach().exp()
    curvature = inputs.T @ inputs / len(inputs) + penalty.diag()
    weights = torch.linalg.solve(curvature, inputs.T @ targets / len(inputs))
    residual = valid_inputs @ weights - valid_targets
    outer = 2 * valid_inputs.T @ residual / len(valid_inputs)
    return -penalty * weights * torch.linalg.solve(curvature, outer)


def quadratic(condition: float = 10.0, size: int = 12, inner: Any = None) -> Case:
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
    problem = mt.BilevelProblem(Value(optimum.tolist()), meta, train_loss, valid_loss)
    return Case(problem, inner or mt.inner.SGD(lr=1 / condition), [batch], draw(size))


def quadratic_hypergradient(case: Case) -> Tensor:
    """The exact hypergradient of :func:`quadratic` at the inner optimum, in closed form."""
    curvature, mixing, shift = case.train_batches[0]
    pull = mixing @ case.problem.meta.value.detach() + shift
    optimum = torch.linalg.solve(curvature, pull)
    return mixing.T @ torch.linalg.solve(curvature, optimum - case.valid_batch)


def _log_odds(model: Any, batch: Any) -> Tensor:
    inputs, targets = batch
    return F.binary_cross_entropy_with_logits(inputs @ model.value, targets)


def logistic(features: int = 5, examples: int = 40) -> Case:
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
    optimum, _ = _newton(*batches[0], meta.value.detach().exp())
    problem = mt.BilevelProblem(Value(optimum.tolist()), meta, train_loss, valid_loss)
    return Case(problem, mt.inner.SGD(lr=0.5), batches[:1], batches[1])


def _newton(inputs: Tensor, targets: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalized optimum of logistic regression and the Hessian there."""
    theta = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for _ in range(50):
        chance = torch.sigmoid(inputs @ theta)
        gradient = inputs.T @ (chance - targets) / len(inputs) + 2 * penalty * theta
        weights = chance * (1 - chance) / len(inputs)
        hessian = inputs.T @ (weights.unsqueeze(1) * inputs) + 2 * penalty.diag()
        theta = theta - torch.linalg.solve(hessian, gradient)
    assert float(gradient.norm()) < 1e-13
    return theta, hessian


def logistic_hypergradient(case: Case) -> Tensor:
    """The exact hypergradient of :func:`logistic`, from Newton's method."""
    penalty = case.problem.meta.value.detach().exp()
    theta, hessian = _newton(*case.train_batches[0], penalty)
    inputs, targets = case.valid_batch
    outer = inputs.T @ (torch.sigmoid(inputs @ theta) - targets) / len(inputs)
    return -2 * penalty * theta * torch.linalg.solve(hessian, outer)


class Weights(nn.Module):
    """A smooth weight per example from its loss, and a log-penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
        self.log_penalty = nn.Parameter(torch.tensor(-4.0))

    def forward(self, losses: Tensor) -> Tensor:
        return self.layers(losses.unsqueeze(1)).squeeze(1)


def _classification(seed: int) -> tuple[list[Any], Any]:
    generator = torch.Generator().manual_seed(seed)
    batches = [
        (
            torch.randn(10, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (10,), generator=generator),
        )
        for _ in range(4)
    ]
    return batches[:3], batches[3]


def _cross_entropy(model: Any, meta: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def small_net(valid_mode: Any = None) -> Case:
    """A network with BatchNorm and dropout; λ weights the examples and penalizes θ."""

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        penalty = meta.log_penalty.exp() * model[0].weight.square().sum()
        return (meta(losses) * losses).mean() + penalty

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
        ).double()
        meta = Weights().double()
    problem = mt.BilevelProblem(model, meta, train_loss, _cross_entropy, valid_mode)
    inner = mt.inner.SGD(lr=0.2, momentum=0.9, weight_decay=1e-2, nesterov=True)
    return Case(problem, inner, *_classification(1))


def dead_coordinates() -> Case:
    """Adam over coordinates whose gradient is always zero: a feature that is zero everywhere."""
    case = small_net()
    for inputs, _ in [*case.train_batches, case.valid_batch]:
        inputs[:, 2] = 0.0
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: (
            meta(losses := F.cross_entropy(model(batch[0]), batch[1], reduction="none")) * losses
        ).mean(),
        lambda model, meta, batch: _cross_entropy(model, meta, batch) + meta.log_penalty.sin(),
    )
    inner = mt.inner.Adam(lr=0.05)
    return Case(problem, inner, case.train_batches, case.valid_batch)


class Rates(nn.Module):
    """Meta-parameters of an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))


def learned_rates() -> Case:
    """λ in the optimizer alone: a tensor, functions of meta and a group of its own."""
    case = small_net()
    meta = Rates()
    problem = mt.BilevelProblem(case.problem.model, meta, _cross_entropy, _cross_entropy)
    inner = mt.inner.SGD(
        lr=meta.lr,
        momentum=lambda meta, step: torch.sigmoid(meta.logits[0]) * 0.9**step,
        weight_decay=lambda meta, step: meta.logits[1].exp(),
        groups=[{"params": ["4.*"], "lr": lambda meta, step: 0.5 * meta.lr, "momentum": 0.3}],
    )
    return Case(problem, inner, case.train_batches, case.valid_batch, optimizer_only=True)


class Scaled(nn.Module):
    """λ in the middle of the network, beside frozen and 0-d parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.scale = Value([1.0, 0.5, -0.5, 2.0, 1.5])
        self.temperature = nn.Parameter(torch.tensor(1.3))
        self.last = nn.Linear(5, 3)
        self.last.bias.requires_grad_(False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.tanh(self.first(inputs)) * self.scale.value
        return self.last(hidden) * self.temperature


def inside_model() -> Case:
    """λ is a submodule of the model, and the outer loss depends on it directly."""

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return _cross_entropy(model, meta, batch) + 0.01 * meta.value.square().sum()

    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Scaled().double()
    problem = mt.BilevelProblem(model, model.scale, _cross_entropy, valid_loss)
    groups = [{"params": ["last.*", "temperature"], "lr": 0.05, "momentum": 0.0}]
    inner = mt.inner.SGD(lr=0.3, momentum=0.9, groups=groups)
    return Case(problem, inner, *_classification(2))


class Tied(nn.Module):
    """An autoencoder whose decoder shares its weight with the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(inputs)))


class Partly(nn.Module):
    """Meta-parameters of which each loss sees its own, and neither sees the third."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.linspace(-1, 1, 6))
        self.direct = nn.Parameter(torch.tensor([0.3, -0.7]))
        self.unused = nn.Parameter(torch.ones(2, 3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def tied() -> Case:
    """Tied weights; λ that the training loss, the outer loss or both ignore."""

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        inputs = batch[0]
        errors = (model(inputs) - inputs).square().mean(0)
        return (meta.features.sigmoid() * errors).sum()

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        inputs = batch[0]
        return (model(inputs) - inputs).square().mean() + meta.direct.sin().sum()

    with torch.random.fork_rng():
        torch.manual_seed(4)
        model, meta = Tied().double(), Partly().double()
    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    return Case(problem, mt.inner.SGD(lr=0.1), *_classification(3))


def quadratic_hypergradient_after(case: Case, steps: int) -> Tensor:
    """The hypergradient of :func:`quadratic` after ``steps`` steps of SGD, in closed form.

    With θ, the velocity, λ and 1 in one vector, a step is one matrix.
    """
    (curvature, mixing, shift), target = case.train_batches[0], case.valid_batch
    theta, meta = case.problem.model.value.detach(), case.problem.meta.value.detach()
    size, width = mixing.shape
    values = case.inner.hyperparameters
    lr, momentum, decay = values["lr"], values["momentum"], values["weight_decay"]
    eye = torch.eye(size, dtype=torch.float64)
    curvature = curvature + decay * eye
    velocity = [curvature, momentum * eye, -mixing, -shift.unsqueeze(1)]
    direction = velocity
    if case.inner.nesterov:
        gradient = [curvature, 0 * eye, -mixing, -shift.unsqueeze(1)]
        direction = [g + momentum * v for g, v in zip(gradient, velocity, strict=True)]
    constants = torch.eye(2 * size + width + 1, dtype=torch.float64)[2 * size :]
    moved = torch.cat([eye, torch.zeros(size, size + width + 1).double()], 1)
    step = torch.cat([moved - lr * torch.cat(direction, 1), torch.cat(velocity, 1), constants])
    power = torch.linalg.matrix_power(step, steps)[:size]
    start = torch.cat([theta, torch.zeros_like(theta), meta, torch.ones(1).double()])
    return power[:, 2 * size : -1].T @ (power @ start - target)


def schedule(steps: int = 6, momentum: float = 0.6) -> Case:
    """Linear dynamics with a learned learning rate for each step; λ is in the optimizer alone."""
    case = quadratic(size=5)
    model = Value(torch.linspace(-1, 2, 5, dtype=torch.float64).tolist())
    meta = Value(torch.linspace(0.06, 0.02, steps, dtype=torch.float64).tolist())

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return 0.5 * model.value @ batch @ model.value

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return 0.5 * (model.value - batch).square().sum()

    problem = mt.BilevelProblem(model, meta, train_loss, valid_loss)
    inner = mt.inner.SGD(lr=lambda meta, step: meta.value[step], momentum=momentum)
    batches = [scale * case.train_batches[0][0] for scale in (1.0, 0.7, 1.3)]
    return Case(problem, inner, batches, case.valid_batch, optimizer_only=True)


def schedule_hypergradient(case: Case, momentum: float = 0.6) -> Tensor:
    """The hypergradient of :func:`schedule`: products of the matrices of all steps but one."""
    rates, theta = case.problem.meta.value.detach(), case.problem.model.value.detach()
    size, steps = theta.numel(), rates.numel()
    eye, zero = torch.eye(size).double(), torch.zeros(size, size).double()
    curvatures = case.batches(steps)

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

    outer = final(None) - case.valid_batch
    return torch.stack([final(step) @ outer for step in range(steps)])


def initialized() -> Case:
    """λ is the whole initial state, and nothing else depends on it."""
    case = small_net()
    model = case.problem.model
    problem = mt.BilevelProblem(
        model,
        mt.metaparameters.Initialization(model),
        _cross_entropy,
        _cross_entropy,
        initial=mt.metaparameters.Initialization.values,
    )
    return Case(problem, case.inner, case.train_batches, case.valid_batch)


class Adapted(nn.Module):
    """An initial state for some inner parameters, beside λ in the training loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.start = mt.metaparameters.Initialization(model, ["0.*", "4.weight"])
        self.log_penalty = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))


def adapted() -> Case:
    """λ sets a part of the initial state and the strength that pulls θ to it (as in iMAML)."""
    case = small_net()
    model = case.problem.model
    meta = Adapted(model)

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        pull = (model[0].weight - meta.start.values()["0.weight"]).square().sum()
        return _cross_entropy(model, meta, batch) + meta.log_penalty.exp() * pull

    problem = mt.BilevelProblem(model, meta, train_loss, _cross_entropy, initial=initial_values)
    return Case(problem, case.inner, case.train_batches, case.valid_batch)


def initial_values(meta: Adapted) -> dict[str, Tensor]:
    """The values of :func:`adapted`."""
    return meta.start.values()


CASES: dict[str, Callable[[], Case]] = {
    "illustration": illustration,
    "ridge": ridge,
    "small_net": small_net,
    "dead_coordinates": dead_coordinates,
    "learned_rates": learned_rates,
    "inside_model": inside_model,
    "tied": tied,
}

# The initial state is no concern of most estimators: the suite over all of them takes it, too.
CONFORMANCE = CASES | {"initialized": initialized}


def started(inner: Any = None) -> Case:
    """θ_0 = λ, L_T = b θ λ, L_V = ½ (θ − v)²: after steps of SGD θ is λ (1 − lr Σ b).

    The training loss reads λ beside θ, though both are one number at the start.
    """

    def train_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return batch * model.value * meta.value

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        return (model.value - batch).square() / 2

    meta = Value(0.8)
    problem = mt.BilevelProblem(
        Value(5.0), meta, train_loss, valid_loss, initial=lambda meta: {"value": meta.value}
    )
    return Case(problem, inner or mt.inner.SGD(lr=0.1), [1.0, 2.0, 4.0], 0.25)


def started_hypergradient(case: Case, steps: int, rate: float = 0.1) -> float:
    """The hypergradient of :func:`started` at the present λ."""
    factor = 1 - rate * sum(case.batches(steps))
    return factor * (factor * float(case.problem.meta.value.detach()) - case.valid_batch)
