"""Resume: the same numbers as without a pause, or an error."""

import copy
import errno
import os

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError
from metatoolkit.hypergradients import EvoGrad, Penalty, Unrolled
from metatoolkit.testing import bank
from metatoolkit.training.batch_stream import BatchStream
from metatoolkit.training.early_stopping import Watch
from metatoolkit.training.snapshot import restore, snapshot
from tests.training.assembled import Counted, fit, same, tensors_of, trainer_of


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("estimator", [Unrolled(2), EvoGrad(3, 0.1, 0.5)])
def test_a_resumed_training_is_bitwise_the_whole_one(tmp_path, stateful, estimator):
    def train(path, steps, resume):
        case, logged = bank.small_net(), []
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            copy.deepcopy(estimator),
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


def other(role):
    case = bank.small_net()
    parameters = list(case.problem.meta.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    given = {"inner": case.inner, "estimator": Unrolled(1), "meta_optimizer": optimizer}
    if role == "inner":

        class Mine(mt.inner.SGD):
            pass

        given["inner"] = Mine(lr=0.2, momentum=0.9)
    elif role == "estimator":
        given["estimator"] = EvoGrad(2, 0.1, 0.5)
    elif role == "meta_optimizer":
        given["meta_optimizer"] = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    elif role == "meta_scheduler":
        given["meta_scheduler"] = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    elif role == "none":
        given |= {"estimator": None, "meta_optimizer": None}
    return mt.MetaTrainer(case.problem, **given), case


@pytest.mark.parametrize(
    ("role", "told"),
    [
        ("inner", "inner=SGD, this trainer has inner=Mine"),
        ("estimator", "estimator=Unrolled, this trainer has estimator=EvoGrad"),
        ("meta_optimizer", "meta_optimizer=Adam, this trainer has meta_optimizer=SGD"),
        ("meta_scheduler", "meta_scheduler=None, this trainer has meta_scheduler=ExponentialLR"),
        ("none", "estimator=Unrolled, this trainer has estimator=None"),
    ],
)
def test_components_other_than_the_stored_ones_are_refused(tmp_path, role, told):
    path = tmp_path / "c.pt"
    trainer, case = other("")
    fit(trainer, case, 2, checkpoint=path)
    trainer, case = other(role)
    before = tensors_of(case.problem)
    with pytest.raises(CheckpointError, match=rf"written with {told}; give the stored one"):
        fit(trainer, case, 4, checkpoint=path, resume=True)
    assert trainer.steps_done == 0 and same(before, tensors_of(case.problem))


def test_another_precision_is_another_model(tmp_path):
    path = tmp_path / "c.pt"
    trainer, case = other("")
    fit(trainer, case, 2, checkpoint=path)
    trainer, case = other("")
    state = trainer.state.to(torch.float32)
    trainer.state = state
    with pytest.raises(CheckpointError, match="another model or inner learner"):
        trainer.load_checkpoint(path)
    assert trainer.state is state


def test_everything_that_moves_is_stored_and_found_again(tmp_path):
    path = tmp_path / "c.pt"
    case = bank.small_net()
    trainer = trainer_of(case, EvoGrad(2, 0.1, 0.5), reset_every=2, seed=4)
    fit(trainer, case, 5, checkpoint=path)
    other_case = bank.small_net()
    found = trainer_of(other_case, EvoGrad(2, 0.1, 0.5), reset_every=2, seed=9)
    found.load_checkpoint(path)
    assert (found.steps_done, found.resets_done) == (5, 2)
    assert found.seconds == trainer.seconds > 0
    assert found.history == trainer.history
    assert (found.state.step, found.state.key) == (trainer.state.step, trainer.state.key)
    assert found.start.key == trainer.start.key != other_case.inner.init(other_case.problem, 9).key
    assert same(found.state.tensors(), trainer.state.tensors())
    assert same(found.start.tensors(), trainer.start.tensors())
    assert same(other_case.problem.meta.parameters(), case.problem.meta.parameters())


def test_episodes_resume_bitwise(tmp_path):
    def train(path, steps, resume):
        case = bank.small_net()
        trainer = trainer_of(case, Unrolled(2), reset_every=4, accumulate=2, clip_norm=0.01)
        fit(trainer, case, steps, checkpoint=path, resume=resume)
        return tensors_of(case.problem), trainer.state.key

    whole, key = train(tmp_path / "a.pt", 7, False)
    train(tmp_path / "b.pt", 4, False)
    resumed, again = train(tmp_path / "b.pt", 7, True)
    assert same(whole, resumed) and key == again


def test_streams_that_the_caller_keeps_are_stored_where_they_are_given(tmp_path):
    path = tmp_path / "c.pt"
    trainer, _ = other("")
    stream = BatchStream("mine", [1, 2, 3])
    stream.next()
    trainer.save_checkpoint(path, {"mine": stream})
    found = BatchStream("mine", [1, 2, 3])
    trainer.load_checkpoint(path, {"mine": found, "another": BatchStream("another", [1])})
    assert found.next() == 2


def full_trainer():
    """A trainer of which every part carries something."""
    case = bank.small_net()
    case.problem.meta.register_buffer("seen", torch.zeros(2))
    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, case.problem.train_loss, case.problem.valid_loss
    )
    optimizer = torch.optim.Adam(problem.meta.parameters(), lr=0.02)
    trainer = mt.MetaTrainer(
        problem,
        case.inner,
        Penalty(3.0),
        optimizer,
        meta_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        reset_every=3,
    )
    trainer.watch = Watch(mt.EarlyStopping("valid_loss", patience=9))
    return case, trainer


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def test_a_snapshot_is_all_that_a_training_is(tmp_path):
    case, trainer = full_trainer()
    stopping = mt.EarlyStopping("valid_loss", patience=9)
    fit(trainer, case, 5, early_stopping=stopping)
    with torch.no_grad():
        trainer.problem.meta.seen.fill_(4.0)
    trainer.unreported = {"train_loss": 0.75}
    trainer.evaluation_due = True
    stream = BatchStream("train_batches", case.train_batches)
    for _ in range(2):
        stream.next()
    stored = snapshot(trainer, {"train_batches": stream})
    torch.save(stored, tmp_path / "c.pt")
    stored = torch.load(tmp_path / "c.pt", weights_only=True)
    assert stored["episodes_done"] == 1 and stored["watch"]["value"] is not None
    assert stored["meta_scheduler"]["last_epoch"] == 5 and "z" in stored["estimator"]

    _, other = full_trainer()
    again = BatchStream("train_batches", case.train_batches)
    restore(other, stored, {"train_batches": again}, "c.pt")
    found = snapshot(other, {"train_batches": again})
    assert torch.utils._pytree.tree_structure(found) == torch.utils._pytree.tree_structure(stored)
    for one, two in zip(leaves(found), leaves(stored), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert other.problem.meta.seen.tolist() == [4.0, 4.0] and again.taken == 2
    assert other.steps_done == 5 and other.unreported == {"train_loss": 0.75}


NEW = ("kinds", "unreported", "evaluation_due", "watch", "meta_scheduler", "unfinished")


def test_checkpoints_of_before_are_read_as_far_as_they_go(tmp_path):
    path = tmp_path / "c.pt"
    trainer, case = other("")
    fit(trainer, case, 2, checkpoint=path)
    stored = torch.load(path, weights_only=True)
    assert set(NEW) <= set(stored)
    torch.save({name: value for name, value in stored.items() if name not in NEW}, path)
    trainer, _ = other("")
    trainer.load_checkpoint(path)
    assert trainer.evaluation_due is False and trainer.unreported == {}
    trainer, case = other("")
    fit(trainer, case, 5, checkpoint=path, resume=True)
    whole, expected = other("")
    fit(whole, expected, 5)
    assert same(tensors_of(case.problem), tensors_of(expected.problem))
    torch.save({name: value for name, value in stored.items() if name not in NEW}, path)
    for role, told in (
        ("meta_scheduler", "meta_scheduler=None, this trainer has meta_scheduler=Expon"),
        ("none", "estimator=another one, this trainer has estimator=None"),
    ):
        trainer, case = other(role)
        with pytest.raises(CheckpointError, match=told):
            fit(trainer, case, 4, checkpoint=path, resume=True)


def test_a_training_comes_back_to_the_device_where_it_runs(tmp_path):
    case = bank.small_net()
    trainer = trainer_of(case, reset_every=2)
    fit(trainer, case, 1, checkpoint=tmp_path / "c.pt")
    again = trainer_of(bank.small_net(), reset_every=2)
    again.state = again.state.to("meta")
    again.load_checkpoint(tmp_path / "c.pt")
    for state in (again.state, again.start):
        assert {tensor.device.type for tensor in state.tensors()} == {"meta"}
    assert again.state.step == 1 and again.start.step == 0


def test_episodes_may_begin_with_a_resume(tmp_path):
    case = bank.small_net()
    fit(trainer_of(case), case, 2, checkpoint=tmp_path / "c.pt")
    again = trainer_of(bank.small_net(), reset_every=3)
    start = again.start
    again.load_checkpoint(tmp_path / "c.pt")
    assert again.start is start and again.state.step == 2 and again.resets_done == 0
    without = trainer_of(bank.small_net())
    fit(trainer_of(case, reset_every=1), case, 2, checkpoint=tmp_path / "d.pt")
    without.load_checkpoint(tmp_path / "d.pt")
    assert without.start is None and without.resets_done == 1


@pytest.mark.parametrize("change", ["buffer", "parameter"])
def test_a_model_with_other_tensors_is_another_one(tmp_path, change):
    case = bank.small_net()
    fit(trainer_of(case), case, 1, checkpoint=tmp_path / "c.pt")
    other = bank.small_net()
    if change == "buffer":
        other.problem.model.register_buffer("extra", torch.zeros(1))
    else:
        next(other.problem.model.parameters()).requires_grad_(False)
    given = other.problem.meta, other.problem.train_loss, other.problem.valid_loss
    other.problem = mt.BilevelProblem(other.problem.model, *given)
    with pytest.raises(CheckpointError, match=r"c\.pt belongs to another model"):
        trainer_of(other).load_checkpoint(tmp_path / "c.pt")
