"""The comparison of estimators: figures that are known, rows that say why they are empty."""

import dataclasses
import math
import sys

import pytest
import torch

import metatoolkit as mt
from metatoolkit.cli import main
from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    MissingDependencyError,
    NonFiniteError,
    UnsupportedError,
)
from metatoolkit.hypergradients import (
    GMRES,
    SOBA,
    EvoGrad,
    EvolutionStrategies,
    Implicit,
    Penalty,
    Unrolled,
)
from metatoolkit.hypergradients.listing import all_estimators
from metatoolkit.testing import bank
from metatoolkit.testing.snapshots import equal, snapshot
from tests.drawings import legend, points
from tests.hypergradients.test_differentiating_losses import build, by_autograd, by_hand


def compare(case, estimators, steps=3, **options):
    options = {"show": False, "progress": False, "repeats": 1, **options}
    batches = case.batches(steps)
    return mt.compare_estimators(
        case.problem, case.inner, estimators, batches, case.valid_batch, **options
    )


def test_figures_that_are_known():
    table = compare(bank.small_net(), {"all": Unrolled(3), "one": Unrolled(1)}).table
    assert list(table.index) == ["all", "one"]
    assert table.cosine["all"] == pytest.approx(1) and table.relative_error["all"] == 0
    assert table.cosine["one"] < 1 and table.relative_error["one"] > 1e-3
    assert table.forward["all"] == 4 and table.hvp["one"] == 1
    assert 5 < table.flops["one"] < 11 < table.flops["all"] < 36
    assert (table.peak_bytes > 0).all() and (table.seconds > 0).all()


def test_the_reference_may_be_a_closed_form():
    case = bank.illustration(x=1 / 1.4, penalty=0.4)
    truth = {"value": torch.tensor(bank.illustration_hypergradient(0.4), dtype=torch.float64)}
    table = compare(case, [Unrolled(200)], 200, reference=truth).table
    assert table.relative_error["Unrolled"] < 1e-8
    assert math.isnan(table.flops["Unrolled"])
    with pytest.raises(DataError, match="reference has the shapes"):
        compare(case, [Unrolled()], reference={"value": torch.ones(2)})


def test_draws_of_a_random_estimator_are_averaged():
    estimator = EvoGrad(2, 1e-3, 0.05, noise="gaussian", rescale=0.05)
    case = bank.ridge()
    case.inner = mt.inner.SGD(lr=0.05)
    table = compare(case, [estimator], 1, draws=300).table
    row = table.loc["EvoGrad"]
    assert row.relative_error > 0.5
    assert row.mean_relative_error < 0.4 * row.relative_error
    assert row.mean_cosine > 0.8 > row.cosine


def test_what_does_not_apply_says_why(tmp_path, drawn):
    case = bank.learned_rates()
    comparison = compare(case, [EvoGrad(), Unrolled(3)], path=tmp_path / "figure.png")
    assert drawn["figure.png"] is comparison.figure
    assert "no meta-parameter" in comparison.table.note["EvoGrad"]
    assert comparison.table.relative_error["Unrolled"] == 0
    seconds, flops, memory = drawn.axes("figure.png", tmp_path)
    row = comparison.table.loc["Unrolled"]
    # Errors of zero are drawn at the rounding of float64.
    assert points(seconds) == [pytest.approx((1e3 * row.seconds, 1e-16))]
    assert points(flops) == [pytest.approx((row.flops, 1e-16))]
    assert points(memory) == [pytest.approx((row.peak_bytes / 2**20, 1e-16))]
    assert legend(comparison.figure) == ["Unrolled"]


def test_the_figure_shows_the_table(tmp_path, drawn):
    estimators = {"all": Unrolled(3), "one": Unrolled(1), "random": EvoGrad(2, 0.1, 0.5)}
    table = compare(bank.small_net(), estimators, draws=3, path=tmp_path / "figure.png").table
    _, flops, _ = drawn.axes("figure.png", tmp_path)
    assert legend(drawn["figure.png"]) == list(estimators)
    expected = list(zip(table.flops, table.relative_error, strict=True))
    assert points(flops)[1:] == [pytest.approx(one) for one in expected[1:]]
    means = [float(line.get_ydata()[0]) for line in flops.lines if line.get_marker() == "_"]
    assert means == pytest.approx([table.mean_relative_error["random"]])


def test_the_table_is_printed(capsys):
    compare(bank.learned_rates(), [EvoGrad(), Unrolled(1), Unrolled(2)], show=True)
    told = capsys.readouterr().out
    assert "Unrolled 2" in told and "left out: EvoGrad" in told


def test_a_comparison_needs_neither_pandas_nor_matplotlib(capsys, monkeypatch, tmp_path):
    for module in ("pandas", "matplotlib", "matplotlib.figure", "rich"):
        monkeypatch.setitem(sys.modules, module, None)
    found = compare(bank.ridge(), [Unrolled(1), EvoGrad()], 1, show=True, draws=2)
    assert "Unrolled" in capsys.readouterr().out and "EvoGrad" in str(found)
    assert found.rows["Unrolled"]["relative_error"] == 0
    with pytest.raises(MissingDependencyError, match=r"metatoolkit\[records\]"):
        found.table  # noqa: B018
    with pytest.raises(MissingDependencyError, match=r"metatoolkit\[plots\]"):
        found.figure  # noqa: B018
    # Nothing is computed for a figure that cannot be drawn.
    with pytest.raises(MissingDependencyError, match=r"metatoolkit\[plots\]"):
        compare(bank.ridge(), [Failing(KeyboardInterrupt())], 1, path=tmp_path / "figure.png")


def test_everything_stays_as_it_was():
    case = bank.small_net()
    state = case.state
    estimators = [EvoGrad(), Unrolled(2)]
    before = snapshot(case.problem, state)
    compare(case, estimators, state=state)
    after = snapshot(case.problem, state)
    assert all(equal(before[part], after[part]) for part in before)


def test_arguments_that_do_not_fit():
    with pytest.raises(ConfigurationError, match="0 estimators"):
        compare(bank.ridge(), [])
    with pytest.raises(ConfigurationError, match="horizons up to 5, 3 train_batches"):
        compare(bank.ridge(), [Unrolled(5)])
    with pytest.raises(ConfigurationError, match="draws=0"):
        compare(bank.ridge(), [Unrolled(1)], draws=0)


def test_all_estimators_are_listed(capsys):
    assert main(["estimators"]) == 0
    told = capsys.readouterr().out
    for name, estimator in all_estimators().items():
        assert name in told and estimator.traits.kind in told


class Failing(Unrolled):
    """Fails in one way or another."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def estimate(self, *arguments):
        raise self.error


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (RuntimeError("no double backward"), "RuntimeError: no double backward"),
        (NotImplementedError("no jvp"), "NotImplementedError: no jvp"),
        (KeyError("name"), "KeyError: 'name'"),
        (NonFiniteError("the loss is NaN"), "the loss is NaN"),
    ],
)
def test_no_error_of_one_estimator_takes_the_table_away(error, note, capsys):
    table = compare(bank.ridge(), {"bad": Failing(error), "good": Unrolled(1)}, 1, show=True).table
    assert table.note["bad"] == note and math.isnan(table.cosine["bad"])
    assert table.relative_error["good"] == 0
    assert f"left out: bad: {note}" in capsys.readouterr().out


def test_a_table_of_nothing_but_reasons(tmp_path):
    case = bank.ridge()
    estimators = [Failing(RuntimeError("broken"))]
    truth = {"value": bank.ridge_hypergradient(case)}
    table = compare(case, estimators, 1, reference=truth, path=tmp_path / "figure.png").table
    assert table.note["Failing"] == "RuntimeError: broken"


def test_an_interruption_is_none_of_its_errors():
    with pytest.raises(KeyboardInterrupt):
        compare(bank.ridge(), [Failing(KeyboardInterrupt())], 1)


class Unwatchable(Unrolled):
    """Does not run under a dispatch mode."""

    def estimate(self, *arguments):
        from torch.utils._python_dispatch import _get_current_dispatch_mode

        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("not under a mode")
        return super().estimate(*arguments)


def test_what_cannot_be_counted_is_compared_all_the_same(capsys):
    table = compare(bank.ridge(), [Unwatchable(1)], 1, show=True).table
    assert table.relative_error["Unwatchable"] == 0 and math.isnan(table.flops["Unwatchable"])
    assert "cannot be counted: RuntimeError: not under a mode" in table.note["Unwatchable"]
    assert "cannot be counted" in capsys.readouterr().out


def test_a_reference_that_does_not_work_says_what_to_do():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g

    def loss(model, meta, batch):
        return (Once.apply(model.value) * meta.value.exp()).sum()

    case = bank.ridge()
    problem = mt.BilevelProblem(case.problem.model, case.problem.meta, loss, loss)
    case = dataclasses.replace(case, problem=problem)
    with pytest.raises((RuntimeError, UnsupportedError)) as caught:
        compare(case, [EvoGrad()], 1)
    assert any("give another as `reference`" in note for note in caught.value.__notes__)
    table = compare(case, [EvoGrad()], 1, reference=EvoGrad(), draws=1).table
    assert table.relative_error["EvoGrad"] == 0


@pytest.mark.parametrize("options", [{"estimators": [Unrolled]}, {"reference": Unrolled}])
def test_a_class_in_the_place_of_an_estimator(options):
    arguments = {"estimators": {"mine": Unrolled(1)}, **options}
    with pytest.raises(ConfigurationError, match=r"is the class Unrolled; pass an instance"):
        compare(bank.ridge(), steps=1, **arguments)
    with pytest.raises(ConfigurationError, match="estimators: 'mine' is 'Unrolled'"):
        compare(bank.ridge(), {"mine": "Unrolled"}, 1)
    with pytest.raises(ConfigurationError, match=r"^reference is 'OneStep'"):
        compare(bank.ridge(), [Unrolled(1)], 1, reference="OneStep")


def test_losses_that_differentiate_inside_themselves():
    estimators = [EvoGrad(2, 0.1, 0.5), EvolutionStrategies(1, 2, 0.01), Unrolled(1)]
    table = compare(build(by_autograd), estimators, 1, draws=2).table
    assert table.note.isna().all() and (table.relative_error["Unrolled"] == 0)
    other = compare(build(by_hand), estimators, 1, draws=2).table
    for name in table.index:
        assert table.cosine[name] == pytest.approx(other.cosine[name], rel=1e-6)


def test_nothing_that_an_estimator_carries_has_a_say():
    case = bank.ridge()
    case.inner = mt.inner.SGD(lr=0.05)
    used = {
        "SOBA": SOBA(0.3),
        "Implicit": Implicit(GMRES(2, 1e-12), warm_start=True),
        "Penalty": Penalty(3.0),
    }
    fresh = {name: compare(case, {name: one}, 1).table.loc[name] for name, one in used.items()}
    for estimator in used.values():
        for _ in range(3):
            case.call(estimator)
    carried = {name: one.state_dict() for name, one in used.items()}
    table = compare(case, used, 1).table
    for name, row in fresh.items():
        assert table.cosine[name] == row.cosine and table.relative_error[name] == row.relative_error
        assert used[name].state_dict().keys() == carried[name].keys() != set()
