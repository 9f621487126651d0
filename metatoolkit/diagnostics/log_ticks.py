"""Numbers along logarithmic axes that can be read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def plain_log_ticks(axis: Axis, span: float = math.inf) -> None:
    """Write the numbers of a logarithmic axis without exponents, so that few do not overlap.

    Args:
        axis: One axis of a panel, such as its ``xaxis``, once its limits are known.
        span: Ratio of its ends from which on powers of ten alone are marked, and not 2 and 5 times
            these, without which a short span has too few to be read by.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < span * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
