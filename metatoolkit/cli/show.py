"""What shows or saves one run: `metatoolkit runs show`, `artifacts`, `sources`."""

from __future__ import annotations

import argparse
from typing import Any

from metatoolkit.cli.arguments import add_json, command
from metatoolkit.cli.display import heading, print_json, print_pairs, print_table, span
from metatoolkit.errors import UnknownNameError
from metatoolkit.records.clean import decode, decode_key
from metatoolkit.records.fields import Field, duration, flatten, lookup
from metatoolkit.records.query import connect
from metatoolkit.records.run import Artifact, Run, section
from metatoolkit.records.selection import complete
from metatoolkit.records.terminal import text

EVERY_METRIC = Field("metrics", "summary", "metrics")


def add(commands: Any) -> None:
    """Describe the commands."""
    show = command(commands, "show", "print everything about a run", show_run)
    show.add_argument("id", metavar="ID", help="the run's id, or the beginning of its uuid")
    show.add_argument("--output", action="store_true", help="also what the run printed")
    add_json(show)
    for files in (
        command(commands, "artifacts", "list or save files that it made", artifacts_of),
        command(commands, "sources", "list or save the program's files", sources_of),
    ):
        files.add_argument("id", metavar="ID", help="the run")
        files.add_argument("name", nargs="*", help="only these")
        files.add_argument("--save", metavar="DIR", help="write them into this directory")


def show_run(options: argparse.Namespace) -> int:
    """Print everything about a run."""
    with connect() as database:
        run = database[options.id]
        details = run.details()
        document = run.document
        if options.json:
            _print_data(run, details, options.output)
            return 0
        host, process = section(details, "host"), section(details, "proc")
        gpus = [str(gpu) for gpu in lookup(host, "gpus.gpus.model")]
        pairs: list[tuple[str, Any]] = [
            ("run", run.id),
            ("experiment", run.experiment),
            ("status", run.status),
            ("note", details.get("status_note")),
            ("started", document.get("start_time")),
            ("stopped", document.get("stop_time")),
            ("last heard of", document.get("heartbeat")),
            ("duration", span(duration(document))),
            ("host", f"{host.get('hostname', '')}, process {process.get('pid', '')}"),
            ("gpu", gpus or None),
            ("python", host.get("python_version")),
            ("code", _code(details)),
            ("resumed from", section(details, "meta").get("resumed_from")),
            ("comment", section(details, "meta").get("comment")),
            ("tags", run.tags or None),
            ("notes", run.notes or None),
            ("uuid", run.uuid),
            ("files that were lost", details.get("missing_files")),
            ("lost on a full disk", _lost(details)),
            ("in the spool only", "yes" if document.get("spooled") else None),
        ]
        print_pairs([(name, value) for name, value in pairs if value not in (None, "")])
        _section("configuration", flatten(run.config))
        if run.result is not None:
            _section("result", flatten(run.result, "result"))
        info = {key: value for key, value in run.info.items() if key != "metrics"}
        _section("info", flatten(info))
        _print_metrics(run)
        if run.artifacts:
            heading("artifacts")
            for name in run.artifacts:
                print(text(name))
        if details.get("fail_trace"):
            heading("failure")
            for line in run.fail_trace.splitlines():
                print(text(line))
        if options.output:
            heading("output")
            for line in run.output.splitlines():
                print(text(line))
    return 0


def _print_data(run: Run, details: dict[str, Any], output: bool) -> None:
    """Print a run's document for other programs, its output where it was asked for."""
    complete([run], [EVERY_METRIC])
    left_out = {"summary", "omniboard", "config", "result", "info", "experiment", "_id"}
    left_out |= set() if output else {"captured_out"}
    data = {
        "id": run.id,
        "experiment": run.experiment,
        "code": decode(details.get("experiment")),
        **{key: decode(value) for key, value in details.items() if key not in left_out},
        "status": run.status,
        "tags": run.tags,
        "notes": run.notes,
        "config": run.config,
        "result": run.result,
        "info": run.info,
        "metrics": decode(section(run.document, "summary")),
    }
    print_json(data)


def artifacts_of(options: argparse.Namespace) -> int:
    """List a run's artifacts, or save them."""
    with connect() as database:
        _list_or_save(database[options.id].artifacts, "artifact", options)
    return 0


def sources_of(options: argparse.Namespace) -> int:
    """List the files of the program that a run was of, or save them."""
    with connect() as database:
        _list_or_save(database[options.id].sources, "source", options)
    return 0


def _list_or_save(files: dict[str, Artifact], kind: str, options: argparse.Namespace) -> None:
    for name in options.name:
        if name not in files:
            raise UnknownNameError(kind, name, files)
    chosen = {name: files[name] for name in options.name} if options.name else files
    for name, file in chosen.items():
        print(text(file.save(options.save) if options.save else name))
    if not chosen:
        print(f"the run has no {kind}s")


def _section(title: str, entries: dict[str, Any]) -> None:
    if entries:
        heading(title)
        print_pairs(list(entries.items()))


def _print_metrics(run: Run) -> None:
    complete([run], [EVERY_METRIC])
    summary = section(run.document, "summary")
    if not summary:
        return
    heading("metrics")
    rows = [
        [decode_key(name), one.get("count"), one.get("last"), one.get("min"), one.get("max")]
        for name, one in summary.items()
        if isinstance(one, dict)
    ]
    print_table(["name", "values", "last", "min", "max"], rows)


def _lost(details: dict[str, Any]) -> str | None:
    lost = section(details, "lost")
    return f"{lost.get('values')} values, {lost.get('output_bytes')} bytes" if lost else None


def _code(details: dict[str, Any]) -> str | None:
    for repository in lookup(details, "experiment.repositories"):
        for one in repository if isinstance(repository, list) else []:
            if isinstance(one, dict):
                dirty = " with uncommitted changes" if one.get("dirty") else ""
                return f"{one.get('url')} at {str(one.get('commit'))[:12]}{dirty}"
    return None
