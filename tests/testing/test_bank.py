"""The problems of the bank: closed forms, and what is made anew at every call."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import GMRES, Implicit, Unrolled
from metatoolkit.testing import ProblemInstance, bank
from metatoolkit.testing.draws import recorded

EVERY = {
    **bank.CONFORMANCE,
    **{
        name: getattr(bank, name)
        for name in (
            *("quadratic", "logistic", "schedule", "started", "adapted"),
            *("matrices", "heads", "shapes"),
        )
    },
    "recorded": recorded,
}


@pytest.mark.parametrize("build", EVERY.values(), ids=EVERY.keys())
def test_a_problem_is_made_anew_and_in_float64(build):
    one, other = build(), build()
    assert isinstance(one, ProblemInstance) and one.problem is not other.problem
    for module in (one.problem.model, one.problem.meta):
        tensors = [*module.parameters(), *module.buffers()]
        assert {t.dtype for t in tensors if t.is_floating_point()} <= {torch.float64}
    pairs = zip(one.state.tensors(), other.state.tensors(), strict=True)
    assert all(
        (torch.equal(a, b) and a.data_ptr() != b.data_ptr()) or not a.numel() for a, b in pairs
    )
    assert one.state.key == other.state.key
    result = one.call(Unrolled(2))
    assert result.state.step == 2
    assert any(bool(gradient.any()) for gradient in result.gradient.values())


@pytest.mark.parametrize("name", ["ridge", "quadratic", "logistic"])
def test_closed_forms_are_limits_of_long_trajectories(name):
    instance = getattr(bank, name)()
    wanted = getattr(bank, f"{name}_hypergradient")(instance)
    instance.inner = mt.inner.SGD(lr=0.1, momentum=0.5)
    found = instance.call(Unrolled(600)).gradient["value"]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_illustration_at_its_optimum():
    # θ* = 1 / (1 + λ) below (θ − ½)²: 2 (θ* − ½) · −1 / (1 + λ)² = (λ − 1) / (1 + λ)³.
    instance = bank.illustration(1 / 1.4, 0.4)
    found = float(instance.call(Implicit(GMRES(5, 1e-12))).gradient["value"])
    assert found == pytest.approx(bank.illustration_hypergradient(0.4), rel=1e-9)
    assert bank.illustration_hypergradient(0.4) == pytest.approx(-0.6 / 1.4**3)


def test_closed_forms_of_a_few_steps():
    momentum = bank.quadratic(inner=mt.inner.SGD(0.05, momentum=0.6, weight_decay=0.1))
    torch.testing.assert_close(
        momentum.call(Unrolled(4)).gradient["value"],
        bank.quadratic_hypergradient_after(momentum, 4),
    )
    schedule = bank.schedule(5)
    torch.testing.assert_close(
        schedule.call(Unrolled(5)).gradient["value"], bank.schedule_hypergradient(schedule)
    )
    started = bank.started()
    found = float(started.call(Unrolled(4)).gradient["value"])
    assert found == pytest.approx(bank.started_hypergradient(started, 4))


def test_where_no_loss_reads_the_meta_parameters():
    for name in ("learned_rates", "schedule", "initialized"):
        assert name in bank.OUTSIDE_LOSSES
        problem = EVERY[name]().problem
        batch = EVERY[name]().train_batches[0]
        leaves = problem.meta_leaves()
        parameters = {n: t.requires_grad_() for n, t in problem.parameters().items()}
        loss, _ = problem.evaluate_train(parameters, leaves, problem.buffers(), batch, 0)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        assert all(gradient is None for gradient in found)


def test_a_recorded_problem_notes_each_evaluation():
    instance = recorded(0.1)
    instance.call(Unrolled(2))
    seen = [one for one in instance.seen if one.kind == "train"]
    assert {one.batch for one in seen} == {1.0, 2.0} and instance.draws("valid")
    # θ ← 0.9 θ − 0.1 b λ from 0.7 with λ = −0.4.
    assert sorted({one.theta for one in seen}) == pytest.approx([0.9 * 0.7 + 0.04, 0.7])
