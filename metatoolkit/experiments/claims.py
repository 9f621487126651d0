"""Claims of a study: paired differences over seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from metatoolkit.errors import ConfigurationError
from metatoolkit.records.table import half_width

if TYPE_CHECKING:
    import pandas

Kind = Literal["above", "below", "level"]
Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What a study is expected to show of two rows, by their difference on the same seeds.

    Attributes:
        row: Label of a row.
        kind: ``"above"``: larger than ``over``. ``"below"``: smaller. ``"level"``: less than
            ``margin`` away from it.
        over: Label of the row it is compared with.
        column: Header of the column.
        margin: The largest difference that does not matter, in units of the column; stated before
            anything is run, and for ``"level"`` alone.

    Raises:
        ConfigurationError: The margin is missing, not above 0, or given where it means nothing.
    """

    row: str
    kind: Kind
    over: str
    column: str
    margin: float | None = None

    def __post_init__(self) -> None:
        if (self.kind == "level") != (self.margin is not None and self.margin > 0):
            raise ConfigurationError(
                f"the claim {self.row!r} {self.kind} {self.over!r} has margin={self.margin}; "
                "'level' needs the largest difference that does not matter, above 0, and the "
                "others need none."
            )


@dataclass(frozen=True)
class Difference:
    """Two rows, subtracted seed by seed.

    Attributes:
        mean: Mean difference.
        low: Lower end of the 95 % interval of the mean, by Student's t.
        high: Its upper end.
        pairs: Seeds that both rows have.
        exact: Whether the values do not depend on the seed, so that one pair decides.
    """

    mean: float
    low: float
    high: float
    pairs: int
    exact: bool = False

    def told(self, digits: int) -> str:
        """Write it as text.

        Args:
            digits: Digits behind the point.
        """
        if self.exact:
            return f"{self.mean:+.{digits}f}"
        count = f"{self.pairs} seeds" if self.pairs > 1 else "one seed"
        if self.pairs < 2:
            return f"{self.mean:+.{digits}f}, {count}"
        interval = f"{self.low:+.{digits}f} to {self.high:+.{digits}f}"
        return f"{self.mean:+.{digits}f}, 95 % interval {interval}, {count}"


def paired_difference(
    frame: pandas.DataFrame, row: str, over: str, column: str, exact: bool = False
) -> Difference | None:
    """Subtract two rows of a study on the seeds that both have.

    The rows share their data, initial networks and batches where they share a seed, so that the
    differences vary less than the values.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.
        row: Label of a row.
        over: Label of the row to subtract.
        column: Header of the column.
        exact: Whether its values do not depend on the seed.

    Returns:
        The difference; ``None`` where no seed has both values.
    """
    by_seed = [
        frame.loc[frame["row"] == label].set_index("seed")[column].astype(float)
        for label in (row, over)
    ]
    differences = (by_seed[0] - by_seed[1]).dropna()
    pairs = len(differences)
    if pairs == 0:
        return None
    mean = float(differences.mean())
    half = 0.0 if exact else half_width(differences) if pairs > 1 else math.inf
    return Difference(mean, mean - half, mean + half, pairs, exact)


def verdict(claim: Claim, difference: Difference) -> Verdict:
    """Judge a claim by the whole interval of a difference.

    Args:
        claim: The claim.
        difference: What was found of its rows.

    Returns:
        ``"holds"`` where the claim is true of all of the interval, ``"does not hold"`` where it is
        true of nothing in it, else ``"undecided"``.
    """
    low, high = difference.low, difference.high
    if claim.kind == "below":
        low, high = -high, -low
    if claim.margin is not None:
        if -claim.margin < low and high < claim.margin:
            return "holds"
        return "does not hold" if low >= claim.margin or high <= -claim.margin else "undecided"
    if low > 0:
        return "holds"
    # Without any spread, a difference of zero is no difference.
    return "does not hold" if high < 0 or low == high else "undecided"


def judge(
    claims: Sequence[Claim],
    frame: pandas.DataFrame,
    digits: dict[str, int],
    exact: frozenset[str] = frozenset(),
) -> list[str]:
    """Say of each claim whether the runs bear it out, and by how much.

    Args:
        claims: The claims.
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`.
        digits: Digits behind the point, by column.
        exact: Columns whose values do not depend on the seed.

    Returns:
        One sentence for each claim whose rows have a seed in common.
    """
    sentences = []
    for claim in claims:
        row, over, column = claim.row, claim.over, claim.column
        difference = paired_difference(frame, row, over, column, column in exact)
        if difference is None:
            continue
        places = digits[column]
        words: str = claim.kind
        if claim.margin is not None:
            words = f"level (within {claim.margin:.{places}f}) with"
        sentences.append(
            f"{row} {words} {over} in {column}: {verdict(claim, difference)} "
            f"({difference.told(places)})"
        )
    return sentences
