"""What contenders compute is one hypergradient, by hand and by other libraries too."""

import pytest
import torch

from benchmarks import estimators, forward_mode, tasks, trajectory
from benchmarks.contenders import by_hand, peers
from benchmarks.contenders.ours import ours, ours_over_tasks
from benchmarks.harness.measure import built, installed, tensors_of
from benchmarks.harness.registry import benchmarks
from metatoolkit.hypergradients import EvoGrad, ForwardMode, Unrolled


def found(contender, setup, **draw):
    if not installed(contender.needs or "torch"):
        pytest.skip(f"{contender.needs} is not installed")
    return tensors_of(built(contender, setup)(**draw))


def agree(one, other, tolerance=1e-5):
    assert float((one - other).norm() / other.norm()) < tolerance


@pytest.mark.parametrize("name", ["loop_by_hand", "higher", "torchopt"])
@pytest.mark.parametrize("problem", ["weights", "momentum", "rates", "tasks"])
def test_unrolls_agree(name, problem):
    if problem == "rates" and name != "loop_by_hand":
        pytest.skip("λ in the optimizer is no matter of other libraries here")
    setup = {
        "weights": estimators.noisy_digits,
        "momentum": lambda: trajectory.weighting(3, trajectory.perceptron, 32),
        "rates": lambda: estimators.optimizer_rates(3),
        "tasks": lambda: tasks.sinusoids(2),
    }[problem]()
    mine = ours(Unrolled(setup.steps))
    if problem == "tasks":
        mine = ours_over_tasks(Unrolled(setup.steps), "vmap")
    right = found(mine, setup)
    contender = getattr(by_hand if name == "loop_by_hand" else peers, name)()
    agree(found(contender, setup), right)
    # Each leaves the problem as it was.
    agree(found(mine, setup), right, 1e-12)


@pytest.mark.parametrize("family", [tasks.sinusoids, tasks.images])
@pytest.mark.parametrize("contender", [by_hand.batch_by_hand(), peers.learn2learn()])
def test_ways_through_tasks_agree(family, contender):
    setup = family(2)
    agree(found(contender, setup), found(by_hand.loop_by_hand(), setup))


@pytest.mark.parametrize(
    "contender",
    [
        by_hand.conjugate_gradient_by_hand(50, 1e-12),
        # Betty's released conjugate gradient does not converge; its Neumann series does.
        peers.betty("neumann", 600, 0.3),
        peers.hypertorch("CG", 20),
    ],
)
def test_implicit_ways_agree(contender):
    setup = estimators.at_optimum(1)
    agree(found(contender, setup), tensors_of(setup.truth))


def test_evograd_by_hand_is_the_estimator_on_average():
    setup = estimators.noisy_digits()
    hand = by_hand.evograd_by_hand(2, 0.03, 0.05, 0.05)
    mine = ours(EvoGrad(2, 0.03, 0.05, rescale=0.05))
    assert mine.random and hand.random
    sizes = [
        torch.stack([found(one, setup, draw=draw) for draw in range(1, 30)]).norm(dim=1).median()
        for one in (hand, mine)
    ]
    assert 0.3 < float(sizes[0] / sizes[1]) < 3


@pytest.mark.parametrize("steps", [7, 30])
def test_tangents_by_hand_agree(steps):
    torch.set_default_dtype(torch.float64)
    try:
        setup = forward_mode.digits(steps, 8)
        setup.problem.model.double()
        setup.problem.meta.double()
        ((train, valid),) = setup.tasks
        train = [(inputs.double(), labels) for inputs, labels in train]
        setup.tasks = [(train, (valid[0].double(), valid[1]))]
        one, other = (
            found(way, setup) for way in (ours(ForwardMode(steps)), forward_mode.TANGENTS)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(one) == 9
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_declarations_hold():
    for one in benchmarks().values():
        assert set(one.told) <= set(one.cases), one.name
        assert any(case.quick for case in one.cases.values()), one.name
        for label, case in one.cases.items():
            assert not case.reference or case.reference in case.contenders, label
            assert "|" not in label and not any("|" in name for name in case.contenders)
