"""All estimators on three problems, beside higher and TorchOpt where they are installed.

Run as ``python -m benchmarks.estimators``; it writes tables and figures to ``docs/benchmarks``.
The peers higher and TorchOpt come with the extra ``benchmarks`` (``pip install -e .[benchmarks]``);
Betty (``betty-ml``) and hypertorch are measured where they can be imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import metatoolkit as mt
from benchmarks.estimator_problems import PROBLEMS
from benchmarks.machine import describe_machine
from benchmarks.peers import Betty, Higher, Hypertorch, Peer, TorchOpt, installed

PEERS: dict[str, tuple[str, Callable[[int], dict[str, Peer]]]] = {
    "higher": ("higher", lambda steps: {f"higher, {steps} steps": Higher(steps)}),
    "TorchOpt": ("torchopt", lambda steps: {f"TorchOpt, {steps} steps": TorchOpt(steps)}),
    "Betty": (
        "betty",
        lambda steps: (
            {"Betty, darts": Betty("darts", scale=0.01)}
            if steps == 1
            else {
                "Betty, cg of 20": Betty("cg", 20),
                "Betty, cg of 20, cg_alpha=0.1": Betty("cg", 20, 0.1),
                "Betty, neumann of 50": Betty("neumann", 50, 0.3),
            }
        ),
    ),
    "hypertorch": (
        "hypergrad",
        lambda steps: (
            {}
            if steps == 1
            else {
                "hypertorch, CG of 20": Hypertorch("CG", 20),
                "hypertorch, fixed_point of 50": Hypertorch("fixed_point", 50),
            }
        ),
    ),
}
"""The module of each peer, and the estimators that it brings to a problem of so many steps."""


def as_markdown(table: Any) -> str:
    """Return a comparison as a Markdown table, with what was left out below it.

    Args:
        table: Table of :func:`metatoolkit.compare_estimators`.
    """
    lines = [
        "| estimator | cosine | relative error | forward | backward | JVP | HVP | FLOPs [F] "
        "| memory [MiB] | time [ms] |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for name, row in table.iterrows():
        if row["cosine"] != row["cosine"]:
            notes.append(f"- {name} is left out: {row['note']}")
            continue
        counts = [int(row[kind]) for kind in ("forward", "backward", "jvp", "hvp")]
        passes = " | ".join(str(count) if any(counts) else "" for count in counts)
        lines.append(
            f"| {name} | {row['cosine']:.3f} | {row['relative_error']:.1e} | {passes} "
            f"| {row['flops']:.1f} | {row['peak_bytes'] / 2**20:.2f} | {1e3 * row['seconds']:.1f} |"
        )
    return "\n".join([*lines, "", *notes])


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the page.

    Args:
        argv: Arguments; by default those of the command line.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.estimators", description=__doc__)
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS), help="default: all")
    parser.add_argument("--draws", type=int, default=50, help="calls of random estimators")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    present = []
    for name, (module, peers) in PEERS.items():
        if installed(module):
            present.append(peers)
        else:
            print(f"{name} is not installed and is left out.", file=sys.stderr)
    arguments.output.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in arguments.problems:
        setup = PROBLEMS[name]()
        title, about, steps = (setup.pop(key) for key in ("title", "about", "peer_steps"))
        if steps is not None:
            for peers in present:
                setup["estimators"] |= peers(steps)
        comparison = mt.compare_estimators(
            **setup,
            draws=arguments.draws,
            repeats=arguments.repeats,
            path=arguments.output / f"estimators_{name}.png",
        )
        figure = f"![{title}](estimators_{name}.png)"
        parts.append(f"## {title}\n\n{about}\n\n{as_markdown(comparison.table)}\n\n{figure}\n")
    page = [
        "# Estimators side by side",
        "",
        "Cosine and relative error compare one call with the reference, averaged over "
        f"{arguments.draws} calls where the estimator is random; the mark in a figure's first "
        "panel is the error of their mean. Memory is what tensors hold at most beyond what was "
        "there before the call, FLOPs are in forward passes over one training batch, and time is "
        f"the least of {arguments.repeats} calls.",
        "",
        *parts,
        f"Measured on {describe_machine()}. `python -m benchmarks.estimators` measures again and "
        "writes this page.",
        "",
    ]
    (arguments.output / "estimators.md").write_text("\n".join(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
