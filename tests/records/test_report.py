"""The report, looked at in a real browser."""

import struct
import zlib

import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError
from metatoolkit.records.report import render, write_report
from metatoolkit.records.run import Run
from metatoolkit.records.spool import utcnow

from .browser import Browser, find_browser

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


def test_a_report_of_recorded_runs(database, tmp_path):
    from .experiments import count_up, run

    for seed in (1, 2):
        run(count_up, number=seed)
    with records.connect() as connection:
        page = render(connection.find().runs())
    assert '"loss"' in page and "config.number" in page
