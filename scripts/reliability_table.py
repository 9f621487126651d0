"""Writes the figures of the fault suite as a page of the documentation."""

import datetime
import json
import os
import platform
import sys
from pathlib import Path

from benchmarks.machine import processor

HEAD = """\
# Reliability of the records

Every row is one fault, made on purpose with a real MongoDB server: how many values a run had
recorded, and how many the database holds afterwards, each exactly once and in order. A run that
could not reach its database was brought in by `metatoolkit records sync` once the server was back.

"Extra time" is by how much recording made the run longer than its own work, all of it included:
collecting sources and package versions, the first push, the last push, reading everything back. A
run waits for its database for {start:.0f} s at its start and {end:.0f} s at its end, and no longer;
"allowed" is what of that applies to the case, and the suite fails beyond 5 s more than it.

| fault | recorded | found | status | extra time | allowed |
|---|---:|---:|---|---:|---:|
"""
TAIL = """
Full disks are small file systems that are mounted for the test and filled while the run goes on.
The clock is the one that the process sees: the machine's own is left alone.

Other tests hold what is no matter of one figure: a power failure that leaves less in the spool than
in the database (values, summaries and notes stay), a full disk without a server (what is lost is
counted, and the status is right), runs whose documents or folders are deleted while they go on, a
line of 300 kB/s, data that somebody has altered before they are read back, and directories of other
users, machines and containers.

Measured on {date} with Python {python}, {system}, {processor}, {cores} cores shared with other
work. `scripts/reliability` measures again and writes this page.
"""


def main(figures: str, page: str) -> None:
    """Write the page.

    Args:
        figures: What the fault suite has noted, one JSON object a line.
        page: Where to.
    """
    from metatoolkit.records.push_thread import END_WAIT_SECONDS, START_WAIT_SECONDS

    text = HEAD.format(start=START_WAIT_SECONDS, end=END_WAIT_SECONDS)
    for line in Path(figures).read_text().splitlines():
        one = json.loads(line)
        extra = "" if one["extra"] is None else f"{one['extra']:.1f} s"
        allowed = "" if one["extra"] is None else f"{one['limit']:.0f} s"
        text += (
            f"| {one['case']} | {one['sent']:,} | {one['found']:,} | {one['status']} "
            f"| {extra} | {allowed} |\n"
        )
    text += TAIL.format(
        date=datetime.date.today().isoformat(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=processor(),
        cores=os.cpu_count(),
    )
    # What stands behind the table is written by others.
    former = Path(page).read_text() if Path(page).exists() else ""
    _, heading, rest = former.partition("\n## ")
    Path(page).write_text(text + heading + rest)
    print(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
