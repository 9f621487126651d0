"""Estimators against finite differences, and the check itself against wrong estimators."""

import dataclasses
import inspect
import math
import random

import pytest
import torch
import torch.nn.functional as F

import metatoolkit as mt
from metatoolkit.diagnostics.check import HypergradientCheck
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import EvoGrad, OneStep, Unrolled
from metatoolkit.testing import bank
from tests.diagnostics import checked

EXACT = {
    "Unrolled(1)": lambda: Unrolled(1),
    "Unrolled(4)": lambda: Unrolled(4),
    "EvoGrad, graphs kept": lambda: EvoGrad(3, 0.1, 0.5, noise="gaussian", streamed=False),
    "EvoGrad, streamed": lambda: EvoGrad(3, 0.1, 0.5, noise="gaussian", streamed=True),
}


def check(case, estimator, **options):
    problem, inner, _, batches, valid_batch = case.arguments(estimator.horizon)
    return mt.check_hypergradient(problem, inner, estimator, batches, valid_batch, **options)


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
@pytest.mark.parametrize("name", bank.PROBLEMS)
def test_agrees_with_finite_differences(name, make):
    case, estimator = bank.PROBLEMS[name](), make()
    if name in bank.OUTSIDE_LOSSES and isinstance(estimator, EvoGrad):
        pytest.skip("EvoGrad does not read the optimizer")
    result = check(case, estimator)
    assert result.relative_error < 1e-6, str(result)
    assert result.cosine > 1 - 1e-9


@pytest.mark.parametrize("name", bank.PROBLEMS)
def test_agrees_from_a_later_state(name):
    case = bank.PROBLEMS[name]()
    state = case.state
    for batch in case.batches(3):
        state, _ = case.inner.step(case.problem, state, case.problem.meta_parameters(), batch)
    result = check(case, Unrolled(2), state=state)
    assert result.relative_error < 1e-6, str(result)


class Scaled(Unrolled):
    """Wrong by a factor."""

    def estimate(self, *arguments):
        result = super().estimate(*arguments)
        gradient = {name: 1.01 * tensor for name, tensor in result.gradient.items()}
        return dataclasses.replace(result, gradient=gradient)


class Silent(Unrolled):
    """Wrong in one tensor."""

    def estimate(self, *arguments):
        result = super().estimate(*arguments)
        first = next(iter(result.gradient))
        return dataclasses.replace(
            result, gradient=result.gradient | {first: torch.zeros_like(result.gradient[first])}
        )


def test_wrong_estimators_are_found_out():
    scaled = check(bank.small_net(), Scaled(2))
    assert scaled.relative_error == pytest.approx(0.01, rel=1e-3)
    assert scaled.cosine > 1 - 1e-9
    silent = check(bank.small_net(), Silent(2))
    assert silent.relative_error > 0.01
    assert "relative error" in str(silent)


def test_another_reference_shows_the_distance_to_the_exact_one():
    result = check(bank.ridge(), EvoGrad(2, 1e-3, 0.05), reference=Unrolled(1))
    assert result.relative_error > 0.5
    assert check(bank.ridge(), Unrolled(1), reference=Unrolled(1)).relative_error < 1e-6


def test_single_precision_problems_are_checked_in_double_and_left_alone():
    case = bank.small_net()
    case.problem.model.float()
    case.problem.meta.float()
    before = [p.clone() for p in case.problem.model.parameters()]
    case.train_batches = [(inputs.float(), targets) for inputs, targets in case.train_batches]
    case.valid_batch = (case.valid_batch[0].float(), case.valid_batch[1])
    assert check(case, Unrolled(1)).relative_error < 1e-6
    after = list(case.problem.model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert after[0].dtype == torch.float32


def test_only_so_many_coordinates_are_compared():
    result = check(bank.small_net(), Unrolled(1), coordinates=4)
    assert result.reference.shape == result.estimate.shape == (4,)
    assert result.relative_error < 1e-6


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"coordinates": 0}])
def test_arguments_out_of_range(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        check(bank.ridge(), Unrolled(1), **options)


def vectors(estimate, reference, **figures):
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (estimate, reference))
    return HypergradientCheck(0.25, 0.5, one, other, **figures)


@pytest.mark.parametrize(
    ("estimate", "reference", "figures", "verdict"),
    [
        # A thousandth of the larger norm, of either vector.
        ([1.0, 0.00099], [1.0, 0.0], {}, "agrees"),
        ([1.0, 0.00101], [1.0, 0.0], {}, "differs"),
        ([0.0, 0.00499], [5.0, 0.0], {}, "differs"),
        ([5.0, 0.00499], [5.0, 0.0], {}, "agrees"),
        ([5.0, 0.00501], [5.0, 0.0], {}, "differs"),
        ([5.0, 0.0], [5.0, 0.00499], {}, "agrees"),
        ([1000.9, 0.0], [1000.0, 0.0], {}, "agrees"),
        ([0.0], [0.0], {}, "agrees"),
        # Beyond that it is told from three times the error of the differences on.
        ([1.3, 0.0], [1.0, 0.0], {"reference_error": 0.08}, "cannot tell"),
        ([1.3, 0.0], [1.0, 0.0], {"reference_error": 0.076}, "differs"),
        ([1.0, 0.0], [1.3, 0.0], {"reference_error": 0.077}, "cannot tell"),
        ([1.0, 0.0], [1.3, 0.0], {"reference_error": 0.076}, "differs"),
        ([1.0], [-1.0], {"reference_error": math.inf}, "cannot tell"),
        ([1.0], [-1.0], {"conclusive": False}, "cannot tell"),
        ([1.0], [1.0005], {"conclusive": False}, "agrees"),
    ],
)
def test_verdicts_by_hand(estimate, reference, figures, verdict):
    assert vectors(estimate, reference, **figures).verdict == verdict


def test_how_a_check_reads():
    check = vectors([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert (check.reference_error, check.note, check.conclusive) == (0.0, "", True)
    assert str(check) == (
        "relative error 2.50e-01, cosine 0.500000 (3 meta-parameters, finite differences good to "
        "0e+00): differs"
    )
    noted = dataclasses.replace(check, note="so it is", reference_error=0.012)
    assert str(noted).splitlines() == [str(check).replace("0e+00", "1e-02"), "so it is"]


def test_figures_by_hand():
    # The outer loss is λ₀ + 2 λ₁ + 2 λ₂, of which a wrong estimator returns 4, 2, 2.
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value([0.5, -0.5, 3.0]),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: meta.value @ torch.tensor([1.0, 2, 2], dtype=torch.float64),
    )
    wrong = checked.Broken(lambda name, gradient: gradient + torch.tensor([3.0, 0, 0]).double())
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    result = check(case, wrong)
    assert result.estimate.tolist() == [4.0, 2.0, 2.0]
    assert result.reference.tolist() == pytest.approx([1.0, 2.0, 2.0], rel=1e-8)
    assert result.relative_error == pytest.approx(1.0, rel=1e-8)
    assert result.cosine == pytest.approx(12 / (3 * math.sqrt(24)), rel=1e-8)
    assert 0 < result.reference_error < 1e-8 and result.verdict == "differs"
    assert (result.note, result.conclusive) == ("", True)
    # The error of the differences is told of the larger vector.
    larger = checked.Broken(lambda name, gradient: 1000 * gradient)
    coarse = check(case, larger, epsilon=1e-9)
    finer = check(case, OneStep(), epsilon=1e-9)
    assert coarse.reference_error < 0.1 * finer.reference_error


def test_which_coordinates_are_compared():
    case = bank.small_net()
    whole = check(case, Unrolled(1), coordinates=None)
    size = sum(p.numel() for p in case.problem.meta.parameters())
    assert whole.estimate.numel() == size == 14
    for seed, number in ((0, 5), (3, 5), (3, 13)):
        some = check(case, Unrolled(1), coordinates=number, seed=seed)
        places = sorted(random.Random(seed).sample(range(size), number))
        assert torch.equal(some.estimate, whole.estimate[places])
        torch.testing.assert_close(some.reference, whole.reference[places], rtol=1e-6, atol=1e-9)
    assert torch.equal(check(case, Unrolled(1), coordinates=14).estimate, whole.estimate)
    assert check(case, Unrolled(1), coordinates=1).estimate.numel() == 1


def test_what_is_left_out_has_the_values_that_are_told():
    given = inspect.signature(mt.check_hypergradient).parameters
    defaults = {n: p.default for n, p in given.items() if p.default is not p.empty}
    assert defaults == {
        **dict.fromkeys(("state", "reference", "epsilon")),
        **{"coordinates": 256, "seed": 0},
    }


def test_what_cannot_be_held_is_differenced_as_it_is_and_that_is_told():
    def train_loss(model, meta, batch):
        class Local(torch.autograd.Function):
            """A class of its own in each call, which nothing is known of beforehand."""

            @staticmethod
            def forward(ctx, x):
                return 2 * x

            @staticmethod
            def backward(ctx, g):
                return 2 * g

        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return Local.apply(losses * meta.value.sigmoid()).mean()

    problem = checked.build(train_loss)
    arguments = (checked.SGD, checked.images(), checked.images(1))
    inner, train, valid = arguments
    right = checked.check(problem, inner, OneStep(), train, valid)
    assert right.relative_error < 1e-6 and right.verdict == "agrees"
    assert "a difference may show more than a derivative here: " in right.note
    assert "Local" in right.note and right.conclusive is False
    wrong = checked.Broken(lambda name, gradient: 1.5 * gradient)
    assert checked.check(problem, inner, wrong, train, valid).verdict == "cannot tell"
    # Where nothing is to be held, the error is that of the objective.
    with pytest.raises(UnsupportedError, match="nowhere"):
        checked.check(problem, inner, Unheld(), train, valid)


class Unheld(OneStep):
    """Has an objective that does not work, of which nothing is held."""

    traits = dataclasses.replace(OneStep.traits, kind="approximate")
    holds_constants = False

    def objective(self, *arguments):
        raise UnsupportedError("nowhere")


@pytest.mark.parametrize("given", [mt.inner.SGD, None, "SGD"])
def test_what_is_no_inner_learner(given):
    case = bank.ridge()
    with pytest.raises(ConfigurationError, match="inner is "):
        mt.check_hypergradient(case.problem, given, Unrolled(1), case.batches(1), case.valid_batch)
