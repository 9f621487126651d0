"""What forward-mode estimators share: steps in order, the outer loss, what is not reached."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError, UnusedMetaParameterError
from metatoolkit.hypergradients import (
    ForwardGradient,
    ForwardMode,
    tangent_updates,
    tangents,
)
from metatoolkit.hypergradients.noise import standard_noise
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded

both = pytest.mark.parametrize("kind", [ForwardMode, ForwardGradient])


@both
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_by_hand(kind, steps):
    # θ ← 0.9 θ − 0.1 b λ with the batches 1, 2, 3; one meta-parameter is exact with signs.
    case = recorded()
    theta, slope, batches = 0.7, 0.0, case.batches(steps)
    for batch in batches:
        theta, slope = 0.9 * theta + 0.1 * batch * 0.4, 0.9 * slope - 0.1 * batch
    result = case.call(kind(steps))
    assert float(result.gradient["value"]) == pytest.approx(slope * (theta - 0.25), rel=1e-12)
    assert float(result.valid_loss) == pytest.approx((theta - 0.25) ** 2 / 2, rel=1e-12)
    assert float(result.state.parameters["value"]) == pytest.approx(theta, rel=1e-13)
    assert result.state.step == steps and not result.state.parameters["value"].requires_grad
    cost = result.cost
    assert (cost.forward, cost.backward, cost.jvp, cost.hvp) == (steps + 1, steps + 1, steps, 0)
    there = {"value": torch.tensor(1.3, dtype=torch.float64)}
    arguments = (case.problem, case.inner, case.state, batches, case.valid_batch, there)
    theta = 0.7
    for batch in batches:
        theta = 0.9 * theta - 0.1 * batch * 1.3
    found = kind(steps).objective(*arguments)
    assert float(found) == pytest.approx((theta - 0.25) ** 2 / 2, rel=1e-12)


@both
def test_what_no_step_reads_has_the_direct_gradient_alone(kind):
    case = bank.tied()
    gradient = case.call(kind(2)).gradient
    direct = case.problem.meta.direct.detach().cos()
    torch.testing.assert_close(gradient["direct"], direct, rtol=1e-13, atol=0)
    assert not bool(gradient["unused"].any()) and bool(gradient["features"].all())


@both
def test_a_meta_parameter_that_nothing_reads_is_an_error(kind):
    case = bank.small_net()
    problem = mt.BilevelProblem(
        case.problem.model, bank.Value(0.0), case.problem.valid_loss, case.problem.valid_loss
    )
    case = dataclasses.replace(case, problem=problem)
    with pytest.raises(UnusedMetaParameterError, match="value"):
        case.call(kind(2))


def test_a_direction_is_a_product_with_the_jacobian():
    case = bank.ridge()
    for estimator, count in ((ForwardMode(3), 5), (ForwardGradient(3, samples=4), 4)):
        cost = case.call(estimator).cost
        assert (cost.forward, cost.backward, cost.jvp, cost.hvp) == (4, 4, 3 * count, 0)


def test_defaults():
    one, other = ForwardMode(), ForwardGradient()
    assert (one.horizon, one.chunk, one.max_bytes) == (1, 64, 4 * 2**30)
    assert (other.horizon, other.samples, other.chunk) == (1, 1, 64)
    assert (other.noise, other.seed, other._draws.fresh) == ("sign", 0, True)
    assert ForwardGradient(fresh=False)._draws.fresh is False


@pytest.mark.parametrize("closed", [True, False])
@both
def test_directions_are_taken_chunk_by_chunk(kind, closed, monkeypatch):
    seen = []
    real = tangents.batched_products

    def spy(outputs, inputs, cotangents):
        seen.append(len(cotangents[0]))
        return real(outputs, inputs, cotangents)

    monkeypatch.setattr(tangents, "batched_products", spy)
    monkeypatch.setattr(tangent_updates, "batched_products", spy)
    case = bank.ridge()
    # SGD moves tangents by itself, and the update of Adam is differentiated, too.
    case.inner = mt.inner.SGD(0.1) if closed else mt.inner.Adam(0.1)
    options = {"samples": 5} if kind is ForwardGradient else {}
    for chunk, counts in ((2, [2, 2, 1]), (64, [5])):
        expected = counts if closed else [count for count in counts for _ in range(2)]
        seen.clear()
        case.call(kind(1, chunk=chunk, **options))
        assert seen == expected


def test_directions_of_forward_mode_are_the_rows_of_the_identity():
    case = bank.tied()
    probes = ForwardMode(1)._probes(case.problem, case.state)
    meta = case.problem.meta_parameters()
    assert probes.count == sum(tensor.numel() for tensor in meta.values())
    rows = probes.directions(0, probes.count)
    whole = torch.cat([row.flatten(1) for row in rows], 1)
    assert torch.equal(whole, torch.eye(probes.count, dtype=torch.float64))
    for part, row, tensor in zip(probes.directions(3, 7), rows, meta.values(), strict=True):
        assert torch.equal(part, row[3:7]) and part.shape == (4, *tensor.shape)
    slopes = torch.arange(1.0, probes.count + 1)
    found = probes.combine(slopes)
    assert list(found) == list(meta)
    assert torch.cat([g.flatten() for g in found.values()]).tolist() == slopes.tolist()
    assert all(found[n].dtype == t.dtype and found[n].shape == t.shape for n, t in meta.items())


def test_the_limit_of_bytes_is_allowed_itself():
    case = bank.ridge()
    # θ and its velocity of 5 entries of 8 bytes, for 5 meta-parameters.
    case.call(ForwardMode(2, max_bytes=400))
    with pytest.raises(UnsupportedError, match="5 meta-parameters"):
        case.call(ForwardMode(2, max_bytes=399))


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_draws_stay_the_same_from_version_to_version(noise):
    # What was recorded can be computed again.
    case = bank.ridge()
    later = dataclasses.replace(case.state, step=3)
    estimator = ForwardGradient(1, samples=6, noise=noise, seed=4)
    probes = estimator._probes(case.problem, later)
    like = {"value": torch.zeros(6, 5, dtype=torch.float64)}
    expected = standard_noise(like, noise, fold_in(later.key, 3, -5, 4))["value"]
    assert torch.equal(probes.directions(0, 6)[0], expected)
    assert torch.equal(probes.directions(2, 5)[0], expected[2:5])
    slopes = torch.arange(6.0)
    torch.testing.assert_close(
        probes.combine(slopes)["value"], slopes.double() @ expected / 6, rtol=1e-13, atol=1e-13
    )


@both
def test_what_is_returned_holds_no_graph(kind):
    result = bank.small_net().call(kind(2))
    tensors = [*result.state.tensors(), *result.state.buffers.values(), result.valid_loss]
    assert not any(tensor.requires_grad for tensor in [*tensors, *result.gradient.values()])
