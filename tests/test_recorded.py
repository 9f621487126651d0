import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.recorded import Assembly, configuration_digest, measure_costs, peek


def assembly(estimator=None, batches=None):
    torch.manual_seed(0)
    model, meta = torch.nn.Linear(4, 3), mt.metaparameters.WeightNet(8)
    problem = mt.BilevelProblem(
        model, meta, mt.losses.weighted_cross_entropy, mt.losses.cross_entropy
    )
    optimizer = None if estimator is None else torch.optim.Adam(meta.parameters())
    trainer = mt.MetaTrainer(problem, mt.inner.SGD(lr=0.1), estimator, optimizer)
    data = (torch.randn(12, 4), torch.arange(12) % 3)
    train = mt.tasks.Batches(*data, batch_size=4) if batches is None else batches
    return Assembly(trainer, train, mt.tasks.Batches(*data, batch_size=4, seed=1))


def test_costs_are_measured_without_a_trace():
    made = assembly(mt.hypergradients.PersistentES(steps=2, sigma=0.1))
    state, batches = made.trainer.state, made.train_batches.state_dict()
    parameters = {n: t.clone() for n, t in state.parameters.items()}
    estimator = str(made.trainer.estimator.state_dict())
    costs = measure_costs(made)
    assert made.trainer.state is state
    assert made.train_batches.state_dict() == batches
    assert str(made.trainer.estimator.state_dict()) == estimator
    assert all(torch.equal(parameters[n], t) for n, t in state.parameters.items())
    assert min(costs.values()) > 0


def test_flops_of_a_base_step_are_those_of_its_products():
    # The model forward and the gradient in its weight, not in its inputs; the weight network, with
    # 8 hidden units, forward alone.
    model, weights = 2 * 4 * 4 * 3, 2 * 4 * (1 * 8 + 8 * 1)
    assert measure_costs(assembly())["base_flops"] == 2 * model + weights
    assert set(measure_costs(assembly())) == {"base_flops", "base_peak_memory_bytes"}


def test_what_cannot_be_read_twice_is_refused():
    endless = iter([(torch.randn(2, 4), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(ConfigurationError, match="read twice"):
        measure_costs(assembly(batches=endless))


def test_peek_leaves_lists_alone():
    made = assembly()
    assert peek(made.trainer, [1, 2, 3], 2) == [1, 2]


def test_the_digest_counts_what_changes_numbers():
    config = {"seed": 1, "lr": 0.1, "checkpoint": None, "device": "cpu"}
    assert configuration_digest(config) == configuration_digest({**config, "device": "cuda"})
    assert configuration_digest(config) != configuration_digest({**config, "seed": 2})
