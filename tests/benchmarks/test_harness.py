"""The harness of the benchmarks: measuring, records, tables and figures, on a tiny problem."""

import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from benchmarks.contenders import by_hand
from benchmarks.contenders.ours import ours
from benchmarks.harness import command, experiment, measure, registry
from benchmarks.harness.declared import Benchmark, Case, Contender, Setup
from benchmarks.harness.figures import draw
from benchmarks.harness.measure import FORWARD
from benchmarks.harness.table import frame_of, table
from metatoolkit.hypergradients import EvoGrad, Unrolled
from tests.drawings import legend, lines, points


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # The number of threads is the whole process's.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    # The heap of a whole test session takes long to look through.
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)
    monkeypatch.setattr(measure.gc, "freeze", lambda: None)


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(6))


def weighted(model, meta, batch):
    return (meta.logits.sigmoid() * (model(batch[0]) - batch[1]).square().squeeze(1)).mean()


def plain(model, meta, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def tiny(steps=3):
    torch.manual_seed(0)
    problem = mt.BilevelProblem(nn.Linear(4, 1), Weights(), weighted, plain)
    batch = torch.randn(6, 4), torch.randn(6, 1)
    return Setup(problem, [([batch] * steps, batch)], lr=0.1, momentum=0.5)


def failing(setup):
    raise RuntimeError("it does not work\nin many lines")


CONTENDERS = {
    "Unrolled": ours(Unrolled(3)),
    "by hand": by_hand.loop_by_hand(),
    "EvoGrad": ours(EvoGrad(2, 1e-3, 0.05, rescale=0.1)),
    "absent": Contender(failing, "a_library_that_is_not_there"),
    "broken": Contender(failing),
}
CASES = {
    "T = 3": Case(tiny, CONTENDERS, reference="by hand", rounds=2, size=3),
    "long": Case(tiny, {"Unrolled": ours(Unrolled(3))}, rounds=1, quick=False, counted=False),
}


def benchmark(figure="ratios", **options):
    about = "What is *measured*."
    return Benchmark("tiny", "Tiny problems", about, CASES, figure, axis="T", **options)


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """Make the benchmark of this file the only one, measured in this process."""

    def known(one):
        monkeypatch.setattr(registry, "benchmarks", lambda: {"tiny": one})
        monkeypatch.setattr(measure, "in_own_process", measure.watched)
        monkeypatch.setattr(command, "run_jobs", lambda jobs, _: [experiment_job(j) for j in jobs])
        monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("METATOOLKIT_MONGOD", "")
        return one

    return known


def experiment_job(job):
    from metatoolkit.experiments.jobs import run_job

    return run_job(job)


def test_each_contender_is_measured_or_says_why_not(listed):
    one = listed(benchmark())
    rows = measure.measure("tiny", "T = 3", one.cases["T = 3"], 2, 4)
    assert list(rows) == [FORWARD, *CONTENDERS]
    for name in (FORWARD, "Unrolled", "by hand", "EvoGrad"):
        assert len(rows[name]["seconds"]) == 2 and min(rows[name]["seconds"]) > 0
        assert rows[name]["peak_bytes"] > 0
    assert rows["Unrolled"]["errors"][0] < 1e-6 == rows["by hand"]["errors"][0] + 1e-6
    assert len(rows["EvoGrad"]["errors"]) == 4 and rows["EvoGrad"]["mean_error"] > 0.01
    # Three steps of 4 to 1: each forward takes one product, and there is more to a hypergradient.
    assert rows[FORWARD]["flops"] == 1 and rows["by hand"]["flops"] > 3 * 3
    assert rows["Unrolled"]["cost"]["hvp"] == 3
    assert rows["absent"] == {"missing": "a_library_that_is_not_there"}
    assert rows["broken"] == {"note": "RuntimeError: it does not work"}


def test_the_truth_and_the_unit_are_those_of_the_setup():
    setup = tiny(1)
    truth = measure.tensors_of(by_hand.loop_by_hand().build(setup)())
    setup.truth, setup.unit = [2 * truth], lambda: torch.ones(8, 8) @ torch.ones(8, 8)
    case = Case(lambda: setup, {"one": by_hand.loop_by_hand()})
    rows = measure.measure("", "", case, 1, 1, lambda *names: {"flops": 1024})
    assert rows["one"]["errors"] == pytest.approx([0.5]) and rows["one"]["cosines"] == [
        pytest.approx(1)
    ]
    assert rows["one"]["flops"] == 1


def test_what_a_process_of_its_own_measures_is_what_this_one_does():
    names = "tasks", "16 tasks of images, 4 convolutions", "`FirstOrder`, vmap"
    assert measure.in_own_process(*names) == measure.watched(*names)


def test_the_page_is_written_from_recorded_runs(listed, tmp_path, capsys, drawn):
    listed(benchmark(after="One.\n\nTwo."))
    folder = tmp_path / "pages"
    assert command.main(["tiny", "--output", str(folder)]) == 0
    page = (folder / "tiny.md").read_text()
    rows = {line.split("|")[2].strip(): line for line in page.splitlines() if "|" in line}
    assert "not installed" in rows["absent"] and "failed" in rows["broken"]
    assert "- absent: not installed: the module `a_library_that_is_not_there`" in page
    assert "- broken: RuntimeError: it does not work" in page
    assert "One.\n\nTwo." in page and "What is *measured*." in page and "torch " in page
    assert "(tiny.png)" in page
    time, memory = drawn.axes("tiny.png", folder)[:2]
    names = [label.get_text() for label in time.get_yticklabels()]
    assert names == ["Unrolled", "by hand", "EvoGrad"]
    assert memory.lines[0].get_xdata()[1] == 1
    # Nothing runs again where there is all, and the page is the same.
    assert command.main(["--no-run", "--output", str(folder)]) == 0
    assert command.main(["--missing", "--output", str(folder)]) == 0
    assert (folder / "tiny.md").read_text() == page
    assert "missing:" not in capsys.readouterr().out
    # A quick look has other turns, none of which were run.
    assert command.main(["--quick", "--no-run", "--output", str(folder)]) == 1
    assert "missing:   tiny: T = 3\n" in capsys.readouterr().out


class Run:
    def __init__(self, result):
        self.result = result


def row(*seconds, **others):
    return {"seconds": list(seconds), "peak_bytes": 2**20, "flops": 10.0, **others}


def test_medians_quartiles_and_ratios_by_hand():
    found = {
        FORWARD: row(0.5, 0.5),
        "Unrolled": row(2.0, 4.0, 6.0, errors=[0.1, 0.3], cosines=[1.0, 0.5], mean_error=0.2),
        "by hand": row(1.0, 1.0, 2.0, errors=[0.0], cosines=[1.0], mean_error=0.0),
    }
    frame = frame_of(benchmark(), {"T = 3": Run(found)}).set_index("contender")
    one, other = frame.loc["Unrolled"], frame.loc["by hand"]
    assert (one.time_low, one.time, one.time_high) == (3.0, 4.0, 5.0)
    # Turn by turn: 2, 4, 3.
    assert (one.ratio_low, one.ratio, one.ratio_high) == (2.5, 3.0, 3.5) and other.ratio == 1
    assert one.error == pytest.approx(0.2) and one.cosine == 0.75
    assert (one.floor, one.passes, one.memory, one.memory_ratio) == (10.0, 8.0, 1.0, 1.0)
    assert frame.loc["EvoGrad"].note == "not measured in this run"
    assert math.isnan(frame.loc["EvoGrad"].time)
    head, _, line, *_ = table(frame.reset_index(), with_case=False)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert dict(zip([c.strip() for c in head.strip("|").split("|")], cells, strict=True)) == {
        "contender": "Unrolled",
        "cosine": "0.750",
        "error": "2e-01",
        "time (ms)": "4,000 (3,000–5,000)",
        "time / reference": "3.00 (2.50–3.50)",
        "floor (F)": "10.0",
        "time (F)": "8.00",
        "memory (MiB)": "1.00",
        "memory / reference": "1.00",
    }


def test_curves_over_sizes(tmp_path, drawn):
    found = {
        label: Run(
            {FORWARD: row(0.5), "Unrolled": row(0.3, errors=[0.1]) | {"resident_bytes": 2**21}}
        )
        for label in CASES
    }
    one = benchmark("curves", per_size=True)
    assert draw(one, frame_of(one, found), tmp_path) == {"T = 3": [tmp_path / "tiny.png"]}
    memory, time = drawn.axes("tiny.png", tmp_path)
    # What resident memory grows by is no point of what tensors hold.
    assert lines(memory) == {"Unrolled": ([3], [1.0])}
    assert list(time.lines[0].get_ydata()) == pytest.approx([100.0, 300.0])
    assert [label.get_text() for label in memory.get_xticklabels()] == ["1", "3"]
    assert (time.get_ylabel(), time.get_yscale()) == ("time per step (ms)", "log")


def test_errors_against_costs(tmp_path, drawn):
    errors = {"Unrolled": [1e-3], "by hand": [0.0], "EvoGrad": [1.0, 3.0]}
    found = {
        name: row(0.1, 0.2, 0.4, errors=each, cosines=[0.5] * len(each), mean_error=each[0])
        for name, each in errors.items()
    }
    one = benchmark("errors")
    frame = frame_of(one, {"T = 3": Run({FORWARD: row(0.5), **found})})
    assert draw(one, frame, tmp_path) == {"T = 3": [tmp_path / "tiny_T = 3.png"]}
    time, *_ = drawn.axes("tiny_T = 3.png", tmp_path)
    expected = [(200.0, 1e-3), (200.0, 1e-16), (200.0, 2.0)]
    assert points(time) == [pytest.approx(one) for one in expected]
    assert legend(drawn["tiny_T = 3.png"]) == list(errors)


def test_the_command_lists_and_refuses(listed, capsys):
    listed(benchmark())
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == "tiny 2 cases, 1 quick Tiny problems".split()
    assert command.main(["tini"]) == 2
    assert "tiny" in capsys.readouterr().err


def test_a_run_of_no_case_is_refused():
    with pytest.raises(mt.errors.UnknownNameError, match="case"):
        experiment.experiment.run(
            config_updates={"benchmark": "tasks", "case": "?", "seed": 0},
            options={"--unobserved": True, "--loglevel": "CRITICAL"},
        )
