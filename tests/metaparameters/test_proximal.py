"""The proximal term of iMAML, and its strength as λ."""

import pytest
import torch
from torch import nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters import Proximal


def test_it_is_half_the_strength_times_the_squared_distance():
    model = nn.Linear(2, 1).double()
    initial = {n: p.detach() + 0.5 for n, p in model.named_parameters()}
    term = Proximal(3.0).double().term(model, initial)
    assert term.item() == pytest.approx(3.0 / 2 * 3 * 0.25)
    term.backward()
    torch.testing.assert_close(model.weight.grad, torch.full((1, 2), -1.5, dtype=torch.float64))
    # Parameters that have no initial value here are free.
    some = Proximal(3.0).double().term(model, {"bias": initial["bias"]})
    assert some.item() == pytest.approx(3.0 / 2 * 0.25)


def test_the_strength_is_learned_or_a_constant():
    assert Proximal(1.0).log_strength.requires_grad
    assert not Proximal(1.0, learned=False).log_strength.requires_grad
    for strength in (0.0, -1.0, float("inf")):
        with pytest.raises(ConfigurationError, match="a finite number above 0 is needed"):
            Proximal(strength)
