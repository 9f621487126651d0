"""θ starts over from a network that is built anew."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Reversible, Unrolled
from metatoolkit.metaparameters import SyntheticExamples


def train_loss(model, meta, batch):
    return mt.losses.cross_entropy(model, meta, meta())


def network():
    return nn.Linear(4, 3)


def make(redraw=network, estimator=None, inner=None, seed=1):
    torch.manual_seed(0)
    meta = SyntheticExamples(torch.randn(3, 4), torch.arange(3))
    problem = mt.BilevelProblem(network(), meta, train_loss, mt.losses.cross_entropy)
    estimator = estimator or Unrolled(2)
    seen = []
    call = estimator.estimate

    def estimate(problem, inner, state, train_batches, valid_batch):
        seen.append(state)
        return call(problem, inner, state, train_batches, valid_batch)

    estimator.estimate = estimate
    trainer = mt.MetaTrainer(
        problem,
        inner or mt.inner.SGD(lr=0.5, momentum=0.9),
        estimator,
        torch.optim.SGD(meta.parameters(), lr=0.1),
        reset_every=4,
        keep_lookahead=True,
        redraw=redraw,
        seed=seed,
    )
    return trainer, seen


VALID = [(torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 3)]


def fit(trainer, steps, **options):
    trainer.fit([None], VALID, steps=steps, progress=False, **options)


def test_each_start_but_the_first_is_drawn_anew_and_by_the_seed():
    trainer, seen = make()
    first = trainer.start.parameters["weight"].clone()
    before = torch.random.get_rng_state()
    fit(trainer, 6)
    assert torch.equal(before, torch.random.get_rng_state())
    # Two outer steps of two inner steps each, then a new start.
    assert [state.step for state in seen] == [0, 2, 0, 2, 0, 2]
    starts = [state.parameters["weight"] for state in seen[::2]]
    assert torch.equal(starts[0], first)
    assert len({tuple(one.flatten().tolist()) for one in starts}) == 3
    slots = [slot["weight"] for state in seen[::2] for slot in state.optimizer.values()]
    assert len(slots) == 3 and not any(slot.any() for slot in slots)
    # As nn.Linear draws them: within half a unit for four inputs.
    assert all(float(one.abs().max()) <= 0.5 for one in starts)
    repeated, again = make()
    fit(repeated, 6)
    assert all(
        torch.equal(a.parameters["weight"], b.parameters["weight"])
        for a, b in zip(seen, again, strict=True)
    )
    other, differing = make(seed=5)
    fit(other, 3)
    assert not torch.equal(differing[2].parameters["weight"], starts[1])


def test_a_learner_with_a_state_of_its_own_begins_at_the_new_parameters():
    inner = mt.inner.ReversibleMomentum(lr=0.5)
    trainer, seen = make(estimator=Reversible(4), inner=inner)
    fit(trainer, 3)
    for state in seen:
        fixed = state.optimizer["fixed_parameter"]["weight"].double() / 2**48
        torch.testing.assert_close(fixed.float(), state.parameters["weight"])


def test_a_resumed_training_draws_what_it_would_have_drawn(tmp_path):
    whole, _ = make()
    fit(whole, 6)
    part, _ = make()
    fit(part, 2, checkpoint=tmp_path / "run.pt")
    resumed, _ = make()
    fit(resumed, 6, checkpoint=tmp_path / "run.pt", resume=True)
    assert torch.equal(resumed.problem.meta.inputs, whole.problem.meta.inputs)


@pytest.mark.parametrize(
    ("redraw", "message"),
    [
        (lambda: None, "redraw returned a NoneType; a module"),
        (lambda: nn.Linear(5, 3), r"parameter 'weight' is \(3, 5\); that of the model has"),
        (lambda: nn.Linear(4, 3, bias=False), "parameter 'bias' is none of this name"),
    ],
    ids=["none", "shape", "name"],
)
def test_what_does_not_fit_is_refused(redraw, message):
    trainer, _ = make(redraw)
    with pytest.raises(ConfigurationError, match=message):
        fit(trainer, 4)
