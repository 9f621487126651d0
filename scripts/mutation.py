"""Mutation testing of the numerical core: which mistakes do the tests that mirror a module notice?

The mutants are those of mutmut's operators and of the ones below; each is tested in a process that
is forked from one which has imported everything but the package.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import psutil
import pytest

from scripts.mutation_report import Mutant, equivalents, write_report
from scripts.mutation_suites import fingerprint, suites_of

CORE = ["problem.py", "state.py", "randomness", "stateless", "training", "inner"]
CORE += ["losses", "hypergradients", "diagnostics", "metaparameters", "components"]
GIB = 2**30
# Packages that the process of the tests finds imported.
HEAVY = {"torch", "numpy", "scipy", "sympy", "pandas", "matplotlib", "PIL", "sklearn", "psutil"}
HEAVY |= {
    "requests",
    "rich",
    "sacred",
    "pymongo",
    "bson",
    "torchvision",
    "transformers",
    "hypothesis",
}


def mutants(path: str, sample: int | None = None, seed: int = 0) -> list[Mutant]:
    """Return the mutants of a module, or a random sample of them.

    Args:
        path: Path of the module, from the root of the repository.
        sample: Number of mutants; ``None`` for all.
        seed: Seed of the sample.
    """
    from scripts.mutation_operators import mutated_sources

    source = Path(path).read_text()
    found = []
    for text in mutated_sources(source, sample, random.Random(f"{seed} {path}")):
        lines = difflib.unified_diff(source.splitlines(), text.splitlines(), n=0, lineterm="")
        found.append(Mutant(path, text, "\n".join(list(lines)[2:])))
    return found


class _Finder(importlib.machinery.SourceFileLoader):
    """Gives a module another source; installed on ``sys.meta_path`` of the process under test."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module.removesuffix(".py").replace("/", "."), mutant.module)
        self.name = self.name.removesuffix(".__init__")
        self._source = mutant.source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, os.path.abspath(self.path), loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec")


def run_tests(arguments: Sequence[str], mutant: Mutant | None, report: str | None = None) -> int:
    """Run pytest in this process, with a mutant in the place of its module, and return its status.

    Args:
        arguments: Arguments of pytest.
        mutant: The mutant, if any.
        report: File that takes the names of all modules that were imported.
    """
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    options += ["--no-header", "--tb=no", "--assert=plain"]
    status = int(pytest.main([*options, *arguments]))
    if report is not None:
        Path(report).write_text(json.dumps(sorted(sys.modules)))
    return status


def start(arguments: Sequence[str], mutant: Mutant | None, seconds: int, report: str = "") -> int:
    """Fork a process that runs tests, and return its number.

    Args:
        arguments: Arguments of pytest.
        mutant: The mutant, if any.
        seconds: CPU time that the process may take.
        report: As in :func:`run_tests`.
    """
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        # Beyond the addresses that it has from its parent, which may be many.
        most = psutil.Process().memory_info().vms + 16 * GIB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        sys.stdout = sys.stderr = open(os.devnull, "w")
        for stream in (1, 2):
            os.dup2(sys.stdout.fileno(), stream)
        status = run_tests(arguments, mutant, report or None)
    finally:
        os._exit(status)


def warm_up(suites: Iterable[Sequence[str]], path: str, folder: Path) -> dict[tuple[str, ...], int]:
    """Import what suites import of other packages, and return the CPU time of each suite.

    A suite that fails by itself tells nothing of a mutant, and is an error.

    Args:
        suites: Arguments of pytest, one sequence for each suite.
        path: Path of a module; it stands in for a mutant of itself, which must survive.
        folder: Where notes go.

    Raises:
        SystemExit: A suite fails without a mutant.
    """
    times = {}
    notes = folder / "modules.json"
    control = Mutant(path, Path(path).read_text(), "")
    for suite in suites:
        _, status = os.waitpid(start(suite, control, 3600, str(notes)), 0)
        for name in json.loads(notes.read_text()) if not status else []:
            if name.split(".")[0] in HEAVY:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        # The collector of a process that is forked need not look at all this.
        gc.freeze()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not status:
            _, status = os.waitpid(start(suite, control, 3600), 0)
        if status:
            raise SystemExit(f"the tests fail without a mutant: pytest {' '.join(suite)}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times[tuple(suite)] = int(sum(after[:2]) - sum(before[:2]))
    return times


def examine(
    queue: Sequence[Mutant],
    suites: Sequence[Sequence[str]],
    times: dict[tuple[str, ...], int],
    jobs: int,
) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant with ``"killed"``, ``"timeout"`` or ``"survived"``, as they end.

    Args:
        queue: The mutants.
        suites: Suites that run one after another until one notices.
        times: CPU time that each suite takes by itself.
        jobs: Number of processes at a time.
    """
    waiting = [(mutant, 0) for mutant in reversed(queue)]
    running: dict[int, tuple[Mutant, int]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant, stage = waiting.pop()
            suite = suites[stage]
            running[start(suite, mutant, 20 + 3 * times[tuple(suite)])] = (mutant, stage)
        process, status = os.wait()
        mutant, stage = running.pop(process)
        if status:
            yield mutant, "timeout" if os.WIFSIGNALED(status) else "killed"
        elif stage + 1 < len(suites):
            waiting.append((mutant, stage + 1))
        else:
            yield mutant, "survived"


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine modules and write the report.

    Args:
        arguments: Command line; ``None`` for that of the process.
    """
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("modules", nargs="*", help="files or folders; default: the whole core")
    parser.add_argument("--sample", type=int, help="number of mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--folder", type=Path, default=Path("results/mutation"), help="results")
    parser.add_argument("--page", type=Path, help="page of the documentation that takes the table")
    options = parser.parse_args(arguments)
    given = options.modules or [f"metatoolkit/{name}" for name in CORE]
    paths = [p for name in given if (p := Path(name)).exists()]
    files = [str(f) for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "results.jsonl"
    log.touch()
    known = {entry["key"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    results: list[tuple[Mutant, str]] = []
    for path in files:
        suites = suites_of(path)
        found = mutants(path, options.sample, options.seed)
        if not suites or not found:
            continue
        print(f"{path}: {len(found)} mutants", flush=True)
        tests = fingerprint(suites)
        queue = []
        for mutant in found:
            entry = known.get(mutant.key)
            # A mutant that was noticed stays so; one that survived gets another chance.
            if entry and (entry["status"] != "survived" or entry["tests"] == tests):
                results.append((mutant, entry["status"]))
            else:
                queue.append(mutant)
        if queue:
            try:
                times = warm_up(suites, path, options.folder)
            except SystemExit as reason:
                print(f"{path} is left out: {reason}", flush=True)
                continue
            for mutant, status in examine(queue, suites, times, options.jobs):
                results.append((mutant, status))
                entry = {"key": mutant.key, "status": status, "tests": tests}
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                if status == "survived":
                    print(mutant.diff, flush=True)
    write_report(results, equivalents(), options.folder / "report.md", options.page)


if __name__ == "__main__":
    main()
