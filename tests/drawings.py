"""What a figure shows, read back from its axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


class Drawn(dict[str, Any]):
    """Figures by the name of the file that they were saved to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        from matplotlib.figure import Figure

        save = Figure.savefig

        def savefig(figure: Any, path: Any, *arguments: Any, **options: Any) -> Any:
            self[Path(path).name] = figure
            return save(figure, path, *arguments, **options)

        patch.setattr(Figure, "savefig", savefig)

    def axes(self, name: str, folder: Path | None = None) -> list[Any]:
        """The axes of a figure in order; with a folder, the file must be a picture that is there.

        Args:
            name: Name of the file.
            folder: Where it was written.
        """
        if folder is not None:
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
        return self[name].axes


def lines(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The data of the lines of an axis by label, those without one left out."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axis.lines
        if not line.get_label().startswith("_")
    }


def bars(axis: Any, labels: Any = None) -> dict[str, float]:
    """The lengths of horizontal bars, or the means that are points with intervals, by their labels.

    Args:
        axis: Where they are; of several groups of them, the last.
        labels: The axis that holds the labels.
    """
    named = labels or axis
    pairs = zip(named.get_yticks(), named.get_yticklabels(), strict=True)
    places = {round(place): text.get_text() for place, text in pairs}
    drawn = axis.containers[-1]
    if hasattr(drawn, "patches"):
        middles = [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in drawn.patches]
    else:
        middles = zip(drawn[0].get_ydata(), drawn[0].get_xdata(), strict=True)
    return {places[round(middle)]: float(value) for middle, value in middles}


def points(axis: Any) -> list[tuple[float, float]]:
    """The places of points that are drawn with intervals, in order.

    Args:
        axis: Where they are.
    """
    drawn = [container[0] for container in axis.containers]
    return [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in drawn]


def legend(axis: Any) -> list[str]:
    """The labels of a legend, of an axis or of a figure."""
    (found,) = axis.legends if hasattr(axis, "legends") else (axis.get_legend(),)
    return [text.get_text() for text in found.get_texts()]
