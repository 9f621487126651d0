"""Families of functions as tasks, and learning across them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError, ShapeError, UnknownNameError
from metatoolkit.tasks import FunctionTasks
from metatoolkit.tasks.function_tasks import mixed_cosines, shifted_alpine


def make(family: Any = "sinusoid", tasks: int = 4, **options: Any) -> FunctionTasks:
    return FunctionTasks(family, **{"shots": 5, "queries": 7, "tasks": tasks, **options})


def both(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets of support and query, in float64 of shape (tasks, examples)."""
    inputs, targets = (torch.cat(parts, dim=1)[..., 0] for parts in zip(*batch, strict=True))
    return inputs.double(), targets.double()


def test_sinusoids_have_the_amplitudes_and_phases_of_the_paper() -> None:
    inputs, targets = both(next(make(tasks=2000)))
    basis = torch.stack((inputs.sin(), inputs.cos()), dim=-1)
    # a sin(x − p) = a cos p · sin x − a sin p · cos x, solved from the examples of each task.
    solved = torch.linalg.lstsq(basis, targets[..., None]).solution
    torch.testing.assert_close((basis @ solved)[..., 0], targets, atol=1e-5, rtol=0)
    amplitude, phase = solved.norm(dim=1)[:, 0], torch.atan2(-solved[:, 1, 0], solved[:, 0, 0])
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi)):
        width = high - low
        assert low - 1e-4 <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high + 1e-4
        # The standard error of the mean of 2,000 uniform values is 0.0065 of the width.
        assert abs(values.mean() - (low + high) / 2) < 0.03 * width
    assert abs(torch.corrcoef(torch.stack((amplitude, phase)))[0, 1]) < 0.1
    assert -5 <= inputs.min() < -4.95 and 4.95 < inputs.max() <= 5


def test_lines_and_sinusoids_are_drawn_equally_often() -> None:
    inputs, targets = both(next(make("sinusoid_or_line", tasks=1000)))
    basis = torch.stack((inputs, torch.ones_like(inputs)), dim=-1)
    solved = torch.linalg.lstsq(basis, targets[..., None]).solution
    lines = ((basis @ solved)[..., 0] - targets).abs().amax(dim=1) < 1e-4
    assert abs(int(lines.sum()) - 500) < 80
    assert 2.9 < solved[lines].abs().max() <= 3.001


def test_alpine_functions_and_mixtures_of_cosines_are_those_of_their_formulas() -> None:
    place = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    plain = shifted_alpine(torch.zeros(2, dtype=torch.float64))(place)
    assert plain.item() == pytest.approx(
        abs(math.sin(1 + math.pi) + 0.1) + abs(2 * math.sin(2 + math.pi) + 0.2)
    )
    assert plain.item() == pytest.approx(2.36007, abs=1e-5)
    # Each shift acts on its own input.
    shifted = shifted_alpine(torch.tensor([0.0, 0.5], dtype=torch.float64))(place)
    second = abs(2 * math.sin(2.5 + math.pi) + 0.2) - abs(2 * math.sin(2 + math.pi) + 0.2)
    assert (shifted - plain).item() == pytest.approx(second)
    mixture = mixed_cosines(1.0, 0.0, 4.0)
    at = torch.tensor([[0.5, 0.25], [0.0, 0.0]], dtype=torch.float64)
    assert mixture(at).flatten().tolist() == pytest.approx([-0.3125, -2.0], abs=1e-12)


@pytest.mark.parametrize(("family", "end"), [("alpine", 10.0), ("cosine_mixture", 1.0)])
def test_families_of_two_inputs_are_drawn_from_their_own_intervals(family: str, end: float) -> None:
    (inputs, targets), _ = next(make(family, tasks=400))
    assert inputs.shape == (400, 5, 2) and targets.shape == (400, 5, 1)
    assert 0.99 * end < inputs.max() <= end and -end <= inputs.min() < -0.99 * end
    assert len(targets.flatten().unique()) == 2000
    scaled = make(family, tasks=400, standardize=True)
    (normal, units), _ = next(scaled)
    torch.testing.assert_close(normal, inputs * math.sqrt(3) / end)
    mean, deviation = scaled.scale or (0.0, 0.0)
    torch.testing.assert_close(units, (targets - mean) / deviation)
    # Of 2,000 targets in 400 functions.
    assert abs(float(units.mean())) < 0.15 and abs(float(units.std()) - 1) < 0.15
    assert make(family, seed=7, standardize=True).scale == scaled.scale
    assert make(family).scale is None


def test_task_n_depends_on_the_seed_and_on_n_alone_and_a_place_is_found_again() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches = make(seed=4)
    first = next(batches)
    assert torch.equal(first[0][0][2], make(seed=4).task(2)[0][0])
    place = batches.state_dict()
    expected = next(batches)
    other = make(seed=0)
    other.load_state_dict(place)
    for one, two in zip(expected, next(other), strict=True):
        assert all(map(torch.equal, one, two))
    assert not torch.equal(first[0][0], next(make(seed=5))[0][0])
    assert torch.equal(before, torch.get_rng_state())
    for wrong in (make("sinusoid_or_line"), make(interval=(0, 1)), make(shots=4)):
        with pytest.raises(CheckpointError, match="the stored tasks have"):
            wrong.load_state_dict(place)


def test_a_family_of_ones_own_is_drawn_from() -> None:
    def slopes(generator: torch.Generator) -> Any:
        slope = torch.randn(1, generator=generator)
        return lambda inputs: slope * inputs

    inputs, targets = both(next(make(slopes, interval=(1.0, 2.0))))
    ratios = targets / inputs
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios))
    assert len(ratios[:, 0].unique()) == 4
    assert 1 <= inputs.min() and inputs.max() <= 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": 0}, ConfigurationError, "tasks is 0"),
        ({"shots": 0}, ConfigurationError, "shots is 0"),
        ({"queries": -1}, ConfigurationError, "queries is -1"),
        ({"inputs": 0}, ConfigurationError, "inputs is 0"),
        ({"interval": (1, 1)}, ConfigurationError, "interval is"),
        ({"interval": (0, math.inf)}, ConfigurationError, "interval is"),
        ({"family": "sinusoids"}, UnknownNameError, "Did you mean 'sinusoid'"),
    ],
)
def test_wrong_arguments_are_answered(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_a_batch_holds_tasks_at_least_one_and_alike() -> None:
    def growing(generator: torch.Generator) -> Any:
        width = 1 + int(torch.randint(2, (), generator=generator))
        return lambda inputs: inputs.expand(-1, width)

    with pytest.raises(ConfigurationError, match="count is 0"):
        make().batch(0, 0)
    with pytest.raises(ShapeError, match=r"task \d has tensors of shapes .* and task 0 "):
        next(make(growing, tasks=9))


def squared_error(model: Any, meta: Any, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def trainer() -> mt.MetaTrainer:
    torch.manual_seed(0)
    model = mt.networks.MLP(inputs=1, hidden=(8,), classes=1)
    meta = mt.metaparameters.Initialization(model)
    problem = mt.BilevelProblem(
        model, meta, squared_error, squared_error, initial=type(meta).values
    )
    optimizer = torch.optim.Adam(meta.parameters(), lr=1e-2)
    estimator = mt.hypergradients.FirstOrder(2)
    return mt.MetaTrainer(problem, mt.inner.SGD(lr=0.01), estimator, optimizer, tasks="vmap")


def test_a_training_across_tasks_resumes_bitwise(tmp_path: Path) -> None:
    whole, half, rest = (trainer() for _ in range(3))
    whole.fit(make(seed=1), steps=6, progress=False)
    file = tmp_path / "half.pt"
    half.fit(make(seed=1), steps=3, checkpoint=file, progress=False)
    rest.fit(make(seed=1), steps=6, checkpoint=file, resume=True, progress=False)
    for one, two in zip(
        whole.problem.meta.parameters(), rest.problem.meta.parameters(), strict=True
    ):
        assert torch.equal(one, two)
