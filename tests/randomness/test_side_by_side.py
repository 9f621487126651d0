"""Tasks that run side by side draw what each would draw by itself."""

import pytest
import torch
import torch.nn.functional as F

from metatoolkit.errors import UnsupportedError
from metatoolkit.randomness import Keys, SideBySide, Stream, fold_in, has_moved, place, seeded

KEYS = [11, 5, 2**62]
DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout of channels": lambda x: F.dropout1d(x.unsqueeze(0), 0.5),
    "rand": lambda x: x + torch.rand(2, 3),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn": lambda x: x + torch.randn(3, dtype=torch.float64),
    "randint": lambda x: x + torch.randint(0, 9, (3,)),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "twice": lambda x: F.dropout(x + torch.randn(3), 0.5) * torch.rand(2, 3),
    "nothing": lambda x: x.square(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_task_draws_what_it_would_alone(name):
    function = DRAWS[name]
    inputs = torch.randn(3, 2, 3, dtype=torch.float64)
    expected = []
    for key, row in zip(KEYS, inputs, strict=True):
        with seeded(key):
            expected.append(function(row))
    before = place()
    with SideBySide(KEYS) as mode:
        found = torch.vmap(function, randomness="different")(inputs)
    assert torch.equal(found, torch.stack(expected))
    assert mode.drawn is (name != "nothing") and not has_moved(before)


def test_gradients_flow_through_what_is_drawn():
    inputs = torch.randn(3, 8, requires_grad=True)
    with SideBySide(KEYS):
        torch.vmap(lambda x: F.dropout(x, 0.5), randomness="different")(inputs).sum().backward()
    assert set(inputs.grad.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    "function", [lambda x: x[torch.randperm(2)], lambda x: x.abs().multinomial(1) + x]
)
def test_what_cannot_be_told_apart_is_refused(function):
    with SideBySide(KEYS), pytest.raises(UnsupportedError, match="not told apart by task"):
        torch.vmap(function, randomness="different")(torch.ones(3, 2, 3))


def test_keys_are_derived_for_each_task():
    keys = Keys(KEYS)
    derived = fold_in(fold_in(keys, 3), 4, Stream.VALID_LOSS)
    expected = [fold_in(fold_in(key, 3), 4, Stream.VALID_LOSS) for key in KEYS]
    assert isinstance(derived, Keys) and derived.each() == expected
    assert keys.each() == KEYS
    # As a number it tells steps and tasks apart.
    assert derived != fold_in(keys, 3) and Keys(KEYS[:2]) != Keys(KEYS)
    assert int(derived) == fold_in(fold_in(int(keys), 3), 4, Stream.VALID_LOSS)
