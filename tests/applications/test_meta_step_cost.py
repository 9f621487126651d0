import pandas
import pytest

from applications.meta_step_cost.experiment import experiment
from applications.meta_step_cost.study import SIZES, STUDIES
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.records import address

QUIET = {"--loglevel": "ERROR"}


# Half the batch where a step takes seconds.
SMALLER = {"label_noise": ["batch_size=16", "meta_batch_size=16"]}


def measure(application, estimator, candidates=2, options=None):
    updates = {"application": application, "seed": 1}
    updates["settings"] = [*SIZES[application].get("settings", []), *SMALLER.get(application, [])]
    updates |= {"estimator": estimator, "candidates": candidates}
    if options:
        updates["options"] = options
    return experiment.run(config_updates=updates, options=QUIET).result


@pytest.fixture(autouse=True)
def records_home(tmp_path, monkeypatch):
    # No server: the spool alone holds these runs.
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path))
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", "mongodb://127.0.0.1:9")
    monkeypatch.setattr(address, "SELECTION_SECONDS", 0.1)


# Those whose steps take seconds do the same as the last.
LONG = ("label_noise", "cross_lingual", "cross_domain_few_shot")


@pytest.mark.parametrize(
    "application",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SIZES],
)
def test_streamed_evograd_needs_the_memory_of_a_base_step(application):
    few, many = (measure(application, "evograd_streamed", count) for count in (2, 4))
    assert max(few["memory_ratio"], many["memory_ratio"]) <= 1.1
    assert many["flops"] > few["flops"]
    double = measure(application, "Unrolled", options={"product": "reverse_over_reverse"})
    assert double["peak_memory_bytes"] > 1.3 * few["peak_memory_bytes"]


@pytest.mark.slow
def test_second_order_takes_what_costs_less():
    double = measure("label_noise", "Unrolled", options={"product": "reverse_over_reverse"})
    second = measure("label_noise", "second_order")
    assert second["flops"] < 0.92 * double["flops"]
    assert second["peak_memory_bytes"] < 0.5 * double["peak_memory_bytes"]


def test_an_estimator_is_measured_by_its_registered_name():
    second = measure("rotation", "second_order")
    named = measure("rotation", "Unrolled")
    longer = measure("rotation", "Unrolled", options={"steps": 3})
    assert named["flops"] == second["flops"]
    assert longer["flops"] > 2 * named["flops"]
    with pytest.raises(ConfigurationError, match=r"options\.steps is given, but estimator is 'evo"):
        measure("rotation", "evograd", options={"steps": 3})


@pytest.mark.parametrize(
    ("entry", "value"), [("settings", 3), ("settings", [3]), ("candidates", 1), ("device", "gpu")]
)
def test_wrong_values_are_answered(entry, value):
    with pytest.raises(ConfigurationError, match=f"{entry} is"):
        experiment.run(config_updates={entry: value, "seed": 1}, options=QUIET)


@pytest.mark.parametrize("entry", ["application", "estimator"])
def test_unknown_names_are_answered(entry):
    with pytest.raises(UnknownNameError, match=entry):
        experiment.run(config_updates={entry: "rotatio", "seed": 1}, options=QUIET)


def test_an_application_that_assembles_nothing_is_refused():
    for application in ("illustration", "meta_step_cost"):
        with pytest.raises(ConfigurationError, match=f"{application} has no function assemble"):
            experiment.run(config_updates={"application": application, "seed": 1}, options=QUIET)


def test_figure_is_drawn_of_the_runs_that_there_are(tmp_path, drawn):
    (study,) = STUDIES
    names = ["row", *(column.header for column in study.columns)]
    labels = [label for label in study.rows if "rotation" in label]
    found = [[label, *range(place, place + len(names) - 1)] for place, label in enumerate(labels)]
    frame = pandas.DataFrame(found, columns=names)
    study.draw(frame, tmp_path / "figure.png")
    axes = drawn.axes("figure.png", tmp_path)
    above, below = axes[: len(SIZES)], axes[len(SIZES) :]
    assert [axis.get_title() for axis in above] == list(SIZES)
    place = list(SIZES).index("rotation")
    for row in (above, below):
        for index, axis in enumerate(row):
            widths = [bar.get_width() for bar in axis.patches]
            expected = frame[axis.get_xlabel()].tolist() if index == place else []
            assert widths == expected
            # A base step is the line at one.
            assert set(axis.lines[0].get_xdata()) == {1.0}
    assert above[0].get_xlabel() != below[0].get_xlabel()
    assert len(above[place].patches) == len(labels) == 8
