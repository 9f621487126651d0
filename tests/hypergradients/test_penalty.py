"""The penalty method against the closed form of its optima and the implicit hypergradient."""

import dataclasses
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import Penalty
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded
from tests.hypergradients import engine_calls
from tests.hypergradients.test_cost import Setup


def optimum(case, weight):
    """The minimizer of the training loss plus ``weight`` times the outer one, of ridge."""
    (inputs, targets), (valid_inputs, valid_targets) = case.train_batches[0], case.valid_batch
    penalty = case.problem.meta.value.detach().exp()
    curvature = inputs.T @ inputs / len(inputs) + penalty.diag()
    curvature = curvature + weight * valid_inputs.T @ valid_inputs / len(valid_inputs)
    pull = inputs.T @ targets / len(inputs)
    pull = pull + weight * valid_inputs.T @ valid_targets / len(valid_inputs)
    return torch.linalg.solve(curvature, pull)


def penalty_hypergradient(case, penalty):
    """γ (∂L_T(z) − ∂L_T(y)) at the optima of ridge."""
    y, z = optimum(case, 0.0), optimum(case, 1 / penalty)
    return penalty * case.problem.meta.value.detach().exp() * (z.square() - y.square())


def ridge():
    """Ridge regression with a step that converges fast."""
    case = bank.ridge()
    inner = mt.inner.SGD(lr=0.15, momentum=0.3)
    return dataclasses.replace(case, inner=inner)


def relative_error(gradient, expected):
    return float((gradient - expected).norm() / expected.norm())


def trained(case, estimator, calls=300):
    """The last of several calls, y and z carried from each to the next."""
    result = case.call(estimator)
    for _ in range(calls):
        result = case.call(estimator, result.state)
    return result


@pytest.mark.parametrize("penalty", [3.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_closed_form(penalty, steps):
    case = ridge()
    result = trained(case, Penalty(penalty, steps), 300 // steps)
    expected = penalty_hypergradient(case, penalty)
    assert relative_error(result.gradient["value"], expected) < 1e-8
    outer = case.problem.valid_loss(
        bank.Value(optimum(case, 1 / penalty).tolist()), None, case.valid_batch
    )
    assert float(result.valid_loss) == pytest.approx(float(outer.detach()), rel=1e-8)
    torch.testing.assert_close(result.state.parameters["value"], optimum(case, 0.0))


def test_the_error_falls_as_one_over_the_penalty():
    case = ridge()
    exact = bank.ridge_hypergradient(case)
    errors = [
        relative_error(trained(case, Penalty(penalty)).gradient["value"], exact)
        for penalty in (50.0, 500.0, 5000.0)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.02)
    assert errors[2] < 1e-3


@pytest.mark.parametrize("inner", [mt.inner.SGD(lr=0.15, weight_decay=0.5), None], ids=repr)
def test_weight_decay_belongs_to_both_inner_problems(inner):
    case = ridge()
    inner = inner or mt.inner.AdamW(lr=0.02, weight_decay=0.0)
    case = dataclasses.replace(case, inner=inner)
    if isinstance(inner, mt.inner.AdamW):
        calls, limit, exact = 800, 1e-2, bank.ridge_hypergradient(case)
    else:
        plain = dataclasses.replace(
            case,
            problem=mt.BilevelProblem(
                case.problem.model,
                case.problem.meta,
                lambda model, meta, batch: (
                    case.problem.train_loss(model, meta, batch) + 0.25 * model.value.square().sum()
                ),
                case.problem.valid_loss,
            ),
            inner=mt.inner.SGD(lr=0.15),
        )
        calls, limit = 300, 1e-8
        exact = trained(plain, Penalty(1000.0)).gradient["value"]
    assert relative_error(trained(case, Penalty(1000.0), calls).gradient["value"], exact) < limit


@pytest.mark.parametrize(
    ("name", "steps"),
    [*((name, 2) for name in bank.PROBLEMS if name != "learned_rates"), ("small_net", 1)],
)
def test_is_the_derivative_of_its_objective(name, steps):
    case = bank.PROBLEMS[name]()
    check = mt.check_hypergradient(
        case.problem, case.inner, Penalty(3.0, steps), case.batches(steps), case.valid_batch
    )
    assert check.relative_error < 1e-6


def test_no_second_derivative(monkeypatch):
    asked = []
    engine_calls.watch(monkeypatch, lambda inputs, create_graph: asked.append(create_graph))
    bank.small_net().call(Penalty())
    assert asked and not any(asked)


def test_the_losses_that_are_subtracted_share_their_masks():
    # At the first call without steps apart, y and z differ by L/γ alone.
    case = bank.small_net()
    result = case.call(Penalty(1e9))
    assert abs(float(result.details["train_loss_gap"])) < 1e-6


def test_y_and_z_share_masks_at_every_step_and_the_outer_loss_has_its_own():
    case = recorded()
    estimator = Penalty(2.0, steps=2)
    state, gap = case.state, []
    # y goes on by one step between the calls, z by two: its masks go by y's step.
    for calls in range(3):
        case.seen.clear()
        y = case.call(estimator, state).state
        train, valid = case.draws("train"), case.draws("valid")
        assert len(train) == 6 and len(valid) == 3
        # Two steps of y, two of z, and the two that are subtracted, at the step that y reaches.
        assert train[:2] == train[2:4] and len({*train[:2], train[4]}) == 3
        assert train[4] == train[5] and not {*train} & {*valid} and len({*valid}) == 3
        assert [one.batch for one in case.seen if one.kind == "train"] == [1.0, 2.0] * 2 + [2.0] * 2
        gap.append(train[:2])
        assert (state.step, y.step) == (calls, calls + 2)
        state, _ = case.inner.step(case.problem, state, case.problem.meta_parameters(), 1.0)
    # A step of y draws what the same step drew in the call before.
    assert gap[0][1] == gap[1][0] and gap[1][1] == gap[2][0]


def test_two_calls_by_hand():
    case = recorded(0.1)
    meta, gamma, (first, second) = -0.4, 2.0, (1.0, 2.0)
    y = z = 0.7
    estimator, state = Penalty(gamma, steps=2), case.state
    for _ in range(2):
        for batch in (first, second):
            y -= 0.1 * (y + batch * meta)
            z -= 0.1 * (z + batch * meta + (z - 0.25) / gamma)
        result = case.call(estimator, state)
        state = result.state
        # λ enters L_T alone: γ b (z − y) on the last batch.
        assert float(result.gradient["value"]) == pytest.approx(gamma * second * (z - y), rel=1e-12)
        assert float(result.valid_loss) == pytest.approx((z - 0.25) ** 2 / 2, rel=1e-12)
        assert float(state.parameters["value"]) == pytest.approx(y, rel=1e-12)
        gap = z**2 / 2 + second * meta * z - y**2 / 2 - second * meta * y
        assert float(result.details["train_loss_gap"]) == pytest.approx(gap, rel=1e-11)
    saved = estimator.state_dict()["z"]
    assert float(saved["parameters"]["value"]) == pytest.approx(z, rel=1e-12)


def test_objective_by_hand_before_and_after_a_call():
    case = recorded(0.1)
    there = {"value": torch.tensor(1.3, dtype=torch.float64)}
    estimator = Penalty(2.0)

    def value(y, z):
        trained = [x**2 / 2 + 1.0 * 1.3 * x for x in (z, y)]
        return (z - 0.25) ** 2 / 2 + 2.0 * (trained[0] - trained[1])

    y = 0.7 - 0.1 * (0.7 - 0.4)
    z = y - 0.1 * (0.7 - 0.25) / 2.0
    for _ in range(2):
        found = estimator.objective(case.problem, case.inner, case.state, [1.0], 0.25, there)
        assert float(found) == pytest.approx(value(y, z), rel=1e-12)
        assert not found.requires_grad
        # The z that a call from the same state leaves is the one that it is made of.
        case.call(estimator)


class Counting(torch.nn.Module):
    """θ, and the sum of the θ that the training loss has seen."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("total", torch.tensor(0.0, dtype=torch.float64))


def test_y_and_z_have_buffers_of_their_own():
    def train_loss(model, meta, batch):
        model.total += model.value.detach()
        return model.value.square() / 2 + meta.value * model.value

    def valid_loss(model, meta, batch):
        return (model.value - 0.25).square() / 2 + model.total

    problem = mt.BilevelProblem(Counting(), bank.Value(-0.4), train_loss, valid_loss)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    estimator, state = Penalty(2.0, steps=2), case.state
    y = z = 0.7
    seen_y = seen_z = 0.0
    for _ in range(2):
        for _ in range(2):
            seen_y, seen_z = seen_y + y, seen_z + z
            y, z = y - 0.1 * (y - 0.4), z - 0.1 * (z - 0.4 + (z - 0.25) / 2)
        result = case.call(estimator, state)
        state = result.state
        assert float(state.buffers["model.total"]) == pytest.approx(seen_y, rel=1e-12)
        outer = (z - 0.25) ** 2 / 2 + seen_z
        assert float(result.valid_loss) == pytest.approx(outer, rel=1e-12)
        carried = estimator.state_dict()["z"]["buffers"]["model.total"]
        assert float(carried) == pytest.approx(seen_z, rel=1e-12)
    # A state of an estimator that carries nothing takes away what this one carries.
    estimator.load_state_dict({})
    assert estimator.state_dict() == {}


def test_z_takes_on_the_type_and_the_step_of_y():
    case = bank.small_net()
    estimator = Penalty(5.0)
    state = case.call(estimator).state
    case.problem.model.float()
    case.problem.meta.float()
    low = [(batch[0].float(), batch[1]) for batch in [*case.train_batches, case.valid_batch]]
    single = bank.ProblemInstance(case.problem, case.inner, low[:3], low[3])
    single.call(estimator, state.to(torch.float32))
    saved = estimator.state_dict()["z"]
    tensors = [*saved["parameters"].values(), *saved["optimizer"]["velocity"].values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    kinds = {name: buffer.dtype for name, buffer in saved["buffers"].items()}
    assert kinds["model.1.running_mean"] == torch.float32
    assert kinds["model.1.num_batches_tracked"] == torch.int64
    assert int(saved["buffers"]["model.1.num_batches_tracked"]) == 2
    assert saved["step"] == 2


@pytest.mark.parametrize(("where", "passes"), [("loss", 12.1), ("input", 18.1)])
def test_passes(where, passes):
    setup = Setup(where, 2)
    assert setup.passes(Penalty()) < passes
    cost = bank.ridge().call(Penalty(steps=1)).cost
    assert (cost.forward, cost.backward, cost.hvp) == (6, 6, 0)


def test_memory_of_two_passes():
    assert Setup("loss", 8).memory(Penalty()) < 2.2


def test_training_leads_to_the_optimum():
    case = bank.quadratic(3.0, 6)
    curvature, mixing, shift = case.train_batches[0]
    response = torch.linalg.solve(curvature, mixing)
    offset = case.valid_batch - torch.linalg.solve(curvature, shift)
    optimum = torch.linalg.lstsq(response, offset.unsqueeze(1)).solution.squeeze(1)
    estimator = Penalty(100.0)
    trainer = mt.MetaTrainer(
        case.problem,
        mt.inner.SGD(lr=0.3, momentum=0.3),
        estimator,
        torch.optim.SGD(case.problem.meta.parameters(), lr=0.1),
        keep_lookahead=True,
    )
    trainer.fit(case.train_batches, [case.valid_batch], 250, progress=False)
    found = case.problem.meta.value.detach()
    assert float((found - optimum).norm() / optimum.norm()) < 0.02
    # The momentum of z lives on between the calls.
    assert float(estimator.state_dict()["z"]["optimizer"]["velocity"]["value"].norm()) > 0


def test_z_is_carried_and_restored():
    case = bank.small_net()
    estimator = Penalty(5.0)
    first = case.call(estimator)
    saved = {name: dict(value) for name, value in estimator.state_dict().items()}
    second = case.call(estimator, first.state)
    resumed = Penalty(5.0)
    resumed.load_state_dict(saved)
    again = case.call(resumed, first.state)
    fresh = case.call(Penalty(5.0), first.state)
    key = "layers.0.weight"
    assert torch.equal(second.gradient[key], again.gradient[key])
    assert not torch.equal(second.gradient[key], fresh.gradient[key])


def test_z_starts_over_with_a_new_episode():
    case = bank.small_net()
    carried = Penalty(5.0)
    case.call(carried)
    state = case.inner.init(case.problem, seed=6)
    one, other = case.call(carried, state), case.call(Penalty(5.0), state)
    assert all(torch.equal(g, other.gradient[name]) for name, g in one.gradient.items())


def test_a_trained_estimator_can_be_checked_in_float64():
    case = bank.ridge()
    case.problem.model.float()
    case.problem.meta.float()
    single = bank.ProblemInstance(
        case.problem,
        case.inner,
        [tuple(t.float() for t in batch) for batch in case.train_batches],
        tuple(t.float() for t in case.valid_batch),
    )
    estimator = Penalty(3.0)
    result = single.call(estimator)
    check = mt.check_hypergradient(
        single.problem,
        single.inner,
        estimator,
        single.train_batches,
        single.valid_batch,
        state=result.state,
    )
    assert check.relative_error < 1e-6


def test_unsupported():
    with pytest.raises(UnsupportedError, match="Unrolled, ForwardMode or Implicit"):
        bank.learned_rates().call(Penalty())
    estimator = Penalty()
    bank.ridge().call(estimator)
    with pytest.raises(ConfigurationError, match="make a new Penalty"):
        bank.tied().call(estimator)
    with pytest.raises(CheckpointError, match="Penalty"):
        Penalty().load_state_dict({"u": torch.zeros(1)})


@pytest.mark.parametrize(
    "arguments", [{"penalty": 0.0}, {"penalty": math.inf}, {"penalty": -1.0}, {"steps": 0}]
)
def test_arguments_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        Penalty(**arguments)
