import math

import pytest

from metatoolkit.records.stores import complete_metrics, metrics_asked, reason


def test_what_is_asked_of_metrics_is_read_from_the_paths():
    paths = ["summary.a．b.min", "summary.loss.at.100", "summary.loss.at.0．5", "config.summary"]
    assert metrics_asked(paths) == {"a.b": [], "loss": ["100", "0．5"]}
    assert metrics_asked(["summary"]) == {}


def test_metrics_are_summarized_as_when_they_are_recorded():
    steps, values = [0, 10, 10, 0.5, 20], [3.0, math.nan, 1, [1, 2], 2.0]
    document = {"summary": {"kept": {"min": 7}}}
    series = {"a.b": (steps, values), "none": ([], [])}
    complete_metrics(document, series.__getitem__, series, {"a.b": ["10", "0．5", "7"]})
    assert document["summary"] == {
        "kept": {"min": 7},
        "a．b": {
            "count": 5, "last": 2.0, "step": 20, "min": 1, "min_step": 10, "max": 3.0,
            "max_step": 0, "at": {"10": 1, "0．5": [1, 2]},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"fail_trace": ["Traceback\n", '  File "x"\n', "ValueError: no\n"]}, "ValueError: no"),
        ({"fail_trace": ["Traceback\n  File\nKeyError: 'a'\n", "\n"]}, "KeyError: 'a'"),
        ({"fail_trace": ["E: one\n  two\n"], "status_note": "n"}, "E: one"),
        ({"fail_trace": [], "status_note": "ended by SIGTERM"}, "ended by SIGTERM"),
        ({"fail_trace": "text"}, "text"),
        ({}, None),
    ],
)
def test_the_reason_is_one_line(document, told):
    assert reason(document) == told
