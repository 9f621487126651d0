import math
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field, create_model, model_validator

from metatoolkit.components import Registry
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.accepted import entries_of
from metatoolkit.experiments.configuration import (
    Among,
    Count,
    Device,
    Milestones,
    OpenSettings,
    Positive,
    Settings,
    Share,
    ShareBelowOne,
    Text,
    entry,
)

PAIR = Annotated[list[float], Field(min_length=2, max_length=2)]


class EvoGrad(Settings):
    sigma: Positive | None = entry(None, "Standard deviation.")
    perturb: Annotated[list[Text], Field(min_length=1)] = entry(["a"], "Patterns.")


class Options(OpenSettings):
    name: Text | None = entry(None, "Name.")


class Whole(Settings):
    seed: Count = entry(..., "Seed.")
    lr: Positive = entry(0.1, "Rate.")
    optimizer: Literal["adam", "sgd"] = entry("adam", "Optimizer.")
    evograd: EvoGrad = entry(EvoGrad(perturb=["b"]), "Options of EvoGrad.")
    inner: Options = entry(Options(), "Options of the learner.")


def _of(annotation):
    return create_model("One", __base__=Settings, entry=(annotation, entry(..., "It.")))


@pytest.mark.parametrize(
    ("annotation", "accepted", "refused"),
    [
        (int, [-3, 0, 10**12], [True, 1.0, "1", None, math.nan]),
        (Annotated[int, Field(ge=1, le=4)], [1, 4], [0, 5]),
        (float, [-1.5, 0, 3], [True, math.nan, math.inf, "1", None, [1.0]]),
        (Share, [0, 1.0, 0.5], [-1e-9, 1.1]),
        (ShareBelowOne, [0, 0.999], [1, 1.0]),
        (Positive, [1e-300, 5], [0, 0.0, -1.0]),
        (bool, [True, False], [0, 1, None, "True"]),
        (Text, ["a"], ["", 1, None]),
        (Text | None, ["a", None], ["", False]),
        (Literal["adam", "sgd"], ["sgd"], ["adamw", 1, None, ["sgd"]]),
        (Annotated[str, Among(["adam", "sgd"])], ["sgd"], ["adamw", 1, None, ["sgd"]]),
        (list[Count], [[], [1, 2], (3,)], [1, [0], [1, "a"], "11", None, [True], [1.0]]),
        (PAIR, [[0.0, 1.0]], [[1.0], [1.0, 2.0, 3.0]]),
        (Milestones, [[], [0.5], [0.2, 0.8]], [[0.8, 0.2], [1.5], [-0.1], 0.5, ["a"]]),
        (Device, ["cpu"], ["gpu", "meta", "", 0, None]),
    ],
)
def test_values_are_taken_as_they_are(annotation, accepted, refused):
    settings = _of(annotation)
    for value in accepted:
        settings.check({"entry": value})
    for value in refused:
        with pytest.raises(ConfigurationError, match="entry"):
            settings.check({"entry": value})


def test_defaults_are_a_dictionary_of_their_own():
    defaults = Whole.defaults()
    assert defaults == {
        "lr": 0.1,
        "optimizer": "adam",
        "evograd": {"sigma": None, "perturb": ["b"]},
        "inner": {"name": None},
    }
    defaults["evograd"]["perturb"].append("c")
    assert Whole.defaults()["evograd"]["perturb"] == ["b"]
    assert Whole.open_groups() == ("inner",)
    assert [name for name, _ in entries_of(Whole)] == [
        "seed", "lr", "optimizer", "evograd.sigma", "evograd.perturb", "inner.name",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"lr": -1}, "lr is -1; a finite number above 0 is needed."),
        (
            {"evograd": {"sigma": math.nan, "perturb": ["a"]}},
            "evograd.sigma is nan; a finite number above 0 or None is needed.",
        ),
        (
            {"evograd": {"sigma": 1.0, "perturb": "a"}},
            "evograd.perturb is 'a'; a list of at least 1, each a text, is needed.",
        ),
        (
            {"evograd": {"sigma": 1.0, "perturb": ["a", 3]}},
            "evograd.perturb is ['a', 3]; a list of at least 1, each a text, is needed.",
        ),
        ({"evograd": 3}, "evograd is 3; a mapping with the entries sigma, perturb is needed."),
        ({"evograd": {"sigma": 1.0}}, "evograd.perturb is missing in the configuration; give it."),
        ({"optimizer": 3}, "optimizer is 3; one of 'adam', 'sgd' is needed."),
        (
            {"optimizer": "adamm"},
            "unknown optimizer 'adamm'. Did you mean 'adam'? Accepted: adam, sgd.",
        ),
    ],
)
def test_the_message_names_the_entry_what_was_given_and_what_is_accepted(updates, message):
    good = {**Whole.defaults(), "seed": 3}
    assert Whole.settle(good) == good
    Whole.check({**good, "inner": {"name": "SGD", "lr": [1]}})
    with pytest.raises(ConfigurationError) as error:
        Whole.check({**good, **updates})
    assert str(error.value) == message
    assert error.value.__cause__ is None


def test_a_missing_entry_and_an_unknown_one_are_named():
    with pytest.raises(ConfigurationError, match="seed is missing"):
        Whole.check(Whole.defaults())
    with pytest.raises(ConfigurationError, match="lr is missing"):
        Whole.check({"seed": 3})
    good = {**Whole.defaults(), "seed": 3}
    with pytest.raises(UnknownNameError, match=r"'lrr'\. Did you mean 'lr'"):
        Whole.check({**good, "lrr": 1})
    wrong = {**good, "evograd": {**good["evograd"], "sigmaa": 1}}
    with pytest.raises(UnknownNameError, match=r"'evograd\.sigmaa'\. Did you mean 'evograd\.si"):
        Whole.check(wrong)


def test_names_of_a_registry_are_asked_for_anew():
    known = Registry("thing", "metatoolkit.components", "metatoolkit.things")
    known.register("Other")(list)
    settings = _of(Annotated[str, Among(known)])
    with pytest.raises(UnknownNameError, match="unknown entry 'Mine'"):
        settings.check({"entry": "Mine"})
    known.register("Mine")(dict)
    settings.check({"entry": "Mine"})


def test_checks_that_an_application_adds_are_told():
    def even(value: int) -> int:
        if value % 2:
            raise ValueError("it is odd")
        return value

    with pytest.raises(ConfigurationError, match="entry is 3: it is odd"):
        _of(Annotated[int, AfterValidator(even)]).check({"entry": 3})

    class Pair(Settings):
        low: int = entry(0, "Low.")
        high: int = entry(1, "High.")

        @model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError(f"low is {self.low}, above high; lower it.")
            return self

    Pair.check({"low": 1, "high": 2})
    with pytest.raises(ConfigurationError, match=r"^low is 3, above high; lower it\.$"):
        Pair.check({"low": 3, "high": 2})
