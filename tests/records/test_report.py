"""The report, looked at in a real browser, and its filter, carried out by Node."""

import json
import shutil
import struct
import subprocess
import zlib
from datetime import UTC, timedelta
from pathlib import Path

import pytest

import metatoolkit.records
from metatoolkit import records
from metatoolkit.errors import ConfigurationError
from metatoolkit.records.clean import decode
from metatoolkit.records.report import SCRIPTS, TABLES, _record, render, write_report
from metatoolkit.records.run import Run
from metatoolkit.records.spool import utcnow
from metatoolkit.records.terms import WEEKDAYS

from .browser import Browser, find_browser
from .expected import COMPUTED, DOCUMENTS, EXPECTED

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
SVG = (
    b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'>"
    b"<script>top.hacked = 3</script><image href='http://example.org/'/></svg>"
)


def png(red, green, blue):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    pixels = (b"\0" + bytes([red, green, blue]) * 2) * 2
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Store:
    """Runs that lie nowhere: six of two methods and three seeds, one that is hostile, one bare."""

    def metric(self, document, name):
        seed = document["config"].get("seed", 0)
        scale = 2.0 if document["config"].get("method") == "plain" else 1.0
        values = [scale * (1 + 0.1 * seed) / step for step in range(1, 2001)]
        if name == "odd":
            values = [float("nan"), float("inf"), [1, 2], 3.0]
        return list(range(1, len(values) + 1)), values, []

    def content(self, document, entry):
        yield entry["content"]


def runs():
    documents = []
    for number, (method, seed) in enumerate(
        (method, seed) for method in ("plain", "evograd") for seed in (1, 2, 3)
    ):
        artifacts = [{"name": "curve.png", "content": png(255, 0, 0)}] if number == 0 else []
        documents.append(
            {
                "_id": number + 1, "experiment": {"name": "e"}, "status": "COMPLETED",
                "start_time": utcnow(), "duration": 1.5, "artifacts": artifacts,
                "config": {"method": method, "seed": seed, "lr": 0.1}, "result": {"accuracy": seed},
                "summary": {"loss": {}},
            }
        )  # fmt: skip
    documents.append(
        {
            "_id": 7, "experiment": {"name": HOSTILE}, "status": HOSTILE,
            "config": {HOSTILE: HOSTILE},
            "result": {HOSTILE: [HOSTILE], "big": 2**63, "nan": float("nan")},
            "omniboard": {"tags": [HOSTILE], "notes": HOSTILE},
            "summary": {HOSTILE: {}, "odd": {}},
            "artifacts": [
                {"name": f"{HOSTILE}.png", "content": HOSTILE.encode()},
                {"name": "evil.svg", "content": SVG},
                {"name": "huge.png", "content": png(0, 0, 0) + b"x" * 3_000_000},
                {"name": "weights.bin", "content": b""},
            ],
        }
    )  # fmt: skip
    documents.append({"_id": {"a": 1}, "config": [], "experiment": 3, "artifacts": "x", "info": 1})
    return [Run(document, Store()) for document in documents]


def test_the_page_stands_alone_and_escapes_everything(tmp_path):
    path = write_report(runs(), tmp_path / "new" / "report.html", title=HOSTILE)
    page = path.read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page and "default-src &#x27;none" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    with pytest.raises(ConfigurationError, match=r"\.html"):
        write_report(runs(), tmp_path / "report.txt")
    with pytest.raises(ConfigurationError, match="no runs match"):
        write_report([], tmp_path / "report.html")


def filtered(records_, expressions):
    """Return the ids that each expression selects in the page's own filter, or its error."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here, which carries the page's script out")
    folder = Path(metatoolkit.records.__file__).parent
    program = (
        (folder / SCRIPTS[0]).read_text()
        + """
    const { tables, runs, expressions } = JSON.parse(require("fs").readFileSync(0));
    const filter = queryFilter(tables);
    for (const run of runs) run.record = filter.revive(run.record);
    console.log(JSON.stringify(expressions.map((text) => {
      try { return runs.filter(filter.parse(text)).map((run) => run.record.id); }
      catch (error) { return error.message; }
    })));
    """
    )
    runs = [{"record": one} for one in records_]
    given = json.dumps({"tables": TABLES, "runs": runs, "expressions": expressions})
    done = subprocess.run(
        [node, "-e", program], input=given, capture_output=True, text=True, check=True, timeout=240
    )
    return json.loads(done.stdout)


def test_the_filter_understands_what_the_command_line_does():
    stored = [
        {**_record(Run(one, Store()), decode(one.get("summary", {}))), "status": one["status"]}
        for one in DOCUMENTS
    ]
    cases = {
        text: wanted
        for text, wanted in {**EXPECTED, **COMPUTED}.items()
        if text.strip() and "output" not in text
    }
    assert len(cases) > 60
    assert dict(zip(cases, filtered(stored, list(cases)), strict=True)) == cases


def test_times_and_mistakes_in_the_filter():
    now = utcnow()
    stored = [
        _record(Run({"_id": number, "status": "FAILED", "start_time": start}, Store()), {})
        for number, start in enumerate((now, now - timedelta(days=1), now - timedelta(days=9)))
    ]
    local = now.replace(tzinfo=UTC).astimezone()
    yesterday, today = (WEEKDAYS[(local.weekday() - days) % 7] for days in (1, 0))
    for text, wanted in {
        "start_time > '2 days ago'": [0, 1],
        f"start_time == 'last {yesterday}'": [1],
        f"start_time == '{today}'": [],
        f"start_time > '{today}'": [0, 1],
        "start_time < '1 week'": [2],
        "start_time >= 'yesterday' or id == 2": [0, 1, 2],
        f"start_time == '{now.astimezone().date()}' and id > 5": [],
        "metrics.loss < 3": "a metric has many values: write metrics.loss.last, .min or .max",
        "confg.lr == 1": "there is no field confg",
        "output == 'x'": "there is no field output",
        "config.lr >": "the expression is not complete",
        "start_time > 'soon'": "not a time: 'soon'",
        "id in 3": "a list must follow `in`",
        "'paper' not on tags": "in is missing",
        "len(tags) == 1": "there is no function len",
    }.items():
        assert filtered(stored, [text]) == [wanted], text


def test_a_phone_shows_what_differs(tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: METATOOLKIT_BROWSER names one")
    path = tmp_path / "report.html"
    path.write_text(render(runs()[:6], "Label noise"))
    with Browser(program, tmp_path / "profile") as browser:
        browser.resize(390, 844)
        browser.open(path)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        cells = browser.evaluate(
            "[...document.querySelectorAll('#differences td')].map((one) => {"
            " const box = one.getBoundingClientRect();"
            " return [one.dataset.run, one.textContent, box.left >= 0 && box.right <= 390]; })"
        )
        assert len(cells) == 18 and all(inside for _, _, inside in cells)
        assert {label for label, _, _ in cells} == {f"run {number}" for number in range(1, 7)}
        browser.evaluate(
            "(() => { const e = document.getElementById('filter');"
            " e.value = \"config.method == 'plain' and config.seed in [1, 2]\";"
            " e.dispatchEvent(new Event('input')); })()"
        )
        assert browser.evaluate("document.querySelectorAll('#runs tbody tr').length") == 2


def test_a_browser_shows_it(tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: METATOOLKIT_BROWSER names one")
    path = tmp_path / "report.html"
    path.write_text(render(runs(), "Label noise"))
    rows = "document.querySelectorAll('#runs tbody tr').length"
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(path)
        evaluate = browser.evaluate

        def enter(selector, value, kind="input"):
            evaluate(
                f"(() => {{ const e = document.querySelector('{selector}'); {value};"
                f" e.dispatchEvent(new Event('{kind}')); }})()"
            )

        assert evaluate("document.title") == "Label noise"
        assert evaluate(rows) == 8

        # The table filters by words, comparisons and status, and sorts by a click on a head.
        for text, count in {
            "evograd": 3, "config.seed>1": 4, "config.method=plain config.seed<=2": 2,
            "config.seed == 1 and config.method == 'evograd'": 1,
            "contains(config.method, 'evo') or id in [1, 2]": 5, "confg.seed == 1": 0,
            "nothing-like-this": 0, "result.accuracy!=3 plain": 2, "hacked": 1,
        }.items():  # fmt: skip
            enter("#filter", f"e.value = {text!r}")
            assert evaluate(rows) == count, text
        enter("#filter", "e.value = 'e'")
        enter("#filter", "e.value = ''")
        enter("#status", "e.value = 'COMPLETED'")
        assert evaluate(rows) == 6
        first = "[...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[1].textContent)"
        head = (
            "[...document.querySelectorAll('#runs th')].find(t => t.textContent.startsWith('id'))"
        )
        evaluate(f"{head}.click()")
        assert evaluate(first) == ["1", "2", "3", "4", "5", "6"]
        evaluate(f"{head}.click()")
        assert evaluate(first) == ["6", "5", "4", "3", "2", "1"]

        # Curves: one per run, or mean and band over seeds; logarithmic axes change the drawing.
        enter("#metric", "e.value = 'loss'")
        enter("#over", "e.value = ''")
        curves = "document.querySelectorAll('#curves .curve').length"
        bands = "document.querySelectorAll('#curves .band').length"
        assert (evaluate(curves), evaluate(bands)) == (6, 0)
        enter("#over", "e.value = 'config.seed'")
        assert (evaluate(curves), evaluate(bands)) == (2, 2)
        legend = "document.getElementById('legend').textContent"
        assert evaluate(legend) == "method=evogradmethod=plain"
        points = "document.querySelector('#curves .curve').getAttribute('points')"
        straight = evaluate(points)
        enter("#logx", "e.checked = true")
        enter("#logy", "e.checked = true")
        drawn = [tuple(map(float, one.split(","))) for one in evaluate(points).split()]
        assert evaluate(points) != straight and len(drawn) > 500
        # 1 / step is a straight line where both axes are logarithmic.
        (x0, y0), (x1, y1) = drawn[0], drawn[-1]
        middle = drawn[len(drawn) // 3]
        assert abs(y0 + (y1 - y0) * (middle[0] - x0) / (x1 - x0) - middle[1]) < 0.5

        # What differs between two checked runs, and nothing else.
        for position in (0, 5):
            evaluate(f"document.querySelectorAll('#runs tbody input')[{position}].click()")
        names = "[...document.querySelectorAll('#differences tbody th')].map(t => t.textContent)"
        assert evaluate(names) == ["config.method", "config.seed", "result.accuracy"]
        for position in (0, 5):
            evaluate(f"document.querySelectorAll('#runs tbody input')[{position}].click()")

        # Images are inline, and what is none is said.
        enter("#status", "e.value = ''")
        evaluate(
            "Promise.all([...document.images].map(i => { i.loading = 'eager';"
            " return i.decode().catch(() => 0); }))"
        )
        sizes = evaluate("[...document.images].map(i => [i.alt, i.naturalWidth])")
        assert ["curve.png", 2] in sizes and ["evil.svg", 9] in sizes and len(sizes) == 2
        captions = evaluate("document.getElementById('images').textContent")
        assert "not an image" in captions and "too large" in captions

        # A hostile run is text, whichever part of the page shows it.
        enter("#every", "e.checked = true")
        enter("#filter", "e.value = 'hacked'")
        enter("#metric", "e.selectedIndex = 0")
        assert evaluate("document.querySelectorAll('#runs img, #runs script').length") == 0
        assert evaluate("window.hacked") is None
        assert browser.dialogs == []
        assert browser.errors == []
        asked = [url for url in browser.requests if not url.startswith(("data:", "about:"))]
        assert asked == [f"file://{path}"]
        # Something is there to see: the picture is not of one color.
        picture = browser.screenshot()
        assert picture.startswith(b"\x89PNG") and len(set(picture)) > 200 and len(picture) > 20_000


def test_the_page_holds_what_queries_ask_for():
    page = render(runs())
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["settings"][:3] == [f"config.{HOSTILE}", "config.lr", "config.method"]
    (first, *_, hostile, _) = (run["record"] for run in data["runs"])
    assert first["config"] == {"method": "plain", "seed": 1, "lr": 0.1}
    assert first["metrics"]["loss"]["count"] == 2000
    assert abs(first["metrics"]["loss"]["min"] - 2.2 / 2000) < 1e-12
    assert first["artifacts"] == "curve.png"
    assert hostile["result"]["nan"] == {"(number)": "nan"}


def test_a_report_of_recorded_runs(database, tmp_path):
    from .experiments import count_up, run

    for seed in (1, 2):
        run(count_up, number=seed)
    with records.connect() as connection:
        page = render(connection.find().runs())
    assert '"loss"' in page and "config.number" in page
