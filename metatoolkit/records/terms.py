"""The terms of an expression: its text, the names of fields, constants, and phrases for times."""

from __future__ import annotations

import ast
import datetime
import re
import warnings
from typing import Any

from metatoolkit.errors import QueryError
from metatoolkit.records.clean import clean_text, encode_key
from metatoolkit.records.fields import (
    DATES,
    FIELDS,
    Expected,
    Field,
    compute,
    did_you_mean,
    kind_of,
)
from metatoolkit.records.spool import utcnow

LONGEST = 10_000
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.Mod: "%",
}  # fmt: skip
STATISTICS = ("last", "min", "max", "count", "step", "min_step", "max_step")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WORDS = {"true": True, "false": False, "null": None, "none": None, "nan": float("nan")}
_HINTS = {
    r"(?<![=!<>])=(?!=)": "write == to compare",
    r"&&|&": "write `and`",
    r"\|\||\|": "write `or`",
    r"<>": "write !=",
    r"!(?!=)": "write `not`",
    r"=~|~": "write matches(field, 'pattern')",
}
UNIT = r"(\d+(?:\.\d+)?)\s*(seconds?|sec|s|minutes?|min|m|hours?|h|days?|d|weeks?|w)"
_AGO = re.compile(rf"{UNIT}(?:\s+ago)?")
_LENGTH = re.compile(rf"{UNIT}(?![a-z])")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Terms:
    """Reads the terms of an expression, and notes the fields that they name.

    Args:
        text: The expression.
    """

    def __init__(self, text: str) -> None:
        # Leading blanks would be an indentation, and line ends are blanks here.
        self.text = " ".join(text.splitlines()).strip()
        self.fields: list[Field] = []
        self.expected: list[Expected] = []
        self.negations = 0

    def tree(self) -> ast.expr:
        """Read the text.

        Returns:
            Python's syntax tree of it, which is never evaluated.

        Raises:
            QueryError: It is no expression.
        """
        if len(self.text) > LONGEST:
            raise QueryError(f"the expression is longer than {LONGEST} characters")
        try:
            with warnings.catch_warnings():
                # Python warns of odd escapes and of `1 is 2`; here they are errors or harmless.
                warnings.simplefilter("ignore")
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise self._syntax_error(error) from None
        except UnicodeEncodeError:
            raise QueryError("the expression is no valid text") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise QueryError(f"the expression cannot be read: {error}") from None

    def _error(self, node: ast.AST, message: str) -> QueryError:
        """Return the error that points at a part of the text."""
        return self._error_at(self._position(getattr(node, "col_offset", 0)), message)

    def _position(self, offset: int) -> int:
        """Python counts bytes."""
        return len(self.text.encode()[:offset].decode("utf-8", "ignore"))

    def _syntax_error(self, error: SyntaxError) -> QueryError:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda found: " " * len(found.group()), self.text)
        for pattern, hint in _HINTS.items():
            found = re.search(pattern, bare)
            if found:
                return self._error_at(found.start(), hint)
        if not error.offset or error.offset > len(self.text):
            return self._error_at(len(self.text), "the expression is not complete")
        return self._error_at(self._position(error.offset - 1), error.msg)

    def _error_at(self, position: int, message: str) -> QueryError:
        start = max(0, position - 40)
        excerpt = self.text[start : position + 40]
        return QueryError(
            f"at character {position + 1} of the expression, {message}:\n"
            f"    {excerpt}\n    {' ' * (position - start)}^"
        )

    def field(self, node: ast.expr, series: bool = False) -> Field:
        """Read the name of a field.

        Args:
            node: The name.
            series: Whether a metric may be named without saying which value of it.

        Returns:
            The field.

        Raises:
            QueryError: No such field.
        """
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute | ast.Subscript):
            key = inner.attr if isinstance(inner, ast.Attribute) else self._key(inner.slice)
            parts.insert(0, key)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            raise self._error(inner, "a field such as config.lr is expected")
        root = inner.id
        if root not in FIELDS:
            near, known = did_you_mean(root, FIELDS, 0.7), ", ".join(FIELDS)
            hint = near or (
                f"; text is put into quotes: {root!r}. Did you mean config.{root}, result.{root} "
                f"or metrics.{root}?"
            )
            raise self._error(inner, f"there is no field {root!r}{hint} There are: {known}")
        path, deep = FIELDS[root]
        if parts and not deep:
            raise self._error(node, f"{root} has no parts")
        if any(not part for part in parts):
            raise self._error(node, "an empty name")
        if root == "metrics":
            try:
                parts = _metric_parts(parts, series)
            except ValueError as error:
                raise self._error(node, str(error)) from None
        path = ".".join([path, *(encode_key(part) for part in parts)])
        self.fields.append(Field(ast.unparse(node), path, root))
        return self.fields[-1]

    def _key(self, node: ast.expr) -> str:
        sign, inner = "", node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, inner = "-", node.operand
        key = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(key, int | float) and not isinstance(key, bool):
            return f"{sign}{key:g}" if key % 1 else f"{sign}{int(key)}"
        if isinstance(key, str) and not sign:
            return key
        raise self._error(node, "a name in quotes is expected in the brackets")

    def _value(self, node: ast.expr, target: Field, symbol: str) -> Any:
        """Read what a field is compared with, as a document would hold it."""
        value = self._constant(node)
        if target.root in DATES and value is not None:
            if not isinstance(value, str):
                raise self._error(node, f"{target.root} is a time: compare it with one in quotes")
            return self._date(node, value)
        if target.root == "duration" and isinstance(value, str):
            try:
                return _seconds(value)
            except ValueError:
                told = "not a duration; write a number of seconds, '90 minutes' or '2 h'"
                raise self._error(node, told) from None
        kind = kind_of(value)
        if kind in ("number", "text", "boolean"):
            if target.root == "metrics" and kind != "number":
                raise self._error(node, "values of metrics are numbers: compare with one")
            negated = (symbol in ("$ne", "$nin")) != bool(self.negations % 2)
            self._expect(target, kind, negated or symbol not in ("$eq", "$ne", "$in", "$nin"))
        return value

    def _expect(self, target: Field, kind: str, strict: bool = True) -> None:
        """Note what kind of value is expected of a field, and whether others would mislead."""
        self.expected.append(Expected(target, kind, strict))

    def _constant(self, node: ast.expr) -> Any:
        """Read a number, text, true, false, none, or a list of these."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str | int | float | bool) or node.value is None:
                return self._fitting(node, node.value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._constant(node.operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            sides = [self._constant(node.left), self._constant(node.right)]
            value = compute(ARITHMETIC[type(node.op)], sides)
            if value is not None:
                return self._fitting(node, value)
        elif isinstance(node, ast.List | ast.Tuple):
            return [self._constant(entry) for entry in node.elts]
        elif isinstance(node, ast.Name) and node.id.lower() in WORDS:
            return WORDS[node.id.lower()]
        raise self._error(node, "a number, text in quotes, true, false, none or a list is expected")

    def _fitting(self, node: ast.expr, value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) < value < 2**63:
            return float(value) if abs(value) < 10**300 else float("inf")
        if isinstance(value, str) and "\0" in value:
            raise self._error(node, "text cannot hold a null character")
        if isinstance(value, str) and clean_text(value) != value:
            raise self._error(node, "text cannot hold half a character (a lone surrogate)")
        return value

    def _date(self, node: ast.expr, text: str) -> datetime.datetime:
        """Read a time: a day, meaning its beginning, one with a time, or how long ago it was."""
        try:
            ago = _AGO.fullmatch(text.strip())
            if ago:
                seconds = float(ago.group(1)) * SECONDS[ago.group(2)[0]]
                found = utcnow() - datetime.timedelta(seconds=seconds)
            else:
                day = _day(text) or datetime.datetime.fromisoformat(text.strip()).astimezone()
                found = _naive_utc(day)
            # A database keeps no more of a time.
            return found.replace(microsecond=found.microsecond // 1000 * 1000)
        except (ValueError, OverflowError, OSError):
            told = "'2026-11-17', '2026-11-17 14:30', 'yesterday', 'last tuesday' or '2 days'"
            raise self._error(node, f"not a time; write {told}") from None


def is_number(text: str) -> bool:
    """Say whether a text is a number as steps are written, such as ``100``, ``-1`` or ``0.5``."""
    return text.removeprefix("-").replace(".", "", 1).replace("e+", "", 1).isdigit()


def whole_day(text: str) -> tuple[datetime.datetime, datetime.datetime] | None:
    """Find the day that a text means.

    Args:
        text: Such as ``2026-11-17``, ``yesterday`` or ``last tuesday``.

    Returns:
        Its first moment here and that of the next day, as documents keep times; None for anything
        else.
    """
    try:
        day = _day(text)
        if day is None:
            return None
        # By the calendar, since days on which clocks change are not of 24 hours.
        following = day.replace(tzinfo=None) + datetime.timedelta(days=1)
        return _naive_utc(day), _naive_utc(following.astimezone())
    except (OverflowError, OSError, ValueError):
        return None


def _metric_parts(parts: list[str], series: bool) -> list[str]:
    """Tell a metric's name, dots included, from the value of it that is meant."""
    if len(parts) > 2 and parts[-2] == "at" and is_number(parts[-1]):
        return [".".join(parts[:-2]), *parts[-2:]]
    if len(parts) > 1 and parts[-1] in STATISTICS:
        return [".".join(parts[:-1]), parts[-1]]
    if series:
        return [".".join(parts)] if parts else []
    near = did_you_mean(parts[-1], STATISTICS) if len(parts) > 1 else ""
    if near:
        raise ValueError(f"a metric has no {parts[-1]!r}{near}")
    name = ".".join(parts) or "name"
    shown = f"metrics.{name}" if name.isidentifier() else f"metrics[{name!r}]"
    raise ValueError(
        f"a metric has many values: write {shown}.last, .min, .max, .count or {shown}.at[100] for "
        "the one at step 100"
    )


def _seconds(text: str) -> float:
    given = text.strip().lower()
    parts = _LENGTH.findall(given)
    if not parts or _LENGTH.sub("", given).strip(" ,"):
        raise ValueError(f"not a duration: {text!r}")
    return sum(float(number) * SECONDS[unit[0]] for number, unit in parts)


def _day(text: str) -> datetime.datetime | None:
    text = text.strip().lower()
    today = datetime.datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    weekday = text.removeprefix("last").strip()
    if text in ("today", "yesterday"):
        day = today - datetime.timedelta(days=text == "yesterday")
    elif weekday in WEEKDAYS:
        # The latest one that is over: on a Tuesday, `last tuesday` is a week ago.
        days = (today.weekday() - WEEKDAYS.index(weekday) - 1) % 7 + 1
        day = today - datetime.timedelta(days=days)
    elif _DATE.fullmatch(text):
        day = datetime.datetime.fromisoformat(text)
    else:
        return None
    return day.astimezone()


def _naive_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC).replace(tzinfo=None)
