"""All inner learners against torch.optim over options, shapes and types, step for step."""

import itertools

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit import inner
from metatoolkit.testing import bank
from tests.inner import reference

F32, F64 = torch.float32, torch.float64
SHAPES = {"scalar": (), "empty": (0, 3), "vector": (3,), "matrix": (2, 3), "kernel": (2, 1, 2, 2)}
GRIDS = {
    "SGD": {
        "lr": [1e-2],
        "momentum": [0.0, 0.9],
        "dampening": [0.0, 0.5],
        "weight_decay": [0.0, 0.1],
        "nesterov": [False, True],
        "maximize": [False, True],
    },
    "Adam": {
        "lr": [1e-2],
        "betas": [(0.9, 0.999), (0.5, 0.5), (0.0, 0.9)],
        "eps": [1e-8, 1e-2],
        "weight_decay": [0.0, 0.1],
        "amsgrad": [False, True],
        "maximize": [False, True],
    },
    "RMSprop": {
        "lr": [1e-3],
        "alpha": [0.99, 0.5],
        "momentum": [0.0, 0.5],
        "centered": [False, True],
        "weight_decay": [0.0, 0.1],
        "maximize": [False, True],
    },
    "Adagrad": {
        "lr": [1e-2],
        "lr_decay": [0.0, 0.2],
        "initial_accumulator_value": [0.0, 0.1],
        "eps": [1e-10, 1e-3],
        "weight_decay": [0.0, 0.1],
        "maximize": [False, True],
    },
    "RAdam": {
        "lr": [1e-2],
        "betas": [(0.9, 0.999), (0.5, 0.8)],
        "weight_decay": [0.0, 0.1],
        "decoupled_weight_decay": [False, True],
        "maximize": [False, True],
    },
    "NAdam": {
        "lr": [1e-2],
        "betas": [(0.9, 0.999), (0.5, 0.8)],
        "weight_decay": [0.0, 0.1],
        "momentum_decay": [4e-3, 0.5],
        "decoupled_weight_decay": [False, True],
        "maximize": [False, True],
    },
    "Adamax": {
        "lr": [1e-2],
        "betas": [(0.9, 0.999), (0.5, 0.5), (0.0, 0.0)],
        "eps": [1e-8, 1e-1],
        "weight_decay": [0.0, 0.1],
        "maximize": [False, True],
    },
    "Adadelta": {
        "lr": [1.0, 0.1],
        "rho": [0.9, 0.5, 1.0],
        "eps": [1e-6, 1e-2],
        "weight_decay": [0.0, 0.1],
        "maximize": [False, True],
    },
    "ASGD": {
        "lr": [1e-2],
        "lambd": [1e-4, 0.5],
        "alpha": [0.75, 0.0],
        "t0": [1e6, 1, 2.5],
        "weight_decay": [0.0, 0.1],
        "maximize": [False, True],
    },
    "Rprop": {
        "lr": [1e-2, 0.3],
        "etas": [(0.5, 1.2), (0.25, 3.0)],
        "step_sizes": [(1e-6, 50), (0.02, 0.1)],
        "maximize": [False, True],
    },
}
GRIDS["AdamW"] = GRIDS["Adam"] | {"weight_decay": [0.0, 1e-2, 0.3]}


class Shapes(nn.Module):
    """One parameter of each shape, one of them under two names."""

    def __init__(self, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        for name, shape in SHAPES.items():
            value = torch.randn(shape, generator=generator, dtype=F64).to(dtype)
            setattr(self, name, nn.Parameter(value))
        self.again = self.vector


def loss(model, meta, batch):
    """A smooth function of all, of which a batch leaves out one and scales another by zero."""
    total = meta.value * model.again.sin().sum()
    for index, name in enumerate(SHAPES):
        if index != batch % 7:
            factor = 0.0 if index == batch % 4 else 1.0
            total = total + factor * (getattr(model, name) - 0.1 * batch).cos().sum()
    return total


def combinations(name):
    grid = GRIDS[name]
    for values in itertools.product(*grid.values()):
        options = dict(zip(grid, values, strict=True))
        accelerated = options.get("nesterov", False)
        if not accelerated or (options["momentum"] > 0 and options["dampening"] == 0):
            yield options


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", GRIDS)
def test_each_step_equals_torch(name, dtype):
    problem = mt.BilevelProblem(Shapes(dtype), bank.Value(0.3, dtype), loss, loss)
    tolerance = {"rtol": 1e-11, "atol": 1e-13} if dtype == F64 else {"rtol": 2e-5, "atol": 1e-6}
    chosen = list(combinations(name))
    assert len(chosen) >= 16
    # What the options do is the same in both types.
    for options in chosen if dtype == F64 else chosen[::3]:
        model, learner = Shapes(dtype), getattr(inner, name)(**options)
        stepper = getattr(torch.optim, name)(model.parameters(), **options)
        state = learner.init(problem)
        for batch in range(8):
            stepper.zero_grad()
            loss(model, problem.meta, batch).backward()
            with reference.float64_by_default():
                stepper.step()
            state, _ = learner.step(problem, state, problem.meta_parameters(), batch)
            expected = dict(model.named_parameters())
            assert state.parameters.keys() == expected.keys()
            torch.testing.assert_close(
                torch.cat([value.flatten() for value in state.parameters.values()]),
                torch.cat([expected[key].detach().flatten() for key in state.parameters]),
                msg=lambda text, at=(options, batch): f"{at}: {text}",
                **tolerance,
            )


LEARNED = {
    "SGD": {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2},
    "Adam": {"lr": 0.1, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "weight_decay": 0.2},
    "AdamW": {"lr": 0.1, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "weight_decay": 0.2},
    "RMSprop": {"lr": 0.1, "alpha": 0.7, "eps": 0.1, "momentum": 0.5, "weight_decay": 0.2},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.3, "eps": 0.1, "weight_decay": 0.2},
    "RAdam": {"lr": 0.1, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "weight_decay": 0.2},
    "NAdam": {
        "lr": 0.1,
        "beta1": 0.7,
        "beta2": 0.8,
        "eps": 0.1,
        "weight_decay": 0.2,
        "momentum_decay": 0.3,
    },
    "Adamax": {"lr": 0.1, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "weight_decay": 0.2},
    "Adadelta": {"lr": 1.0, "rho": 0.7, "eps": 0.1, "weight_decay": 0.2},
    "ASGD": {"lr": 0.1, "lambd": 0.3, "alpha": 0.6, "weight_decay": 0.2},
}


@pytest.mark.parametrize("flag", ["maximize", "other"])
@pytest.mark.parametrize("name", LEARNED)
def test_each_learned_option_equals_differences_of_torch(name, flag):
    other = {"SGD": "nesterov", "Adam": "amsgrad", "AdamW": "amsgrad", "RMSprop": "centered"}
    other |= dict.fromkeys(("RAdam", "NAdam"), "decoupled_weight_decay")
    flags = {other.get(name, "maximize") if flag == "other" else "maximize": True}
    values = LEARNED[name]
    meta = nn.ParameterDict(
        {n: nn.Parameter(torch.tensor(v, dtype=F64)) for n, v in values.items()}
    )
    meta["value"] = nn.Parameter(torch.tensor(0.3, dtype=F64))
    settings = dict(meta)
    weight = settings.pop("value")
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    learner = getattr(inner, name)(**settings, **flags)
    objective = lambda model, _, batch: loss(model, bank.Value(0.7), 20)  # noqa: E731
    problem = mt.BilevelProblem(
        Shapes(F64), meta, lambda model, meta, batch: loss(model, _Weight(meta), batch), objective
    )
    batches = list(range(7))
    result = hg.Unrolled(7)(problem, learner, learner.init(problem), batches, None)

    def run(at):
        options = {n: v for n, v in at.items() if n not in ("value", "beta1", "beta2")}
        if "beta1" in at:
            options["betas"] = (at["beta1"], at["beta2"])
        model = Shapes(F64)
        stepper = getattr(torch.optim, name)(model.parameters(), **options, **flags)
        for batch in batches:
            stepper.zero_grad()
            loss(model, bank.Value(at["value"]), batch).backward()
            with reference.float64_by_default():
                stepper.step()
        return float(objective(model, None, None).detach())

    present = values | {"value": float(weight.detach())}
    for key, at in present.items():
        slope = (run(present | {key: at + 1e-6}) - run(present | {key: at - 1e-6})) / 2e-6
        assert float(result.gradient[key]) == pytest.approx(slope, rel=2e-5, abs=1e-7), key


class _Weight:
    """What the loss reads of λ."""

    def __init__(self, meta):
        self.value = meta["value"]
