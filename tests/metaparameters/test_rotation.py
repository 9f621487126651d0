from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, ShapeError
from metatoolkit.hypergradients import EvoGrad, FiniteDifference, ForwardMode, Unrolled
from metatoolkit.metaparameters import Rotation
from metatoolkit.tasks import rotate


def test_it_has_one_parameter_that_starts_at_zero() -> None:
    rotation = Rotation()
    ((name, angle),) = rotation.named_parameters()
    assert (name, angle.shape, angle.item()) == ("angle", (), 0.0)
    images = torch.rand(2, 1, 9, 9)
    torch.testing.assert_close(rotation(images), images, atol=1e-5, rtol=0)


def test_it_rotates_by_its_angle_onto_its_fill() -> None:
    rotation = Rotation(0.4, fill=(-0.42, 1.5))
    images = torch.rand(2, 2, 9, 9)
    expected = rotate(images, float(rotation.angle.detach()), fill=(-0.42, 1.5))
    torch.testing.assert_close(rotation(images), expected, atol=1e-6, rtol=0)
    assert rotation.degrees == pytest.approx(math.degrees(0.4), rel=1e-6)
    assert repr(rotation).startswith("Rotation(degrees=22.9, fill=[-0.41")
    torch.testing.assert_close(Rotation(0.4, fill=1)(images), rotate(images, 0.4, fill=(1.0, 1.0)))


def test_it_follows_images_of_another_type() -> None:
    rotation = Rotation(0.4, fill=-0.5)
    images = torch.rand(1, 1, 9, 9, dtype=torch.float64)
    assert rotation(images).dtype == torch.float64
    rotation.double()
    assert rotation.fill.dtype == torch.float64
    assert list(rotation.state_dict()) == ["angle"]


class Problem:
    """A small network in float64 that is trained on images rotated by the angle."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw() -> tuple[torch.Tensor, torch.Tensor]:
            images = torch.rand(6, 1, 7, 7, generator=generator, dtype=torch.float64)
            return images, torch.randint(3, (6,), generator=generator)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(75, 3)
            ).double()

        def train_loss(model: nn.Module, meta: nn.Module, batch: object) -> torch.Tensor:
            images, labels = batch  # type: ignore[misc]
            return mt.losses.cross_entropy(model, meta, (meta(images), labels))

        meta = Rotation(0.3, fill=-0.4).double()
        self.problem = mt.BilevelProblem(model, meta, train_loss, mt.losses.cross_entropy)
        self.train, self.valid = draw(), draw()


@pytest.mark.parametrize("inner", [mt.inner.SGD(lr=0.1), mt.inner.Adam(lr=0.01)])
@pytest.mark.parametrize(
    "estimator", [Unrolled(1), Unrolled(3), ForwardMode(2), EvoGrad(2, 0.01, 0.05)]
)
def test_hypergradients_in_the_angle(estimator, inner) -> None:  # type: ignore[no-untyped-def]
    case = Problem()
    batches = [case.train] * estimator.horizon
    # The first step of Adam is that of the signs, which hardly depend on the angle.
    problem, state = case.problem, inner.init(case.problem)
    state, _ = inner.step(problem, state, problem.meta_parameters(), case.valid)
    checked = mt.check_hypergradient(problem, inner, estimator, batches, case.valid, state)
    assert checked.relative_error < 1e-5


def test_finite_differences_take_the_angle_too() -> None:
    case = Problem()
    inner = mt.inner.SGD(lr=0.1)
    state = inner.init(case.problem)
    exact, other = (
        float(e(case.problem, inner, state, [case.train], case.valid).gradient["angle"])
        for e in (Unrolled(1), FiniteDifference())
    )
    assert other == pytest.approx(exact, rel=1e-3)


def test_errors_tell_what_is_accepted() -> None:
    for arguments in ((math.nan,), (0.0, math.inf), (0.0, ()), (0.0, (0.5, math.nan))):
        with pytest.raises(ConfigurationError, match="a finite number of radians"):
            Rotation(*arguments)
    with pytest.raises(ShapeError, match=r"images have shape \(1, 8, 8\)"):
        Rotation()(torch.zeros(1, 8, 8))
    with pytest.raises(ShapeError, match="3 channels"):
        Rotation(fill=(0.0, 1.0))(torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match="uint8"):
        Rotation()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
