"""The benchmark of forward mode runs, and its loop by hand is another way to the same numbers."""

import pytest
import torch

from benchmarks import forward_mode


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # The number of threads is the whole process's.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


@pytest.mark.parametrize("steps", [7, 30])
def test_the_loop_by_hand_agrees(steps):
    digits = forward_mode.Digits(steps, 8)
    digits.model.double()
    digits.meta.double()
    digits.train = [(inputs.double(), labels) for inputs, labels in digits.train]
    digits.valid = (digits.valid[0].double(), digits.valid[1])
    torch.set_default_dtype(torch.float64)
    try:
        one, other = forward_mode.by_toolkit(digits)(), forward_mode.by_hand(digits)()
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(one) == 9
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_the_page_tells_the_rows(tmp_path, capsys):
    arguments = ["--steps", "14", "--hidden", "4", "6", "--repeats", "2", "--long", "20"]
    forward_mode.main([*arguments, "--output", str(tmp_path)])
    page = (tmp_path / "forward_mode.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| 4 |", "| 6 |"))]
    assert rows == capsys.readouterr().out.splitlines()
    assert [row.split("|")[2].strip() for row in rows] == ["310", "460"]
    assert all(float(row.split("|")[3]) < 1e-4 for row in rows)
    assert "through 20 steps with 4 hidden units" in page
