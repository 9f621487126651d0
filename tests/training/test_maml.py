"""The page on learning across tasks learns: an initial state from which tasks are adapted to."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


def test_the_page_learns_an_initial_state():
    torch.manual_seed(0)
    names: dict = {}
    # What follows is run by the test of all pages.
    page = PAGE.read_text().partition("## Algorithms by name")[0]
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        block = block.replace('"auto"', '"vmap"').replace("steps=10_000", "steps=50")
        exec(compile(block, str(PAGE), "exec"), names)
    before, after = (names[n]["held_out_loss"] for n in ("before", "metrics"))
    assert names["trainer"].steps_done == 50
    assert after < 0.5 * before
    # The model was adapted to the first of the tasks that were held out.
    query = names["held_out"][1]
    with torch.no_grad():
        loss = (names["model"](query[0][0]) - query[1][0]).square().mean()
    found = names["evaluate"](None)["held_out_loss"]
    assert found == after
    each = names["mt"].over_tasks(
        *(names[n] for n in ("problem", "inner", "estimator", "held_out"))
    )
    assert torch.allclose(each.details["task_losses"][0], loss, rtol=1e-4)
