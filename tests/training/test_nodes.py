"""Several machines: an agent of torchrun for each, here on one, with the numbers of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.sharded import train
from tests.training.test_ranks import assert_alone_is_the_same, free_port

ROOT = Path(__file__).resolve().parents[2]


def started(folder, *options, nodes=2):
    """Run the training under an agent for each node; returns exit codes and what ranks printed."""
    folder.mkdir(exist_ok=True)
    group = [f"--nnodes={nodes}", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *group, "--nproc-per-node=1"]
    agents = []
    for node in range(nodes):
        program = [f"--node-rank={node}", "-m", "tests.training.sharded", folder, *options]
        with (folder / f"agent{node}.txt").open("w") as file:
            agents.append(
                subprocess.Popen([*command, *program], cwd=ROOT, stdout=file, stderr=file)
            )
    codes = [agent.wait(240) for agent in agents]
    return codes, [(folder / f"rank{node}.txt").read_text() for node in range(nodes)]


def test_two_nodes_have_the_numbers_of_one_process_and_the_first_reports(tmp_path):
    """Each process is the first of its node, and one of them alone the first of all."""
    codes, told = started(tmp_path, "mode=vmap")
    assert codes == [0, 0], told
    assert_alone_is_the_same(tmp_path, {"mode": "vmap"}, 2)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_node_that_dies_ends_the_run_which_resumes_elsewhere(tmp_path, dead):
    """With its agent, which in the first node is where the others meet."""
    codes, told = started(tmp_path, f"dies={dead}", "node=yes", "every=0")
    assert codes[dead] == -9 and codes[1 - dead] not in (0, -9)
    assert "RankError: a process of the run is gone" in told[1 - dead]
    assert "resume from it" in told[1 - dead]
    # Two of four steps are in the checkpoint.
    saved = torch.load(tmp_path / "training.pt", weights_only=False)
    assert saved["steps_done"] == 2
    resumed, _ = train(tmp_path, {})
    whole, _ = train(tmp_path / "alone", {})
    for name, tensor in whole.items():
        assert torch.allclose(resumed[name], tensor, rtol=0, atol=1e-10)
