"""Times as a query writes them: `2026-11-17`, `yesterday`, `last tuesday`, `2 days`."""

from __future__ import annotations

import datetime
import re

from metatoolkit.records.spool import utcnow

_UNIT = r"(\d+(?:\.\d+)?)\s*(seconds?|sec|s|minutes?|min|m|hours?|h|days?|d|weeks?|w)"
_AGO = re.compile(rf"{_UNIT}(?:\s+ago)?")
_LENGTH = re.compile(rf"{_UNIT}(?![a-z])")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def whole_day(text: str) -> tuple[datetime.datetime, datetime.datetime] | None:
    """Find the day that a text means.

    Args:
        text: Such as ``2026-11-17``, ``yesterday`` or ``last tuesday``.

    Returns:
        Its first moment here and that of the next day, as the database keeps times; None for
        anything else.
    """
    day = _day(text)
    return None if day is None else (_naive_utc(day), _naive_utc(_next_day(day)))


def seconds(text: str) -> float:
    """Read a duration.

    Args:
        text: Such as ``90 minutes``, ``2 h`` or ``1h 30m``.

    Returns:
        Its length in seconds.

    Raises:
        ValueError: The text means no duration.
    """
    given = text.strip().lower()
    parts = _LENGTH.findall(given)
    if not parts or _LENGTH.sub("", given).strip(" ,"):
        raise ValueError(f"not a duration: {text!r}")
    return sum(float(number) * _SECONDS[unit[0]] for number, unit in parts)


def moment(text: str) -> datetime.datetime:
    """Find the moment that a text means.

    Args:
        text: A day, which means its beginning, a day with a time, or how long ago it was.

    Returns:
        The moment as the database keeps times: in UTC, without a time zone.

    Raises:
        ValueError: The text means no time.
        OverflowError: The time is out of the calendar's range.
        OSError: The system does not know the local time then.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago:
        seconds = float(ago.group(1)) * _SECONDS[ago.group(2)[0]]
        return utcnow() - datetime.timedelta(seconds=seconds)
    day = _day(text)
    if day is not None:
        return _naive_utc(day)
    return _naive_utc(datetime.datetime.fromisoformat(text.strip()).astimezone())


def _day(text: str) -> datetime.datetime | None:
    text = text.strip().lower()
    today = datetime.datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return _local(today - datetime.timedelta(days=text == "yesterday"))
    weekday = text.removeprefix("last").strip()
    if weekday in WEEKDAYS:
        # The latest one that is over: on a Tuesday, `last tuesday` is a week ago.
        days = (today.weekday() - WEEKDAYS.index(weekday) - 1) % 7 + 1
        return _local(today - datetime.timedelta(days=days))
    if _DATE.fullmatch(text):
        try:
            return _local(datetime.datetime.fromisoformat(text))
        except ValueError:
            return None
    return None


def _local(moment: datetime.datetime) -> datetime.datetime:
    return moment.replace(tzinfo=None).astimezone()


def _next_day(day: datetime.datetime) -> datetime.datetime:
    # By the calendar, since days on which clocks change are not of 24 hours.
    return _local(day.replace(tzinfo=None) + datetime.timedelta(days=1))


def _naive_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC).replace(tzinfo=None)
