"""A training across tasks, as a process of several takes part in it."""

import os
import signal
import sys
from pathlib import Path

import torch

# Loaded before processes are forked: each would load it at its first step.
import torch._dynamo

import metatoolkit as mt
from metatoolkit.tasks.resumable import ResumableBatches
from tests.training.across_tasks import regression, sinusoids, squared_error


class Sinusoids(ResumableBatches):
    """Batches of five tasks, which three processes cannot share equally."""

    def __init__(self, seed, tasks=5):
        self.tasks = tasks
        self.reseed(seed)

    def __next__(self):
        self.next_batch += 1
        return sinusoids(self.tasks, seed=1000 * self.seed + self.next_batch)


def decayed(model, meta, batch):
    """A training loss in float64, whose meta-parameter is a float32."""
    return squared_error(model, meta, batch) + meta.weight.sum() * model[0].weight.square().sum()


def train(folder, options, rank=0, sharded=False):
    """Train, and return λ, with scores on further tasks, and what was reported."""
    problem = regression(torch.nn.Dropout(0.2))
    if "types" in options:
        meta = torch.nn.Linear(1, 1, bias=False)
        problem = mt.BilevelProblem(problem.model, meta, decayed, squared_error)
    if options.get("other_model") == str(rank):
        problem.meta.parameters().__next__().data.add_(1.0)
    mode = options.get("mode", "vmap")
    inner, estimator = mt.inner.SGD(lr=0.05), mt.hypergradients.Unrolled(2)
    if "algorithm" in options:
        name = options["algorithm"]
        more: dict = {"batch_norm": "per_step"} if name == "maml++" else {}
        if more:
            problem = regression(torch.nn.BatchNorm1d(8))
        loss = (problem.train_loss, problem.valid_loss)
        algorithm = mt.algorithms.build(name, problem.model, *loss, lr=0.05, steps=2, **more)
        problem, inner, estimator = algorithm.problem, algorithm.inner, algorithm.estimator
        mode = "loop"
    tasks = Sinusoids(rank if "own_seeds" in options else 0, int(options.get("tasks", 5)))
    trainer = mt.MetaTrainer(
        problem,
        inner,
        estimator,
        torch.optim.Adam(problem.meta.parameters(), lr=0.01),
        tasks=mt.TaskBatching(mode, sharded=sharded),
    )
    if options.get("poisoned") == str(rank):
        loss = problem.valid_loss

        def poisoned(model, meta, batch):
            return loss(model, meta, batch) * (float("nan") if trainer.steps_done == 2 else 1.0)

        problem.valid_loss = poisoned
    if options.get("dies") == str(rank):
        loss = problem.valid_loss

        def dying(model, meta, batch):
            if trainer.steps_done == 2:
                if "node" in options:
                    os.kill(os.getppid(), signal.SIGKILL)
                os._exit(3)
            return loss(model, meta, batch)

        problem.valid_loss = dying
    reported = []
    trainer.fit(
        tasks,
        steps=int(options.get("steps", 4)),
        log=lambda *entry: reported.append(entry),
        checkpoint=folder / "training.pt",
        checkpoint_every=int(options.get("every", 1)),
        resume=True,
        progress=False,
    )
    meta = {name: tensor.detach() for name, tensor in problem.meta.named_parameters()}
    meta |= {f"buffer {name}": tensor.clone() for name, tensor in problem.meta.named_buffers()}
    if "algorithm" not in options:
        batching = mt.TaskBatching(mode, sharded=sharded)
        scored = sinusoids(2 if "types" in options else 4, seed=77)
        meta["scores"] = mt.TaskScores(problem, inner, 3, batching=batching)(scored)
    return meta, reported


def take_part(folder, environment, words):
    """Train as the environment says, with what is printed in a file of the folder."""
    os.environ |= environment
    options, rank = dict(word.split("=") for word in words), environment["RANK"]
    with (folder / f"rank{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    mt.join_ranks(seconds=float(options.get("seconds", 60)))
    torch.save(train(folder, options, int(rank), sharded=True), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Started by torchrun, which says in the environment which of the processes it is.
    take_part(Path(sys.argv[1]), {"RANK": os.environ["RANK"]}, sys.argv[2:])
