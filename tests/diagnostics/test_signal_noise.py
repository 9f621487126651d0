"""Signal and noise of a hypergradient: closed forms, estimates without bias, chance that is chance.

The outer loss is linear in θ and one step moves θ by ``RATE * λ``, so that the hypergradient of a
meta batch is ``RATE`` times its validation batch, plus noise of the key where the loss draws any.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.hypergradients import EvoGrad, Unrolled

RATE = 0.5


class Two(nn.Module):
    """Parameters of two sizes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros((), dtype=torch.float64))


def linear_problem(spread=0.0):
    """The hypergradient of a batch ``(a, b)`` is ``RATE * (a, b)``, plus noise on ``a``."""

    def train_loss(model, meta, batch):
        return -(model.a * meta.a).sum() - model.b * meta.b

    def valid_loss(model, meta, batch):
        a, b = batch
        if spread:
            a = a + spread * torch.randn(3, dtype=torch.float64)
        return (model.a * a).sum() + model.b * b

    return mt.BilevelProblem(Two(), Two(), train_loss, valid_loss)


def measure(given, problem=None, **options):
    options = {"show": False, "progress": False, "batches": len(given), **options}
    return mt.signal_to_noise(
        linear_problem() if problem is None else problem,
        mt.inner.SGD(lr=RATE),
        Unrolled(1),
        itertools.repeat(None),
        given,
        **options,
    )


def drawn(count, center=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, generator=generator, dtype=torch.float64) + center
    return [(row[:3], row[3]) for row in rows]


def test_moments_are_those_of_the_samples():
    batches = drawn(8, center=1.0)
    found = measure(batches)
    samples = RATE * np.array([[*a.tolist(), b.item()] for a, b in batches])
    for name, columns in {"a": slice(0, 3), "b": slice(3, 4)}.items():
        own = samples[:, columns]
        pairs = [own[i] @ own[j] for i, j in itertools.permutations(range(8), 2)]
        row = found.parameters[name]
        assert row.signal == pytest.approx(np.mean(pairs), rel=1e-12)
        assert row.noise == pytest.approx(own.var(0, ddof=1).sum(), rel=1e-12)
        assert row.ratio == pytest.approx(row.signal / row.noise, rel=1e-12)
        assert row.steps == pytest.approx(row.noise / row.signal, rel=1e-12)
        assert math.isnan(row.draw_noise)
        shape = found.mean[name].shape
        assert shape == getattr(linear_problem().meta, name).shape == found.deviation[name].shape
        np.testing.assert_allclose(found.mean[name].reshape(-1), own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.deviation[name].reshape(-1), own.std(0, ddof=1))
    pairs = [samples[i] @ samples[j] for i, j in itertools.permutations(range(8), 2)]
    assert found.total.signal == pytest.approx(np.mean(pairs), rel=1e-12)
    assert found.total.noise == pytest.approx(samples.var(0, ddof=1).sum(), rel=1e-12)


def test_chance_is_that_of_all_signs():
    batches = drawn(7, center=0.4)
    found = measure(batches)
    samples = RATE * np.array([[*a.tolist(), b.item()] for a, b in batches])
    agreements, ratios = [], []
    for signs in itertools.product((1, -1), repeat=7):
        flipped = samples * np.array(signs)[:, None]
        agreements.append((np.square(flipped.sum(0)).sum() - np.square(flipped).sum()) / 42)
        ratios.append(agreements[-1] / flipped.var(0, ddof=1).sum())
    at_least = np.mean([one >= found.total.signal - 1e-12 for one in agreements])
    assert found.total.p_value == pytest.approx(at_least)
    assert 0.95 <= np.mean([one <= found.total.chance + 1e-12 for one in ratios]) < 0.99


@pytest.mark.parametrize("center", [0.0, 3.0, 1e3])
@pytest.mark.parametrize("draws", [1, 2])
def test_chance_is_that_of_noise_alone_however_strong_the_signal(center, draws):
    """Of one coordinate the ratio is (t² − 1) / n, with Student's t at 97.5 % of 19 freedoms."""
    found = measure(drawn(20, center), draws=draws).parameters["b"]
    assert found.chance == pytest.approx((2.093**2 - 1) / 20, rel=0.25)
    assert (found.ratio > found.chance) == (found.p_value < 0.05)


def test_complex_meta_parameters_count_as_two_real_ones():
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3

    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(3, dtype=torch.complex128))

    problem = mt.BilevelProblem(
        Two(),
        Complex(),
        lambda model, meta, batch: -(model.a * meta.a.real + 2 * model.a * meta.a.imag).sum(),
        lambda model, meta, batch: (model.a * batch[:3]).sum() + (meta.a.imag * batch[3:]).sum(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(list(rows), problem)
    real, imaginary = RATE * rows[:, :3], 2 * RATE * rows[:, :3] + rows[:, 3:]
    samples = torch.cat([real, imaginary], 1).numpy()
    pairs = [samples[i] @ samples[j] for i, j in itertools.permutations(range(9), 2)]
    assert found.total.signal == pytest.approx(np.mean(pairs), rel=1e-12)
    assert found.total.noise == pytest.approx(samples.var(0, ddof=1).sum(), rel=1e-12)
    mean = torch.complex(real.mean(0), imaginary.mean(0))
    torch.testing.assert_close(found.mean["a"], mean)
    deviation = (real.var(0) + imaginary.var(0)).sqrt()
    torch.testing.assert_close(found.deviation["a"], deviation)


def test_known_signal_and_noise_are_found_without_bias():
    """Expectation (0.3, 0.3, 0.3, 0.3) and unit variance, in units of RATE squared."""
    found = [measure(drawn(6, 0.3, seed)).total for seed in range(300)]
    for name, truth in {"signal": 4 * 0.3**2, "noise": 4.0}.items():
        values = np.array([getattr(one, name) for one in found]) / RATE**2
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - truth) < 3 * error < 0.4 * truth


def test_the_noise_of_draws_is_told_from_that_of_batches():
    """Variance 1 of the data in four coordinates, and ``0.5**2`` of the key in three."""
    problem = linear_problem(spread=0.5)
    found = measure(drawn(400), problem, draws=3)
    assert found.draws == 3
    assert found.total.draw_noise / RATE**2 == pytest.approx(3 * 0.25, rel=0.1)
    assert found.total.noise / RATE**2 == pytest.approx(4 + 3 * 0.25, rel=0.1)
    assert found.parameters["b"].draw_noise == pytest.approx(0, abs=1e-20)
    once = measure(drawn(400), problem, draws=1)
    assert once.total.noise == pytest.approx(found.total.noise, rel=0.1)


def test_chance_is_kept_to():
    """Without a signal, one in twenty shows; with a strong one, all do."""
    shows = [measure(drawn(8, 0.0, seed)).shows for seed in range(200)]
    assert sum(shows) <= 20
    assert all(measure(drawn(8, 1.5, seed)).shows for seed in range(20))


def test_a_random_estimator_is_drawn_twice():
    estimator = EvoGrad(2, 1e-2, 0.05)
    problem = linear_problem()
    before = {name: tensor.clone() for name, tensor in problem.meta.state_dict().items()}
    state = mt.inner.SGD(lr=RATE).init(problem, seed=3)
    found = mt.signal_to_noise(
        problem,
        mt.inner.SGD(lr=RATE),
        estimator,
        itertools.repeat(None),
        iter(drawn(6)),
        state,
        batches=6,
        show=False,
        progress=False,
    )
    assert found.draws == 2 and found.total.draw_noise > 0
    assert all(torch.equal(before[name], one) for name, one in problem.meta.state_dict().items())


def test_many_batches_draw_signs_from_a_seed():
    batches = drawn(30, 0.1)
    found = measure(batches)
    assert found.total == measure(batches).total
    other = measure(batches, seed=1).total
    assert other.p_value != found.total.p_value
    assert other.p_value == pytest.approx(found.total.p_value, abs=0.03)


def test_no_noise_and_no_signal_at_all():
    same = [(torch.ones(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64))] * 6
    found = measure(same)
    assert found.total.ratio == math.inf and found.total.steps == 0
    assert math.isnan(found.parameters["b"].ratio) and found.parameters["b"].steps == math.inf
    assert found.parameters["b"].p_value == 1
    assert "no noise" in str(found)
    assert found.total.chance < 1
    nothing = [(torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64))] * 6
    assert "Every hypergradient is zero" in str(measure(nothing))


def test_too_few_batches_are_refused_by_name():
    with pytest.raises(DataError, match=r"valid_batches ends in meta batch 4 of 20: 20 batches"):
        measure(drawn(3), batches=20)
    with pytest.raises(DataError, match=r"train_batches ends in meta batch 2 of 3: 6 batches"):
        mt.signal_to_noise(
            linear_problem(), mt.inner.SGD(lr=RATE), Unrolled(2), [None] * 3, drawn(3), batches=3
        )
    with pytest.raises(ConfigurationError, match="batches=1, draws=1"):
        measure(drawn(1))
    with pytest.raises(ConfigurationError, match="draws=0"):
        measure(drawn(3), draws=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batches": 2.5}, r"batches=2\.5, draws=1"),
        ({"batches": "20"}, r"batches='20'"),
        ({"batches": True}, "batches=True"),
        ({"draws": 1.5}, r"draws=1\.5"),
        ({"seed": "a"}, "seed='a'"),
        ({"state": 3}, "state is of type int; give an inner state, such as trainer.state"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_named(options, said):
    with pytest.raises(ConfigurationError, match=said):
        measure(drawn(3), **options)


def test_what_makes_no_batches_is_named():
    with pytest.raises(ConfigurationError, match="valid_batches is None; give a list of batches"):
        mt.signal_to_noise(linear_problem(), mt.inner.SGD(RATE), Unrolled(1), [None] * 20, None)
    with pytest.raises(ConfigurationError, match="train_batches is 3; give a list of batches"):
        mt.signal_to_noise(linear_problem(), mt.inner.SGD(RATE), Unrolled(1), 3, drawn(3))


def test_what_is_shown(capsys, tmp_path):
    found = measure(drawn(10, 1.0), show=True, path=tmp_path / "signal.png")
    printed = capsys.readouterr().out
    assert "over 10 meta batches" in printed and "λ gets a signal (p = 0.002" in printed
    assert (tmp_path / "signal.png").stat().st_size > 1000
    assert list(found.table.index) == ["in all", "a", "b"]
    assert found.table.signal["in all"] == found.total.signal
    (axes,) = found.figure.axes
    assert next(label.get_text() for label in axes.get_yticklabels()) == "in all"
    lengths = {bar.get_width() for bar in axes.patches}
    assert {row.ratio for row in (found.total, *found.parameters.values())} == lengths
    nothing = str(measure(drawn(4)))
    assert "No signal is told from chance" in nothing
