"""Query expressions: a small language, read with Python's parser and never evaluated.

config.method == 'evograd' and result.test_accuracy > 0.8
0.01 <= config.lr < 1 and not status in ['FAILED', 'INTERRUPTED']
metrics['val.loss'].min < 0.3 and 'paper' in tags and start_time > '2 days ago'
matches(experiment, '^label') and exists(config.sigma) and duration > 3600
start_time == 'last tuesday' and gpu
metrics.loss.at[100] < 2 * metrics.loss.last and config.width >= config.depth

A predicate in Python decides, for runs of a database and of the spool alike. Beside it goes a
filter of MongoDB that selects at least the same runs and spares reading most of the others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from metatoolkit.errors import ConfigurationError, QueryError
from metatoolkit.records.fields import (
    DATES,
    FIELDS,
    Condition,
    Expected,
    Field,
    comparison,
    compute,
    did_you_mean,
    relation,
    value_at,
)
from metatoolkit.records.terms import ARITHMETIC, WORDS, Terms, is_number, whole_day

DEEPEST = 40
POINTS = ("last", "min", "max")
FUNCTIONS = ("exists", "matches", "contains", "startswith")
_SYMBOLS: dict[type[ast.cmpop], str] = {
    ast.Eq: "$eq", ast.NotEq: "$ne", ast.Gt: "$gt", ast.GtE: "$gte", ast.Lt: "$lt",
    ast.LtE: "$lte", ast.In: "$in", ast.NotIn: "$nin",
}  # fmt: skip
_MIRRORED = {"$gt": "$lt", "$gte": "$lte", "$lt": "$gt", "$lte": "$gte"}
MARKED = "unlisted_metrics"
"""The field that says that ``summary`` and ``info`` do not list all metrics."""

REASON = "reason"
STOCK: dict[str, Any] = {"run_uuid": {"$exists": False}}
# What this toolkit has recorded names its metrics in the summary; other documents may not.
UNLISTED: dict[str, Any] = {
    "$or": [{"summary": {"$exists": False}}, {"summary": {}}, {MARKED: {"$exists": True}}, STOCK]
}
# Where documents of some kinds hold less than is asked for, or hold it in another form.
_INCOMPLETE = {"summary": UNLISTED, "result": STOCK, "info": STOCK}
# Patterns that MongoDB reads as Python does; where they repeat something, it may give up.
_ALIKE = re.compile(r"(?:[^\\(\[{*+?]|\((?!\?)|\[(?![\[:])|\\[dDwWsSnrt]|\\\W)*")

# The predicate of a part of an expression, and its filter.
Selected = tuple[Condition, dict[str, Any]]


@dataclass
class Query:
    """What is asked for.

    Args:
        holds: Says of a document that holds what the fields ask for whether it is selected.
        prefilter: A filter of MongoDB that selects at least these documents.
        fields: The fields that are named.
        expected: What kinds of values they are compared with.
        equal: Comparisons for equality, none of them negated: field, ``$eq`` or ``$in``, and the
            value or values.
    """

    holds: Condition = lambda document: True
    prefilter: dict[str, Any] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)
    equal: list[tuple[Field, str, Any]] = field(default_factory=list)

    def where(self, name: str, value: Any) -> Query:
        """Ask for one more thing: that a field without parts is equal to a value."""
        asked = Field(name, FIELDS[name][0], name)
        own = comparison(asked.path, "$eq", value), prefilter(asked.path, "$eq", value)
        holds, selecting = _all([(self.holds, self.prefilter), own])
        fields, equal = [*self.fields, asked], [*self.equal, (asked, "$eq", value)]
        return Query(holds, selecting, fields, self.expected, equal)


def parse(expression: str | None) -> Query:
    """Translate an expression.

    Args:
        expression: The expression; None or blank selects everything.

    Returns:
        The query.

    Raises:
        QueryError: The expression is not understood; the message says where, and what is near.
    """
    if expression is None or not expression.strip():
        return Query()
    reader = _Reader(expression)
    tree = reader.tree()
    try:
        holds, selecting = reader.condition(tree)
    except RecursionError:
        raise QueryError("the expression is nested too deeply") from None
    return Query(holds, selecting, reader.fields, reader.expected, reader.equal)


def parse_field(name: str) -> Field:
    """Translate a field's name, such as ``result.test_accuracy`` or ``metrics['val.loss'].min``.

    Args:
        name: The name.

    Returns:
        The field.

    Raises:
        QueryError: No such field.
    """
    terms = Terms(name)
    return terms.field(terms.tree())


def value_field(what: str, at: str | int = "last") -> Field:
    """Find the field that a result's or a metric's name means.

    Args:
        what: A field's name, or a metric's.
        at: Which value of a metric: ``last``, ``min``, ``max``, or the one at a step.

    Returns:
        The field.

    Raises:
        QueryError: The name is not understood.
        ConfigurationError: ``at`` is something else.
    """
    root = what.partition(".")[0].partition("[")[0]
    if root in FIELDS:
        try:
            return parse_field(what)
        except QueryError:
            if root != "metrics":
                raise
    if at not in POINTS and not is_number(str(at)):
        raise ConfigurationError(f"at is one of {', '.join(POINTS)}, or a step, not {at!r}")
    metric = what if root == "metrics" else f"metrics[{what!r}]"
    return parse_field(f"{metric}.{at}" if at in POINTS else f"{metric}.at[{at}]")


def prefilter(path: str, symbol: str, given: Any = None) -> dict[str, Any]:
    """Make a filter for MongoDB that selects at least the runs for which a comparison holds.

    It is empty, and selects everything, where MongoDB would answer falsely.
    """
    root = path.partition(".")[0]
    if path == REASON or ".at." in path or symbol in ("$ne", "$nin"):
        return {}
    if symbol == "$regex" and not _ALIKE.fullmatch(given):
        return {}
    if path == "status":
        # A run that says so may be dead, which is another status.
        listed = {"$eq": [given], "$in": given}.get(symbol)
        return {} if listed is None else {path: {"$in": [*listed, "RUNNING"]}}
    own = {path: {symbol: True if symbol == "$exists" else given}}
    return {"$or": [own, _INCOMPLETE[root]]} if root in _INCOMPLETE else own


class _Reader(Terms):
    """Reads the conditions of an expression."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.equal: list[tuple[Field, str, Any]] = []

    def condition(self, node: ast.expr, depth: int = 0) -> Selected:
        if depth > DEEPEST:
            raise self._error(node, f"the expression is nested more than {DEEPEST} times")
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(value, depth + 1) for value in node.values]
            return _all(parts) if isinstance(node.op, ast.And) else _any(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.negations += 1
            inner = self.condition(node.operand, depth + 1)
            self.negations -= 1
            return _not(inner)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            return _all([self._pair(*one) for one in zip(sides, node.ops, sides[1:], strict=False)])
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return comparison(self.field(node).path, "$nin", [None, False, 0, ""]), {}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            raise self._error(node, "write `and`, `or` between comparisons")
        raise self._error(node, "a comparison such as config.lr > 0.1 is expected")

    def _pair(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Selected:
        if isinstance(operator, ast.Is | ast.IsNot):
            raise self._error(left, "write == or != to compare")
        symbol = _SYMBOLS[type(operator)]
        if symbol in ("$in", "$nin"):
            if _is_field(right):
                # 'paper' in tags: every entry of a list is compared.
                return self._with_constant(right, "$eq" if symbol == "$in" else "$ne", left)
            target = self.field(left)
            if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                raise self._error(right, "a list such as ['a', 'b'] must follow `in`")
            return self._leaf(target, symbol, [self._value(v, target, symbol) for v in right.elts])
        sides = [_has_field(left), _has_field(right)]
        if not any(sides):
            raise self._error(left, "one side of a comparison must be a field")
        if all(sides) or not (_is_field(left) or _is_field(right)):
            return self._relation(left, symbol, right), {}
        if sides[0]:
            return self._with_constant(left, symbol, right)
        return self._with_constant(right, _MIRRORED.get(symbol, symbol), left)

    def _with_constant(self, left: ast.expr, symbol: str, right: ast.expr) -> Selected:
        target = self.field(left)
        text = right.value if isinstance(right, ast.Constant) else None
        if target.root in DATES and symbol in ("$eq", "$ne") and isinstance(text, str):
            day = whole_day(text)
            if day is not None:
                ends = [self._leaf(target, "$gte", day[0]), self._leaf(target, "$lt", day[1])]
                return _all(ends) if symbol == "$eq" else _not(_all(ends))
        return self._leaf(target, symbol, self._value(right, target, symbol))

    def _leaf(self, target: Field, symbol: str, value: Any) -> Selected:
        listed = {"$eq": [value], "$in": value}.get(symbol)
        # Below a negation nothing keeps runs out.
        if listed and not self.negations and all(isinstance(v, str | int | float) for v in listed):
            self.equal.append((target, symbol, value))
        return comparison(target.path, symbol, value), prefilter(target.path, symbol, value)

    def _relation(self, left: ast.expr, symbol: str, right: ast.expr) -> Condition:
        before = len(self.fields)
        sides = {node: self._operand(node) for node in (left, right)}
        roots = {named.root for named in self.fields[before:]}
        if "status" in roots:
            raise self._error(left, "the status is compared with text in quotes only")
        for node in (left, right):
            text = None if _has_field(node) else self._constant(node)
            if isinstance(text, str):
                if not roots & DATES:
                    raise self._error(node, "what is computed is a number; compare it with one")
                at = self._date(node, text)
                sides[node] = lambda document, at=at: at
        one, other = sides[left], sides[right]
        return lambda document: relation(symbol, one(document), other(document))

    def _operand(self, node: ast.expr, computed: bool = False) -> Callable[..., Any]:
        """Read one side of a comparison that is computed of fields, or compared with one."""
        if _is_field(node):
            found = self.field(node)
            if found.root not in DATES:
                self._expect(found, "number" if computed else "any")
            return lambda document: value_at(document, found.path)
        if not _has_field(node):
            value = self._constant(node)
            return lambda document: value
        operation, inner = "", []
        if isinstance(node, ast.BinOp):
            operation, inner = ARITHMETIC.get(type(node.op), ""), [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            operation, inner = "negative", [node.operand]
        elif isinstance(node, ast.Call) and len(node.args) == 1:
            operation, inner = "abs", node.args
        if not operation:
            raise self._error(node, "fields are computed with +, -, *, /, **, % and abs() only")
        parts = [self._operand(one, True) for one in inner]
        return lambda document: compute(operation, [part(document) for part in parts])

    def _call(self, node: ast.Call) -> Selected:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in FUNCTIONS:
            hint, known = did_you_mean(name, FUNCTIONS, 0.5) or ".", ", ".join(FUNCTIONS)
            raise self._error(node, f"there is no function {name!r}{hint} There are: {known}")
        count = 1 if name == "exists" else 2
        if len(node.args) != count or node.keywords:
            raise self._error(node, f"{name} takes {count} argument{'s'[: count - 1]}")
        target = self.field(node.args[0], series=name == "exists")
        if name == "exists":
            return self._leaf(target, "$exists", True)
        text = self._constant(node.args[1])
        if not isinstance(text, str):
            raise self._error(node.args[1], f"{name} takes text in quotes")
        self._expect(target, "text")
        if name != "matches":
            text = "^" * (name == "startswith") + re.escape(text)
        try:
            return self._leaf(target, "$regex", text)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise self._error(node.args[1], f"not a regular expression ({error})") from None


def _not(part: Selected) -> Selected:
    return lambda document: not part[0](document), {}


def _all(parts: list[Selected]) -> Selected:
    if len(parts) == 1:
        return parts[0]
    conditions, filters = [one for one, _ in parts], [one for _, one in parts if one]
    selecting = {"$and": filters} if filters else {}
    return lambda document: all(one(document) for one in conditions), selecting


def _any(parts: list[Selected]) -> Selected:
    conditions, filters = [one for one, _ in parts], [one for _, one in parts]
    selecting = {"$or": filters} if all(filters) else {}
    return lambda document: any(one(document) for one in conditions), selecting


def _has_field(node: ast.expr) -> bool:
    """Say whether an operand names a field; a word without quotes is taken for one."""
    inner: list[ast.expr] = []
    if isinstance(node, ast.BinOp):
        inner = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp):
        inner = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abs":
        inner = node.args
    return _is_field(node) or any(_has_field(one) for one in inner)


def _is_field(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id.lower() not in WORDS
    return isinstance(node, ast.Attribute | ast.Subscript)
