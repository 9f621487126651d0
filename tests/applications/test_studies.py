import pytest

from metatoolkit import reproduce


def test_a_study_is_run_drawn_and_written_down(tmp_path, capsys):
    document = tmp_path / "docs" / "results.md"
    options = ["label_noise", "--steps", "2", "--seeds", "1", "--processes", "1"]
    files = ["--output", str(tmp_path / "out"), "--document", str(document)]
    assert reproduce.main([*options, *files]) == 0
    printed = capsys.readouterr().out
    assert "label_noise: 6 runs" in printed
    assert "runs list --experiment label_noise" in printed
    assert (tmp_path / "out" / "label_noise.png").stat().st_size > 5000
    text = document.read_text()
    assert "| second order |" in text
    assert "| 87.54 ± 0.23 | 4 |" in text
    assert "| not available | 5 |" in text
    assert "`metatoolkit run label_noise with method=second_order`" in text
    assert (tmp_path / "docs" / "results" / "label_noise.png").exists()

    assert reproduce.main([*options, "--missing", "--output", str(tmp_path / "out")]) == 0
    assert "runs, 1 at once" not in capsys.readouterr().out

    other = ["label_noise", "--no-run", "--seeds", "1", "--output", str(tmp_path / "other")]
    assert reproduce.main(other) == 0
    assert "–" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label_nose"], "Did you mean 'label_noise'?"),
        (["label_noise", "--seeds", "0"], "--seeds is 0"),
        (["label_noise", "--steps", "-1"], "--steps is -1"),
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
