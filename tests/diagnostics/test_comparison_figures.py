"""The figures of a comparison of estimators, each by hand."""

import inspect
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.diagnostics.comparison import EstimatorComparison, name_estimators
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.errors import ConfigurationError, DataError
from metatoolkit.hypergradients import GMRES, EvoGrad, Implicit, Unrolled
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank
from tests.diagnostics.test_comparison import compare


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def errors(estimates, right):
    """Mean cosine and relative error of estimates."""
    gaps = [float((one - right).norm() / right.norm()) for one in estimates]
    cosines = [float(one @ right / (one.norm() * right.norm())) for one in estimates]
    return [sum(cosines) / len(cosines), sum(gaps) / len(gaps)]


@pytest.mark.parametrize("draws", [1, 4])
def test_errors_of_calls_and_of_their_mean_by_hand(draws):
    case, estimator = bank.small_net(), EvoGrad(2, 0.1, 0.5)
    state = case.inner.init(case.problem, seed=9)
    right = {name: 30.0 * torch.ones_like(p) for name, p in case.problem.meta_parameters().items()}
    given = {"random": estimator, "sure": Unrolled(2)}
    table = compare(case, given, 2, reference=right, draws=draws, state=state).table
    vector = torch.full((14,), 30.0, dtype=torch.float64)
    keys = [state.key, *(fold_in(state.key, draw) for draw in range(1, draws))]
    calls = [
        flat(case.call(EvoGrad(2, 0.1, 0.5), mt.InnerState(**{**vars(state), "key": key})))
        for key in keys
    ]
    once = [flat(case.call(Unrolled(2), state))]
    columns = ["cosine", "relative_error"]
    for name, vectors in (("random", calls), ("sure", once)):
        row = table.loc[name]
        assert row[columns].tolist() == pytest.approx(errors(vectors, vector), rel=1e-10)
        mean = errors([torch.stack(vectors).mean(0)], vector)
        found = row[[f"mean_{column}" for column in columns]].tolist()
        assert found == pytest.approx(mean, rel=1e-10)


def test_the_reference_is_the_derivative_through_all_batches_or_what_is_given():
    case = bank.small_net()
    state = case.inner.init(case.problem)
    table = compare(case, {"one": Unrolled(1)}, 3).table
    exact = flat(case.call(Unrolled(3), state))
    expected = errors([flat(case.call(Unrolled(1), state))], exact)
    assert table.loc["one"][["cosine", "relative_error"]].tolist() == pytest.approx(expected)
    # Another estimator takes as many of the first batches as its horizon has.
    table = compare(case, {"one": Unrolled(1)}, 3, reference=Unrolled(2)).table
    expected = errors([flat(case.call(Unrolled(1), state))], flat(case.call(Unrolled(2), state)))
    assert table.loc["one"][["cosine", "relative_error"]].tolist() == pytest.approx(expected)


def test_operations_and_memory_are_those_of_a_call():
    case = bank.small_net()
    state = case.inner.init(case.problem)
    table = compare(case, {"one": Unrolled(1), "all": Unrolled(3)}, 3, state=state).table

    def forward():
        meta = case.problem.meta_parameters()
        with torch.no_grad():
            case.problem.evaluate_train(
                state.parameters, meta, state.buffers, case.train_batches[0], state.key
            )

    for name, estimator in (("one", Unrolled(1)), ("all", Unrolled(3))):
        flops = count_flops(lambda estimator=estimator: case.call(estimator, state))
        assert table.flops[name] == pytest.approx(flops / count_flops(forward), rel=1e-12)
        memory = peak_memory(lambda estimator=estimator: case.call(estimator, state))
        assert table.peak_bytes[name] == pytest.approx(memory, rel=0.05)
    assert table.note.isna().all() and not (table.seconds == 0).any()


def test_columns_and_defaults():
    table = compare(bank.ridge(), {"Implicit": Implicit(GMRES(2, 1e-12))}, 1).table
    assert list(table.columns) == [
        *("cosine", "relative_error", "mean_cosine", "mean_relative_error"),
        *("forward", "backward", "jvp", "hvp", "residual", "iterations"),
        *("flops", "peak_bytes", "seconds", "note"),
    ]
    assert table.iterations["Implicit"] >= 1 and table.residual["Implicit"] > 0
    given = inspect.signature(mt.compare_estimators).parameters
    assert {n: p.default for n, p in given.items() if p.default is not p.empty} == {
        **dict.fromkeys(("state", "reference", "path")),
        **{"draws": 20, "repeats": 3, "show": True, "progress": True},
    }


def test_names_by_classes():
    estimators = [Unrolled(1), EvoGrad(), Unrolled(2), Unrolled(3), EvoGrad()]
    named = name_estimators(estimators)
    assert list(named) == ["Unrolled", "EvoGrad", "Unrolled 2", "Unrolled 3", "EvoGrad 2"]
    assert list(named.values()) == estimators
    assert name_estimators([]) == {}


@pytest.mark.parametrize("options", [{"draws": 0}, {"repeats": 0}, {"steps": 1}])
def test_each_number_below_its_least(options):
    with pytest.raises(ConfigurationError, match="1 estimators with horizons up to 2"):
        compare(bank.ridge(), [Unrolled(2)], **{"steps": 2, **options})
    compare(bank.ridge(), [Unrolled(2)], steps=2, draws=1, repeats=1)


def test_a_bar_where_progress_is_asked_for(capsys):
    for progress in (True, False):
        compare(bank.ridge(), [Unrolled(1)], 1, progress=progress)
        assert ("estimators" in capsys.readouterr().err) == progress


def test_each_call_that_is_timed_is_one(monkeypatch):
    calls = []

    class Counted(Unrolled):
        def estimate(self, *arguments):
            calls.append(1)
            return super().estimate(*arguments)

    seconds = iter([0.0, 5.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(
        "metatoolkit.diagnostics.comparison.time.perf_counter", lambda: next(seconds)
    )
    table = compare(bank.ridge(), {"mine": Counted(1)}, 1, repeats=3).table
    assert table.seconds["mine"] == 2.0
    few = len(calls)
    seconds = iter(map(float, range(100)))
    compare(bank.ridge(), {"mine": Counted(1)}, 1, repeats=8)
    assert len(calls) - few == few + 5


def test_the_gradient_of_a_reference_must_fit():
    case = bank.small_net()
    right = {name: torch.ones_like(p) for name, p in case.problem.meta_parameters().items()}
    name = next(iter(right))
    with pytest.raises(DataError, match="reference has the shapes"):
        compare(case, [Unrolled()], reference=right | {name: right[name].flatten()[:-1]})
    with pytest.raises(DataError, match="reference has the shapes"):
        compare(case, [Unrolled()], reference={n: g for n, g in right.items() if n != name})
    # By name, in whatever order.
    turned = dict(reversed(right.items()))
    for number, gradient in enumerate(turned.values()):
        gradient.mul_(number + 1)
    found = [
        compare(case, [Unrolled()], 1, reference=one).table.relative_error["Unrolled"]
        for one in (turned, right)
    ]
    assert found[0] == found[1]


def test_the_text_of_a_comparison():
    rows = {"first": {"cosine": 0.123456, "forward": 12, "residual": None}, "b": {"note": "no"}}
    head, *lines = str(EstimatorComparison(rows)).splitlines()
    names = list(EstimatorComparison(rows).table.columns)
    assert head.split() == names
    assert [line.split() for line in lines] == [["first", "0.123", "12"], ["b", "no"]]
    # Numbers stand below the ends of their headings.
    for heading, value in (("cosine", "0.123"), ("forward", "12")):
        end = head.index(f" {heading} ") + 1 + len(heading)
        assert lines[0][:end].endswith(f" {value}")
    assert len({len(line) for line in (head, *lines)}) == 1


def test_tiny_gradients_have_a_cosine_too():
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value([0.1, 0.2]),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: 1e-12 * meta.value.sum(),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    right = {"value": torch.tensor([3e-12, 0.0], dtype=torch.float64)}
    row = compare(case, {"one": Unrolled(1)}, 1, reference=right).table.loc["one"]
    assert row.cosine == pytest.approx(math.sqrt(0.5), rel=1e-9)
    assert row.relative_error == pytest.approx(math.sqrt(5) / 3, rel=1e-9)
    check = mt.check_hypergradient(
        problem, case.inner, EvoGrad(), [None], None, reference=Unrolled(1)
    )
    assert check.cosine == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("given", [mt.inner.SGD, None, "SGD"])
def test_what_is_no_inner_learner(given):
    case = bank.ridge()
    case.inner = given
    with pytest.raises(ConfigurationError, match="inner is "):
        compare(case, [Unrolled(1)], 1)
