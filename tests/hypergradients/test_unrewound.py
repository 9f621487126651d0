"""What an evaluation changed and nothing rewinds, by name."""

import functools
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients.unrewound import changed_by
from metatoolkit.testing import bank

COUNTER = 0
QUIET = [1, 2]


class Part(nn.Module):
    """A module with an attribute of any kind."""

    def __init__(self, value):
        super().__init__()
        self.kept = value
        self._hidden = 0
        self.layer = nn.Linear(2, 2)


def quiet(model, meta, batch):
    return torch.zeros(())


def problem_of(model=None, meta=None, train_loss=quiet, valid_loss=quiet):
    return mt.BilevelProblem(
        model or bank.Value(0.0), meta or bank.Value(0.0), train_loss, valid_loss
    )


def set_item(values):
    values["a"] = 5


def add(tensor):
    tensor.add_(1)


def write(array):
    array[0] += 1


KINDS = {
    "tensor in place": (lambda: torch.zeros(3), add, "a tensor that is no buffer"),
    "torch": (
        lambda: torch.Generator().manual_seed(0),
        lambda g: torch.rand(2, generator=g),
        "a random generator of its own",
    ),
    "numpy": (
        lambda: np.random.default_rng(0),
        lambda g: g.normal(),
        "a random generator of its own",
    ),
    "legacy": (
        lambda: np.random.RandomState(0),
        lambda g: g.normal(),
        "a random generator of its own",
    ),
    "python": (lambda: random.Random(0), lambda g: g.random(), "a random generator of its own"),
    "array": (lambda: np.zeros(3), write, "a ndarray"),
    "list": (lambda: [1], lambda v: v.append(2), "a list"),
    "list, one for another": (lambda: [1, 2], lambda v: v.reverse(), "a list"),
    "dict": (lambda: {"a": 1}, set_item, "a dict"),
    "set": (lambda: {1}, lambda v: v.add(2), "a set"),
    "deque": (lambda: deque([1], 1), lambda v: v.append(2), "a deque"),
}
# What can be read and not written over leaves its print as it was.
READ = {
    "tensor in place": lambda t: t + 1,
    "torch": lambda g: g.initial_seed(),
    "numpy": lambda g: g.bit_generator,
    "legacy": lambda g: g.get_state(),
    "python": lambda g: g.getstate(),
    "array": lambda a: a + 1,
    "list": lambda v: list(v),
    "list, one for another": lambda v: v[::-1],
    "dict": lambda v: v["a"],
    "set": lambda v: 1 in v,
    "deque": lambda v: v[0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_that_is_changed_inside(kind):
    make, change, word = KINDS[kind]
    model, meta = nn.Sequential(nn.Identity(), Part(make())), Part(make())
    problem = problem_of(model, meta)
    assert changed_by(problem, lambda: change(model[1].kept)) == [f"model.1.kept ({word})"]
    assert changed_by(problem, lambda: change(meta.kept)) == [f"meta.kept ({word})"]
    assert changed_by(problem, lambda: READ[kind](model[1].kept)) == []


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (1, 2, "a number"),
        (0.5, 0.25, "a number"),
        (None, torch.zeros(2), "a tensor that is no buffer"),
        (torch.zeros(2), None, "a NoneType"),
        ("a", "b", "a str"),
        (None, torch.Generator(), "a random generator of its own"),
    ],
)
def test_an_attribute_that_is_exchanged(before, after, word):
    meta = Part(before)
    assert changed_by(problem_of(meta=meta), lambda: setattr(meta, "kept", after)) == [
        f"meta.kept ({word})"
    ]
    assert changed_by(problem_of(meta=meta), lambda: setattr(meta, "kept", after)) == []


def test_an_attribute_that_is_new():
    meta = Part(1)
    assert changed_by(problem_of(meta=meta), lambda: setattr(meta, "found", 2)) == [
        "meta.found (a number)"
    ]


def test_what_is_rewound_or_of_the_framework_is_not_named():
    meta = Part(1)

    def change():
        meta._hidden = 3
        meta.eval()
        with torch.no_grad():
            meta.layer.weight.add_(1)
        meta.register_buffer("buffer", torch.zeros(2))

    assert changed_by(problem_of(meta=meta), change) == []
    del meta.kept
    assert changed_by(problem_of(meta=meta), lambda: None) == []


def test_what_a_loss_closes_over():
    count = 0

    def train_loss(model, meta, batch):
        nonlocal count
        count += 1
        return answer

    def valid_loss(model, meta, batch):
        return count

    # A variable that has no value yet is passed over.
    problem = problem_of(train_loss=train_loss)
    with pytest.raises(NameError):
        changed_by(problem, lambda: train_loss(None, None, None))
    answer = 1
    assert changed_by(problem, lambda: train_loss(None, None, None)) == [
        "'count' of train_loss (a number)"
    ]
    both = problem_of(train_loss=train_loss, valid_loss=valid_loss)
    assert changed_by(both, lambda: train_loss(None, None, None)) == [
        "'count' of train_loss (a number)",
        "'count' of valid_loss (a number)",
    ]


def test_what_a_loss_has_as_defaults():
    def train_loss(model, meta, batch, seen=[], *, calls={}):  # noqa: B006
        seen.append(batch)
        return len(seen)

    def valid_loss(model, meta, batch, *, calls={}):  # noqa: B006
        calls[batch] = 1

    problem = problem_of(train_loss=train_loss, valid_loss=valid_loss)
    assert changed_by(problem, lambda: train_loss(None, None, 1)) == [
        "'seen' of train_loss (a list)"
    ]
    assert changed_by(problem, lambda: valid_loss(None, None, 1)) == [
        "'calls' of valid_loss (a dict)"
    ]
    assert changed_by(problem, lambda: train_loss(None, None, 1, calls=1)) == [
        "'seen' of train_loss (a list)"
    ]


def counting(model, meta, batch):
    global COUNTER
    COUNTER += 1
    return COUNTER + len(QUIET)


def test_globals_of_the_file():
    problem = problem_of(valid_loss=counting)
    assert changed_by(problem, lambda: counting(None, None, None)) == [
        "'COUNTER' of valid_loss (a number)"
    ]
    # What a loss does not read is none of its own.
    other = problem_of()
    assert changed_by(other, lambda: counting(None, None, None)) == []


class Callable:
    def __init__(self):
        self.calls = 0

    def __call__(self, model, meta, batch):
        self.calls += 1
        return self.calls

    def method(self, model, meta, batch, kept=QUIET, scale=1.0):
        self.calls += 1
        return COUNTER


@pytest.mark.parametrize("kind", ["train_loss", "valid_loss"])
def test_a_loss_that_is_an_object_or_a_method_of_one(kind):
    loss = Callable()
    found = [f"{kind}.calls (a number)"]
    assert changed_by(problem_of(**{kind: loss}), lambda: loss(None, None, None)) == found
    method = loss.method
    assert changed_by(problem_of(**{kind: method}), lambda: method(None, None, None)) == found
    assert changed_by(problem_of(**{kind: method}), lambda: QUIET.append(3)) == [
        f"'kept' of {kind} (a list)"
    ]
    assert changed_by(problem_of(**{kind: method}), lambda: counting(None, None, None)) == [
        f"'COUNTER' of {kind} (a number)"
    ]


def test_a_loss_that_is_partly_given_its_arguments():
    loss = Callable()
    partial = functools.partial(functools.partial(loss.method, kept=1), scale=2.0)
    problem = problem_of(train_loss=partial)
    assert changed_by(problem, lambda: partial(None, None, None)) == ["train_loss.calls (a number)"]
    builtin = problem_of(train_loss=functools.partial(print, "a"), valid_loss=max)
    assert changed_by(builtin, lambda: None) == []


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.layer = nn.Linear(2, 2)

    def loss(self, model, meta, batch):
        self.calls += 1


def test_a_loss_that_is_a_method_of_the_model_is_named_once():
    model = Model()
    problem = problem_of(model, train_loss=model.loss)
    assert changed_by(problem, lambda: model.loss(None, None, None)) == ["model.calls (a number)"]


def test_a_variable_without_a_value_hides_no_other():
    def make():
        seen = []

        def loss(model, meta, batch):
            seen.append(batch)
            return absent if batch else torch.zeros(())

        if COUNTER < 0:
            absent = None
        return loss

    loss = make()
    assert loss.__code__.co_freevars == ("absent", "seen")
    changed = changed_by(problem_of(train_loss=loss), lambda: loss(None, None, 0))
    assert [name.split(" ")[0] for name in changed] == ["'seen'"]
