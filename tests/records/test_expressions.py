import ast
import datetime
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metatoolkit.errors import QueryError
from metatoolkit.records.expressions import parse, parse_field
from metatoolkit.records.stores import MongoStore

DOCUMENTS = [
    {"_id": 1, "config": {"method": "evograd", "lr": 0.1, "a．b": 1}, "status": "COMPLETED",
     "result": {"acc": 0.9}, "omniboard": {"tags": ["paper"]},
     "start_time": datetime.datetime(2026, 11, 17, 12), "duration": 1.0,
     "stop_time": datetime.datetime(2026, 11, 17, 13), "artifacts": [{"name": "w.pt"}],
     "summary": {"val．loss": {"min": 0.2, "at": {"10": 0.4, "-1": 0.5}}}},
    {"_id": 2, "config": {"method": "plain", "lr": 1, "flag": True}, "status": "FAILED",
     "result": {"acc": float("nan")}, "experiment": {"name": "label_noise"},
     "start_time": datetime.datetime(2026, 11, 20, 12), "duration": 5400,
     "artifacts": [{"name": "a.png"}, {"name": "b"}], "captured_out": "epoch 6\nepoch 7\n"},
    {"_id": 3, "config": {"method": None, "layers": [1, 2], "nested": {"x": "y", "in": [[5]]}},
     "status": "RUNNING", "start_time": datetime.datetime(2026, 11, 21, 12)},
]  # fmt: skip

EXPECTED = {
    "config.method == 'evograd' and result.acc > 0.8": [1],
    "config.method == 'evograd' or status == \"FAILED\"": [1, 2],
    "not config.method == 'evograd'": [2, 3],
    "config.method != 'evograd'": [2, 3],
    "0.05 < config.lr <= 1": [1, 2],
    "1 > config.lr": [1],
    "config.lr == 1.0": [2],
    "config.flag == true": [2],
    "config.flag": [2],
    "config.lr == True": [],
    "status in ['FAILED', 'RUNNING']": [2, 3],
    "status not in ('FAILED', 'RUNNING')": [1],
    "'paper' in tags": [1],
    "'paper' not in tags": [2, 3],
    "tags == 'paper'": [1],
    "2 in config.layers": [3],
    "config.layers == [1, 2]": [3],
    "config.nested.x == 'y'": [3],
    "config.layers[1] == 2": [3],
    "config.nested['in'][0] == [5]": [3],
    "config.nested['in'][0] == 5": [],
    "config['a.b'] == 1": [1],
    "metrics['val.loss'].min < 0.3": [1],
    "result.acc == nan": [2],
    "result.acc <= nan": [2],
    "result.acc > nan": [],
    "exists(config.lr)": [1, 2],
    "not exists(config.lr)": [3],
    "config.lr == none": [3],
    "config.method == None": [3],
    "matches(config.method, '^evo')": [1],
    "contains(config.method, 'lai')": [2],
    "startswith(config.method, 'pl')": [2],
    "startswith(config.method, '.')": [],
    "experiment == 'label_noise'": [2],
    "start_time >= '2026-11-18' and start_time < '2026-11-21'": [2],
    "id == 3": [3],
    "id > -1": [1, 2, 3],
    "config.method == 'it''s'": [],
    "": [1, 2, 3],
    "  \n config.lr\n == 1 ": [2],
    "config.lr > 'text'": [],
    "config.method > 5": [],
    "config.lr == 99999999999999999999999": [],
    "config.lr < 10**-0.5": [1],
    "config.lr == 2 * 0.5": [2],
    "duration > '1 second'": [2],
    "duration <= '1h 30min' and duration >= '0.5 s'": [1, 2],
    "'w.pt' in artifacts": [1],
    "contains(artifacts, '.p')": [1, 2],
    "contains(output, 'epoch 7')": [2],
    "metrics.val.loss.min < 0.3": [1],
    "exists(metrics['val.loss'])": [1],
    "exists(metrics)": [1],
}
# What MongoDB does not know, and metrics at a step.
COMPUTED = {
    "config.lr < result.acc": [1],
    "result.acc - config.lr > 0.75": [1],
    "2 * config.lr >= 0.2 and config.lr**2 <= 1": [1, 2],
    "abs(config.lr - 0.5) > 0.4": [2],
    "-config.lr < -0.5": [2],
    "config.lr % 2 == 1": [2],
    "config.method == config.nested.x": [],
    "config.method != config.nested.x": [1, 2, 3],
    "config.missing == config.absent": [],
    "not config.lr < result.acc": [2, 3],
    "config.lr / (config.lr - 1) < 0": [1],
    "config.flag + 1 == 2": [],
    "start_time + 86400 * 2 > '2026-11-22'": [2, 3],
    "start_time < stop_time": [1],
    "stop_time - start_time > duration": [1],
    "duration * 2 > 3": [2],
    "metrics['val.loss'].min + 0.1 < 0.5": [1],
    "metrics['val.loss'].at[10] == 0.4": [1],
    "metrics['val.loss'].at[-1] == 0.5 or metrics['val.loss'].at[0.5] == 2": [1],
    "metrics['val.loss'].at[11] == 0.4": [],
}


@pytest.mark.parametrize("expression", COMPUTED)
def test_fields_are_computed_with_and_compared(expression):
    query = parse(expression)
    assert [one["_id"] for one in DOCUMENTS if query.holds(one)] == COMPUTED[expression]


@pytest.mark.parametrize("expression", EXPECTED)
def test_expressions_select_without_a_server(expression):
    query = parse(expression)
    assert [one["_id"] for one in DOCUMENTS if query.holds(one)] == EXPECTED[expression]


def on_a_server(database, query):
    """Return the ids of what the server's prefilter and then the predicate select."""
    paths = [field.path for field in query.fields]
    headers = MongoStore(database, None, None).headers(query.prefilter, paths)
    return [one["_id"] for one in headers if query.holds(one)]


def test_expressions_select_the_same_on_a_server(database):
    # A run's own id and all metrics in the summary: nothing is left to be completed.
    database["runs"].insert_many([{**one, "run_uuid": "x"} for one in DOCUMENTS])
    for expression, wanted in {**EXPECTED, **COMPUTED}.items():
        if ".at[" not in expression:
            assert on_a_server(database, parse(expression)) == wanted, expression


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("config.lr > 0.5 and id == 2", [2]),
        ("config.lr > 0.5 and metrics.loss.at[1] < 2", [2]),
        ("config.lr > 0.5 or metrics.loss.at[1] < 2", [1, 2, 3]),
        ("not metrics.loss.min < 2 and not id == 1", [1, 2, 3]),
        ("config.lr > config.x and duration > 2", [2]),
        ("contains(reason, 'x')", [1, 2, 3]),
        # A run that says that it runs may be a dead one.
        ("status == 'FAILED' or status == 'PROBABLY_DEAD'", [2, 3]),
        # Without an id of its own, a document is of Sacred, and may hold numbers as objects.
        ("result.acc > 7", [1, 3]),
        ("metrics.loss.min < 0 and config.method == 'plain'", []),
        ("matches(config.method, '^(evo|x)[a-z]')", [1]),
        ("matches(config.method, '(?i)EVO')", [1, 2, 3]),
        ("matches(config.method, 'e.*d')", [1, 2, 3]),
        ("contains(output, 'epoch 7\\n')", [2]),
    ],
)
def test_a_server_selects_before_what_it_can_tell(database, expression, selected):
    own = {2: {"run_uuid": "x", "summary": {"loss": {"min": 1}}}}
    database["runs"].insert_many([{**one, **own.get(one["_id"], {})} for one in DOCUMENTS])
    found = database["runs"].find(parse(expression).prefilter, {"_id": 1}).sort("_id", 1)
    assert [one["_id"] for one in found] == selected


@pytest.mark.parametrize(
    ("expression", "position", "message"),
    [
        ("config.lr = 3", 11, "write =="),
        ("config.lr > 3 && status == 'x'", 15, "write `and`"),
        ("config.lr > 3 || id == 1", 15, "write `or`"),
        ("confg.lr > 3", 1, "Did you mean config?"),
        ("id == 1 and statsu == 'x'", 13, "Did you mean status?"),
        ("status.x == 1", 1, "status has no parts"),
        ("match(status, 'x')", 1, "Did you mean matches?"),
        ("status == COMPLETED", 11, "quotes: 'COMPLETED'"),
        ("config.lr > 10**10**10", 13, "a number"),
        ("config.lr > 1 / 0", 13, "a number"),
        ("config.lr + 1 > 'x'", 17, "what is computed is a number"),
        ("config.lr // 2 == 1", 1, "+, -, *"),
        ("len(config.lr) == 1", 1, "one side"),
        ("config.a == status", 1, "status is compared with text"),
        ("metrics.loss < 0.3", 1, "write metrics.loss.last, .min"),
        ("0.3 > metrics['val.loss']", 7, "write metrics['val.loss'].last"),
        ("metrics.val.loss == 1", 1, "write metrics['val.loss'].last"),
        ("metrics.loss.mim < 0.3", 1, "Did you mean min?"),
        ("metrics.loss", 1, "many values"),
        ("metrics.loss.min > '0.3'", 20, "values of metrics are numbers"),
        ("duration > 'soon'", 12, "not a duration"),
        ("duration > '3 fortnights'", 12, "not a duration"),
        ("start_time > 5", 14, "start_time is a time"),
        ("3 > 2", 1, "one side"),
        ("config.lr > ", 12, "not complete"),
        ("matches(status, '(')", 17, "regular expression"),
        ("exists(status, 1)", 1, "takes 1 argument"),
        ("config[0:2] == 1", 8, "name in quotes"),
        ("start_time > 'soon'", 14, "not a time"),
        ("status is None", 1, "write =="),
        ("status in 'abc'", 11, "a list"),
        ("lambda: 1", 1, "a comparison"),
        ("[x for x in config]", 1, "a comparison"),
        ("config.__class__.__mro__() == 1", 1, "one side"),
        ("__import__('os').system('x')", 1, "no function"),
        ("(status := 'x')", 2, "a comparison"),
        ("f'{status}' == 'x'", 1, "one side"),
        ("'é' == id and confg.x == 1", 15, "Did you mean config?"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_told_with_its_position(expression, position, message):
    with pytest.raises(QueryError) as caught:
        parse(expression)
    if message:
        assert message in str(caught.value)
        assert f"at character {position} " in str(caught.value)


def test_times_may_be_relative():
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    for text, seconds in {"2 days": 172800, "3h": 10800, "1 week ago": 604800}.items():
        later = parse(f"start_time > '{text}'").holds
        for offset, wanted in ((-5, False), (5, True)):
            moment = now - datetime.timedelta(seconds=seconds - offset)
            assert later({"start_time": moment}) == wanted
    assert parse("start_time > 'yesterday'").holds({"start_time": now})
    # A database keeps milliseconds.
    text, kept = "2026-11-17 12:00:00.1239+00:00", datetime.datetime(2026, 11, 17, 12, 0, 0, 123000)
    assert parse(f"start_time == '{text}'").holds({"start_time": kept})
    assert not parse(f"start_time < '{text}'").holds({"start_time": kept})


def test_a_day_is_all_of_its_hours():
    import datetime

    from metatoolkit.records.terms import WEEKDAYS

    def at(day, *clock):
        moment = datetime.datetime.combine(day, datetime.time(*clock)).astimezone()
        return {"start_time": moment.astimezone(datetime.UTC).replace(tzinfo=None)}

    today = datetime.date.today()
    for days in range(8):
        day = today - datetime.timedelta(days=days)
        name = WEEKDAYS[day.weekday()]
        for text in {0: [str(day), "today"], 1: [str(day), "yesterday", f"last {name}"]}.get(
            days, [str(day), name, f"last {name.title()}"]
        ):
            # Of seven days each name means one; today's own means the day a week ago.
            within = days != 0 or text in ("today", str(day))
            query = parse(f"start_time == '{text}'")
            for clock in ((0, 0), (12, 30), (23, 59, 59)):
                assert query.holds(at(day, *clock)) == within, (text, clock)
            for other in (-1, 1):
                beside = day + datetime.timedelta(days=other)
                assert not query.holds(at(beside, 12))
            assert parse(f"start_time != '{text}'").holds(at(day, 12)) != within
    with pytest.raises(QueryError, match="last tuesday"):
        parse("start_time == '2026-02-31'")


@pytest.mark.parametrize(
    ("text", "length"),
    [("1 second", 1), ("90 min", 5400), ("1h30m", 5400), ("2 days, 1 hour", 176400)],
)  # fmt: skip
def test_durations_are_read(text, length):
    assert parse(f"duration == '{text}'").prefilter == {"duration": {"$eq": length}}


def test_field_names_are_translated():
    assert parse_field("metrics.loss.at[100]").path == "summary.loss.at.100"
    assert parse_field("metrics['a.b'].at[0.5]").path == "summary.a．b.at.0．5"
    assert parse_field("result.test_accuracy").path == "result.test_accuracy"
    assert parse_field("metrics['val.loss'].min").path == "summary.val．loss.min"
    assert parse_field("config['$where']").path == "config.＄where"


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
