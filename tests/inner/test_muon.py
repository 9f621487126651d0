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
        check = mt.check_hypergradient(problem, inner, estimator, batches[:3], batches[3])
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


def test_what_is_left_out():
    reference.assert_defaults(Muon, torch.optim.Muon, own=("ns_dtype", "maximize"))
    assert Muon().ns_dtype is None and Muon().hyperparameters["maximize"] is False


def test_description():
    inner = Muon(lr=0.02, ns_steps=3, adjust_lr_fn="original", ns_dtype=torch.float32)
    assert repr(inner) == (
        "Muon(lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, maximize=False, "
        "ns_coefficients=(3.4445, -4.775, 2.0315), eps=1e-07, ns_steps=3, "
        "adjust_lr_fn=original, ns_dtype=torch.float32, groups=0)"
    )


@pytest.mark.parametrize(
    ("adjust", "factors"),
    [
        (None, (1.0, 2.0)),
        ("original", (1.0, 2.0)),
        ("match_rms_adamw", (0.2 * 12**0.5, 0.2 * 12**0.5)),
        ("spectral_unclamped", (0.5, 2.0)),
    ],
)
def test_the_rate_is_adjusted_to_the_shape(adjust, factors):
    inner = Muon(adjust_lr_fn=adjust)
    assert (inner._adjustment(3, 12), inner._adjustment(12, 3)) == pytest.approx(factors)
    assert inner._adjustment(0, 3) == inner._adjustment(3, 0) == 1.0


def test_one_iteration_by_hand():
    # X = diag(0.6, 0.8) has the Gram matrix G = diag(0.36, 0.64), and X ← a X + b G X + c G² X.
    inner = Muon(ns_coefficients=(2.0, -1.5, 0.5), ns_steps=1)
    found = inner._orthogonalized(torch.tensor([[6.0, 0.0], [0.0, 8.0]], dtype=torch.float64))
    expected = [x * (2.0 - 1.5 * x**2 + 0.5 * x**4) for x in (0.6, 0.8)]
    assert found.diagonal().tolist() == pytest.approx(expected)
    # Below eps the norm does not divide; at an eps of 0, a matrix of zeros has none to divide by.
    least = Muon(ns_coefficients=(1.0, 0.0, 0.0), ns_steps=1, eps=10.0)
    matrix = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(least._orthogonalized(matrix), matrix / 10)
    assert Muon(eps=0.0)._orthogonalized(matrix).isfinite().all()


@pytest.mark.parametrize(
    ("given", "own", "taken"),
    [
        (torch.float32, None, torch.bfloat16),
        (torch.float64, None, torch.float64),
        (torch.float64, torch.float32, torch.float32),
    ],
)
def test_the_type_of_the_iteration(given, own, taken):
    found = Muon(ns_dtype=own)._orthogonalized(torch.ones(2, 3, dtype=given))
    assert found.dtype == taken


def test_more_arguments_at_the_edge():
    assert Muon(ns_steps=1).ns_steps == 1 and Muon(ns_steps=99).ns_steps == 99
    assert Muon(ns_coefficients=[1.0, 2.0, 3.0]).ns_coefficients == (1.0, 2.0, 3.0)
    for arguments in ({"ns_steps": 100}, {"eps": float("inf")}, {"ns_coefficients": 1.0}):
        with pytest.raises(ConfigurationError, match=next(iter(arguments))):
            Muon(**arguments)
    complex_matrix = {"p": torch.ones(2, 2, dtype=torch.complex64)}
    with pytest.raises(UnsupportedError, match="'p' is complex"):
        Muon().init_slots(complex_matrix)
    with pytest.raises(UnsupportedError, match="'p' is 3-d"):
        Muon().init_slots({"p": torch.ones(2, 2, 2)})
