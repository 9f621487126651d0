"""Query expressions: a small language, read with Python's parser and never evaluated.

config.method == 'evograd' and result.test_accuracy > 0.8
0.01 <= config.lr < 1 and not status in ['FAILED', 'INTERRUPTED']
metrics['val.loss'].min < 0.3 and 'paper' in tags and start_time > '2 days ago'
matches(experiment, '^label') and exists(config.sigma) and duration > 3600
start_time == 'last tuesday' and gpu
metrics.loss.at[100] < 2 * metrics.loss.last and config.width >= config.depth
"""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from metatoolkit.errors import ConfigurationError, QueryError
from metatoolkit.records.fields import DATES, FIELDS, Expected, Field, is_number, whole_day
from metatoolkit.records.matching import TEST, Operand, Test
from metatoolkit.records.terms import Source, Terms, has_field, is_field, is_text

DEEPEST = 40
POINTS = ("last", "min", "max")
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


@dataclass
class Query:
    """A parsed expression.

    Args:
        filter: The MongoDB filter; under the key ``TEST`` it may hold a ``Test``, which is not
            MongoDB's.
        fields: The fields that the expression names.
        expected: What kinds of values they are compared with.
    """

    filter: dict[str, Any] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)


def parse(expression: str | None) -> Query:
    """Translate an expression into a MongoDB filter.

    Args:
        expression: The expression; None or blank selects everything.

    Returns:
        The filter, built of comparison operators and tests only, and the fields it names.

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
    source = Source(name)
    return Terms(source).field(source.tree())


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
    if root == "metrics":
        try:
            return parse_field(what)
        except QueryError:
            return parse_field(f"{what}.{_value_at(at)}")
    if root in FIELDS:
        return parse_field(what)
    return parse_field(f"metrics[{what!r}].{_value_at(at)}")


def _value_at(at: str | int) -> str:
    if at in POINTS:
        return str(at)
    if not is_number(str(at)):
        raise ConfigurationError(f"at is one of {', '.join(POINTS)}, or a step, not {at!r}")
    return f"at[{at}]"


class _Parser:
    def __init__(self, text: str) -> None:
        self._source = Source(text)
        self._terms = Terms(self._source)

    def parse(self) -> Query:
        tree = self._source.tree()
        try:
            condition = self._condition(tree)
        except RecursionError:
            raise QueryError("the expression is nested too deeply") from None
        return Query(condition, self._terms.fields, self._terms.expected)

    def _condition(self, node: ast.expr, depth: int = 0) -> dict[str, Any]:
        if depth > DEEPEST:
            raise self._source.error(node, f"the expression is nested more than {DEEPEST} times")
        if isinstance(node, ast.BoolOp):
            operator = "$and" if isinstance(node.op, ast.And) else "$or"
            return {operator: [self._condition(value, depth + 1) for value in node.values]}
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._terms.negated = not self._terms.negated
            condition = {"$nor": [self._condition(node.operand, depth + 1)]}
            self._terms.negated = not self._terms.negated
            return condition
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return {self._terms.field(node).path: {"$nin": [None, False, 0, ""]}}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            raise self._source.error(node, "write `and`, `or` between comparisons")
        raise self._source.error(node, "a comparison such as config.lr > 0.1 is expected")

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
            raise self._source.error(left, "write == or != to compare")
        symbol = _OPERATORS[type(operator)]
        sides = [has_field(left), has_field(right)]
        if not any(sides):
            raise self._source.error(left, "one side of a comparison must be a field")
        if all(sides) or not (is_field(left) or is_field(right)):
            return {TEST: self._test(left, symbol, right)}
        if sides[0]:
            target, value = self._terms.field(left), right
        else:
            target, value, symbol = self._terms.field(right), left, _MIRRORED[symbol]
        if target.root in DATES and symbol in ("$eq", "$ne"):
            day = whole_day(value.value) if is_text(value) else None
            if day is not None:
                within = {"$gte": day[0], "$lt": day[1]}
                return (
                    {target.path: within} if symbol == "$eq" else {"$nor": [{target.path: within}]}
                )
        return {target.path: {symbol: self._terms.value(value, target, symbol)}}

    def _test(self, left: ast.expr, symbol: str, right: ast.expr) -> Test:
        before = len(self._terms.fields)
        one, other = self._terms.operand(left), self._terms.operand(right)
        fields = self._terms.fields[before:]
        for field_ in fields:
            if field_.root == "status":
                raise self._source.error(left, "the status is compared with text in quotes only")
        for side, node, computed in ((one, left, other), (other, right, one)):
            if not isinstance(side.value, str):
                continue
            if any(field_.root in DATES for field_ in fields):
                moment_ = Operand(self._terms.date(node, side.value))
                return Test(symbol, *((moment_, computed) if side is one else (computed, moment_)))
            raise self._source.error(node, "what is computed is a number; compare it with one")
        return Test(symbol, one, other)

    def _membership(self, left: ast.expr, negated: bool, right: ast.expr) -> dict[str, Any]:
        if is_field(right):
            # 'paper' in tags: MongoDB compares with every entry of a list.
            target = self._terms.field(right)
            symbol = "$ne" if negated else "$eq"
            return {target.path: {symbol: self._terms.value(left, target, symbol)}}
        target = self._terms.field(left)
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self._source.error(right, "a list such as ['a', 'b'] must follow `in`")
        symbol = "$nin" if negated else "$in"
        values = [self._terms.value(entry, target, symbol) for entry in right.elts]
        return {target.path: {symbol: values}}

    def _call(self, node: ast.Call) -> dict[str, Any]:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, 1, 0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            known = ", ".join(FUNCTIONS)
            raise self._source.error(
                node, f"there is no function {name!r}.{hint} There are: {known}"
            )
        count = 1 if name == "exists" else 2
        if len(node.args) != count or node.keywords:
            raise self._source.error(node, f"{name} takes {count} argument{'s'[: count - 1]}")
        target = self._terms.field(node.args[0], series=name == "exists")
        if name == "exists":
            return {target.path: {"$exists": True}}
        text = self._terms.constant(node.args[1])
        if not isinstance(text, str):
            raise self._source.error(node.args[1], f"{name} takes text in quotes")
        self._terms.expected.append(Expected(target, "text", True))
        if name == "matches":
            try:
                re.compile(text)
            except (re.error, RecursionError, OverflowError) as error:
                raise self._source.error(
                    node.args[1], f"not a regular expression ({error})"
                ) from None
            return {target.path: {"$regex": text}}
        start = "^" if name == "startswith" else ""
        return {target.path: {"$regex": start + re.escape(text)}}
