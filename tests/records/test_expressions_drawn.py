"""Expressions that are drawn: any text is safe, and the spool is searched as the server is."""

import ast
import datetime
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metatoolkit.errors import QueryError
from metatoolkit.records.expressions import parse, parse_field

from .expected import DOCUMENTS, on_a_server

SAFE = {"$and", "$or", "$eq", "$gt", "$gte", "$lt", "$lte", "$in", "$exists", "$regex"}


def operators(condition):
    if isinstance(condition, dict):
        for key, value in condition.items():
            if key.startswith("$"):
                yield key
            else:
                assert "$" not in key
            yield from operators(value)
    elif isinstance(condition, list):
        for entry in condition:
            yield from operators(entry)


PIECES = st.sampled_from(
    ["config", ".lr", "['a.b']", "result", " == ", " > ", " and ", " or ", "not ", "(", ")", "'x'",
     "1", "-", "[", "]", ",", " in ", "exists", "matches", "$where", "__class__", "\n", "\0", "{",
     "}", "lambda", ":", "tags", "'$gt'", "status", "9" * 400, "é", "\\", "'", '"', "#", ";"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=40)))
def test_any_text_is_a_safe_filter_or_a_query_error(text):
    try:
        query = parse(text)
    except QueryError:
        return
    assert set(operators(query.prefilter)) <= SAFE
    for document in DOCUMENTS:
        query.holds(document)


def test_a_deeply_nested_expression_is_an_error_and_no_crash():
    brackets = "(" * 4900 + "id == 1" + ")" * 4900
    for text in (brackets, "not " * 2400 + "id == 1", "id == " + "-" * 9000 + "1", "a" * 20_000):
        with pytest.raises(QueryError):
            parse(text)


VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 0.5, 1.0, float("nan"), float("inf"), 2**62, "", "a", "b",
     "ab", "1", [], [1], [1, 2], ["a"], [None], [[1]], {"x": 1}, {"x": {"y": "a"}}, {}, [{"x": 1}],
     datetime.datetime(2026, 11, 17)]
)  # fmt: skip
NAMES = st.sampled_from(
    ["config.a", "config.b", "config.a.x", "config.a.x.y", "config['0']", "config.a['0']", "tags",
     "result", "status", "notes"]
)  # fmt: skip
CONSTANTS = st.sampled_from(
    ["none", "true", "0", "1", "-1", "0.5", "nan", "'a'", "''", "'1'", "[1]", "[1, 2]", "1e300"]
)
VALUE_OF = {"none": None, "true": True, "nan": float("nan")}


def stated(form, operator, name, *constants):
    """Return an expression, and what MongoDB calls it."""
    given = [VALUE_OF[one] if one in VALUE_OF else ast.literal_eval(one) for one in constants]
    value = given if operator in ("$in", "$nin") else (given or [True])[0]
    path = parse_field(name).path
    return form.format(name, *constants), {path: {operator: value}}


def joined(operator, one, other):
    sign = {"and": "$and", "or": "$or"}[operator]
    return f"({one[0]} {operator} {other[0]})", {sign: [one[1], other[1]]}


COMPARISONS = st.one_of(
    *(
        st.builds(partial(stated, f"{{}} {sign} {{}}", operator), NAMES, CONSTANTS)
        for sign, operator in {"==": "$eq", "!=": "$ne", "<": "$lt", ">=": "$gte"}.items()
    ),
    st.builds(partial(stated, "{} in [{}, {}]", "$in"), NAMES, CONSTANTS, CONSTANTS),
    st.builds(partial(stated, "{1} not in {0}", "$ne"), NAMES, CONSTANTS),
    st.builds(partial(stated, "exists({})", "$exists"), NAMES),
    st.builds(lambda name: stated(f"matches({name}, '^a')", "$regex", name, "'^a'"), NAMES),
    st.builds(lambda name: stated(f"contains({name}, 'b')", "$regex", name, "'b'"), NAMES),
    st.builds(lambda name: (name, {parse_field(name).path: {"$nin": [None, False, 0, ""]}}), NAMES),
)
EXPRESSIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds(partial(joined, "and"), inner, inner),
        st.builds(partial(joined, "or"), inner, inner),
        st.builds(lambda one: (f"not ({one[0]})", {"$nor": [one[1]]}), inner),
    ),
    max_leaves=4,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "config": st.one_of(st.dictionaries(st.sampled_from(["a", "b", "0"]), VALUES), VALUES),
        "omniboard": st.fixed_dictionaries({}, optional={"tags": VALUES, "notes": VALUES}),
        "result": VALUES,
        "status": VALUES,
    },
)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(RECORDS, min_size=1, max_size=8), EXPRESSIONS)
def test_the_spool_is_searched_as_the_server_searches(database, documents, expression):
    text, condition = expression
    stored = [{"_id": number, **document} for number, document in enumerate(documents)]
    for one in stored[::2]:
        # Of this toolkit, while the others are Sacred's.
        one["run_uuid"] = "x"
    query = parse(text)
    database["runs"].delete_many({})
    database["runs"].insert_many(stored)
    found = [one["_id"] for one in database["runs"].find(condition).sort("_id", 1)]
    assert [one["_id"] for one in stored if query.holds(one)] == found
    assert on_a_server(database, query) == found


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=30)))
def test_any_text_is_a_field_or_a_query_error(text):
    try:
        field = parse_field(text)
    except QueryError:
        return
    assert "$" not in field.path and "\0" not in field.path
