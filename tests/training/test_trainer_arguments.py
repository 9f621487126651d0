"""What a trainer cannot be made of, or trained with, is told."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import (
    PersistentES,
    Unrolled,
)
from metatoolkit.testing import bank
from tests.training.assembled import fit, same, tensors_of, trainer_of


def test_an_initial_state_that_is_left_for_good_is_told():
    case = bank.adapted()
    with pytest.warns(UserWarning, match=r"λ sets the initial state.*reset_every=2\)"):
        fit(trainer_of(case, Unrolled(2)), case, 2)
    case = bank.adapted()
    trainer = trainer_of(case, Unrolled(2), lr=0.5, reset_every=2)
    fit(trainer, case, 1)
    before = case.problem.meta.start.values()["0.weight"].detach().clone()
    fit(trainer, case, 2)
    # With episodes each move of λ begins at the state that it sets.
    start = case.inner.init(case.problem).parameters["0.weight"]
    assert torch.equal(start, case.problem.meta.start.values()["0.weight"].detach())
    assert not torch.equal(before, start) and trainer.state.step == 2


def test_no_grad_does_no_harm_and_inference_mode_is_refused():
    case = bank.small_net()
    fit(trainer_of(case), case, 3)
    expected = tensors_of(case.problem)
    case = bank.small_net()
    with torch.no_grad():
        fit(trainer_of(case), case, 3)
    assert same(tensors_of(case.problem), expected)
    trainer = trainer_of(case)
    with torch.inference_mode():
        for call in (
            lambda: trainer_of(case),
            lambda: fit(trainer, case, 3),
            lambda: trainer.base_step(case.train_batches[0]),
            lambda: trainer.meta_step(case.train_batches[:1], case.valid_batch),
        ):
            with pytest.raises(UnsupportedError, match=r"inference_mode.*no_grad"):
                call()
    assert trainer.steps_done == 0 and trainer.state.step == 0


def test_classes_in_place_of_instances_are_told():
    case = bank.small_net()
    optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match=r"estimator is the class Unrolled; .*Unrolled\("):
        mt.MetaTrainer(case.problem, case.inner, Unrolled, optimizer)
    with pytest.raises(ConfigurationError, match=r"estimator is a function; accepted: an est"):
        mt.MetaTrainer(case.problem, case.inner, lambda: None, optimizer)
    with pytest.raises(ConfigurationError, match=r"estimator is a SGD.*for instance"):
        mt.MetaTrainer(case.problem, case.inner, optimizer, optimizer)
    with pytest.raises(ConfigurationError, match=r"inner is the class SGD; give an instance"):
        mt.MetaTrainer(case.problem, mt.inner.SGD, Unrolled(), optimizer)


@pytest.mark.parametrize("options", [{"meta_every": 2}, {"accumulate": 2}])
def test_windows_that_would_not_follow_each_other_are_refused(options):
    with pytest.raises(ConfigurationError, match=r"PersistentES.*meta_every=1 and accumulate=1"):
        trainer_of(bank.small_net(), PersistentES(2, 2, 0.1), **options)


def test_arguments_that_contradict():
    case = bank.small_net()
    problem, inner = case.problem, case.inner
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    wrong = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    for message, arguments, options in [
        ("belong together", (Unrolled(),), {}),
        ("belong together", (None, optimizer), {}),
        ("none of the meta-parameters", (Unrolled(), wrong), {}),
        ("meta_scheduler needs a meta_optimizer", (), {"meta_scheduler": scheduler}),
        ("clip_norm needs an estimator", (), {"clip_norm": 1.0}),
        ("accumulate is 0", (Unrolled(), optimizer), {"accumulate": 0}),
        ("reset_every is 0", (Unrolled(), optimizer), {"reset_every": 0}),
        ("never does with reset_every=None", (Unrolled(), optimizer), {"redraw": torch.nn.ReLU}),
        (
            "keep_lookahead=True needs accumulate=1, but accumulate is 2",
            (Unrolled(), optimizer),
            {"keep_lookahead": True, "accumulate": 2},
        ),
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
