"""Training: meta steps and base steps over streams of batches, evaluation, checkpoints.

Example:
    >>> import torch, metatoolkit as mt
    >>> problem = mt.BilevelProblem(
    ...     model=mt.networks.MLP(inputs=2, hidden=(8,), classes=2),
    ...     meta=mt.metaparameters.WeightNet(),
    ...     train_loss=mt.losses.weighted_cross_entropy,
    ...     valid_loss=mt.losses.cross_entropy,
    ... )
    >>> trainer = mt.MetaTrainer(
    ...     problem,
    ...     inner=mt.inner.SGD(lr=0.1),
    ...     estimator=mt.hypergradients.Unrolled(),
    ...     meta_optimizer=torch.optim.Adam(problem.meta.parameters(), lr=1e-3),
    ... )
    >>> inputs, labels = torch.randn(40, 2), torch.arange(40) % 2
    >>> train_batches = mt.tasks.Batches(inputs[:20], labels[:20], batch_size=10)
    >>> valid_batches = mt.tasks.Batches(inputs[20:], labels[20:], batch_size=10)
    >>> sorted(trainer.fit(train_batches, valid_batches, steps=3, progress=False))
    ['hypergradient_norm', 'train_loss', 'valid_loss']
    >>> trainer.steps_done
    3
"""

from metatoolkit.training.early_stopping import EarlyStopping as EarlyStopping
from metatoolkit.training.fit import Anneal as Anneal
from metatoolkit.training.fit import Evaluate as Evaluate
from metatoolkit.training.fit import Log as Log
from metatoolkit.training.over_tasks import over_tasks as over_tasks
from metatoolkit.training.ranks import join_ranks as join_ranks
from metatoolkit.training.replay_buffer import ReplayBuffer as ReplayBuffer
from metatoolkit.training.sign_descent import SignDescent as SignDescent
from metatoolkit.training.task_batching import TaskBatching as TaskBatching
from metatoolkit.training.task_scores import TaskScores as TaskScores
from metatoolkit.training.trainer import MetaTrainer as MetaTrainer
