"""What EvoGrad and GuidedEvoGrad have in common: scale, choice of parameters, prefix, refusals."""

import inspect
import math

import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad
from metatoolkit.hypergradients.scored_candidates import ScoredCandidates
from metatoolkit.testing import bank

BOTH = pytest.mark.parametrize("make", [EvoGrad, GuidedEvoGrad])


@BOTH
def test_each_takes_what_is_common_and_says_so_by_the_same_names(make):
    common = [name for name in inspect.signature(ScoredCandidates).parameters if name != "self"]
    assert common == ["sigma", "temperature", "rescale", "perturb", "prefix"]
    assert set(common) <= set(inspect.signature(make).parameters)
    one = make(sigma=0.1, temperature=0.5, rescale=0.3, perturb=["4.*"], prefix=len)
    found = [getattr(one, name) for name in common]
    assert found == [0.1, 0.5, 0.3, ["4.*"], len]
    assert one.compared == () and not one.complex_parameters


@BOTH
@pytest.mark.parametrize("name", ["sigma", "temperature", "rescale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_numbers_are_above_zero(make, name, value):
    with pytest.raises(ConfigurationError, match=f"{name} is {value}; a number above 0"):
        make(**{name: value})


@BOTH
def test_parameters_are_named_in_a_list_and_found(make):
    with pytest.raises(ConfigurationError, match=r"perturb is 'head'; give a list: \['head'\]"):
        make(perturb="head")
    with pytest.raises(ConfigurationError, match=r"perturb: 'head\.\*' matches no inner parameter"):
        bank.small_net().call(make(perturb=["0.*", "head.*"]))


@BOTH
def test_rescale_is_a_factor_of_what_flows_through_the_training_loss(make):
    case = bank.small_net()
    plain, rescaled = (make(sigma=0.1, temperature=0.5, rescale=r) for r in (None, 3.0))
    assert rescaled.learning_rate == 3.0
    factor = 3.0 / plain.learning_rate
    one, other = case.call(plain, case.state), case.call(rescaled, case.state)
    for name, gradient in one.gradient.items():
        torch.testing.assert_close(other.gradient[name], factor * gradient, rtol=1e-10, atol=1e-15)


@BOTH
def test_the_passes_of_a_prefix_are_counted(make):
    def prefix(model, meta, batch):
        return batch

    case, options = bank.small_net(), {"sigma": 0.1, "temperature": 0.5}
    plain = case.call(make(**options), case.state)
    shared = case.call(make(**options, prefix=prefix), case.state)
    assert shared.cost.forward == plain.cost.forward + 2
    assert shared.cost.backward == plain.cost.backward
    for name, gradient in plain.gradient.items():
        torch.testing.assert_close(shared.gradient[name], gradient, rtol=1e-10, atol=1e-14)
    with pytest.raises(ConfigurationError, match="prefix is 'encoder'; accepted: None, or a funct"):
        make(prefix="encoder")
