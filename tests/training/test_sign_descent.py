"""Sign descent: a hand computation, bounds, convergence, resume, and schedules that it learns."""

import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import ForwardMode
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.metaparameters import Schedule

F64 = torch.float64
NAN = math.nan


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=F64))


def moved(optimizer, value, *gradients):
    """The values after each step."""
    found = []
    for gradient in gradients:
        value.grad = torch.tensor(gradient, dtype=F64)
        optimizer.step()
        found.append(value.tolist())
    return found


def test_a_hand_computation():
    value = parameter(0.5, -0.2)
    found = moved(
        mt.SignDescent([value], lr=0.1),
        value,
        [7.0, -1.0],
        [1e-9, -2.0],
        [-3.0, 0.0],
        [0.0, NAN],
        [NAN, 4.0],
        [-1.0, 4.0],
        [1.0, -math.inf],
    )
    # The first turns at the third and the last step, the second at the fifth and the last: each
    # halves its own step size, and what is 0 or NaN in between is as if it had not been.
    expected = [
        [0.4, -0.1],
        [0.3, 0.0],
        [0.35, 0.0],
        [0.35, 0.0],
        [0.35, -0.05],
        [0.4, -0.1],
        [0.375, -0.075],
    ]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-14)


def test_the_size_of_a_gradient_and_of_lr_alone():
    value = parameter(0.0)
    optimizer = mt.SignDescent([value], lr=0.2, decay=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert moved(optimizer, value, [1e-30]) == [[pytest.approx(-0.2)]]
    scheduler.step()
    assert moved(optimizer, value, [-1e30]) == [[pytest.approx(-0.19)]]


def test_bounds_are_kept_in_each_group():
    rate, decay, rest = parameter(0.05, 0.95), parameter(0.0), parameter(1.0)
    groups = [
        {"params": [rate], "bounds": (0.0, 1.0)},
        {"params": [decay], "lr": 1e-3, "bounds": (0.0, 5e-3)},
        {"params": [rest]},
    ]
    optimizer = mt.SignDescent(groups, lr=0.2)
    rate.grad, decay.grad = torch.tensor([1.0, -1.0], dtype=F64), torch.ones(1, dtype=F64)
    optimizer.step()
    assert rate.tolist() == [0.0, 1.0] and decay.tolist() == [0.0]
    # Nothing moves what has no gradient.
    assert rest.tolist() == [1.0]
    assert moved(optimizer, decay, [-1.0], [-1.0])[-1] == [pytest.approx(1e-3)]


def test_convergence_is_told_by_absolute_values():
    value = parameter(-1.0, 2.0)
    optimizer = mt.SignDescent([value], lr=0.08)
    assert not optimizer.converged()
    moved(optimizer, value, [1.0, 1.0])
    # 0.08 of -1.08 is above 5 %, as it is of 1.08.
    assert not optimizer.converged() and optimizer.converged(0.075)
    moved(optimizer, value, [-1.0, 1.0])
    assert optimizer.converged()
    zero = parameter(0.1)
    optimizer = mt.SignDescent([zero], lr=0.1)
    moved(optimizer, zero, [1.0])
    assert zero.tolist() == [0.0] and not optimizer.converged(1e9)


def test_what_a_bound_holds_is_at_rest():
    value = parameter(0.05, 0.95)
    optimizer = mt.SignDescent([value], lr=0.1, bounds=(0.0, 1.0))
    moved(optimizer, value, [1.0, -1.0])
    assert optimizer.converged()
    moved(optimizer, value, [-1.0, -1.0])
    assert not optimizer.converged()


def test_it_goes_on_from_its_state():
    gradients = [[1.0, -1.0], [-1.0, -1.0], [1.0, 2.0], [1.0, 0.0], [-1.0, -3.0]]
    value, other = parameter(0.3, 0.4), parameter(0.3, 0.4)
    whole = moved(mt.SignDescent([value], lr=0.1), value, *gradients)
    first = mt.SignDescent([other], lr=0.1)
    moved(first, other, *gradients[:2])
    second = mt.SignDescent([other], lr=7.0)
    second.load_state_dict(first.state_dict())
    assert moved(second, other, *gradients[2:]) == whole[2:]


def test_a_closure_is_called():
    value = parameter(0.3)

    def closure():
        value.grad = torch.ones_like(value)
        return 5.0

    assert mt.SignDescent([value]).step(closure) == 5.0
    assert value.tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; a finite number above 0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"decay": 1.0}, "decay is 1.0; a number between 0 and 1"),
        ({"bounds": (1.0, 0.0)}, r"bounds is \(1.0, 0.0\); .* the lower one first"),
        ({"bounds": (0.4, 1.0)}, r"holds values from 0.3 to 0.3; start between"),
    ],
    ids=["lr", "infinite", "decay", "turned", "outside"],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        mt.SignDescent([parameter(0.3)], **options)


def test_complex_numbers_have_no_sign():
    with pytest.raises(UnsupportedError, match="complex"):
        mt.SignDescent([nn.Parameter(torch.zeros(1, dtype=torch.complex64))])
    with pytest.raises(ConfigurationError, match="tolerance is 0"):
        mt.SignDescent([parameter(0.3)]).converged(0)


HORIZON = 24


def schedules():
    """A classifier whose learning rate, momentum and weight decay are learned from zero."""
    torch.manual_seed(0)
    inputs = torch.randn(96, 4, dtype=F64)
    batches = [(part, (part.sum(1) > 0).long()) for part in inputs.split(32)]
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    meta = nn.ModuleDict(
        {
            "lr": Schedule(0.0, HORIZON, 3),
            "momentum": Schedule(0.0, HORIZON),
            "weight_decay": Schedule(0.0, HORIZON),
        }
    ).double()

    def loss(model, meta, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, meta, loss, loss)
    inner = mt.inner.SGD(
        lr=lambda meta, step: meta["lr"].at(step),
        momentum=lambda meta, step: meta["momentum"].at(step),
        weight_decay=lambda meta, step: meta["weight_decay"].at(step),
    )
    groups = [
        {"params": meta["lr"].parameters(), "bounds": (0.0, 1.0)},
        {"params": meta["momentum"].parameters(), "bounds": (0.0, 0.99)},
        {"params": meta["weight_decay"].parameters(), "lr": 3e-4, "bounds": (0.0, 1e-2)},
    ]
    return problem, inner, mt.SignDescent(groups), batches


def learn(steps, horizon=HORIZON):
    """λ after outer steps through so many inner ones each, and the loss that it leads to."""
    problem, inner, optimizer, batches = schedules()
    trainer = mt.MetaTrainer(
        problem,
        inner,
        ForwardMode(horizon),
        optimizer,
        reset_every=HORIZON,
        keep_lookahead=True,
    )
    if steps:
        trainer.fit(batches[:2], batches[2:], steps=steps, progress=False)
    meta = problem.meta_parameters()
    final = roll_out(problem, inner, inner.init(problem), meta, batches[:2] * (HORIZON // 2))
    found = {name: value.detach().tolist() for name, value in meta.items()}
    return found, float(outer_loss(problem, final, meta, batches[2]))


def test_schedules_are_learned_from_zero():
    before, after, later = (learn(steps) for steps in (0, 1, 8))
    # A rate of zero moves nothing, so that the first signs are those of rates alone.
    start = {"lr.raw": [0.0] * 3, "momentum.raw": [0.0], "weight_decay.raw": [0.0]}
    assert before[0] == start
    assert after[0] == start | {"lr.raw": [pytest.approx(0.1)] * 3}
    assert before[1] > after[1] + 0.1 and after[1] > later[1] + 0.1
    assert later[0]["momentum.raw"][0] > 0.2 and max(later[0]["lr.raw"]) <= 1


def test_greedy_schedules_are_learned_share_by_share():
    share = HORIZON // 3
    rates = [learn(steps, share)[0]["lr.raw"] for steps in (1, 2, 3)]
    step = pytest.approx(0.1)
    assert rates == [[step, 0.0, 0.0], [step, step, 0.0], [step, step, step]]
