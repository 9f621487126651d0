"""The trainer: order of the steps, batches, checkpoints, errors."""

import errno
import math
import os

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError, DataError, NonFiniteError
from metatoolkit.hypergradients import (
    GMRES,
    EvoGrad,
    EvolutionStrategies,
    Implicit,
    Unrolled,
)
from tests import bank


def trainer_of(case, estimator="unrolled", lr=0.01, **options):
    if estimator == "unrolled":
        estimator = Unrolled(1)
    optimizer = None
    if estimator is not None:
        optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=lr)
    return mt.MetaTrainer(case.problem, case.inner, estimator, optimizer, **options)


def fit(trainer, case, steps, **options):
    options.setdefault("progress", False)
    return trainer.fit(case.train_batches, [case.valid_batch], steps, **options)


def tensors_of(problem):
    return [*problem.model.state_dict().values(), *problem.meta.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def by_hand(case, steps, order, horizon=1, meta_every=1, lr=0.01):
    """The loop in so many words."""
    problem, inner, state = case.problem, case.inner, case.inner.init(case.problem, seed=0)
    estimator, taken = Unrolled(horizon), 0
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=lr)

    def move_meta(batches):
        result = estimator(problem, inner, state, batches, case.valid_batch)
        for name, parameter in problem.meta.named_parameters():
            parameter.grad = result.gradient[name]
        optimizer.step()

    for step in range(steps):
        batches = [case.train_batches[(taken + i) % 3] for i in range(horizon)]
        taken += horizon
        if order == "meta_first" and step % meta_every == 0:
            move_meta(batches)
        for batch in batches:
            state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        if order == "inner_first" and step % meta_every == 0:
            move_meta(batches)
    problem.load(state)
    return tensors_of(problem)


@pytest.mark.parametrize("order", ["meta_first", "inner_first"])
@pytest.mark.parametrize(("horizon", "meta_every"), [(1, 1), (2, 1), (1, 3)])
def test_the_loop_equals_the_one_in_words(order, horizon, meta_every):
    expected = by_hand(bank.small_net(), 5, order, horizon, meta_every)
    case = bank.small_net()
    fit(trainer_of(case, Unrolled(horizon), order=order, meta_every=meta_every), case, 5)
    assert same(tensors_of(case.problem), expected)


def test_the_lookahead_is_what_a_second_pass_gives_with_the_old_meta():
    case = bank.small_net()
    expected = case.inner.init(case.problem, seed=0)
    for batch in case.train_batches[:2]:
        expected, _ = case.inner.step(case.problem, expected, case.problem.meta_parameters(), batch)
    trainer = trainer_of(case, Unrolled(2), keep_lookahead=True)
    fit(trainer, case, 1)
    for one, other in zip(trainer.state.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "estimator",
    [EvoGrad(2, 0.1, 0.5), EvolutionStrategies(2, 2, 0.1), Implicit(GMRES(5))],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_lookahead_that_is_none_cannot_be_kept(estimator):
    case = bank.small_net()
    before = [parameter.detach().clone() for parameter in case.problem.meta.parameters()]
    with pytest.raises(ConfigurationError, match=r"keep_lookahead.*θ would never move"):
        fit(trainer_of(case, estimator, keep_lookahead=True), case, 1)
    assert same(before, case.problem.meta.parameters())


def test_without_an_estimator_theta_learns_alone():
    case = bank.small_net()
    before = [p.clone() for p in case.problem.meta.parameters()]
    trainer = trainer_of(case, None)
    last = trainer.fit(case.train_batches, steps=7, progress=False)
    assert set(last) == {"train_loss"}
    assert same(before, list(case.problem.meta.parameters()))
    state = bank.small_net().state
    assert not same(trainer.state.tensors(), state.tensors())


def test_user_held_gradients_are_not_in_the_way():
    case = bank.small_net()
    fit(trainer_of(case), case, 2)
    expected = tensors_of(case.problem)
    case = bank.small_net()
    trainer = trainer_of(case)
    for parameter in case.problem.meta.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    fit(trainer, case, 2)
    assert same(tensors_of(case.problem), expected)


def test_metrics_are_logged_and_returned():
    case, logged = bank.small_net(), []
    last = fit(
        trainer_of(case),
        case,
        7,
        log=lambda *entry: logged.append(entry),
        log_every=3,
        evaluate=lambda trainer: {"steps_seen": float(trainer.steps_done)},
        evaluate_every=2,
    )
    steps = {name: [s for n, _, s in logged if n == name] for name, _, _ in logged}
    assert steps["train_loss"] == steps["valid_loss"] == steps["hypergradient_norm"] == [3, 6, 7]
    assert steps["steps_seen"] == [2, 4, 6, 7]
    assert last["steps_seen"] == 7
    assert last["train_loss"] == [v for n, v, _ in logged if n == "train_loss"][-1]


def test_evaluation_sees_the_present_parameters():
    case = bank.small_net()

    def evaluate(trainer):
        live = dict(trainer.problem.model.named_parameters())
        assert all(torch.equal(live[n], p) for n, p in trainer.state.parameters.items())
        return {}

    fit(trainer_of(case), case, 4, evaluate=evaluate, evaluate_every=1)


class Counted:
    """Batches with a place of their own."""

    def __init__(self, batches):
        self.batches, self.place = batches, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return self.batches[(self.place - 1) % len(self.batches)]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("estimator", [Unrolled(2), EvoGrad(3, 0.1, 0.5)])
def test_a_resumed_training_is_bitwise_the_whole_one(tmp_path, stateful, estimator):
    def train(path, steps, resume):
        case, logged = bank.small_net(), []
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            estimator,
            torch.optim.Adam(case.problem.meta.parameters(), lr=0.02),
            seed=3,
        )
        batches = Counted(case.train_batches) if stateful else case.train_batches
        options = {"checkpoint": path, "checkpoint_every": 2, "progress": False}
        trainer.fit(
            batches,
            [case.valid_batch],
            steps,
            log=lambda *entry: logged.append(entry),
            resume=resume,
            **options,
        )
        return tensors_of(case.problem), logged

    whole, expected = train(tmp_path / "a.pt", 9, False)
    train(tmp_path / "b.pt", 4, False)
    # The global random state must not matter.
    torch.manual_seed(77)
    resumed, logged = train(tmp_path / "b.pt", 9, True)
    assert same(whole, resumed)
    assert logged == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_resume_without_a_checkpoint_begins(tmp_path):
    case = bank.small_net()
    trainer = trainer_of(case)
    fit(trainer, case, 2, checkpoint=tmp_path / "folder" / "c.pt", resume=True)
    assert trainer.steps_done == 2 and (tmp_path / "folder" / "c.pt").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    case, path = bank.ridge(), tmp_path / "c.pt"
    trainer = trainer_of(case)
    fit(trainer, case, 1, checkpoint=path)
    former = path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*No space left"):
        fit(trainer, case, 2, checkpoint=path)
    assert path.read_bytes() == former and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match=r"File exists.*give another"):
        trainer.save_checkpoint(path / "below.pt")


def test_checkpoints_of_something_else_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    case = bank.small_net()
    fit(trainer_of(case), case, 1, checkpoint=path)
    other = bank.ridge()
    with pytest.raises(CheckpointError, match="another model or inner learner"):
        fit(trainer_of(other), other, 2, checkpoint=path, resume=True)
    plain = bank.small_net()
    plain.inner = mt.inner.SGD(lr=0.1)
    with pytest.raises(CheckpointError, match="another model or inner learner"):
        fit(trainer_of(plain), plain, 2, checkpoint=path, resume=True)
    whole = path.read_bytes()
    for content, reason in (
        (whole[:200], "zip archive"),
        (b"", "no file of tensors by torch.save"),
        (b"some text", "no file of tensors by torch.save"),
    ):
        path.write_bytes(content)
        case = bank.small_net()
        with pytest.raises(CheckpointError, match=rf"no readable .*({reason})") as told:
            fit(trainer_of(case), case, 2, checkpoint=path, resume=True)
        assert "\n" not in str(told.value)
    torch.save({"steps_done": 1}, path)
    with pytest.raises(CheckpointError, match="it holds something else"):
        fit(trainer_of(case), case, 2, checkpoint=path, resume=True)


def test_an_iterator_that_ends_is_told():
    case = bank.small_net()
    trainer = trainer_of(case)
    with pytest.raises(DataError, match="train_batches: it is exhausted"):
        trainer.fit(iter(case.train_batches), [case.valid_batch], 9, progress=False)
    with pytest.raises(DataError, match="valid_batches: it holds no batch"):
        trainer.fit(case.train_batches, [], 9, progress=False)


def test_a_non_finite_loss_stops_the_training():
    case = bank.small_net()
    case.inner = mt.inner.SGD(lr=1e200)
    with pytest.raises(NonFiniteError, match=r"train_loss is (nan|inf) at outer step"):
        trainer_of(case, None).fit(case.train_batches, steps=50, progress=False)
    case = bank.small_net()
    inputs, targets = case.valid_batch
    case.valid_batch = (inputs * math.nan, targets)
    with pytest.raises(NonFiniteError, match="validation loss is not finite"):
        fit(trainer_of(case), case, 1)


def test_arguments_that_contradict():
    case = bank.small_net()
    problem, inner = case.problem, case.inner
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.1)
    wrong = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    for message, arguments, options in [
        ("belong together", (Unrolled(),), {}),
        ("belong together", (None, optimizer), {}),
        ("none of the meta-parameters", (Unrolled(), wrong), {}),
        ("meta_every is 0", (Unrolled(), optimizer), {"meta_every": 0}),
        ("order is 'both'", (Unrolled(), optimizer), {"order": "both"}),
        (
            "keep_lookahead",
            (Unrolled(), optimizer),
            {"keep_lookahead": True, "order": "inner_first"},
        ),
        ("device is 'abacus'", (Unrolled(), optimizer), {"device": "abacus"}),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            mt.MetaTrainer(problem, inner, *arguments, **options)
    trainer = trainer_of(case)
    with pytest.raises(ConfigurationError, match="steps is 0"):
        fit(trainer, case, 0)
    with pytest.raises(ConfigurationError, match="log_every is 0"):
        fit(trainer, case, 1, log_every=0)
    with pytest.raises(ConfigurationError, match="valid_batches is missing"):
        trainer.fit(case.train_batches, steps=1)
    with pytest.raises(ConfigurationError, match="no estimator"):
        trainer_of(case, None).meta_step(case.train_batches[:1], case.valid_batch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told():
    case = bank.small_net()
    with pytest.raises(ConfigurationError, match="no GPU can be used here"):
        trainer_of(case, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_training_on_a_gpu():
    case = bank.small_net()
    trainer = trainer_of(case, device="cuda")
    fit(trainer, case, 3)
    assert all(tensor.is_cuda for tensor in trainer.state.tensors())


def test_memory_does_not_grow_while_training():
    import gc

    case = bank.small_net()
    trainer = trainer_of(case, Unrolled(2))
    counts = []
    gc.collect()
    gc.disable()
    try:
        for steps in (10, 60, 110):
            fit(trainer, case, steps, log_every=1000)
            trainer.history.clear()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[1] == counts[2]


def test_the_progress_bar_shows_the_losses(capsys):
    case = bank.small_net()
    fit(trainer_of(case), case, 3, progress=True, description="ridge")
    told = capsys.readouterr().err
    assert "ridge" in told and "valid_loss" in told
