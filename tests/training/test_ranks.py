"""Processes that share tasks: the numbers of one, and clear ends."""

import multiprocessing
import socket

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, RankError
from tests.training.across_tasks import regression
from tests.training.sharded import take_part, train


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def processes():
    """What starts processes that have torch loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.sharded"])
    return context


def started(context, folder, count, *options, joins=None):
    """Run the training in several processes; returns exit codes and what each printed."""
    folder.mkdir(exist_ok=True)
    group = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    running = []
    for rank in range(count if joins is None else joins):
        own = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(context.Process(target=take_part, args=(folder, own, options)))
        running[-1].start()
    for process in running:
        process.join(240)
    told = [(folder / f"rank{rank}.txt").read_text() for rank in range(len(running))]
    return [process.exitcode for process in running], told


def assert_alone_is_the_same(folder, options, count):
    alone, reported = train(folder / "alone", options)
    for rank in range(count):
        meta, told = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, tensor in alone.items():
            assert torch.allclose(meta[name], tensor, rtol=0, atol=1e-12)
        if rank:
            assert not told
        else:
            assert [entry[::2] for entry in told] == [entry[::2] for entry in reported]
            values = (torch.tensor([v for _, v, _ in part]) for part in (told, reported))
            assert torch.allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_two_processes_have_the_numbers_of_one(processes, tmp_path, mode):
    codes, told = started(processes, tmp_path, 2, f"mode={mode}")
    assert codes == [0, 0], told
    assert_alone_is_the_same(tmp_path, {"mode": mode}, 2)


@pytest.mark.parametrize(
    "others",
    [{"algorithm": "aruba"}, {"algorithm": "maml++"}, {"types": "mixed"}],
    ids=["ARUBA", "BatchNorm per step", "mixed types"],
)
def test_fewer_tasks_than_processes(processes, tmp_path, others):
    options = {"tasks": "2", "steps": "2"} | others
    codes, told = started(processes, tmp_path, 3, *map("=".join, options.items()))
    assert codes == [0, 0, 0], told
    assert_alone_is_the_same(tmp_path, options, 3)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_dies_ends_the_run_which_resumes_on_another_number(
    processes, tmp_path, dead
):
    codes, told = started(processes, tmp_path, 2, f"dies={dead}", "every=0")
    other = 1 - dead
    assert codes[dead] == 3 and codes[other] not in (0, 3)
    assert "RankError: a process of the run is gone" in told[other]
    assert "resume from it" in told[other]
    # Two of four steps are in the checkpoint.
    codes, told = started(processes, tmp_path, 3)
    assert codes == [0, 0, 0], told
    assert_alone_is_the_same(tmp_path, {}, 3)


@pytest.mark.parametrize("options", [[], ["types=mixed"]], ids=["one type", "mixed types"])
def test_a_failure_of_one_ends_all_with_its_own_error(processes, tmp_path, options):
    codes, told = started(processes, tmp_path, 2, "poisoned=1", *options)
    assert all(codes)
    # Five tasks: the second process begins with the third.
    assert "NonFiniteError: task 2 of the batch" in told[1]
    assert "RankError: rank 1 failed, so that rank 0 ends, too" in told[0]


@pytest.mark.parametrize(
    ("option", "what"), [("own_seeds=yes", "the tasks"), ("other_model=1", "the meta-parameters")]
)
def test_processes_that_do_not_do_the_same_are_refused(processes, tmp_path, option, what):
    codes, told = started(processes, tmp_path, 2, option)
    assert all(codes)
    assert all(f"RankError: {what}" in text and "differ between" in text for text in told)


def test_a_process_that_never_joins_is_told(processes, tmp_path):
    (code,), (told,) = started(processes, tmp_path, 2, "seconds=2", joins=1)
    assert code != 0
    assert "RankError: rank 0 waited 2 s for 2 processes in all, and not all" in told


def test_without_processes_there_is_nothing_to_share(monkeypatch):
    batching = mt.TaskBatching("loop", sharded=True)
    problem = regression()
    with pytest.raises(ConfigurationError, match=r"sharded=True.*torchrun.*join_ranks"):
        mt.MetaTrainer(
            problem,
            mt.inner.SGD(lr=0.1),
            mt.hypergradients.Unrolled(1),
            torch.optim.SGD(problem.meta.parameters(), lr=0.1),
            tasks=batching,
        )
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match=r"RANK.*not set.*torchrun"):
        mt.join_ranks()
    assert issubclass(RankError, RuntimeError)
