"""Learners side by side, against as many torch optimizers."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner import SGD, AdamW, Clipped, Combined, Muon, RMSprop
from tests.inner import heads, reference


def test_each_learner_moves_its_parameters_as_in_torch():
    batches, _ = heads.make_batches("aabab")
    inner = Combined(
        SGD(lr=0.05, momentum=0.9),
        {"bias_*": AdamW(lr=0.1), "[ab]": RMSprop(lr=0.02, momentum=0.5)},
    )
    problem, model = heads.make_problem(), heads.Heads()
    names = dict(model.named_parameters())

    def members(kind):
        return [p for n, p in names.items() if kind == ("bias" if "bias" in n else n in ("a", "b"))]

    steppers = [
        torch.optim.SGD(members(False), lr=0.05, momentum=0.9),
        torch.optim.AdamW(members("bias"), lr=0.1),
        torch.optim.RMSprop(members(True), lr=0.02, momentum=0.5),
    ]
    state = inner.init(problem)
    for batch in batches:
        model.zero_grad()
        heads.train_loss(model, problem.meta, batch).backward()
        for stepper in steppers:
            stepper.step()
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
    for name, parameter in names.items():
        torch.testing.assert_close(state.parameters[name], parameter.detach())
    assert state.step == 5 and state.missed["a"] == 2 and state.missed["bias_b"] == 3
    assert set(state.optimizer["velocity"]) == {"trunk", "never", "still", "a", "b"}
    assert set(state.optimizer["first_moment"]) == {"bias_a", "bias_b"}


@pytest.mark.parametrize(
    "estimator",
    [
        hg.Unrolled(3),
        hg.Unrolled(3, product="forward_over_reverse"),
        hg.ForwardMode(3),
        hg.FiniteDifference(),
        hg.OneStep(),
    ],
    ids=["reverse", "mixed", "forward", "FiniteDifference", "OneStep"],
)
def test_hypergradients(estimator):
    inner = Combined(AdamW(lr=0.05), {"head.*": SGD(lr=0.1, momentum=0.5), "scale": SGD(lr=0.2)})
    batches = reference.make_batches(estimator.horizon + 1)
    check = hg.check_hypergradient(
        reference.make_problem(), inner, estimator, batches[:-1], batches[-1]
    )
    assert check.relative_error < (1e-4 if isinstance(estimator, hg.FiniteDifference) else 1e-6)


def test_matrices_by_muon_and_the_rest_by_adamw():
    rest = AdamW(lr=lambda meta, step: meta["lr"])
    values = {"lr": 0.05, "muon": 0.02}

    def make(meta):
        matrices = Muon(lr=meta["muon"])
        return Clipped(Combined(matrices, {"*.bias": rest, "scale": rest}), max_norm=0.5)

    reference.assert_differences(make, values)


def test_what_cannot_be_combined():
    problem = reference.make_problem()
    with pytest.raises(ConfigurationError, match="exceptions is empty"):
        Combined(SGD(0.1), {})
    with pytest.raises(ConfigurationError, match="cannot be combined"):
        Combined(SGD(0.1), {"head.*": torch.optim.SGD})
    with pytest.raises(ConfigurationError, match=r"'body' matches no inner parameter"):
        Combined(SGD(0.1), {"body": AdamW()}).init(problem)
    with pytest.raises(ConfigurationError, match=r"SGD.*moves no inner parameter"):
        Combined(SGD(0.1), {"*": AdamW()}).init(problem)
    with pytest.raises(
        UnsupportedError, match=r"Muon moves real matrices, and 'tied.decoder.bias' is 1-d"
    ):
        Combined(Muon(), {"scale": AdamW()}).init(problem)
    with pytest.raises(UnsupportedError, match="norm of all"):
        Combined(SGD(0.1), {"scale": Clipped(SGD(0.1), 1.0)}).gradient_sensitivity(
            problem,
            SGD(0.1).init(problem),
            problem.meta_parameters(),
            problem.parameters(),
        )


def test_a_state_is_saved_and_read(tmp_path):
    inner = Combined(SGD(lr=0.1, momentum=0.5), {"scale": AdamW(lr=0.1)})
    trainer = mt.MetaTrainer(reference.make_problem(), inner)
    batches = reference.make_batches(4)
    trainer.fit(batches, steps=2, checkpoint=tmp_path / "c.pt", progress=False)
    again = mt.MetaTrainer(reference.make_problem(), inner)
    again.fit(batches, steps=4, checkpoint=tmp_path / "c.pt", resume=True, progress=False)
    whole = mt.MetaTrainer(reference.make_problem(), inner)
    whole.fit(batches, steps=4, progress=False)
    for one, other in zip(again.state.tensors(), whole.state.tensors(), strict=True):
        assert torch.equal(one, other)
