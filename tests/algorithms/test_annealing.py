"""From derivatives of first order to those of second, at a share of the training."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.errors import ConfigurationError, UnsupportedError
from tests.algorithms.test_algorithms import LAST, STEPS, WAYS, build, by_hand, gradient_of
from tests.training.across_tasks import largest_difference, listed, sinusoids


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["maml", "anil", "meta_sgd", "maml++"])
def test_derivatives_are_annealed_from_first_to_second_order(name, way):
    adapted = LAST if name == "anil" else None
    algorithm, batch = build(name), sinusoids()
    for progress, first_order in ((0.3, True), (0.5, False), (0.4, True)):
        mt.algorithms.anneal(algorithm, progress, first_order=0.5)
        expected = by_hand(algorithm, batch, adapted, first_order)
        other = by_hand(algorithm, batch, adapted, not first_order)
        found = gradient_of(algorithm, way, batch)
        assert largest_difference(found, expected) < 1e-12 < largest_difference(found, other)
        if name == "maml++":
            weights = mt.algorithms.multi_step_weights(STEPS, progress)
            assert algorithm.estimator.step_weights == weights


def test_the_first_order_phase_of_maml_is_fomaml():
    maml, batch = build("maml"), sinusoids()
    mt.algorithms.anneal(maml, 0.0, first_order=0.1)
    for way in ("loop", "vmap"):
        expected = gradient_of(build("fomaml"), way, batch)
        assert largest_difference(gradient_of(maml, way, batch), expected) < 1e-14


def trainer_of(algorithm):
    optimizer = torch.optim.SGD(algorithm.meta.parameters(), lr=0.01)
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator)
    return mt.MetaTrainer(*parts, meta_optimizer=optimizer, tasks="vmap")


def values_of(algorithm):
    return {n: p.detach().clone() for n, p in algorithm.meta.named_parameters()}


def test_a_training_anneals_before_each_step_and_resumes_where_it_was(tmp_path):
    def fit(algorithm, anneal, **options):
        batches = [sinusoids(seed=5)]
        trainer_of(algorithm).fit(batches, steps=3, anneal=anneal, progress=False, **options)
        return values_of(algorithm)

    def trained(first_order, **options):
        algorithm = build("maml++", first_order=first_order)
        return fit(algorithm, algorithm.anneal, **options)

    def by_autograd(first_order):
        algorithm = build("maml++")
        for step in range(3):
            mt.algorithms.anneal(algorithm, step / 3)
            gradients = by_hand(algorithm, sinusoids(seed=5), None, step / 3 < first_order)
            with torch.no_grad():
                for name, parameter in algorithm.meta.named_parameters():
                    parameter.sub_(0.01 * gradients[name])
        return values_of(algorithm)

    assert largest_difference(trained(0.5), by_autograd(0.5)) < 1e-12
    assert largest_difference(trained(0.5), by_autograd(0.0)) > 1e-6

    interrupted, told = build("maml++", first_order=0.5), []

    def anneal(progress):
        told.append(progress)
        interrupted.anneal(progress)
        if progress > 0:
            raise KeyboardInterrupt

    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, anneal, checkpoint=path)
    assert told == [0, 1 / 3]
    resumed = trained(0.5, checkpoint=path, resume=True)
    assert largest_difference(resumed, trained(0.5)) == 0


def test_tasks_side_by_side_are_compared_anew_where_the_order_changes():
    algorithm = build("maml")
    trainer = trainer_of(algorithm)
    compared = []
    for step, progress in enumerate((0.0, 0.2, 0.5, 0.9, 0.1)):
        mt.algorithms.anneal(algorithm, progress, first_order=0.5)
        trainer.fit([sinusoids()], steps=step + 1, progress=False)
        compared.append(len(trainer.tasks.known.obstacles))
    assert compared == [1, 1, 2, 2, 2]


def test_the_first_order_phase_takes_half_of_the_operations():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(4)]
    algorithm = build("maml++", nn.Sequential(nn.Linear(1, 64), *layers, nn.Linear(64, 1)).double())
    (task,) = listed(sinusoids(1))

    def operations(progress):
        mt.algorithms.anneal(algorithm, progress, first_order=0.5)
        gradient_of(algorithm, batch=[task])
        return count_flops(lambda: gradient_of(algorithm, batch=[task]))

    # 6 T F of 12 T F, where F is the same for support and query.
    assert operations(0.0) / operations(0.5) == pytest.approx(0.5, abs=0.06)


def test_what_cannot_be_annealed():
    for name in ("fomaml", "reptile", "imaml", "warpgrad"):
        with pytest.raises(UnsupportedError, match="has one order of derivatives"):
            mt.algorithms.anneal(build(name), 0.5)
    for options in ({"progress": 1.1}, {"progress": -0.1}, {"progress": 0.5, "first_order": 2.0}):
        with pytest.raises(ConfigurationError, match="a number from 0 to 1 is needed"):
            mt.algorithms.anneal(build("maml"), **options)
