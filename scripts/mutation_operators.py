"""The small mistakes that mutation testing makes: those of mutmut, and some that numbers bring."""

from __future__ import annotations

import random
from collections.abc import Iterator

import libcst as cst
import libcst.matchers as m
from mutmut.mutation.mutators import mutation_operators

# Methods that may be forgotten without an error: the value is of the same kind.
FORGETTABLE = {
    "clone",
    "contiguous",
    "copy",
    "detach",
    "expand_as",
    "requires_grad_",
    "to",
    "view_as",
}
FORGETTABLE |= {"abs", "exp", "mean", "norm", "sqrt", "square", "sum"}
# What is for the reader, and names of types: no number depends on it.
WORDS = m.Call(func=m.Name("Traits"))
TYPES = m.Name("Callable") | m.Name("dict") | m.Name("list") | m.Name("tuple") | m.Name("Literal")
ALIAS = m.Subscript(value=TYPES)


# What a machine without a GPU cannot tell, and the length check of ``zip``.
NAMED = m.Name("strict") | m.Name("device")


def mutated_sources(source: str, sample: int | None, chance: random.Random) -> list[str]:
    """Return sources that differ from one by a small mistake each, in the order of the source.

    Annotations, decorators, sentences, what ``raise`` evaluates, arguments ``strict=`` and
    ``device=`` and statements for GPUs stay.

    Args:
        source: Source of a module.
        sample: Number of mistakes that are drawn; ``None`` for all.
        chance: Where the sample is drawn from.
    """
    module = cst.parse_module(source)
    visitor = _Visitor()
    module.visit(visitor)
    order = list(range(len(visitor.found)))
    chance.shuffle(order)
    kept: dict[str, int] = {}
    for index in order:
        if sample is not None and len(kept) >= sample:
            break
        old, new = visitor.found[index]
        text = module.deep_replace(old, new).code
        if text != source and text not in kept and _compiles(text):
            kept[text] = index
    return sorted(kept, key=lambda text: kept[text])


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class _Visitor(cst.CSTVisitor):
    """Collects pairs of a node and what stands in its place in a mutant."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(
            node, cst.Annotation | cst.Decorator | cst.Raise | cst.Import | cst.ImportFrom
        ):
            return False
        if isinstance(node, cst.SimpleString) and " " in node.value:
            return False
        if m.matches(node, WORDS) or m.matches(node, m.Arg(keyword=NAMED)):
            return False
        if isinstance(node, cst.SimpleStatementLine | cst.If) and _is_for_gpus(node):
            return False
        if isinstance(node, cst.Assign) and m.matches(node.value, ALIAS):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                self.found += [(node, new) for new in operator(node) if not _is_named(node, new)]
        self.found += [(node, new) for new in _own(node)]
        return True


def _is_for_gpus(node: cst.SimpleStatementLine | cst.If) -> bool:
    part = node.test if isinstance(node, cst.If) else node
    return "cuda" in cst.Module([]).code_for_node(part)


def _is_named(node: cst.CSTNode, new: cst.CSTNode) -> bool:
    """Return whether nothing but such an argument is another."""
    if not isinstance(node, cst.Call) or not isinstance(new, cst.Call):
        return False
    named = m.Arg(keyword=NAMED)
    rest = [[a for a in call.args if not m.matches(a, named)] for call in (node, new)]
    same = len(rest[0]) == len(rest[1]) and node.func is new.func
    return same and all(a is b for a, b in zip(*rest, strict=True))


def _own(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield mistakes that mutmut does not make."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        # x.detach() → x
        if node.func.attr.value in FORGETTABLE:
            yield node.func.value
    if isinstance(node, cst.If | cst.While):
        # if x → if not x
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        # A call, or the assignment to an attribute or an item, left out
        (only,) = node.body
        target = m.AssignTarget(target=m.Attribute() | m.Subscript())
        left_out = m.Expr(value=m.Call() | m.Yield()) | m.Assign(targets=[target]) | m.AugAssign()
        if m.matches(only, left_out):
            yield node.with_changes(body=[cst.Pass()])
    if isinstance(node, cst.Index) and isinstance(node.value, cst.UnaryOperation):
        # x[-1] → x[0]
        if isinstance(node.value.operator, cst.Minus):
            yield node.with_changes(value=cst.Integer("0"))
    if isinstance(node, cst.Integer) and node.value == "1":
        yield node.with_changes(value="0")
    if isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Minus):
        # -x → x
        yield node.expression
    if isinstance(node, cst.Call) and m.matches(node.func, m.Name("min") | m.Name("max")):
        other = "max" if m.matches(node.func, m.Name("min")) else "min"
        yield node.with_changes(func=cst.Name(other))
    if isinstance(node, cst.Call) and m.matches(node.func, m.Name("any") | m.Name("all")):
        other = "all" if m.matches(node.func, m.Name("any")) else "any"
        yield node.with_changes(func=cst.Name(other))
