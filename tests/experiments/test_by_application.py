import math
import types

import pandas
import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments import by_application, reproduce, results_page
from metatoolkit.experiments.by_application import COSTS, ESTIMATORS, REFERENCE, estimator_study
from metatoolkit.experiments.claims import paired_difference
from metatoolkit.experiments.studies import Column
from metatoolkit.hypergradients import estimators

SCORE = Column("score", "result.score", 100.0)
OPERATIONS = COSTS[0].header


def study(application="one", absent=(), **options):
    return estimator_study(
        application, "title", SCORE, (1, 2, 3), absent=dict.fromkeys(absent, "too many"), **options
    )


def frame(scores, cost=2.0):
    """A frame of scores by row and seed, every cost the same."""
    lines = [
        {"row": row, "seed": seed, "score": value, **{column.header: cost for column in COSTS}}
        for row, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return pandas.DataFrame(lines, columns=["row", "seed", "score", *(c.header for c in COSTS)])


FIRST = {REFERENCE: [90.0, 92.0, 94.0], "SAMA": [89.5, 92.5, 93.0], "SOBA": [80.0]}
SECOND = {REFERENCE: [50.0, 51.0, 52.0], "SAMA": [51.0, 52.0, 53.0]}


@pytest.fixture
def found():
    return [
        (study("one", ["OneStep"]), frame(FIRST)),
        (study("two", ["SOBA"], margin=2.0), frame(SECOND, cost=3.0)),
    ]


def test_a_study_has_a_row_for_each_estimator_that_applies():
    made = study(absent=["OneStep"], updates={"data": {"name": "generated"}})
    assert made.name == "one_estimators" and made.application == "one"
    assert list(made.rows) == [label for label in ESTIMATORS if label != "OneStep"]
    assert all(row.updates["data"] == {"name": "generated"} for row in made.rows.values())
    assert {claim.row for claim in made.claims} == set(made.rows) - {REFERENCE}
    assert {claim.over for claim in made.claims} == {REFERENCE}
    with pytest.raises(UnknownNameError, match="OneSteps"):
        study(absent=["OneSteps"])


def test_at_least_ten_of_the_registered_estimators_are_compared():
    named = {entries["estimator"]["name"] for entries in ESTIMATORS.values() if len(entries) > 1}
    assert named <= set(estimators)
    assert len(named | {"EvoGrad", "Unrolled"}) >= 10


def test_each_estimator_is_compared_with_the_reference_seed_by_seed(found):
    cells = by_application.compare(found)
    assert list(cells) == list(ESTIMATORS)
    first = found[0][1]
    assert cells["SAMA"]["one"].difference == paired_difference(first, "SAMA", REFERENCE, "score")
    assert cells["SAMA"]["two"].difference.mean == 1.0
    assert cells["SAMA"]["two"].costs[OPERATIONS] == 3.0
    assert cells["OneStep"]["one"].reason == "too many"
    assert cells["OneStep"]["two"].reason == "not run"
    assert math.isnan(cells["OneStep"]["two"].costs[OPERATIONS])
    assert cells[REFERENCE]["one"].reason == "92.00"
    with pytest.raises(ConfigurationError, match="no application"):
        by_application.compare([])


def test_the_table_tells_differences_intervals_and_the_range_of_costs(found):
    head, *lines = by_application.table(found)
    assert head[:3] == ["", "one, score", "two, score"]
    by_label = {line[0]: line[1:] for line in lines}
    told = paired_difference(found[0][1], "SAMA", REFERENCE, "score")
    interval = f"{told.mean:+.2f} ({told.low:+.2f} to {told.high:+.2f})"
    assert by_label["SAMA"] == [interval, "+1.00 (+1.00 to +1.00)", *["2.0 to 3.0"] * 3]
    assert by_label["SOBA"] == ["-10.00, 1 of 3 seeds", "too many", *["2.0"] * 3]
    assert by_label["OneStep"] == ["too many", "not run", *["–"] * 3]


def test_the_figure_shows_what_the_table_tells(found, tmp_path, drawn):
    by_application.draw(found, tmp_path / "all.png")
    one, two, *costs = drawn.axes("all.png", tmp_path)
    labels = [text.get_text() for text in one.get_yticklabels()]
    assert labels == list(ESTIMATORS)
    drawn_means = {labels[int(c[0].get_ydata()[0])]: c[0].get_xdata()[0] for c in one.containers}
    assert drawn_means == pytest.approx({"SAMA": -1 / 3, "SOBA": -10.0})
    (bar,) = (c for c in two.containers if labels[int(c[0].get_ydata()[0])] == "SAMA")
    assert bar[0].get_xdata()[0] == 1.0
    reasons = {labels[round(t.get_position()[1])]: t.get_text() for t in two.texts}
    assert reasons["SOBA"] == "too many" and reasons["OneStep"] == "not run"
    assert len(costs) == len(COSTS)
    place = labels.index("SAMA")
    assert [line.get_xdata()[place] for line in costs[0].lines[:2]] == [2.0, 3.0]


def test_the_page_begins_with_them(found, tmp_path, monkeypatch):
    monkeypatch.setattr(results_page, "_section", lambda study, frame: f"## {study.name}")
    monkeypatch.setattr(by_application, "draw_differences", lambda *_: None)
    results_page.write(found, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert text.index(by_application.TITLE) < text.index("one_estimators")
    assert "| SOBA | -10.00, 1 of 3 seeds | too many | 2.0 | 2.0 | 2.0 |" in text
    assert f"(results/{by_application.NAME}.png)" in text
    assert (tmp_path / "results" / f"{by_application.NAME}.png").exists()


def test_they_are_run_shown_and_drawn_by_one_name(tmp_path, monkeypatch, capsys, jobs_here):
    tiny = {"network": {"hidden": [4]}, "steps": 5, "evaluate_every": 0}
    keep = (REFERENCE, "SAMA", "Unrolled, 5 steps")
    made = estimator_study(
        "label_noise",
        "title",
        Column("accuracy", "result.test_accuracy", 100.0),
        (1,),
        absent={label: "left out" for label in ESTIMATORS if label not in keep},
        updates=tiny,
    )
    monkeypatch.setattr(reproduce, "find_studies", lambda: {made.name: made, "again": made})
    options = [by_application.NAME, "--processes", "1", "--output", str(tmp_path)]
    assert reproduce.main(options) == 0
    printed = capsys.readouterr().out
    # The second study has the configurations of the first.
    assert printed.count("3 runs, 1 at once") == 1 and by_application.TITLE in printed
    assert "left out" in printed and "not run" not in printed
    assert (tmp_path / f"{by_application.NAME}.png").exists()
    assert reproduce.main(["estimators_by_aplication"]) == 2
    assert "Did you mean 'estimators_by_application'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seeds", "options"),
    [
        ([1, 2, 3], ""),
        ([], ""),
        ([1, 2, 3, 4], " --seeds 4"),
        ([101, 102, 103], " --first-seed 101"),
        ([101, 103, 105], " --first-seed 101 --seeds 5"),
    ],
    ids=["its own", "none", "more", "fresh", "fresh and more"],
)
def test_the_page_tells_the_command_with_other_seeds(seeds, options):
    study = types.SimpleNamespace(name="one", seeds=(1, 2, 3))
    assert results_page._again(study, seeds) == f"scripts/reproduce one{options}"
