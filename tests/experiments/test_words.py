"""Words of a command line that stand for configuration entries."""

import pytest

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.words import nested, read_entries, read_values


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("method=a,b", ["a", "b"]),
        ("seed=0..3", [0, 1, 2, 3]),
        ("seed=-1..1,7", [-1, 0, 1, 7]),
        ("lr=1e-3,0.1", [1e-3, 0.1]),
        ("hidden=[8],[8, 16]", [[8], [8, 16]]),
        ("name='a,b',c", ["a,b", "c"]),
        ("noise={'kind': 'flip', 'on': [1, 2]},None", [{"kind": "flip", "on": [1, 2]}, None]),
        ("path=a..b", ["a..b"]),
        ("on=True,1", [True, 1]),
    ],
)
def test_values_are_read(word, values):
    name, read = read_values(word)
    assert name == word.partition("=")[0]
    assert read == values and list(map(type, read)) == list(map(type, values))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=4..0", r"4\.\.0 in 'seed=4\.\.0' is reversed.*write 0\.\.4"),
        ("method=", "gives an entry no values"),
        ("method", "gives an entry no values"),
        ("=1,2", "gives an entry no values"),
        ("method=a,,b", "has an empty value"),
        ("method=a,", "has an empty value"),
        ("seed=1,0..2", "gives 1 twice"),
    ],
)
def test_what_is_no_list_of_values_is_refused(word, message):
    with pytest.raises(ConfigurationError, match=message):
        read_values(word)


def test_entries_and_named_configurations_are_read_as_sacred_reads_them():
    updates, named = read_entries(["smoke", "steps=5", "noise.kind=flip", "lr=0.5"])
    assert updates == {"steps": 5, "noise": {"kind": "flip"}, "lr": 0.5}
    assert named == ("smoke",)


def test_entries_are_joined_by_their_dotted_names():
    first = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    joined = nested(first, {"b.d.f": 4, "a": 5}, {"b": {"c": 6}})
    assert joined == {"a": 5, "b": {"c": 6, "d": {"e": 3, "f": 4}}}
    assert first == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
