"""The comparison of estimators: figures that are known, rows that say why they are empty."""

import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.cli import main
from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from metatoolkit.hypergradients.listing import all_estimators
from tests import bank
from tests.hypergradients.test_conformance import equal, snapshot


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
    assert table.forward["all"] == 6 and table.hvp["one"] == 1
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


def test_what_does_not_apply_says_why(tmp_path):
    case = bank.learned_rates()
    comparison = compare(case, [EvoGrad(), Unrolled(3)], path=tmp_path / "figure.png")
    assert "no meta-parameter" in comparison.table.note["EvoGrad"]
    assert comparison.table.relative_error["Unrolled"] == 0
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert [t.get_text() for t in comparison.figure.axes[0].get_yticklabels()] == ["Unrolled"]


def test_the_table_is_printed(capsys):
    compare(bank.learned_rates(), [EvoGrad(), Unrolled(1), Unrolled(2)], show=True)
    told = capsys.readouterr().out
    assert "Unrolled 2" in told and "left out: EvoGrad" in told


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
