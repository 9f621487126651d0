import json
from types import SimpleNamespace

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.experiments.run import (
    Assembly,
    checkpoint_path,
    configuration_digest,
    fit_recorded,
    measure_costs,
    peek,
    resumes,
)
from metatoolkit.experiments.settings import RunSettings


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
    expected = {"base_flops", "base_peak_memory_bytes", "base_seconds"}
    assert set(measure_costs(assembly())) == expected


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


class Run(SimpleNamespace):
    """What of a Sacred run is used."""

    def __init__(self, **config):
        own = {"seed": 0, "steps": 4, "progress": False, "log_every": 1, "checkpoint_every": 1}
        super().__init__(
            config={**RunSettings.defaults(), **own, **config},
            experiment_info={"name": "some"},
            info={},
            logged=[],
            observers=[],
        )

    def log_scalar(self, *entry):
        self.logged.append(entry)

    def add_artifact(self, path, name):
        pass


@pytest.fixture
def interrupted(tmp_path):
    """The file of a run that stopped at its third step."""
    path = tmp_path / "deep" / "run.pt"

    def stop(trainer):
        raise KeyboardInterrupt if trainer.steps_done == 3 else AssertionError

    with pytest.raises(KeyboardInterrupt):
        config = {"checkpoint": str(path), "lr": 0.1, "net": {"width": 3}}
        fit_recorded(Run(**config, evaluate_every=3), assembly(), evaluate=stop)
    return path


def test_a_run_resumes_with_equal_settings_alone(interrupted):
    config = {"checkpoint": str(interrupted), "resume": True, "evaluate_every": 3}
    wrong = Run(**config, lr=0.5, net={"width": 4})
    assert resumes("some", wrong.config)
    with pytest.raises(
        CheckpointError, match=r"with lr=0\.1, net\.width=3, .* has lr=0\.5, net\.w"
    ):
        fit_recorded(wrong, assembly())
    right = Run(**config, lr=0.1, net={"width": 3})
    fit_recorded(right, assembly())
    whole = Run(checkpoint=str(interrupted), evaluate_every=3, lr=0.1, net={"width": 3})
    fit_recorded(whole, assembly())
    assert right.logged[-4:] == whole.logged[-4:]
    assert list(interrupted.parent.iterdir()) == []


def test_settings_of_the_interrupted_run_lie_beside_its_checkpoint(interrupted):
    (note,) = (path for path in interrupted.parent.iterdir() if path.suffix == ".json")
    stored = json.loads(note.read_text())["configuration"]
    assert (stored["lr"], stored["net"]) == (0.1, {"width": 3})
    assert not resumes("some", {"resume": False, "checkpoint": str(interrupted)})


def test_resuming_from_nothing_is_told(tmp_path, capsys):
    run = Run(checkpoint=str(tmp_path / "none.pt"), resume=True)
    fit_recorded(run, assembly())
    assert "there is no checkpoint" in capsys.readouterr().err
    assert checkpoint_path("some", run.config) == tmp_path / "none.pt"


@pytest.mark.parametrize("place", ["", "file/run.pt"])
def test_a_checkpoint_that_cannot_be_written_is_told_before_training(place, tmp_path):
    (tmp_path / "file").write_text("")
    run = Run(checkpoint=str(tmp_path / place))
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        fit_recorded(run, assembly())
    assert run.logged == []


def test_steps_are_inner_steps():
    made = assembly(mt.hypergradients.Unrolled(steps=2))
    assert made.outer_steps(4) == 2
    fit_recorded(Run(steps=4), made)
    assert made.trainer.steps_done == 2 and int(made.trainer.state.step) == 4
    made.trainer.accumulate = 3
    assert made.outer_steps(12) == 2


def test_steps_that_end_amid_an_outer_step_are_refused():
    run = Run(steps=5)
    with pytest.raises(ConfigurationError, match=r"steps is 5.*multiple of 2"):
        fit_recorded(run, assembly(mt.hypergradients.Unrolled(steps=2)))
    assert run.logged == []
