"""Query expressions: a small language, read with Python's parser and never evaluated.

config.method == 'evograd' and result.test_accuracy > 0.8
0.01 <= config.lr < 1 and not status in ['FAILED', 'INTERRUPTED']
metrics['val.loss'].min < 0.3 and 'paper' in tags and start_time > '2 days ago'
matches(experiment, '^label') and exists(config.sigma) and duration > 3600
start_time == 'last tuesday' and gpu
"""

from __future__ import annotations

import ast
import datetime
import difflib
import re
import warnings
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from metatoolkit.errors import QueryError
from metatoolkit.records.clean import clean_text
from metatoolkit.records.fields import DATES, FIELDS, stored_path
from metatoolkit.records.moments import moment, whole_day

LONGEST = 10_000
DEEPEST = 40
FUNCTIONS = ("exists", "matches", "contains", "startswith")

_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "$eq",
    ast.NotEq: "$ne",
    ast.Gt: "$gt",
    ast.GtE: "$gte",
    ast.Lt: "$lt",
    ast.LtE: "$lte",
}
_MIRRORED = {"$eq": "$eq", "$ne": "$ne", "$gt": "$lt", "$gte": "$lte", "$lt": "$gt", "$lte": "$gte"}
_WORDS = {"true": True, "false": False, "null": None, "none": None, "nan": float("nan")}


@dataclass(frozen=True)
class Field:
    """A field that an expression names.

    Args:
        name: As it was written, for messages.
        path: Where the database keeps it.
        root: The first part of the name.
    """

    name: str
    path: str
    root: str


@dataclass
class Query:
    """A parsed expression.

    Args:
        filter: The MongoDB filter.
        fields: The fields that the expression names.
    """

    filter: dict[str, Any] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)


def parse(expression: str | None) -> Query:
    """Translate an expression into a MongoDB filter.

    Args:
        expression: The expression; None or blank selects everything.

    Returns:
        The filter, built of comparison operators only, and the fields it names.

    Raises:
        QueryError: The expression is not understood; the message says where, and what is near.
    """
    if expression is None or not expression.strip():
        return Query()
    return _Parser(expression).parse()


def parse_field(name: str) -> Field:
    """Translate a field's name, such as ``result.test_accuracy`` or ``metrics['val.loss'].min``.

    Args:
        name: The name.

    Returns:
        The field.

    Raises:
        QueryError: No such field.
    """
    return _Parser(name).parse_field()


class _Parser:
    def __init__(self, text: str) -> None:
        # Leading blanks would be an indentation, and line ends are blanks here.
        self.text = " ".join(text.splitlines()).strip()
        self.fields: list[Field] = []

    def parse(self) -> Query:
        tree = self._tree()
        try:
            return Query(self._condition(tree), self.fields)
        except RecursionError:
            raise QueryError("the expression is nested too deeply") from None

    def parse_field(self) -> Field:
        return self._field(self._tree())

    def _tree(self) -> ast.expr:
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

    def _syntax_error(self, error: SyntaxError) -> QueryError:
        hints = {
            r"(?<![=!<>])=(?!=)": "write == to compare",
            r"&&|&": "write `and`",
            r"\|\||\|": "write `or`",
            r"<>": "write !=",
            r"!(?!=)": "write `not`",
            r"=~|~": "write matches(field, 'pattern')",
        }
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda found: " " * len(found.group()), self.text)
        for pattern, hint in hints.items():
            found = re.search(pattern, bare)
            if found:
                return self._error_at(found.start(), hint)
        if not error.offset or error.offset > len(self.text):
            return self._error_at(len(self.text), "the expression is not complete")
        where = len(self.text.encode()[: (error.offset or 1) - 1].decode("utf-8", "ignore"))
        return self._error_at(where, error.msg)

    def _error_at(self, position: int, message: str) -> QueryError:
        start = max(0, position - 40)
        excerpt = self.text[start : position + 40]
        return QueryError(
            f"at character {position + 1} of the expression, {message}:\n"
            f"    {excerpt}\n    {' ' * (position - start)}^"
        )

    def _error(self, node: ast.AST, message: str) -> QueryError:
        offset = getattr(node, "col_offset", 0)
        return self._error_at(len(self.text.encode()[:offset].decode("utf-8", "ignore")), message)

    def _condition(self, node: ast.expr, depth: int = 0) -> dict[str, Any]:
        if depth > DEEPEST:
            raise self._error(node, f"the expression is nested more than {DEEPEST} times")
        if isinstance(node, ast.BoolOp):
            operator = "$and" if isinstance(node.op, ast.And) else "$or"
            return {operator: [self._condition(value, depth + 1) for value in node.values]}
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return {"$nor": [self._condition(node.operand, depth + 1)]}
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return {self._field(node).path: {"$nin": [None, False, 0, ""]}}
        if isinstance(node, ast.BinOp):
            raise self._error(node, "write `and`, `or` between comparisons; there is no arithmetic")
        raise self._error(node, "a comparison such as config.lr > 0.1 is expected")

    def _comparison(self, node: ast.Compare) -> dict[str, Any]:
        conditions = []
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            conditions.append(self._pair(left, operator, right))
            left = right
        return conditions[0] if len(conditions) == 1 else {"$and": conditions}

    def _pair(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> dict[str, Any]:
        if isinstance(operator, ast.In | ast.NotIn):
            return self._membership(left, isinstance(operator, ast.NotIn), right)
        if isinstance(operator, ast.Is | ast.IsNot):
            raise self._error(left, "write == or != to compare")
        symbol = _OPERATORS[type(operator)]
        if _is_field(left):
            target, value = self._field(left), right
        elif _is_field(right):
            target, value, symbol = self._field(right), left, _MIRRORED[symbol]
        else:
            raise self._error(left, "one side of a comparison must be a field")
        if _is_field(value):
            hint = f"put text into quotes: {ast.unparse(value)!r}"
            raise self._error(value, f"a field is compared with a value; {hint}")
        if target.root in DATES and symbol in ("$eq", "$ne"):
            day = whole_day(value.value) if _is_text(value) else None
            if day is not None:
                within = {"$gte": day[0], "$lt": day[1]}
                return (
                    {target.path: within} if symbol == "$eq" else {"$nor": [{target.path: within}]}
                )
        constant = self._value(value, target)
        if symbol == "$eq" and isinstance(constant, list):
            return {target.path: {"$eq": constant}}
        return {target.path: {symbol: constant}}

    def _membership(self, left: ast.expr, negated: bool, right: ast.expr) -> dict[str, Any]:
        if _is_field(right):
            # 'paper' in tags: MongoDB compares with every entry of a list.
            target = self._field(right)
            return {target.path: {"$ne" if negated else "$eq": self._value(left, target)}}
        target = self._field(left)
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self._error(right, "a list such as ['a', 'b'] must follow `in`")
        values = [self._value(entry, target) for entry in right.elts]
        return {target.path: {"$nin" if negated else "$in": values}}

    def _call(self, node: ast.Call) -> dict[str, Any]:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, 1, 0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            known = ", ".join(FUNCTIONS)
            raise self._error(node, f"there is no function {name!r}.{hint} There are: {known}")
        count = 1 if name == "exists" else 2
        if len(node.args) != count or node.keywords:
            raise self._error(node, f"{name} takes {count} argument{'s'[: count - 1]}")
        target = self._field(node.args[0])
        if name == "exists":
            return {target.path: {"$exists": True}}
        text = self._value(node.args[1], None)
        if not isinstance(text, str):
            raise self._error(node.args[1], f"{name} takes text in quotes")
        if name == "matches":
            try:
                re.compile(text)
            except (re.error, RecursionError, OverflowError) as error:
                raise self._error(node.args[1], f"not a regular expression ({error})") from None
            return {target.path: {"$regex": text}}
        start = "^" if name == "startswith" else ""
        return {target.path: {"$regex": start + re.escape(text)}}

    def _field(self, node: ast.expr) -> Field:
        parts: list[str] = []
        inner: ast.expr = node
        while not isinstance(inner, ast.Name):
            if isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            elif isinstance(inner, ast.Subscript):
                key = inner.slice
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str | int):
                    raise self._error(key, "a name in quotes is expected in the brackets")
                parts.insert(0, str(key.value))
                inner = inner.value
            else:
                raise self._error(inner, "a field such as config.lr is expected")
        root = inner.id
        if root not in FIELDS:
            near = difflib.get_close_matches(root, FIELDS, 1, 0.7)
            meant = near[0] if near else f"config.{root}, result.{root} or metrics.{root}"
            hint = f" Did you mean {meant}?"
            known = ", ".join(FIELDS)
            raise self._error(inner, f"there is no field {root!r}.{hint} There are: {known}")
        deep = FIELDS[root][1]
        if parts and not deep:
            raise self._error(node, f"{root} has no parts")
        if any(not part for part in parts):
            raise self._error(node, "an empty name")
        found = Field(ast.unparse(node), stored_path([root, *parts]), root)
        self.fields.append(found)
        return found

    def _value(self, node: ast.expr, target: Field | None) -> Any:
        value = self._constant(node)
        if target is not None and target.root in DATES and isinstance(value, str):
            return self._date(node, value)
        return value

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str | int | float | bool) or node.value is None:
                return self._fitting(node, node.value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._constant(node.operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        elif isinstance(node, ast.List | ast.Tuple):
            return [self._constant(entry) for entry in node.elts]
        elif isinstance(node, ast.Name) and node.id.lower() in _WORDS:
            return _WORDS[node.id.lower()]
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
        try:
            return moment(text)
        except (ValueError, OverflowError, OSError):
            raise self._error(
                node,
                "not a time; write '2026-11-17', '2026-11-17 14:30', 'yesterday', 'last tuesday' "
                "or '2 days'",
            ) from None


def _is_text(node: ast.expr) -> TypeGuard[Any]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_field(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id.lower() not in _WORDS
    return isinstance(node, ast.Attribute | ast.Subscript)
