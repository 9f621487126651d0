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
    ours = mt.over_tasks(built.problem, built.inner, built.estimator, batch, "vmap")
    assert set(ours.gradient) == set(theirs.gradient)
    for one, gradient in ours.gradient.items():
        torch.testing.assert_close(theirs.gradient[one], gradient, rtol=1e-9, atol=1e-11)
        assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(theirs.valid_loss, ours.valid_loss, rtol=1e-12, atol=0)
    after = (*built.meta.parameters(), *built.problem.model.parameters())
    assert all(map(torch.equal, before, after))


def test_what_learn2learn_has_not_is_said():
    with pytest.raises(UnknownNameError, match="algorithm of learn2learn 'reptile'"):
        Learn2LearnAlgorithm("reptile", 5)
    with pytest.raises(ConfigurationError, match="steps is 0"):
        Learn2LearnAlgorithm("maml", 0)
