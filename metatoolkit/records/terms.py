"""The text of an expression and its terms: fields, constants, and what is computed of them."""

from __future__ import annotations

import ast
import datetime
import difflib
import re
import warnings
from typing import Any, TypeGuard

from metatoolkit.errors import QueryError
from metatoolkit.records.clean import clean_text
from metatoolkit.records.fields import (
    DATES,
    FIELDS,
    Expected,
    Field,
    metric_parts,
    moment,
    seconds,
    stored_path,
)
from metatoolkit.records.matching import Operand, compute

_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.Mod: "%",
}
KINDS: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "text"}
_WORDS = {"true": True, "false": False, "null": None, "none": None, "nan": float("nan")}


class Terms:
    """Reads terms, and notes the fields that they name.

    Args:
        source: The expression.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.fields: list[Field] = []
        self.expected: list[Expected] = []
        self.negated = False

    def operand(self, node: ast.expr, computed: bool = False) -> Operand:
        """Read one side of a comparison that is computed of fields, or compared with one.

        Args:
            node: The side.
            computed: Whether something is computed of it.

        Returns:
            The operand.

        Raises:
            QueryError: It cannot be computed.
        """
        if is_field(node):
            found = self.field(node)
            if found.root not in DATES:
                self.expected.append(Expected(found, "number" if computed else "any", True))
            return Operand(path=found.path)
        if not has_field(node):
            return Operand(self.constant(node))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            parts = (self.operand(node.left, True), self.operand(node.right, True))
            return Operand(operation=_ARITHMETIC[type(node.op)], parts=parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return Operand(operation="negative", parts=(self.operand(node.operand, True),))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "abs" and len(node.args) == 1:
            return Operand(operation="abs", parts=(self.operand(node.args[0], True),))
        raise self._source.error(node, "fields are computed with +, -, *, /, **, % and abs() only")

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
        root, parts = self._parts(node)
        if root.id not in FIELDS:
            raise self._unknown(root)
        if parts and not FIELDS[root.id][1]:
            raise self._source.error(node, f"{root.id} has no parts")
        if any(not part for part in parts):
            raise self._source.error(node, "an empty name")
        if root.id == "metrics":
            try:
                parts = metric_parts(parts, series)
            except ValueError as error:
                raise self._source.error(node, str(error)) from None
        found = Field(ast.unparse(node), stored_path([root.id, *parts]), root.id)
        self.fields.append(found)
        return found

    def _parts(self, node: ast.expr) -> tuple[ast.Name, list[str]]:
        parts: list[str] = []
        inner: ast.expr = node
        while not isinstance(inner, ast.Name):
            if isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            elif isinstance(inner, ast.Subscript):
                parts.insert(0, self._key(inner.slice))
                inner = inner.value
            else:
                raise self._source.error(inner, "a field such as config.lr is expected")
        return inner, parts

    def _key(self, node: ast.expr) -> str:
        sign, inner = "", node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, inner = "-", node.operand
        if isinstance(inner, ast.Constant) and not isinstance(inner.value, bool):
            if isinstance(inner.value, int | float):
                return f"{sign}{inner.value:g}" if inner.value % 1 else f"{sign}{int(inner.value)}"
            if isinstance(inner.value, str) and not sign:
                return inner.value
        raise self._source.error(node, "a name in quotes is expected in the brackets")

    def _unknown(self, root: ast.Name) -> QueryError:
        near = difflib.get_close_matches(root.id, FIELDS, 1, 0.7)
        meant = near[0] if near else f"config.{root.id}, result.{root.id} or metrics.{root.id}"
        hint = f" Did you mean {meant}?"
        known = ", ".join(FIELDS)
        text = f"; text is put into quotes: {root.id!r}" if not near else ""
        return self._source.error(
            root, f"there is no field {root.id!r}{text}.{hint} There are: {known}"
        )

    def value(self, node: ast.expr, target: Field, symbol: str) -> Any:
        """Read what a field is compared with.

        Args:
            node: The value.
            target: The field.
            symbol: The comparison, such as ``$gte``.

        Returns:
            The value as the database would hold it.

        Raises:
            QueryError: It is no value, or not one of the field's kind.
        """
        value = self.constant(node)
        if target.root in DATES and value is not None:
            if not isinstance(value, str):
                raise self._source.error(
                    node, f"{target.root} is a time: compare it with one in quotes"
                )
            return self.date(node, value)
        if target.root == "duration" and isinstance(value, str):
            try:
                return seconds(value)
            except ValueError:
                raise self._source.error(
                    node, "not a duration; write a number of seconds, '90 minutes' or '2 h'"
                ) from None
        kind = KINDS.get(type(value))
        if kind is not None:
            if target.root == "metrics" and kind != "number":
                raise self._source.error(node, "values of metrics are numbers: compare with one")
            negated = symbol in ("$ne", "$nin")
            ordered = symbol not in ("$eq", "$in") and not negated
            self.expected.append(Expected(target, kind, ordered or negated != self.negated))
        return value

    def constant(self, node: ast.expr) -> Any:
        """Read a number, text, true, false, none, or a list of these.

        Args:
            node: The constant.

        Returns:
            Its value.

        Raises:
            QueryError: It is something else.
        """
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str | int | float | bool) or node.value is None:
                return self._fitting(node, node.value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self.constant(node.operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            sides = [self.constant(node.left), self.constant(node.right)]
            value = compute(_ARITHMETIC[type(node.op)], sides)
            if value is not None:
                return self._fitting(node, value)
        elif isinstance(node, ast.List | ast.Tuple):
            return [self.constant(entry) for entry in node.elts]
        elif isinstance(node, ast.Name) and node.id.lower() in _WORDS:
            return _WORDS[node.id.lower()]
        raise self._source.error(
            node, "a number, text in quotes, true, false, none or a list is expected"
        )

    def _fitting(self, node: ast.expr, value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) < value < 2**63:
            return float(value) if abs(value) < 10**300 else float("inf")
        if isinstance(value, str) and "\0" in value:
            raise self._source.error(node, "text cannot hold a null character")
        if isinstance(value, str) and clean_text(value) != value:
            raise self._source.error(node, "text cannot hold half a character (a lone surrogate)")
        return value

    def date(self, node: ast.expr, text: str) -> datetime.datetime:
        """Read a time.

        Args:
            node: Where it stands.
            text: The time.

        Returns:
            The moment, in UTC.

        Raises:
            QueryError: It is no time.
        """
        try:
            return moment(text)
        except (ValueError, OverflowError, OSError):
            raise self._source.error(
                node,
                "not a time; write '2026-11-17', '2026-11-17 14:30', 'yesterday', 'last tuesday' "
                "or '2 days'",
            ) from None


def has_field(node: ast.expr) -> bool:
    """Say whether an operand names a field; a word without quotes is taken for one."""
    if is_field(node):
        return True
    if isinstance(node, ast.BinOp):
        return has_field(node.left) or has_field(node.right)
    if isinstance(node, ast.UnaryOp):
        return has_field(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abs":
        return any(has_field(one) for one in node.args)
    return False


def is_text(node: ast.expr) -> TypeGuard[Any]:
    """Say whether an operand is text in quotes."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_field(node: ast.expr) -> bool:
    """Say whether an operand is nothing but the name of a field."""
    if isinstance(node, ast.Name):
        return node.id.lower() not in _WORDS
    return isinstance(node, ast.Attribute | ast.Subscript)


LONGEST = 10_000
_HINTS = {
    r"(?<![=!<>])=(?!=)": "write == to compare",
    r"&&|&": "write `and`",
    r"\|\||\|": "write `or`",
    r"<>": "write !=",
    r"!(?!=)": "write `not`",
    r"=~|~": "write matches(field, 'pattern')",
}


class Source:
    """The text of an expression.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        # Leading blanks would be an indentation, and line ends are blanks here.
        self.text = " ".join(text.splitlines()).strip()

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

    def error(self, node: ast.AST, message: str) -> QueryError:
        """Point at a part of the text.

        Args:
            node: The part.
            message: What is wrong with it.

        Returns:
            The error to raise.
        """
        offset = getattr(node, "col_offset", 0)
        return self._error_at(len(self.text.encode()[:offset].decode("utf-8", "ignore")), message)

    def _syntax_error(self, error: SyntaxError) -> QueryError:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda found: " " * len(found.group()), self.text)
        for pattern, hint in _HINTS.items():
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
