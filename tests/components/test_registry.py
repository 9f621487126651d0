"""Components by name: those of the package, those of others, and what is refused."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from functools import partial

import pytest
import torch

import metatoolkit as mt
from metatoolkit.components import Registry
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.hypergradients import GMRES, Implicit, Unrolled, estimators
from metatoolkit.hypergradients import linear_solvers as solvers
from metatoolkit.inner.registry import schedules

REGISTRIES = {
    "estimators": mt.hypergradients.estimators,
    "learners": mt.inner.learners,
    "solvers": solvers.solvers,
    "modules": mt.metaparameters.modules,
    "networks": mt.networks.NETWORKS,
    "backbones": mt.networks.BACKBONES,
}


@pytest.fixture
def registry():
    """A registry of its own over the linear solvers."""
    return Registry("solver", "metatoolkit.hypergradients.linear_solvers", "nobody.joins")


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_public_class_of_a_package_has_its_name(name):
    registry = REGISTRIES[name]
    classes = set(registry.values())
    assert len(registry) == len(list(registry)) >= 4
    public = {
        "estimators": (mt.hypergradients, mt.hypergradients.Estimator),
        "learners": (mt.inner, mt.inner.InnerLearner),
        "solvers": (solvers, solvers.LinearSolver),
    }
    if name in public:
        package, base = public[name]
        found = {
            value
            for value in vars(package).values()
            if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
        }
        assert classes == found


def test_options_reach_the_component():
    unrolled = mt.hypergradients.build("Unrolled", steps=3, truncation=2)
    assert isinstance(unrolled, Unrolled)
    assert (unrolled.horizon, unrolled.truncation) == (3, 2)
    adam = mt.inner.build("Adam", lr=0.25, eps=1e-3)
    assert isinstance(adam, mt.inner.Adam)
    assert adam.hyperparameters["lr"] == 0.25
    assert adam.hyperparameters["eps"] == 1e-3
    assert mt.networks.build("mlp", 3, (2, 2), hidden=(5,))(torch.zeros(7, 2, 2)).shape == (7, 3)
    assert isinstance(mt.metaparameters.build("WeightNet", hidden=7), mt.metaparameters.WeightNet)


def test_a_mapping_with_a_name_is_built_first():
    implicit = mt.hypergradients.build("Implicit", solver={"name": "GMRES", "iterations": 7})
    assert isinstance(implicit, Implicit)
    assert isinstance(implicit.solver, GMRES)
    assert implicit.solver.iterations == 7
    clipped = mt.inner.build("Clipped", inner={"name": "SGD", "lr": 0.5}, max_norm=1.0)
    assert isinstance(clipped.inner, mt.inner.SGD)
    sgd = mt.inner.build("SGD", lr={"name": "exponential", "value": 2.0, "gamma": 0.5})
    assert [sgd.hyperparameters["lr"](None, step) for step in range(3)] == [2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mt.hypergradients.build("sama"), "unknown estimator 'sama'. Did you mean 'SAMA'?"),
        (lambda: mt.hypergradients.build("Unroled"), "Did you mean 'Unrolled'?"),
        (lambda: mt.hypergradients.build("Unrolled", step=3), "Did you mean 'steps'?"),
        (
            lambda: mt.hypergradients.build("Unrolled", steps="3"),
            "option steps of estimator 'Unrolled' is '3'; accepted: int.",
        ),
        (
            lambda: mt.hypergradients.build("Unrolled", steps=True),
            "option steps of estimator 'Unrolled' is True; accepted: int.",
        ),
        (
            lambda: mt.hypergradients.build("Unrolled", steps=1, product="forward_over_revers"),
            "Did you mean 'forward_over_reverse'?",
        ),
        (
            lambda: mt.hypergradients.build("Unrolled", steps=1, truncation="x"),
            "option truncation of estimator 'Unrolled' is 'x'; accepted: int or None.",
        ),
        (lambda: mt.inner.build("SGD"), "inner learner 'SGD' needs the option lr; give it."),
        (
            lambda: mt.hypergradients.build("Implicit", solver={"name": "GMRS"}),
            "unknown part of estimator 'Implicit': 'GMRS'. Did you mean 'GMRES'?",
        ),
        (
            lambda: mt.hypergradients.build("Implicit", solver={"name": "GMRES", "iteration": 3}),
            "unknown option of linear solver 'GMRES': 'iteration'. Did you mean 'iterations'?",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_name(build, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        build()


def test_a_third_party_joins_by_the_decorator(registry):
    class Mine:
        def __init__(self, rank: int = 1) -> None:
            self.rank = rank

    assert registry.register()(Mine) is Mine
    registry.register("Three")(partial(Mine, 3))
    assert registry.build("Mine", rank=2).rank == 2
    assert registry.build("Three").rank == 3
    assert list(registry) == ["Mine", "Three"]
    assert "Other" not in registry
    # A module that is loaded anew defines its classes again.
    registry.register()(Mine)


def test_an_option_of_former_times_is_left_to_the_component(registry):
    class Kept:
        former_options = ("old",)

        def __init__(self, *, new=1, **former):
            self.given = (new, former)

        __signature__ = inspect.Signature(
            [inspect.Parameter("new", inspect.Parameter.KEYWORD_ONLY, default=1)]
        )

    registry.register()(Kept)
    assert registry.build("Kept", old=2).given == (1, {"old": 2})
    assert list(registry.options("Kept")) == ["new"]
    with pytest.raises(UnknownNameError, match="option of solver 'Kept': 'older'") as caught:
        registry.build("Kept", older=2)
    assert "'old'" not in str(caught.value) and "new" in str(caught.value)


def test_a_name_is_not_taken_twice(registry):
    registry.register("GMRES")(GMRES)
    with pytest.raises(ConfigurationError, match=r"'GMRES' is metatoolkit.*gmres\.GMRES already"):
        registry.register("GMRES")(Implicit)


def test_an_entry_point_joins_and_is_loaded_when_it_is_asked_for(registry, monkeypatch):
    entry = importlib.metadata.EntryPoint(
        "Ours", "metatoolkit.hypergradients.linear_solvers.gmres:GMRES", "nobody.joins"
    )
    wrong = importlib.metadata.EntryPoint("Broken", "no_such_module:Thing", "nobody.joins")
    groups = {"nobody.joins": [entry, wrong]}
    monkeypatch.setattr(
        "metatoolkit.components.registry.entry_points", lambda group: groups.get(group, [])
    )
    assert list(registry) == ["Broken", "Ours"]
    assert registry.build("Ours", iterations=4).iterations == 4
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry["Broken"]


def test_comparison_and_listing_read_the_registry(monkeypatch):
    from metatoolkit.diagnostics.comparison import name_estimators
    from metatoolkit.hypergradients.listing import all_estimators

    class Strange(mt.hypergradients.OneStep):
        pass

    monkeypatch.setitem(estimators._components, "Strange", Strange)
    assert all_estimators()["Strange"] is Strange
    named = name_estimators(["Strange", "OneStep"])
    assert [type(one) for one in named.values()] == [Strange, mt.hypergradients.OneStep]
    with pytest.raises(UnknownNameError, match="OneStep"):
        name_estimators(["OneStp"])


@pytest.mark.parametrize(
    ("registry", "kind", "package", "group"),
    [
        ("estimators", "estimator", "hypergradients", "estimators"),
        ("learners", "inner learner", "inner", "inner"),
        ("schedules", "schedule", "inner", "schedules"),
        ("solvers", "linear solver", "hypergradients.linear_solvers", "solvers"),
        ("modules", "meta-parameter module", "metaparameters", "metaparameters"),
        ("networks", "network", "networks", "networks"),
        ("backbones", "backbone", "networks", "backbones"),
        ("heads", "metric head", "networks.metric_heads", "metric_heads"),
    ],
)
def test_another_distribution_joins_each_registry_by_its_group(
    registry, kind, package, group, monkeypatch
):
    found = {
        **REGISTRIES,
        "schedules": schedules,
        "heads": mt.networks.metric_heads.METRIC_HEADS,
    }[registry]
    monkeypatch.setattr(found, "_components", dict(found._components))
    entry = importlib.metadata.EntryPoint("Theirs", "collections:OrderedDict", group)
    asked = []

    def entry_points(*, group):
        asked.append(group)
        return importlib.metadata.EntryPoints([entry])

    monkeypatch.setattr("metatoolkit.components.registry.entry_points", entry_points)
    assert found["Theirs"].__name__ == "OrderedDict"
    assert set(asked) == {f"metatoolkit.{group}"}
    assert found._package == f"metatoolkit.{package}"
    with pytest.raises(UnknownNameError, match=f"^unknown {kind} 'Theirz'"):
        found["Theirz"]


def test_a_component_is_made_of_its_own_kind_where_the_registry_says_so():
    made = Registry("thing", "collections", "nobody.joins")
    nested = Registry("thing", "collections", "nobody.joins", nested=True)
    for registry in (made, nested):
        registry.register("Leaf")(lambda size=1: ("leaf", size))
        registry.register("Pair")(lambda left=None: ("pair", left))
    leaf = {"name": "Leaf", "size": 3}
    assert nested.build("Pair", left=leaf) == ("pair", ("leaf", 3))
    with pytest.raises(UnknownNameError, match="unknown part of thing 'Pair': 'Leaf'"):
        made.build("Pair", left=leaf)


@pytest.mark.parametrize(
    "package",
    [mt.metaparameters, mt.networks, mt.tasks, mt.tasks.languages, mt.evaluation],
    ids=lambda package: package.__name__,
)
def test_every_name_that_a_package_lists_is_there(package):
    assert all(hasattr(package, name) for name in package.__all__)
    namespace = {}
    exec(f"from {package.__name__} import *", namespace)
    assert set(package.__all__) <= set(namespace)
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public - {"annotations"} <= set(package.__all__)


@pytest.mark.parametrize(
    ("package", "registry"),
    [
        (mt.hypergradients, mt.hypergradients.estimators),
        (mt.inner, mt.inner.learners),
        (solvers, solvers.solvers),
        (mt.metaparameters, mt.metaparameters.modules),
    ],
)
def test_a_package_builds_and_registers_in_its_own_registry(package, registry, monkeypatch):
    monkeypatch.setattr(registry, "_components", dict(registry._components))

    @package.register("Made")
    class Made:
        def __init__(self, size: int = 1) -> None:
            self.size = size

    assert isinstance(package.build("Made", size=3), Made)
    assert registry.build("Made").size == 1


def test_modules_of_the_package_are_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "package_of_things"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from metatoolkit.components import Registry\n"
        "things = Registry('thing', 'package_of_things', 'nobody.joins')\n"
    )
    (package / "first.py").write_text(
        "from package_of_things import things\n\n\n@things.register()\ndef seven():\n    return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    things = importlib.import_module("package_of_things").things
    assert list(things) == ["seven"]
    assert things.build("seven") == 7


@pytest.mark.parametrize(
    ("module", "component"),
    [
        ("hypergradients.registry", "hypergradients.base"),
        ("hypergradients.linear_solvers.registry", "hypergradients.linear_solvers.base"),
        ("inner.registry", "inner.base"),
    ],
)
def test_a_registry_imports_none_of_its_components(module, component, monkeypatch):
    spec = importlib.util.find_spec(f"metatoolkit.{module}")
    # An entry of None makes an import of the module fail.
    monkeypatch.setitem(sys.modules, f"metatoolkit.{component}", None)
    with pytest.raises(ModuleNotFoundError, match=component):
        importlib.import_module(f"metatoolkit.{component}")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    found = [value for value in vars(loaded).values() if type(value) is Registry]
    assert found
