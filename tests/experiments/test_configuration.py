import math

import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.configuration import (
    DEVICE,
    FLAG,
    MILESTONES,
    NONE,
    POSITIVE,
    TEXT,
    check_configuration,
    integer,
    list_of,
    number,
    one_of,
)


@pytest.mark.parametrize(
    ("rule", "accepted", "refused"),
    [
        (integer(), [-3, 0, 10**12], [True, 1.0, "1", None, math.nan]),
        (integer(1, 4), [1, 4], [0, 5]),
        (number(), [-1.5, 0, 3], [True, math.nan, math.inf, "1", None, [1.0]]),
        (number(0, 1), [0, 1.0, 0.5], [-1e-9, 1.1]),
        (number(0, below=1), [0, 0.999], [1, 1.0]),
        (POSITIVE, [1e-300, 5], [0, 0.0, -1.0]),
        (FLAG, [True, False], [0, 1, None, "True"]),
        (TEXT, ["a"], ["", 1, None]),
        (TEXT | NONE, ["a", None], ["", False]),
        (one_of("adam", "sgd"), ["sgd"], ["adamw", 1, None, ["sgd"]]),
        (list_of(integer(1)), [[], [1, 2], (3,)], [1, [0], [1, "a"], "11", None]),
        (list_of(number(), 2, 2), [[0.0, 1.0]], [[1.0], [1.0, 2.0, 3.0]]),
        (MILESTONES, [[], [0.5], [0.2, 0.8]], [[0.8, 0.2], [1.5], [-0.1], 0.5, ["a"]]),
        (DEVICE, ["cpu"], ["gpu", "meta", "", 0, None]),
    ],
)
def test_rules(rule, accepted, refused):
    for value in accepted:
        rule.check("entry", value)
    for value in refused:
        with pytest.raises(ConfigurationError, match="entry"):
            rule.check("entry", value)


def test_the_message_names_the_entry_what_was_given_and_what_is_accepted():
    rules = {"lr": POSITIVE, "evograd": {"sigma": POSITIVE | NONE, "perturb": list_of(TEXT, 1)}}
    good = {"lr": 0.1, "evograd": {"sigma": None, "perturb": ["a"]}, "seed": 3}
    check_configuration(good, rules)
    for updates, message in (
        ({"lr": -1}, "lr is -1; a finite number above 0 is needed."),
        (
            {"evograd": {"sigma": math.nan, "perturb": ["a"]}},
            "evograd.sigma is nan; a finite number above 0 or None is needed.",
        ),
        (
            {"evograd": {"sigma": 1.0, "perturb": "a"}},
            "evograd.perturb is 'a'; a list of at least 1, each a text, is needed.",
        ),
        ({"evograd": 3}, "evograd is 3; a mapping with the entries sigma, perturb is needed."),
    ):
        with pytest.raises(ConfigurationError) as error:
            check_configuration({**good, **updates}, rules)
        assert str(error.value) == message
    with pytest.raises(ConfigurationError, match="lr is missing"):
        check_configuration({}, rules)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'adamm'\. Did you mean 'adam'"):
        check_configuration({"optimizer": "adamm"}, {"optimizer": one_of("adam", "sgd")})
    with pytest.raises(ConfigurationError, match="optimizer is 3; one of 'adam', 'sgd' is needed"):
        check_configuration({"optimizer": 3}, {"optimizer": one_of("adam", "sgd")})
