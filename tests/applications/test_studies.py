import pytest

from metatoolkit.experiments import reproduce
from metatoolkit.experiments.jobs import Job, configuration_of, run_job
from metatoolkit.experiments.studies import Column, Row, Study, jobs_of
from tests.drawings import bars


def test_a_study_is_run_drawn_and_written_down(tmp_path, capsys, drawn, jobs_here):
    document = tmp_path / "docs" / "results.md"
    options = ["label_noise", "--steps", "2", "--seeds", "1", "--processes", "1"]
    files = ["--output", str(tmp_path / "out"), "--document", str(document)]
    assert reproduce.main([*options, *files]) == 0
    printed = capsys.readouterr().out
    assert "label_noise: 9 runs" in printed
    assert "runs list --experiment label_noise" in printed
    text = document.read_text()
    accuracy, weights = drawn.axes("label_noise.png", tmp_path / "out")
    assert len(bars(accuracy)) == 9 and list(bars(accuracy)) == list(bars(weights))
    # The picture and the page tell the same numbers.
    for row, value in bars(accuracy).items():
        told = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        assert f"{value:.2f}" in told
    assert "| second order |" in text
    assert "| 87.54 ± 0.23 | 1 |" in text
    assert "| not available | 8 |" in text
    assert "`metatoolkit run label_noise with method=second_order`" in text
    assert (tmp_path / "docs" / "results" / "label_noise.png").exists()

    assert reproduce.main([*options, "--missing", "--output", str(tmp_path / "out")]) == 0
    assert "runs, 1 at once" not in capsys.readouterr().out

    other = ["label_noise", "--no-run", "--seeds", "1", "--output", str(tmp_path / "other")]
    assert reproduce.main(other) == 1
    printed = capsys.readouterr().out
    assert "–" in printed and "missing:   second order: 1 of 1 runs (seed 31)" in printed
    assert not (tmp_path / "other").exists()


def test_a_run_that_fails_leaves_the_others_alone_and_is_told(
    tmp_path, monkeypatch, capsys, jobs_here
):
    small = {"network": {"name": "mlp", "hidden": [4]}, "method": "plain"}
    study = Study(
        "small",
        "title",
        "applications.label_noise.experiment",
        {"fine": Row(small), "diverges": Row({**small, "lr": 1e20})},
        (Column("accuracy", "result.test_accuracy"),),
        seeds=(1, 2),
    )
    monkeypatch.setattr(reproduce, "find_studies", lambda: {"small": study})
    options = ["small", "--steps", "20", "--processes", "1", "--output", str(tmp_path)]
    assert reproduce.main(options) == 1
    printed = capsys.readouterr().out
    assert "missing:   diverges: 2 of 2 runs (seed 1, 2)" in printed
    assert "failed:    diverges, seed 1: NonFiniteError: train_loss is" in printed
    assert "failed:    fine" not in printed and "missing:   fine" not in printed
    assert " ± " in printed


def test_without_a_name_the_usual_seeds_are_run(tmp_path, monkeypatch, capsys):
    def asked(*options):
        begun = []

        def note(jobs, processes):
            begun.extend((job.experiment, job.label, job.seed) for job in jobs)
            return []

        monkeypatch.setattr(reproduce, "run_jobs", note)
        reproduce.main([*options, "--output", str(tmp_path)])
        return begun

    rows = {"second order": Row({"method": "second_order"}), "plain": Row({"method": "plain"})}
    columns = (Column("accuracy", "result.test_accuracy"),)
    module = "applications.label_noise.experiment"
    long = Study("long", "title", module, rows, columns, seeds=(4, 5, 6), usual_seeds=2)
    named = Study("named", "title", module, {"other": rows["plain"]}, columns, usual_seeds=0)
    monkeypatch.setattr(reproduce, "find_studies", lambda: {"long": long, "named": named})
    few = [(module, row, seed) for row in rows for seed in (4, 5)]
    assert asked() == few
    assert asked("long") == [(module, row, seed) for row in rows for seed in (4, 5, 6)]
    assert [seed for _, _, seed in asked("--seeds", "1")] == [4, 4]
    assert [row for _, row, _ in asked("named")] == ["other"] * 3
    # What is shown alone is all there is.
    capsys.readouterr()
    assert asked("--no-run") == []
    printed = capsys.readouterr().out
    assert "missing:   plain: 3 of 3 runs" in printed and "other: 3 of 3 runs" in printed
    reproduce.main(["--list"])
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("title, 2 of 3 seeds") and told[1].endswith("title, by name")


def test_a_run_that_diverges_tells_its_steps():
    updates = {"network": {"hidden": [4]}, "method": "plain", "lr": 1e20, "steps": 20}
    outcome = run_job(Job("applications.label_noise.experiment", "diverges", 1, updates))
    assert outcome.error.startswith("NonFiniteError") and outcome.result is None
    assert outcome.steps is not None and 0 < outcome.steps < 20
    refused = run_job(Job("applications.label_noise.experiment", "refused", 1, {"lr": -1.0}))
    assert "lr is -1" in refused.error and refused.steps is None and refused.run is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label_nose"], "Did you mean 'label_noise'?"),
        (["label_noise", "--seeds", "0"], "--seeds is 0"),
        (["label_noise", "--steps", "-1"], "--steps is -1"),
        (["label_noise", "--output", f"{__file__}/below"], "test_studies.py is no folder"),
        (["label_noise", "--document", f"{__file__}/a.md"], "test_studies.py is no folder"),
    ],
)
def test_wrong_arguments_are_answered(arguments, message, capsys):
    assert reproduce.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_every_study_is_listed(capsys):
    assert reproduce.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, study in reproduce.find_studies().items():
        assert name in printed
        assert study.seeds


def test_each_row_of_every_study_is_a_configuration():
    for study in reproduce.find_studies().values():
        for job in jobs_of(study, seeds=(1,)):
            assert configuration_of(job)["seed"] == 1
