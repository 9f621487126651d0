"""Tangents that are carried forward, by hand and against finite differences."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.tangents import TangentBundle
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded

F64 = torch.float64


def bundle(case, directions, chunk=64, state=None):
    """A bundle along the rows of a matrix over all of λ."""
    meta = case.problem.meta_leaves()
    sizes = [tensor.numel() for tensor in meta.values()]

    def rows(first, last):
        parts = directions[first:last].split(sizes, 1)
        return [p.view(-1, *t.shape) for p, t in zip(parts, meta.values(), strict=True)]

    state = case.state if state is None else state
    return TangentBundle(case.problem, case.inner, state, meta, rows, len(directions), chunk)


def reached(case, state, shift, steps):
    """The tensors of the state after some steps with λ moved, and put back."""
    meta = case.problem.meta_parameters()
    parts = shift.split([tensor.numel() for tensor in meta.values()])
    moved = {n: t.detach() + p.view_as(t) for (n, t), p in zip(meta.items(), parts, strict=True)}
    for batch in case.batches(steps):
        state, _ = case.inner.step(case.problem, state, moved, batch)
    return state


@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize("name", ["small_net", "learned_rates", "inside_model", "adapted"])
def test_tangents_are_differences_of_states(name, chunk):
    case = getattr(bank, name)()
    count = sum(t.numel() for t in case.problem.meta_parameters().values())
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(5, count, generator=generator, dtype=F64)
    state = case.state
    forward = bundle(case, directions, chunk, state)
    for batch in case.batches(3):
        forward.step(batch)
    plain = reached(case, state, torch.zeros(count, dtype=F64), 3)
    assert forward.state.step == state.step + 3
    for one, other in zip(forward.state.tensors(), plain.tensors(), strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    for key, buffer in forward.state.buffers.items():
        torch.testing.assert_close(buffer, plain.buffers[key], rtol=1e-12, atol=1e-14)
    radius = 1e-5
    adjoint = [torch.randn(t.shape, generator=generator, dtype=F64) for t in plain.tensors()]
    adjoint[1] = None
    slopes = forward.slopes(adjoint)
    for row, direction in enumerate(directions):
        up, down = (reached(case, state, sign * radius * direction, 3) for sign in (1, -1))
        differences = [
            (a - b) / (2 * radius) for a, b in zip(up.tensors(), down.tensors(), strict=True)
        ]
        scale = max(float(d.abs().max()) for d in differences)
        for tangent, difference in zip(forward.tangents, differences, strict=True):
            torch.testing.assert_close(tangent[row], difference, rtol=1e-6, atol=1e-7 * scale)
        pairs = zip(differences, adjoint, strict=True)
        expected = float(sum((d * v).sum() for d, v in pairs if v is not None))
        assert float(slopes[row]) == pytest.approx(expected, rel=1e-6, abs=1e-6 * scale)


def test_the_initial_state_follows_the_present_meta_and_is_no_part_of_the_gradient():
    case = bank.started()
    state = case.state
    with torch.no_grad():
        case.problem.meta.value.add_(0.5)
    forward = bundle(case, torch.tensor([[1.0], [-2.0]], dtype=F64), state=state)
    assert float(forward.state.parameters["value"]) == pytest.approx(1.3, rel=1e-15)
    assert forward.tangents[0].tolist() == [1.0, -2.0]
    assert forward.reached == {"value"}
    for count, batch in enumerate(case.batches(3), 1):
        forward.step(batch)
        factor = 1 - 0.1 * sum(case.batches(count))
        assert float(forward.state.parameters["value"]) == pytest.approx(1.3 * factor, rel=1e-14)
        assert forward.tangents[0].tolist() == pytest.approx([factor, -2 * factor], rel=1e-13)


def test_a_later_state_starts_without_tangents():
    case = bank.started()
    later, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    forward = bundle(case, torch.ones(1, 1, dtype=F64), state=later)
    assert forward.tangents[0].tolist() == [0.0] and forward.reached == set()
    assert float(forward.state.parameters["value"]) == pytest.approx(0.72)


def test_an_initial_state_that_does_not_depend_on_meta():
    case = bank.started()
    constant = lambda meta: {"value": torch.tensor(0.6, dtype=F64)}  # noqa: E731
    problem = case.problem
    problem = mt.BilevelProblem(
        problem.model, problem.meta, problem.train_loss, problem.valid_loss, initial=constant
    )
    case = dataclasses.replace(case, problem=problem)
    forward = bundle(case, torch.ones(1, 1, dtype=F64))
    assert forward.reached == set() and forward.tangents[0].tolist() == [0.0]
    forward.step(2.0)
    assert forward.reached == {"value"}
    assert forward.tangents[0].tolist() == pytest.approx([-0.2])


def test_meta_parameters_are_reached_by_what_depends_on_them():
    case = bank.tied()
    forward = bundle(case, torch.ones(1, 14, dtype=F64))
    forward.step(case.train_batches[0])
    assert forward.reached == {"features"}
    rates = bank.learned_rates()
    forward = bundle(rates, torch.ones(1, 3, dtype=F64))
    forward.step(rates.train_batches[0])
    assert forward.reached == {"lr", "logits"}


def test_each_step_is_evaluated_once_with_the_masks_of_the_inner_step():
    case = recorded()
    state = case.state
    reached(case, state, torch.zeros(1, dtype=F64), 3)
    draws = case.draws("train")
    case.seen.clear()
    forward = bundle(case, torch.ones(4, 1, dtype=F64), 2, state)
    for batch in case.batches(3):
        forward.step(batch)
    assert case.draws("train") == draws and len(set(draws)) == 3


def test_memory_of_the_state_that_is_given_is_not_written():
    case = bank.ridge()
    state = case.state
    before = state.clone()
    forward = bundle(case, torch.eye(5, dtype=F64), state=state)
    forward.step(case.train_batches[0])
    for one, other in zip(state.tensors(), before.tensors(), strict=True):
        assert torch.equal(one, other)


def test_another_step_than_an_update_is_refused():
    class Still(mt.inner.SGD):
        def step(self, problem, state, meta, batch, create_graph=False):
            return super().step(problem, state, meta, batch, create_graph)

    case = bank.ridge()
    case.inner = Still(lr=0.1)
    with pytest.raises(UnsupportedError, match="Still"):
        bundle(case, torch.eye(5, dtype=F64))


class Once(torch.autograd.Function):
    """x², whose gradient cannot be differentiated again."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return 2 * inputs * gradient


def test_a_function_of_meta_that_cuts_the_second_derivative_is_refused():
    base = bank.ridge()

    def train_loss(model, meta, batch):
        return (Once.apply(meta.value) * model.value.square()).sum()

    problem = mt.BilevelProblem(
        base.problem.model, base.problem.meta, train_loss, base.problem.valid_loss
    )
    case = dataclasses.replace(base, problem=problem, inner=mt.inner.SGD(lr=0.1))
    forward = bundle(case, torch.eye(5, dtype=F64))
    with pytest.raises(UnsupportedError, match=r"Once.*once_differentiable"):
        forward.step(case.train_batches[0])


def test_chunks_cover_all_directions_once():
    case = bank.ridge()
    asked = []
    meta = case.problem.meta_leaves()

    def directions(first, last):
        asked.append((first, last))
        return [torch.eye(5, dtype=F64)[first:last]]

    for chunk, expected in ((2, [(0, 2), (2, 4), (4, 5)]), (5, [(0, 5)]), (64, [(0, 5)])):
        asked.clear()
        forward = TangentBundle(case.problem, case.inner, case.state, meta, directions, 5, chunk)
        assert [t.shape[0] for t in forward.tangents] == [5, 5]
        forward.step(case.train_batches[0])
        assert asked == expected


def test_slopes_leave_out_what_has_no_adjoint():
    case = bank.illustration()
    forward = bundle(case, torch.tensor([[1.0], [2.0]], dtype=F64))
    forward.tangents[0].copy_(torch.tensor([3.0, -4.0]))
    assert forward.slopes([torch.tensor(5.0, dtype=F64)]).tolist() == [15.0, -20.0]
    nothing = forward.slopes([None])
    assert nothing.tolist() == [0.0, 0.0] and nothing.dtype == F64
