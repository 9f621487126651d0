"""The report of a mutation run: score by module, and every mutant that no test noticed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

BEGIN = "<!-- mutation: begin -->"
END = "<!-- mutation: end -->"


class Change(Protocol):
    """What the report asks of a mutant."""

    module: str
    diff: str

    @property
    def change(self) -> list[str]:
        """Lines that are removed and added."""


def write_report(
    results: list[tuple[Any, str]], equivalents: list[dict[str, Any]], report: Path, page: Path | None
) -> None:
    """Write the report, and its table between the marks of a page where there is one.

    Args:
        results: Each mutant and what became of it.
        equivalents: Mutants that are no mistakes: ``module``, ``change`` and ``reason``.
        report: File of the report.
        page: Page of the documentation, if any.
    """
    table, survivors = summarize(results, equivalents)
    text = f"# Mutation testing\n\n{table}\n"
    for module, diffs in survivors.items():
        text += f"\n## {module}\n"
        text += "".join(f"\n```diff\n{diff}\n```\n" for diff in diffs)
    report.write_text(text)
    print(table, report, sep="\n")
    if page is not None:
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def summarize(
    results: list[tuple[Any, str]], equivalents: list[dict[str, Any]]
) -> tuple[str, dict[str, list[str]]]:
    """Return the table, and the diffs of the survivors that are mistakes by module.

    Args:
        results: Each mutant and what became of it.
        equivalents: As in :func:`write_report`.
    """
    judged = {(entry["module"], tuple(entry["change"])) for entry in equivalents}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    survivors: dict[str, list[str]] = defaultdict(list)
    for mutant, status in results:
        tally = counts[mutant.module]
        if status != "survived":
            tally[0] += 1
        elif (mutant.module, tuple(mutant.change)) in judged:
            tally[1] += 1
        else:
            tally[2] += 1
            survivors[mutant.module].append(mutant.diff)
    rows = ["| module | mutants | killed | equivalent | survived | score |", "|---|" + "---:|" * 5]
    total = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0]
    for module, (killed, same, alive) in [*sorted(counts.items()), ("all", total)]:
        name = f"`{module}`" if module != "all" else "all"
        score = killed / (killed + alive) if killed + alive else 1.0
        rows.append(
            f"| {name} | {killed + same + alive} | {killed} | {same} | {alive} | {score:.1%} |"
        )
    return "\n".join(rows), dict(survivors)
