import datetime

import pytest

from metatoolkit.errors import QueryError
from metatoolkit.records.expressions import parse, parse_field

from .expected import COMPUTED, DOCUMENTS, EXPECTED, on_a_server


@pytest.mark.parametrize("expression", COMPUTED)
def test_fields_are_computed_with_and_compared(expression):
    query = parse(expression)
    assert [one["_id"] for one in DOCUMENTS if query.holds(one)] == COMPUTED[expression]


@pytest.mark.parametrize("expression", EXPECTED)
def test_expressions_select_without_a_server(expression):
    query = parse(expression)
    assert [one["_id"] for one in DOCUMENTS if query.holds(one)] == EXPECTED[expression]


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
