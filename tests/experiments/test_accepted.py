from typing import Annotated, Literal

import pytest
from pydantic import Field, create_model

from metatoolkit.experiments.accepted import help_of, names_of, words_of
from metatoolkit.experiments.configuration import (
    Among,
    Count,
    OpenSettings,
    Positive,
    Settings,
    ShareBelowOne,
    Text,
    entry,
)
from metatoolkit.inner import learners

PAIR = Annotated[list[float], Field(min_length=2, max_length=2)]


class Options(OpenSettings):
    name: Text | None = entry(None, "Name.")


class Whole(Settings):
    seed: Count = entry(..., "Seed.")
    lr: Positive = entry(0.1, "Rate.")
    inner: Options = entry(Options(), "Options of the learner.")


def _of(annotation):
    return create_model("One", __base__=Settings, entry=(annotation, entry(..., "It.")))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (Count, "an integer from 1 on"),
        (Annotated[int, Field(le=4)], "an integer to 4"),
        (Annotated[int, Field(ge=1, le=4)], "an integer from 1 to 4"),
        (float, "a finite number"),
        (ShareBelowOne, "a finite number of at least 0 and below 1"),
        (Positive | None, "a finite number above 0 or None"),
        (bool | None, "True or False or None"),
        (PAIR, "a list of 2, each a finite number,"),
        (list[Text], "a list, each a text,"),
        (Literal["a", "b"] | Count, "one of 'a', 'b' or an integer from 1 on"),
        (Annotated[str, Among(["a"])], "one of 'a'"),
        (Annotated[str, Among(learners)], "the name of a registered inner learner"),
    ],
)
def test_what_a_type_accepts_is_said(annotation, words):
    assert words_of(annotation) == words
    field = _of(annotation).model_fields["entry"]
    assert words_of(field.annotation, field.metadata) == words


def test_names_are_those_of_all_parts():
    annotation = Literal["a"] | Annotated[str, Among(["b"])] | Count | None
    assert list(names_of(annotation)) == ["a", "b"]
    assert list(names_of(Count)) == []


def test_long_entries_take_lines_of_their_own():
    class Long(Settings):
        an_entry_with_a_name_of_many_letters: Count = entry(1, f"{'many words ' * 12}.")

    lines = help_of(Long).splitlines()
    assert lines[1] == "  an_entry_with_a_name_of_many_letters=1"
    assert all(line.startswith(" " * 34) and len(line) <= 100 for line in lines[2:])
    assert " ".join(" ".join(lines[2:]).split()).endswith("words . An integer from 1 on.")


def test_help_shows_own_entries_first():
    class Own(Whole):
        depth: Count = entry(2, "Depth of the network.")
        lr: Positive = entry(0.5, "Rate of mine.")

    lines = help_of(Own, ["smoke"]).splitlines()
    assert lines[1].split(None, 1) == ["depth=2", "Depth of the network. An integer from 1 on."]
    assert lines[2].split(None, 1) == ["lr=0.5", "Rate of mine. A finite number above 0."]
    assert "  inner.OPTION=VALUE              Options of the learner." in lines
    assert lines[-1] == "  smoke"
