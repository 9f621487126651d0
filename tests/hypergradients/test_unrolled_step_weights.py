"""The multi-step loss: outer losses after each inner step, weighted."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.testing import bank

WEIGHTS = [0.2, 0.0, 0.3, 0.5]
PRODUCTS = ["reverse_over_reverse", "forward_over_reverse"]


def weighted(weights=WEIGHTS, **options):
    return Unrolled(len(weights), keep_graphs=len(weights), step_weights=weights, **options)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("make", [bank.small_net, bank.adapted, bank.learned_rates])
def test_it_is_the_weighted_sum_of_unrolls_of_each_length(make, product):
    case = make()
    batches = case.batches(4)
    found = weighted(product=product)(
        case.problem, case.inner, case.state, batches, case.valid_batch
    )
    each = [
        Unrolled(steps)(case.problem, case.inner, case.state, batches[:steps], case.valid_batch)
        for steps in range(1, 5)
    ]
    for name, gradient in found.gradient.items():
        parts = [w * one.gradient[name] for w, one in zip(WEIGHTS, each, strict=True)]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-10, atol=1e-13)
    assert torch.equal(found.valid_loss, each[-1].valid_loss)
    # Four steps, and outer losses after three of them.
    assert found.cost.forward == found.cost.backward == 7 and found.cost.hvp == 4


@pytest.mark.parametrize("product", PRODUCTS)
def test_it_is_the_derivative_of_its_objective(product):
    case = bank.adapted()
    check = mt.check_hypergradient(
        *(case.problem, case.inner, weighted(product=product)),
        *(case.batches(4), case.valid_batch),
        coordinates=24,
    )
    assert check.relative_error < 1e-6


def test_the_last_weight_alone_is_plain_and_weights_may_be_set():
    case = bank.adapted()
    arguments = (case.problem, case.inner, case.state, case.batches(3), case.valid_batch)
    plain = Unrolled(3)(*arguments)
    estimator = weighted([1.0, 0.0, 0.0])
    first = estimator(*arguments)
    alone = Unrolled(1)(*arguments[:3], case.batches(1), case.valid_batch)
    for name, gradient in alone.gradient.items():
        torch.testing.assert_close(first.gradient[name], gradient, rtol=1e-12, atol=1e-15)
    estimator.step_weights = [0.0, 0.0, 1.0]
    later = estimator(*arguments)
    assert all(torch.equal(later.gradient[n], g) for n, g in plain.gradient.items())
    assert Unrolled(3).traits.kind == "exact" and estimator.traits.kind == "approximate"


def test_arguments():
    for weights in ([0.5, 0.5], [0.0] * 3, [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]):
        with pytest.raises(ConfigurationError, match="a number of at least 0 for each step"):
            Unrolled(3, keep_graphs=3, step_weights=weights)
    with pytest.raises(ConfigurationError, match="give keep_graphs=3 and no truncation"):
        Unrolled(3, keep_graphs=1, step_weights=[1.0, 1.0, 1.0])
    with pytest.raises(ConfigurationError, match="give keep_graphs=3 and no truncation"):
        Unrolled(3, truncation=2, step_weights=[1.0, 1.0, 1.0])
    with pytest.raises(ConfigurationError, match="give keep_graphs=3 and no truncation"):
        Unrolled(3, keep_graphs=3, truncation=2, step_weights=[1.0, 1.0, 1.0])
    estimator = weighted()
    with pytest.raises(ConfigurationError, match="step_weights is"):
        estimator.step_weights = [1.0]
