"""How answers are written: tables that fit, pages, and formats for programs."""

import sys

import pandas
import pytest

from metatoolkit import records


def test_a_table_that_just_fits_the_terminal_is_not_folded(monkeypatch, capsys):
    from metatoolkit.cli.display import print_table

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    columns, row = ["aaaaaa", "bbbbbb", "cccccc", "dddddd"], ["1" * 6, "2" * 6, "3" * 6, "4" * 6]
    print_table(columns, [row], essential=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == row and len(lines[-1]) == 30
    print_table([*columns, "e"], [[*row, "5"]], essential=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == row and lines[-1] == "1 more: e"
    print_table(["wide" * 9, *columns], [["0", *row]], essential=0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == row and lines[-1] == "1 more: " + "wide" * 9


def test_what_varies_comes_first_in_the_list_of_runs(monkeypatch, capsys):
    from metatoolkit.cli.display import print_table
    from metatoolkit.cli.runs import ESSENTIAL, _overview

    from .fakes import fake_run

    runs = [
        fake_run(
            number,
            {"a_long_constant": "x" * 90, **{f"tuned_{n}": n * number for n in range(20)},
             "method": method, "seed": number % 2, "checkpoint": f"/tmp/{number}"},
            result={**{f"constant_{n}": 1 for n in range(20)}, "test_accuracy": 0.1 * number},
        )
        for number, method in enumerate(("plain", "plain", "evograd", "evograd"))
    ]  # fmt: skip
    columns, rows = _overview(runs)
    place = len(ESSENTIAL)
    assert columns[place] == "config.method"
    assert columns.index("config.checkpoint") > columns.index("config.tuned_19")
    assert columns.index("config.seed") < columns.index("result.test_accuracy") < place + 5
    assert columns.index("result.constant_0") > columns.index("config.tuned_19")
    assert rows[2][columns.index("config.method")] == "evograd"
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(columns, rows, essential=place)
    head = capsys.readouterr().out.splitlines()[0]
    assert "config.method" in head and "config.seed" in head and "result.test_accuracy" in head


def test_pages_of_a_list_follow_each_other(filled, monkeypatch, capsys):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    seen = []
    for offset in (0, 3, 6):
        words = ["--sort", "id", "--limit", "3", "--offset", str(offset), "--columns", "id"]
        assert main(["runs", "list", *words]) == 0
        told = capsys.readouterr()
        seen += told.out.split()[1:]
        following = f"3 of 8 runs; --offset {offset + 3} shows the next" if offset < 6 else ""
        assert following in told.err and bool(following) == bool(told.err)
    assert seen == [str(number) for number in range(1, 9)]
    assert main(["runs", "list", "--offset", "9"]) == 0
    assert capsys.readouterr().out == "no runs match\n"
    assert main(["runs", "list", "--offset", "-1"]) == 2
    with records.connect() as connection:
        page = connection.find("config.lr == 0.1").sort("id").skip(2).limit(2)
        assert [run.id for run in page] == [3, 4] and page.total() == 7


def test_answers_can_be_read_by_programs(filled, monkeypatch, capsys):
    import json

    from metatoolkit.cli import main

    def asked(*words):
        assert main(["runs", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    (first, *_) = asked("list", "--sort", "id")
    assert first["config"]["method"] == "plain" and first["result"]["test_accuracy"] == 0.71
    assert first["start_time"].endswith("Z") and first["status"] == "COMPLETED"
    chosen = asked("list", "--columns", "id,metrics.valid_loss.min", "--where", "id == 2")
    assert chosen == [{"id": 2, "metrics.valid_loss.min": 2.4}]
    assert asked("list", "--where", "id == 99") == []
    shown = asked("show", "7")
    assert shown["metrics"]["valid_loss"]["count"] == 5 and "captured_out" not in shown
    assert shown["fail_trace"][-1].startswith("ValueError: broken")
    assert asked("best", "result.test_accuracy")["run"] == 6
    (group, _) = asked("group", "result.test_accuracy", "--by", "config.method")
    assert group["config.method"] == "evograd" and group["count"] == 3
    assert asked("compare", "1", "4")["config.method"] == {"1": "plain", "4": "evograd"}
    assert asked("best", "valid_loss", "--min", "--at", "2")["run"] == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "csv", "--output", "r.parquet"], "--format csv contradicts r.parquet"),
        (["--format", "parquet", "--output", "r.csv"], "contradicts"),
        (["--format", "latex", "--output", "r.json"], "contradicts"),
        (["--format", "parquet"], "name it with --output"),
        (["--output", "r.xlsx"], "no format ends in .xlsx"),
    ],
)
def test_a_format_that_contradicts_the_file_is_refused(
    filled, monkeypatch, capsys, tmp_path, words, told
):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "export", *words]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_ending_of_a_file_says_its_format(filled, monkeypatch, tmp_path):
    import json

    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    columns = ["id", "config.seed", "result.test_accuracy"]
    for name, read in {
        "r.csv": pandas.read_csv,
        "r.parquet": pandas.read_parquet,
        "r.json": lambda path: pandas.DataFrame(json.loads(path.read_text())),
        "r": pandas.read_csv,
    }.items():
        words = ["--columns", ",".join(columns), "--sort", "id", "--output", str(tmp_path / name)]
        assert main(["runs", "export", *words]) == 0
        table = read(tmp_path / name)
        assert list(table.columns) == columns and table["config.seed"].tolist()[:3] == [1, 2, 3]
