import copy

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnknownNameError

pytest.importorskip("learn2learn", reason="learn2learn is not installed")

from baselines.learn2learn_algorithms import Learn2LearnAlgorithm


def _squared_error(model, meta, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def _built(name):
    torch.manual_seed(0)
    model = mt.networks.MLP(inputs=1, hidden=(7,), classes=1, activation="tanh").double()
    built = mt.algorithms.build(name, model, _squared_error, _squared_error, lr=0.05, steps=3)
    with torch.no_grad():
        for number, parameter in enumerate(built.meta.parameters()):
            # Away from where all rates are equal, and λ the model.
            parameter.mul_(1 + 0.1 * torch.rand(1) + 0.01 * number)
    return built


@pytest.mark.parametrize("name", Learn2LearnAlgorithm.names)
def test_meta_gradients_equal_ours_and_leave_no_trace(name):
    built = _built(name)
    source = mt.tasks.FunctionTasks(shots=6, queries=8, tasks=3)
    batch = tuple(tuple(part.double() for part in pair) for pair in next(source))
    before = [t.clone() for t in (*built.meta.parameters(), *built.problem.model.parameters())]
    peer = Learn2LearnAlgorithm(name, 3)
    theirs = mt.over_tasks(built.problem, built.inner, peer, batch, "loop")
    way = "vmap" if built.estimator.separable else "loop"
    ours = mt.over_tasks(built.problem, built.inner, built.estimator, batch, way)
    assert set(ours.gradient) == set(theirs.gradient)
    for one, gradient in ours.gradient.items():
        torch.testing.assert_close(theirs.gradient[one], gradient, rtol=1e-9, atol=1e-11)
        assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(theirs.valid_loss, ours.valid_loss, rtol=1e-12, atol=0)
    after = (*built.meta.parameters(), *built.problem.model.parameters())
    assert all(map(torch.equal, before, after))


def test_meta_steps_of_reptile_are_those_of_learn2learns_loop():
    """θ ← θ + ε · mean(θ_T − θ) over tasks, by learn2learn's clones of the model."""
    import learn2learn as l2l

    built = _built("reptile")
    trainer = mt.MetaTrainer(
        built.problem,
        built.inner,
        built.estimator,
        torch.optim.SGD(built.meta.parameters(), lr=0.7),
        tasks="loop",
    )
    theirs = copy.deepcopy(built.problem.model)
    with torch.no_grad():
        for own, start in zip(theirs.parameters(), built.meta.parameters(), strict=True):
            own.copy_(start)
    source = mt.tasks.FunctionTasks(shots=6, queries=8, tasks=3)
    batches = [tuple(tuple(p.double() for p in pair) for pair in next(source)) for _ in range(4)]
    trainer.fit(batches, steps=4, progress=False)
    for (inputs, targets), _ in batches:
        ends = []
        for task in range(3):
            learner = l2l.algorithms.MAML(theirs, lr=0.05, first_order=True).clone()
            for _ in range(3):
                learner.adapt((learner(inputs[task]) - targets[task]).square().mean())
            ends.append([end.detach() for end in learner.parameters()])
        with torch.no_grad():
            for own, *reached in zip(theirs.parameters(), *ends, strict=True):
                own += 0.7 * (sum(reached) / 3 - own)
    for own, learned in zip(theirs.parameters(), built.meta.parameters(), strict=True):
        torch.testing.assert_close(learned, own, rtol=1e-9, atol=1e-11)


def test_what_learn2learn_has_not_is_said():
    with pytest.raises(UnknownNameError, match="algorithm of learn2learn 'boil'"):
        Learn2LearnAlgorithm("boil", 5)
    with pytest.raises(ConfigurationError, match="steps is 0"):
        Learn2LearnAlgorithm("maml", 0)
