"""Runs as one page of HTML that needs no server, no network and no other file."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, RecordsError
from metatoolkit.records.clean import decode
from metatoolkit.records.expressions import FUNCTIONS
from metatoolkit.records.fields import DATES, FIELDS, flatten, value_at
from metatoolkit.records.metrics import summarize
from metatoolkit.records.run import Artifact, Run, writing
from metatoolkit.records.table import settings
from metatoolkit.records.terminal import text
from metatoolkit.records.terms import SECONDS, STATISTICS, UNIT, WEEKDAYS

SCRIPTS = ("report_filter.js", "report.js")
POINTS = 1000
ALL_POINTS = 400_000
IMAGE_BYTES = 2_000_000
ALL_IMAGE_BYTES = 20_000_000
# Too much for a page.
LEFT_OUT = ("output", "dependencies")
# What the page's filter has to know of the language of queries.
TABLES: dict[str, Any] = {
    "fields": {name: deep for name, (_, deep) in FIELDS.items() if name not in LEFT_OUT},
    "times": sorted(DATES),
    "statistics": STATISTICS,
    "functions": FUNCTIONS,
    "weekdays": WEEKDAYS,
    "unit": UNIT,
    "seconds": SECONDS,
}
_IMAGES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"<svg": "image/svg+xml",
    b"<?xml": "image/svg+xml",
}
_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")


def write_report(
    runs: Sequence[Run], path: str | os.PathLike[str] = "report.html", title: str = "Runs"
) -> Path:
    """Write runs as one page: a table with filters, curves, differences and images.

    Args:
        runs: The runs.
        path: Where to.
        title: What the page is called.

    Returns:
        The path.

    Raises:
        ConfigurationError: There are no runs, or the file's name ends in something else.
        StorageError: The file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"{target} must end in .html")
    if not runs:
        raise ConfigurationError("no runs match: there is nothing to report")
    page = render(runs, title)
    with writing(target):
        target.write_text(page, "utf-8")
    return target


def render(runs: Sequence[Run], title: str = "Runs") -> str:
    """Build the page.

    Args:
        runs: The runs.
        title: What the page is called.

    Returns:
        The page. Its policy allows its own script alone, by hash, and no connection at all.
    """
    folder = resources.files("metatoolkit.records")
    script = "\n".join(folder.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(_data(runs), allow_nan=False, ensure_ascii=True)
    # Inside a script element, nothing but `<` can end it or begin a comment.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = folder.joinpath("report.html").read_text("utf-8")
    parts = {"policy": policy, "title": html.escape(title), "data": data, "script": script}
    pieces = page.split("{{")
    result = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        result += [parts[name], rest]
    return "".join(result)


def _data(runs: Sequence[Run]) -> dict[str, Any]:
    metrics = sorted({name for run in runs for name in run.metrics})
    count = max(1, sum(len(run.metrics) for run in runs))
    points = max(20, min(POINTS, ALL_POINTS // count))
    budget = [ALL_IMAGE_BYTES]
    entries = []
    columns: dict[str, None] = {}
    thinned = False
    for run in runs:
        values = _values(run)
        columns.update(dict.fromkeys(values))
        curves, summaries = {}, {}
        for name in run.metrics:
            steps, numbers, _ = run.store.metric(run.document, name)
            summaries[name] = summarize(steps, numbers)
            curve = _thin(steps, numbers, points)
            if curve is not None:
                curves[name] = curve
                thinned = thinned or len(steps) > points
        images = [
            _image(one, budget)
            for one in run.artifacts.values()
            if one.name.lower().endswith(_ENDINGS)
        ]
        entry = {"values": values, "record": _record(run, summaries), "images": images}
        entries.append({"id": _plain(run.id), "curves": curves, **entry})
    drawable = [name for name in metrics if any(name in entry["curves"] for entry in entries)]
    seeds = {str(entry["values"].get("config.seed")) for entry in entries}
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    note = f" Curves show {points} values each, evenly chosen." if thinned else ""
    return {
        "about": f"{len(entries)} runs, written on {now}.{note}",
        "columns": list(columns),
        "metrics": drawable,
        "settings": sorted({name for run in runs for name in settings(run)}),
        "tables": TABLES,
        "over": "config.seed" if 1 < len(seeds) < len(entries) else "",
        "runs": entries,
    }


def _values(run: Run) -> dict[str, Any]:
    document = run.document
    length = document.get("duration")
    found = {
        "id": run.id,
        "experiment": run.experiment,
        "status": run.status,
        "started": text(document.get("start_time")),
        "duration": length if isinstance(length, int | float) else None,
        "tags": ", ".join(run.tags),
        "notes": run.notes,
        **(flatten(run.result, "result") if run.result is not None else {}),
        **flatten(run.config, "config"),
    }
    return {name: _plain(value) for name, value in found.items()}


def _record(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what query expressions ask for, under the names that they use."""
    record = {
        name: decode(value_at(run.document, path))
        for name, (path, _) in FIELDS.items()
        if name not in LEFT_OUT
    }
    record |= {name: _milliseconds(record[name]) for name in DATES}
    record |= {"status": run.status, "metrics": metrics}
    return {n: _plain(value, marked=True) for n, value in record.items() if value not in (None, {})}


def _milliseconds(value: Any) -> float | None:
    if not isinstance(value, datetime.datetime):
        return None
    return value.replace(tzinfo=datetime.UTC).timestamp() * 1000


def _plain(value: Any, marked: bool = False) -> Any:
    """Write data as JSON can hold it; if ``marked``, NaN and infinity are told from text."""
    if isinstance(value, list):
        return [_plain(entry, marked) for entry in value]
    if isinstance(value, dict):
        return {str(key): _plain(entry, marked) for key, entry in value.items()}
    if isinstance(value, int | float):
        if marked:
            return value if math.isfinite(value) else {"(number)": str(value)}
        # JSON has no NaN, and JavaScript no integers beyond 2^53.
        return value if math.isfinite(value) and abs(value) <= 2**53 else str(value)
    return value if value is None or isinstance(value, str) else str(value)


def _thin(steps: list[Any], values: list[Any], points: int) -> dict[str, list[Any]] | None:
    pairs = [
        (step, value)
        for step, value in zip(steps, values, strict=False)
        if isinstance(step, int | float) and isinstance(value, int | float) and step == step
    ]
    if not pairs:
        return None
    stride = math.ceil(len(pairs) / points)
    kept = pairs[::stride]
    if kept[-1] is not pairs[-1]:
        kept.append(pairs[-1])
    return {
        "steps": [float(step) for step, _ in kept],
        "values": [float(value) if math.isfinite(value) else None for _, value in kept],
    }


def _image(artifact: Artifact, budget: list[int]) -> dict[str, str]:
    content = b""
    try:
        for block in artifact.blocks():
            content += block
            if len(content) > min(IMAGE_BYTES, budget[0]):
                return {"name": artifact.name, "source": "", "note": " (too large for this page)"}
    except RecordsError:
        return {"name": artifact.name, "source": "", "note": " (lost)"}
    kind = next((kind for head, kind in _IMAGES.items() if content.startswith(head)), None)
    if kind is None:
        return {"name": artifact.name, "source": "", "note": " (not an image)"}
    budget[0] -= len(content)
    source = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return {"name": artifact.name, "source": source, "note": ""}
