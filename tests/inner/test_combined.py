"""Learners side by side, against as many torch optimizers."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError, UnsupportedError, UnusedMetaParameterError
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
    check = mt.check_hypergradient(
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


def test_the_first_pattern_that_matches_holds():
    default, first, second = SGD(0.1), AdamW(), RMSprop()
    exceptions = {"head.w*": first, "head.*": second}
    inner = Combined(default, exceptions)
    exceptions.clear()
    learners = {"head.weight": first, "head.bias": second, "Head.bias": default, "scale": default}
    for name, learner in learners.items():
        assert inner.learner_of(name) is learner
    given = f"{{'head.w*': {first!r}, 'head.*': {second!r}}}"
    assert repr(inner) == f"Combined(default={default!r}, exceptions={given})"
    assert inner.hyperparameters["lr of SGD"] == 0.1
    assert inner.hyperparameters["weight_decay of AdamW"] == 0.01
    assert len(inner.hyperparameters) == sum(
        len(learner.hyperparameters) for learner in (default, first, second)
    )
    with pytest.raises(UnsupportedError, match="call apply or step"):
        inner.update(torch.ones(1), torch.ones(1), {}, {}, 0)


def test_what_two_of_a_kind_read_of_meta_is_named():
    meta = torch.nn.ParameterDict(
        {"lr": torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))}
    )
    problem, batches = reference.make_problem(meta), reference.make_batches(2)
    for inner, name in (
        (Combined(SGD(lr=meta["lr"]), {"head.*": SGD(0.1)}), "lr of SGD"),
        (Combined(SGD(0.1), {"head.*": SGD(lr=meta["lr"])}), r"lr of SGD \(head.\*\)"),
    ):
        with pytest.raises(UnusedMetaParameterError, match=f"λ enters through {name} of Combined"):
            hg.EvoGrad(2, 0.1, 0.5)(problem, inner, inner.init(problem), batches[:1], batches[1])


def test_each_learner_has_its_groups_and_schedule():
    def rate(meta, step):
        return 0.1 * (1 + step)

    groups = [{"params": ["b"], "lr": 0.5}]
    special = SGD(lr=1.0, groups=groups)
    inner = Combined(SGD(lr=rate), {"[ab]": special, "bias_a": special})
    assert groups[0] in inner.groups
    problem = heads.make_problem()
    state = inner.init(problem, seed=3).replaced(step=2, missed={"never": 1})
    gradients = {name: torch.ones_like(t) for name, t in state.parameters.items()}
    del gradients["bias_b"]
    after = inner.apply(problem, state, problem.meta_parameters(), gradients)
    rates = {"a": 1.0, "b": 0.5, "bias_a": 1.0, "bias_b": 0.0}
    for name, before in state.parameters.items():
        torch.testing.assert_close(after.parameters[name], before - rates.get(name, 0.3))
    assert (after.step, after.key, after.buffers) == (3, state.key, state.buffers)
    assert after.missed == {"never": 1, "bias_b": 1} and state.missed == {"never": 1}
    wrong = Combined(SGD(0.1), {"a": SGD(0.1, groups=[{"params": ["c"], "lr": 1.0}])})
    with pytest.raises(ConfigurationError, match="'c' matches no inner parameter"):
        wrong.init(problem)


def test_the_sensitivity_of_each_learner():
    reference.assert_sensitivity(
        Combined(AdamW(lr=0.1, eps=0.1), {"head.*": SGD(0.2, momentum=0.5), "scale": SGD(0.3)})
    )
    meta = torch.nn.ParameterDict({"lr": torch.nn.Parameter(torch.tensor(0.5).double())})
    problem = reference.make_problem(meta)
    inner = Combined(SGD(0.1), {"head.*": SGD(lr=meta["lr"])})
    given = {"lr": torch.tensor(0.25).double()}
    found = inner.gradient_sensitivity(problem, inner.init(problem), given, problem.parameters())
    assert set(found) == set(problem.parameter_names)
    for name, slope in found.items():
        assert bool((slope == (-0.25 if name.startswith("head") else -0.1)).all())


class Longer(SGD):
    def step(self, *arguments, **options):
        return super().step(*arguments, **options)


def test_a_learner_with_a_step_of_its_own_is_refused_in_each_place():
    for arguments in ((Longer(0.1), {"*": SGD(0.1)}), (SGD(0.1), {"*": Longer(0.1)})):
        with pytest.raises(ConfigurationError, match=r"cannot be combined.*its step from one"):
            Combined(*arguments)
