"""Patterns of names, in one place for all that choose by them."""

import ast
from pathlib import Path

import pytest

import metatoolkit
from metatoolkit.components.patterns import matches, matching
from metatoolkit.errors import ConfigurationError

NAMES = ["head.weight", "head.bias", "body.0.weight", "Body.bias"]


def test_names_are_chosen_in_their_own_order():
    def found(*patterns):
        return matching("where", patterns, NAMES, "layer")

    assert found("*.bias", "head.*") == ["head.weight", "head.bias", "Body.bias"]
    assert found("body*") == ["body.0.weight"]
    assert found("[Bb]ody.*") == ["body.0.weight", "Body.bias"]
    assert found() == []
    assert matching("where", iter(["*"]), iter(NAMES), "layer") == NAMES


def test_upper_and_lower_case_are_told_apart():
    assert matches("head.bias", ["x", "*.bias"]) and not matches("head.bias", ["*.BIAS"])
    assert not matches("head.bias", [])


def test_each_pattern_must_match():
    message = r"where: 'tail.\*' matches no layer; there are head.weight, .*, Body.bias\.$"
    with pytest.raises(ConfigurationError, match=message):
        matching("where", ["head.*", "tail.*"], NAMES, "layer")
    with pytest.raises(ConfigurationError, match=r"there are none\.$"):
        matching("where", ["*"], [], "layer")


def test_of_many_names_the_nearest_are_told():
    many = [f"layer{index}.weight" for index in range(100)] + ["classifier.bias"]
    with pytest.raises(ConfigurationError, match=r"there are 101, the nearest classifier.bias, "):
        matching("where", ["clasifier.bias"], many, "parameter")


def test_one_string_is_no_list_of_patterns():
    with pytest.raises(ConfigurationError, match=r"where is 'head'; give a list: \['head'\]"):
        matching("where", "head", NAMES, "layer")


def test_no_other_module_of_the_toolkit_matches_patterns_by_itself():
    package = Path(metatoolkit.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] == "records":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            if "fnmatch" in names:
                found.append(path.name)
    assert found == ["patterns.py"]
