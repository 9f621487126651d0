"""ForwardGradient is unbiased, with the variance that theory gives it."""

import pytest
import torch

from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import ForwardGradient, ForwardMode, Unrolled
from metatoolkit.testing import bank
from tests.hypergradients.test_unrolled import Plain, error, flat


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@pytest.mark.parametrize("name", ["ridge", "learned_rates", "inside_model"])
def test_unbiased_with_the_variance_of_theory(name, noise):
    case = bank.PROBLEMS[name]()
    exact = flat(case.call(Unrolled(3)))
    draws = torch.stack(
        [flat(case.call(ForwardGradient(3, 16, noise=noise, seed=seed))) for seed in range(60)]
    )
    deviation = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - exact).abs() < 4 * deviation + 1e-12).all())
    if name == "inside_model":
        return
    # Here the whole hypergradient goes through the steps.
    size = exact.numel()
    expected = (size - 1 if noise == "sign" else size + 1) / 16 * float(exact.square().sum())
    found = float((draws - exact).square().sum(1).mean())
    assert found == pytest.approx(expected, rel=0.5)


def test_one_meta_parameter_is_exact_with_signs():
    case = bank.illustration()
    for seed in range(3):
        found = flat(case.call(ForwardGradient(7, seed=seed)))
        assert error(found, flat(case.call(ForwardMode(7)))) < 1e-13


def test_what_no_step_reads_has_its_direct_gradient():
    case = bank.tied()
    gradient = case.call(ForwardGradient(2)).gradient
    torch.testing.assert_close(gradient["direct"], case.problem.meta.direct.detach().cos())
    assert not bool(gradient["unused"].any()) and bool(gradient["features"].all())


def test_draws_depend_on_seed_and_state_alone():
    case = bank.ridge()
    state = case.state
    one = case.call(ForwardGradient(2), state)
    assert torch.equal(flat(one), flat(case.call(ForwardGradient(2), state)))
    assert not torch.equal(flat(one), flat(case.call(ForwardGradient(2, seed=1), state)))
    later = case.call(ForwardGradient(2), one.state)
    first, second = (ForwardGradient(2)._draw(case.problem, s)["value"] for s in (state, one.state))
    assert not torch.equal(first, second)
    assert not torch.equal(flat(later), flat(one))
    other = case.call(ForwardGradient(2), case.inner.init(case.problem, seed=6))
    assert not torch.equal(flat(other), flat(one))


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_chunks_change_nothing(chunk):
    case = bank.small_net()
    expected = flat(case.call(ForwardGradient(3, samples=7)))
    assert error(flat(case.call(ForwardGradient(3, samples=7, chunk=chunk))), expected) < 1e-12


def test_memory_is_flat():
    setup = Plain(width=16)
    # The table of signs is made once, and stays.
    setup.call(ForwardGradient(1))
    peaks = [peak_memory(lambda n=n: setup.call(ForwardGradient(n))) for n in (3, 50)]
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"noise": "uniform"}, "noise is 'uniform'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ForwardGradient(**arguments)
