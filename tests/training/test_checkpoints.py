"""The checkpoint file: replaced at once or not at all, and read without running anything."""

import collections
import errno
import os
import pickle
import random
import re

import numpy as np
import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError
from metatoolkit.testing import bank
from metatoolkit.training import checkpoints
from metatoolkit.training.checkpoints import load_tensors, read_checkpoint, write_checkpoint

CONTENT = {"state": {"w": torch.arange(3.0)}, "step": 4, "names": ["a", "b"], "none": None}


def same(content):
    assert torch.equal(content["state"]["w"], CONTENT["state"]["w"])
    return {name: content[name] for name in ("step", "names", "none")} == {
        "step": 4,
        "names": ["a", "b"],
        "none": None,
    }


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "c.pt"
    write_checkpoint(path, CONTENT)
    assert same(read_checkpoint(path)) and same(read_checkpoint(str(path)))
    assert list(path.parent.iterdir()) == [path]


def test_the_former_file_stands_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    write_checkpoint(path, CONTENT)
    former, synced = path.read_bytes(), []
    fsync = os.fsync

    def watched(descriptor):
        # All of the new file has been written, beside the former one, in the same folder.
        assert path.read_bytes() == former
        (other,) = (p for p in tmp_path.iterdir() if p != path)
        assert os.fstat(descriptor).st_ino == other.stat().st_ino
        synced.append(load_tensors(other)["step"])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_checkpoint(path, CONTENT | {"step": 5})
    assert synced == [5] and read_checkpoint(path)["step"] == 5
    assert list(tmp_path.iterdir()) == [path]


def failing(error):
    def fail(*_arguments, **_options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file")),
    ],
)
def test_a_write_that_fails_leaves_the_former_file_alone(tmp_path, monkeypatch, place, error):
    path = tmp_path / "c.pt"
    write_checkpoint(path, CONTENT)
    former = path.read_bytes()
    monkeypatch.setattr(place, failing(error))
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*c\.pt.*another file"):
        write_checkpoint(path, CONTENT)
    assert path.read_bytes() == former and list(tmp_path.iterdir()) == [path]


def test_an_interruption_in_the_middle_leaves_the_former_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    write_checkpoint(path, CONTENT)
    former = path.read_bytes()
    monkeypatch.setattr(os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, CONTENT)
    assert path.read_bytes() == former and list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_write_into_one_temporary_file(tmp_path, monkeypatch):
    opened = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda self, target: opened.append(self) or replace(self, target)
    )
    write_checkpoint(tmp_path / "c.pt", CONTENT)
    monkeypatch.setattr(os, "getpid", lambda: 12345678)
    write_checkpoint(tmp_path / "c.pt", CONTENT)
    assert len(set(opened)) == 2 and all(path.parent == tmp_path for path in opened)


class Planted:
    """What an unpickler would run."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_pickles_are_refused_and_never_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    content = {"format": checkpoints.FORMAT, "step": Planted()}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"no readable checkpoint .*no file of tensors"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="no file of tensors") as told:
        load_tensors(path)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "planted").exists()


def test_tensors_come_back_on_the_cpu(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    write_checkpoint(path, CONTENT)
    asked = {}
    load = torch.load

    def noted(*arguments, **options):
        asked.update(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", noted)
    assert read_checkpoint(path)["state"]["w"].device.type == "cpu"
    assert asked == {"map_location": "cpu", "weights_only": True}


@pytest.mark.parametrize(
    "content", [[1, 2], {"step": 4}, {"format": checkpoints.FORMAT + 1, "step": 4}, torch.ones(2)]
)
def test_other_files_of_tensors_are_told_apart(tmp_path, content):
    path = tmp_path / "c.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds something else, or .*; delete it, or start"):
        read_checkpoint(path)


def test_files_of_former_versions_are_read(tmp_path):
    torch.save({"format": 1, "step": 4}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt")["step"] == 4


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(tmp_path / "c.pt")


class Loader:
    """An iterable whose state holds some object."""

    def __init__(self, value):
        self.value = value

    def __iter__(self):
        yield from [None] * 4

    def state_dict(self):
        return {"epoch": 1, "inside": [{"value": self.value}]}

    def load_state_dict(self, saved):
        self.value = saved["inside"][0]["value"]


UNREADABLE = {
    "numpy.random._generator.Generator": lambda: np.random.default_rng(1),
    "random.Random": lambda: random.Random(1),
    "collections.deque": lambda: collections.deque([1]),
    "torch._C.Generator": torch.Generator,
    "builtins.range": lambda: range(3),
    "builtins.function": lambda: lambda: None,
    "tests.training.test_checkpoints.Planted": Planted,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_state_that_could_not_be_read_again_is_refused_before_the_training(tmp_path, kind):
    case = bank.illustration()
    trainer = mt.MetaTrainer(case.problem, case.inner)
    path = tmp_path / "c.pt"
    expected = rf"^streams\.train_batches\.batches\.inside\.0\.value is a {re.escape(kind)}, "
    with pytest.raises(CheckpointError, match=expected) as told:
        trainer.fit(Loader(UNREADABLE[kind]()), steps=3, checkpoint=path, progress=False)
    assert trainer.steps_done == 0 and not path.exists()
    assert "rng.bit_generator.state" in str(told.value)


@pytest.mark.parametrize(
    "value",
    [
        np.random.default_rng(1).bit_generator.state,
        np.random.RandomState(1).get_state(),
        np.random.RandomState(1).get_state(legacy=False),
        random.Random(1).getstate(),
        np.arange(3),
        np.float32(2.5),
        np.array(["a", "b"]),
        {1, 2},
        [("a", 1.5), None, b"x", 2**100],
        torch.Generator().get_state(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_states_of_generators_and_arrays_come_back(tmp_path, value):
    case = bank.illustration()
    path = tmp_path / "c.pt"
    mt.MetaTrainer(case.problem, case.inner).fit(
        Loader(value), steps=2, checkpoint=path, progress=False
    )
    resumed = Loader(None)
    mt.MetaTrainer(case.problem, case.inner).fit(
        resumed, steps=3, checkpoint=path, resume=True, progress=False
    )
    assert repr(resumed.value) == repr(value)
    assert type(resumed.value) is type(value)


def test_data_are_not_written_to_find_out_what_can_be_read(monkeypatch):
    written, save = [], torch.save

    def noted(content, buffer):
        save(content, buffer)
        written.append(buffer.tell())

    monkeypatch.setattr(torch, "save", noted)
    checkpoints.refuse_unreadable({"a": {"b": [torch.zeros(10**5)], "c": (torch.zeros(10**5),)}})
    assert len(written) == 1 and written[0] < 10**4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool, torch.uint16])
def test_tensors_of_every_type_come_back(tmp_path, dtype):
    value = torch.ones(2, 3).to(dtype)
    checkpoints.refuse_unreadable({"value": value, "of a model": torch.nn.Parameter(torch.ones(1))})
    write_checkpoint(tmp_path / "c.pt", {"value": value})
    found = read_checkpoint(tmp_path / "c.pt")["value"]
    assert found.dtype == dtype and torch.equal(found, value)


def test_the_innermost_entry_is_named():
    with pytest.raises(CheckpointError, match=r"^a\.1\.b is a builtins\.range, which"):
        checkpoints.refuse_unreadable({"x": 1, "a": (2, {"y": [3], "b": range(3)})})
    # A container of one's own cannot be read, whatever it holds.
    with pytest.raises(CheckpointError, match=r"^a is a collections\.deque, which"):
        checkpoints.refuse_unreadable({"a": collections.deque([1])})
    checkpoints.refuse_unreadable({})
