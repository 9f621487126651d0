"""The document of results: studies beside the published numbers, from recorded runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metatoolkit.errors import optional_import
from metatoolkit.experiments import by_application
from metatoolkit.experiments.by_application import EstimatorStudy
from metatoolkit.experiments.studies import judge, summarize
from metatoolkit.records.fields import flatten

_HEAD = """\
# Results

Written by `scripts/reproduce --document docs/results.md` from the experiment database. Each number
is the mean over the seeds, ± their standard deviation; "not available" means that no published
number could be found that is certain. The runs' ids are those of the database that this document
was written from. Times per step are those of runs side by side on a machine that may have had other
work; they compare within a study, and only roughly.
"""


def write(found: Sequence[tuple[Any, Any]], path: Path) -> None:
    """Write the document and, beside it, the figures.

    Args:
        found: Studies with their frames, see :func:`metatoolkit.experiments.studies.collect`.
        path: Markdown file to write; figures go to a folder of its name.
    """
    with optional_import("the page of results"):
        import matplotlib

    matplotlib.use("Agg")
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [_HEAD]
    compared = [(s, f) for s, f in found if isinstance(s, EstimatorStudy) and not f.empty]
    if compared:
        parts.append(_by_application(compared, path))
    for study, frame in found:
        parts.append(_section(study, frame))
        if study.draw is not None and not frame.empty:
            picture = path.with_suffix("") / f"{study.name}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            study.draw(frame, picture)
            parts.append(f"![{study.title}]({picture.relative_to(path.parent).as_posix()})\n")
    path.write_text("\n".join(parts))


def _by_application(compared: Sequence[tuple[EstimatorStudy, Any]], path: Path) -> str:
    """Return the section that puts the estimators of all applications side by side."""
    picture = path.with_suffix("") / f"{by_application.NAME}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    by_application.draw(compared, picture)
    head, *lines = by_application.table(compared)
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    rows.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
    place = picture.relative_to(path.parent).as_posix()
    return "\n".join(
        [
            f"## {by_application.TITLE}",
            "",
            f"`scripts/reproduce {by_application.NAME}`. {by_application.NOTE}",
            "",
            *rows,
            "",
            f"![{by_application.TITLE}]({place})",
            "",
        ]
    )


def _section(study: Any, frame: Any) -> str:
    lines = [f"## {study.title}", ""]
    seeds = sorted(set(frame["seed"]))
    again = f"`{_again(study, seeds)}`"
    if frame.empty:
        return "\n".join([*lines, f"Not run yet: {again}.", ""])
    lines += [f"{again}, seeds {_ranges(seeds)}. {_machine(frame)}", ""]
    headers = [column.header for column in study.columns]
    published = [
        header for header in headers if any(header in row.published for row in study.rows.values())
    ]
    names = ["", *headers, *(f"{header}, published" for header in published)]
    if not published:
        names.append("published")
    lines.append("| " + " | ".join([*names, "runs"]) + " |")
    lines.append("|---" + "|---:" * (len(names) - 1) + "|---|")
    for cells in summarize(study, frame):
        row = study.rows[cells[0]]
        known = [row.published.get(header, "not available") for header in published]
        ids = [run.id for run in frame.loc[frame["row"] == cells[0], "run"]]
        cells += [*(known or ["not available"]), _ranges(ids)]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for sentence in judge(study, frame):
        lines.append(f"- {sentence}")
    if study.claims:
        lines.append("")
    for text in (f"Published numbers: {study.source}" if study.source else "", study.note):
        if text:
            lines += [text, ""]
    lines += ["<details><summary>Configurations</summary>", ""]
    for label, row in study.rows.items():
        lines.append(f"- {label}: `{_command(study, row)}`")
    return "\n".join([*lines, "", "</details>", ""])


def _again(study: Any, seeds: Sequence[int]) -> str:
    """Return the command that runs a study with these seeds."""
    command = f"scripts/reproduce {study.name}"
    if not seeds or seeds == sorted(study.seeds):
        return command
    first = "" if seeds[0] == study.seeds[0] else f" --first-seed {seeds[0]}"
    count = seeds[-1] - seeds[0] + 1
    return command + first + ("" if count == len(study.seeds) else f" --seeds {count}")


def _machine(frame: Any) -> str:
    """Say what the runs were made on."""
    hosts: dict[str, None] = {}
    for run in frame["run"]:
        host = run.details().get("host", {})
        gpus = [gpu.get("model", "") for gpu in host.get("gpus", {}).get("gpus", [])]
        devices = gpus if run.config.get("device") == "cuda" else [str(host.get("cpu", ""))]
        versions = [
            name
            for name in run.details()["experiment"]["dependencies"]
            if name.startswith("torch==")
        ]
        hosts[", ".join([*devices, *versions])] = None
    return "; ".join(hosts) + "."


def _command(study: Any, row: Any) -> str:
    """Return the command that runs one row."""
    updates = {
        k: json.dumps(v) if isinstance(v, list) else v for k, v in flatten(row.updates).items()
    }
    entries = [*row.named, *(f"{name}={value}" for name, value in updates.items())]
    with_part = " ".join(["with", *map(shlex.quote, entries)]) if entries else ""
    return f"metatoolkit run {study.application} {with_part}".strip()


def _ranges(ids: Sequence[Any]) -> str:
    """Write run ids shortly: 3–7, 9."""
    parts: list[list[Any]] = []
    for number in sorted(ids, key=str if any(isinstance(i, str) for i in ids) else None):
        if parts and isinstance(number, int) and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
