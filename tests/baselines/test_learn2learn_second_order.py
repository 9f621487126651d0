import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError


def _problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    problem = mt.BilevelProblem(
        model.double(),
        mt.metaparameters.WeightNet(hidden=10).double(),
        mt.losses.weighted_cross_entropy,
        mt.losses.cross_entropy,
    )
    batches = [(torch.randn(16, 6).double(), torch.randint(4, (16,))) for _ in range(2)]
    return problem, batches


def _estimator():
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    from baselines.learn2learn_second_order import Learn2LearnSecondOrder

    return Learn2LearnSecondOrder()


def test_equals_unrolled_and_leaves_no_trace():
    estimator = _estimator()
    problem, (train, valid) = _problem()
    inner = mt.inner.SGD(lr=0.3)
    state = inner.init(problem)
    # The state is away from the model, so that an estimator that reads the model is found out.
    state, _ = inner.step(problem, state, problem.meta_parameters(), train)
    before = problem.parameters()
    theirs = estimator(problem, inner, state, [train], valid)
    ours = mt.hypergradients.Unrolled(1)(problem, inner, state, [train], valid)
    for name, gradient in ours.gradient.items():
        error = (gradient - theirs.gradient[name]).norm() / gradient.norm()
        assert error < 1e-10
    assert all(torch.equal(before[name], tensor) for name, tensor in problem.parameters().items())
    assert all(parameter.grad is None for parameter in problem.model.parameters())


def test_other_inner_learners_are_refused():
    estimator = _estimator()
    problem, (train, valid) = _problem()
    for inner in (
        mt.inner.SGD(lr=torch.tensor(0.1)),
        mt.inner.SGD(lr=0.1, momentum=0.9),
        mt.inner.Adam(lr=0.1),
    ):
        with pytest.raises(ConfigurationError, match="plain SGD"):
            estimator(problem, inner, inner.init(problem), [train], valid)


def test_the_definition_is_that_of_one_unrolled_step():
    estimator = _estimator()
    problem, (train, valid) = _problem()
    inner = mt.inner.SGD(lr=mt.inner.multistep(0.3, [5]))
    state = inner.init(problem)
    found = estimator(problem, inner, state, [train], valid)
    live = problem.meta_parameters()
    along = {name: torch.randn_like(tensor) for name, tensor in live.items()}

    def moved(radius):
        meta = {name: (live[name] + radius * along[name]).detach() for name in live}
        return estimator.objective(problem, inner, state, [train], valid, meta)

    torch.testing.assert_close(found.valid_loss, moved(0.0).detach())
    slope = sum((found.gradient[name] * along[name]).sum() for name in live)
    difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
    torch.testing.assert_close(slope, difference.detach(), rtol=1e-5, atol=0)
