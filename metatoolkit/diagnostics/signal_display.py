"""How signal and noise are shown: a table as text with what follows, and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from metatoolkit.diagnostics.comparison_display import align
from metatoolkit.errors import optional_import

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metatoolkit.diagnostics.signal_noise import Signal

SHOWN = 20
"""Meta-parameters that a table or a figure shows, those with the largest ratios."""


def strongest(rows: Mapping[str, Signal]) -> dict[str, Signal]:
    """Return the row in all, and of the others those with the largest ratios, in that order.

    Args:
        rows: Signal by name, the row in all first.
    """
    (first, total), *others = rows.items()
    # A part whose hypergradient is always zero has no ratio, and comes last.
    others.sort(key=lambda entry: -entry[1].ratio if entry[1].ratio == entry[1].ratio else math.inf)
    return {first: total, **dict(others[:SHOWN])}


def summary(rows: Mapping[str, Signal], batches: int, draws: int, shows: bool) -> str:
    """Write rows and what follows from them.

    Args:
        rows: Signal by name, the row in all first.
        batches: Meta batches that were drawn.
        draws: Calls for each of them.
        shows: Whether the signal in all is told from chance.
    """
    chosen = strongest(rows)
    cells = [["meta-parameter", "signal", "noise", "of draws", "ratio", "chance", "p", "steps"]]
    for name, row in chosen.items():
        share = row.draw_noise / row.noise if row.noise else math.nan
        # As lengths: what is squared says little to a reader.
        signal = math.copysign(math.sqrt(abs(row.signal)), row.signal)
        # Both are estimates, and a part may come out larger than the whole.
        of_draws = "" if math.isnan(share) else f"{min(share, 1.0):.0%}"
        figures = [f"{one:.2g}" for one in (signal, math.sqrt(row.noise))]
        ratios = [f"{one:.2g}" for one in (row.ratio, row.chance)]
        cells.append([name, *figures, of_draws, *ratios, f"{row.p_value:.2g}", f"{row.steps:.3g}"])
    lines = align(cells)
    lines.insert(1, "-" * len(lines[0]))
    times = "" if draws == 1 else f", {draws} draws on each"
    told = [f"Signal and noise of a hypergradient over {batches} meta batches{times}", *lines]
    if len(chosen) < len(rows):
        told.append(f"... and {len(rows) - len(chosen)} more, with smaller ratios")
    return "\n".join([*told, _verdict(next(iter(rows.values())), batches, shows)])


def _verdict(total: Signal, batches: int, shows: bool) -> str:
    if total.noise == 0 and total.signal == 0:
        return (
            "Every hypergradient is zero: λ gets no signal here. An estimator that carries state "
            "from call to call, such as SOBA, has to be trained with first."
        )
    if total.noise == 0:
        return "There is no noise: every meta batch gives the same hypergradient."
    if shows:
        steps = math.ceil(total.steps)
        what = "one meta step has" if steps == 1 else f"the mean of about {steps:,} meta steps has"
        return f"λ gets a signal (p = {total.p_value:.2g}): {what} as much signal as noise."
    return (
        f"No signal is told from chance (p = {total.p_value:.2g}, {batches} meta batches): as far "
        "as these tell, λ walks at random. Ask for more batches, give larger ones, or average more "
        "draws or meta steps."
    )


def draw(rows: Mapping[str, Signal]) -> Figure:
    """Draw the ratio of each part beside what chance gives.

    Args:
        rows: Signal by name, the row in all first.

    Returns:
        A figure; ratios and chances are on a logarithmic axis that is linear about zero.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    with optional_import("the figure of signal and noise"):
        from matplotlib.figure import Figure

    chosen = strongest(rows)
    places = range(len(chosen))
    figure = Figure(figsize=(7, 1.5 + 0.32 * len(chosen)), layout="constrained")
    axes = figure.subplots()
    ratios = [row.ratio if math.isfinite(row.ratio) else math.nan for row in chosen.values()]
    chances = [row.chance if math.isfinite(row.chance) else math.nan for row in chosen.values()]
    sizes = [abs(one) for one in (*ratios, *chances) if one == one and one]
    axes.set_xscale("symlog", linthresh=min(sizes, default=1.0))
    axes.barh(places, ratios, color="tab:blue", alpha=0.6, label="signal to noise")
    axes.plot(chances, places, "k|", markersize=12, label="95 of 100 by chance")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("squared signal to squared noise of one meta step")
    axes.set_yticks(list(places), list(chosen))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
