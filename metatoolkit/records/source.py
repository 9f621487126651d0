"""The text of an expression: read with Python's parser, and pointed at where it is wrong."""

from __future__ import annotations

import ast
import re
import warnings

from metatoolkit.errors import QueryError

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
