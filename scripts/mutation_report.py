"""The report of a mutation run: score by module, and every mutant that no test noticed."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

BEGIN = "<!-- mutation: begin -->"
END = "<!-- mutation: end -->"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with one mistake."""

    module: str
    source: str
    diff: str

    @property
    def key(self) -> str:
        """Hash of the whole source, by which a result is found again."""
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]

    @property
    def change(self) -> list[str]:
        """The lines that are removed and added, without their indentation."""
        lines = [line for line in self.diff.splitlines() if line[:1] in "+-"]
        return [line[0] + line[1:].strip() for line in lines]


def write_report(
    results: list[tuple[Mutant, str]],
    equivalents: list[dict[str, Any]],
    report: Path,
    page: Path | None,
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
    results: list[tuple[Mutant, str]], equivalents: list[dict[str, Any]]
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


def equivalents() -> list[dict[str, Any]]:
    """Return the mutants that were judged to be no mistakes, each with the reason."""
    return tomllib.loads(Path(__file__).with_name("mutation_equivalents.toml").read_text())[
        "mutant"
    ]
