"""Optional modules: one table says which extra brings each, and one message tells of it."""

import configparser
import pickle
import re
import sys
from pathlib import Path

import pytest

from metatoolkit.errors import (
    EXTRAS,
    ConfigurationError,
    MissingDependencyError,
    check_installed,
    from_former_name,
    optional_import,
    warn_renamed,
)

MODULES = [(extra, module) for extra, modules in EXTRAS.items() for module in modules.split()]
# Distributions that carry a module of another name, or bring it as their own dependency.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "bson": "pymongo",
    "gridfs": "pymongo",
    "docopt": "sacred",
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
}
# Installed by the line of its own that the message names.
UNLISTED = {"dehb", "gym", "learn2learn", "qpth"}


@pytest.mark.parametrize(("extra", "module"), MODULES)
def test_a_missing_module_names_its_extra(extra, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf'^a part needs {module}, which is .*pip install "metatoolkit\[{extra}\]"'
    with pytest.raises(MissingDependencyError, match=message) as caught, optional_import("a part"):
        __import__(module)
    assert caught.value.name == module and isinstance(caught.value, ImportError)
    assert ("requirements-learn2learn.txt" in str(caught.value)) == (extra == "learn2learn")
    with pytest.raises(MissingDependencyError, match=message):
        check_installed("a part", module)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)


def test_a_module_that_is_no_extra_of_ours_is_missing_as_it_is():
    with pytest.raises(ModuleNotFoundError) as caught, optional_import("a part"):
        import a_module_of_somebody_else  # noqa: F401
    assert not isinstance(caught.value, MissingDependencyError)
    with pytest.raises(ImportError, match="broken"), optional_import("a part"):
        raise ImportError("broken")


def test_a_module_whose_search_fails_is_missing_too(monkeypatch):
    def find_spec(name):
        raise ModuleNotFoundError(f"no {name}", name=name)

    monkeypatch.delitem(sys.modules, "sacred", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(MissingDependencyError, match=r"metatoolkit\[records\]"):
        check_installed("a part", "sacred")


def test_what_is_installed_is_not_imported_to_be_checked():
    loaded = set(sys.modules)
    check_installed("a part", "torch", "numpy")
    with optional_import("a part"):
        pass
    assert set(sys.modules) == loaded


@pytest.mark.parametrize(("extra", "module"), MODULES)
def test_the_extra_of_a_module_installs_it(extra, module):
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    listed = config["options.extras_require"][extra].split("\n")
    names = {re.split(r"[^\w-]", line.strip())[0] for line in listed if line.strip()}
    assert module in UNLISTED or DISTRIBUTIONS.get(module, module) in names


def test_all_extras_are_one():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    (everything,) = config["options.extras_require"]["all"].split()
    assert everything == f"metatoolkit[{','.join(sorted({*EXTRAS, 'mongod'}))}]"
    names = re.findall(r"^\s*([\w-]+)", config["options"]["install_requires"], re.MULTILINE)
    assert names == ["numpy", "torch", "tqdm"]


def test_a_former_name_is_told_at_the_line_that_used_it():
    with pytest.warns(DeprecationWarning, match=r"^old= is new= now; the former name goes") as seen:
        warn_renamed("old=", "new=")
    assert [Path(warning.filename) for warning in seen] == [Path(__file__)]


def test_an_argument_may_come_by_its_former_name():
    assert from_former_name("old", None, "new", 3) == 3
    assert from_former_name("old", None, "new", None) is None
    with pytest.warns(DeprecationWarning, match=r"^old= is new= now"):
        assert from_former_name("old", 0, "new", None) == 0
    with pytest.raises(ConfigurationError, match="old is the former name of new; pass new"):
        from_former_name("old", 1, "new", 2)
