"""Resume: the same numbers as without a pause, or an error."""

import errno
import os

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from tests import bank
from tests.training.assembled import Counted, fit, same, tensors_of, trainer_of


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
