"""Muon against torch.optim.Muon, autograd and finite differences."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner import Muon
from tests.inner import reference


class Matrices(nn.Module):
    """A wide, a tall and a square matrix, and one row."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in {
            "wide": (3, 6),
            "tall": (5, 3),
            "row": (1, 5),
            "square": (2, 2),
        }.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value.to(dtype)))

    def forward(self, inputs):
        return torch.tanh(inputs @ self.wide.T) @ self.tall.T @ self.row.T + self.square.sum()


def loss(model, meta, batch):
    inputs, targets = batch
    weight = meta["weight"] if "weight" in meta else 0.1
    pull = sum(parameter.square().sum() for parameter in model.parameters())
    return (model(inputs) - targets[:, :1]).square().mean() + weight * pull


def make_problem(values, dtype=torch.float64):
    meta = nn.ParameterDict(
        {
            name: nn.Parameter(torch.tensor(value, dtype=torch.float64))
            for name, value in values.items()
        }
    )
    return mt.BilevelProblem(Matrices(dtype), meta, loss, loss)


OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.02, "nesterov": False, "momentum": 0.5, "weight_decay": 0.3},
    {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    {"lr": 0.01, "adjust_lr_fn": "spectral_unclamped", "ns_coefficients": (2.0, -1.5, 0.5)},
    {"lr": 0.01, "adjust_lr_fn": "original", "eps": 1e-3, "weight_decay": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(options, dtype):
    own = {"ns_dtype": torch.bfloat16} if dtype == torch.float64 else {}
    problem, model = make_problem({"unused": 0.0}, dtype), Matrices(dtype)
    inner, stepper = Muon(**options, **own), torch.optim.Muon(model.parameters(), **options)
    state = inner.init(problem)
    for inputs, targets in reference.make_batches(6):
        batch = (inputs.to(dtype), targets.to(dtype))
        stepper.zero_grad()
        loss(model, problem.meta, batch).backward()
        stepper.step()
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state.parameters[name], parameter.detach(), rtol=1e-3, atol=2e-4)


def test_equals_torch_in_float64_up_to_its_rounding():
    options = {"lr": 0.02}
    problem, model = make_problem({"unused": 0.0}), Matrices()
    inner, stepper = Muon(**options), torch.optim.Muon(model.parameters(), **options)
    state = inner.init(problem)
    (batch,) = reference.make_batches(1)
    loss(model, problem.meta, batch).backward()
    stepper.step()
    state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state.parameters[name], parameter.detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("product", ["reverse_over_reverse", "forward_over_reverse"])
def test_hypergradients_equal_finite_differences(nesterov, product):
    values = {"lr": 0.05, "momentum": 0.6, "decay": 0.2, "weight": 0.1}
    problem = make_problem(values)
    meta = problem.meta
    inner = Muon(
        lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["decay"], nesterov=nesterov
    )
    batches = reference.make_batches(4)
    for estimator in (hg.Unrolled(3, product=product), hg.ForwardMode(3)):
        check = hg.check_hypergradient(problem, inner, estimator, batches[:3], batches[3])
        assert check.relative_error < 1e-6, check
        assert float(check.estimate.abs().min()) > 1e-4


def test_the_iteration_orthogonalizes():
    matrix = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner = Muon(ns_coefficients=(1.5, -0.5, 0.0), ns_steps=60)
    for given in (matrix, matrix.T):
        found = inner._orthogonalized(given)
        left, _, right = torch.linalg.svd(given, full_matrices=False)
        torch.testing.assert_close(found, left @ right)


def test_what_is_no_matrix_is_an_error():
    problem = reference.make_problem()
    with pytest.raises(UnsupportedError, match=r"'scale' is 0-d.*Combined\(Muon\(\)"):
        Muon().init(problem)
    with pytest.raises(UnsupportedError, match="does not tell how its update"):
        matrices = make_problem({"weight": 0.1})
        Muon().gradient_sensitivity(
            matrices,
            Muon().init(matrices),
            matrices.meta_parameters(),
            matrices.parameters(),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ns_steps": 0}, "ns_steps is 0"),
        ({"ns_coefficients": (1.0, 2.0)}, "three numbers"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn is 'none'; accepted: None, 'original'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Muon(**arguments)


def test_a_matrix_without_a_gradient_decays_and_has_a_finite_derivative():
    def still(model, meta, batch):
        return 0.0 * loss(model, meta, batch) + meta["weight"] * model.square.square().sum()

    problem = make_problem({"weight": 0.1})
    problem = mt.BilevelProblem(problem.model, problem.meta, still, loss)
    inner = Muon(lr=0.1, weight_decay=0.2)
    batches = reference.make_batches(2)
    result = hg.Unrolled(1)(problem, inner, inner.init(problem), batches[:1], batches[1])
    wide = problem.model.wide.detach()
    torch.testing.assert_close(result.state.parameters["wide"], (1 - 0.1 * 0.2) * wide)
    assert result.gradient["weight"].isfinite()
