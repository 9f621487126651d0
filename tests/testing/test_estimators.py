"""Each check of estimators finds an estimator that is wrong in its way."""

import dataclasses
import random
import re

import numpy as np
import pytest
import torch

from metatoolkit.errors import ConfigurationError, ConformanceError
from metatoolkit.hypergradients import Estimator, Hypergradient, OneStep, Traits, Unrolled
from metatoolkit.hypergradients.base import Cost
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.testing import check_estimator, estimator_checks

KEPT = []


def changed(change, **fields):
    """An estimator class whose result is changed; ``change`` gets the arguments and the result."""

    def estimate(self, *arguments):
        result = OneStep.estimate(self, *arguments)
        return change(self, arguments, result) or result

    return type("Wrong", (OneStep,), {"estimate": estimate, "__module__": __name__, **fields})


def gradient(function, **fields):
    def change(self, arguments, result):
        found = {name: function(name, tensor) for name, tensor in result.gradient.items()}
        return dataclasses.replace(result, gradient=found)

    return changed(change, **fields)


def moved(self, arguments, result):
    state = result.state.map(lambda t: t + 1 if t.dtype == torch.int64 else t)
    return dataclasses.replace(result, state=state)


def further(self, arguments, result):
    state = result.state.map(lambda t: t + 1e-6 if t.is_floating_point() else t)
    return dataclasses.replace(result, state=state)


def first_key(self, arguments, result):
    problem, inner, state, batches, valid_batch = arguments
    return OneStep.estimate(self, problem, inner, state.replaced(key=7), batches, valid_batch)


def no_batches(self, problem, inner, state, train_batches, valid_batch):
    return self.estimate(problem, inner, state, [None], valid_batch)


def zeros_where_it_fails(self, problem, inner, state, batches, valid_batch):
    try:
        return OneStep.estimate(self, problem, inner, state, batches, valid_batch)
    except Exception:
        found = {n: torch.zeros_like(t) for n, t in problem.meta_parameters().items()}
        return Hypergradient(found, torch.zeros(()), state, Cost(forward=1))


def quiet(self, arguments, result):
    found = {n: torch.nan_to_num(t, posinf=0.0) for n, t in result.gradient.items()}
    return dataclasses.replace(result, gradient=found)


def weaker(self, arguments, result):
    self.calls = getattr(self, "calls", 0) + 1
    found = {n: t / self.calls for n, t in result.gradient.items()}
    return dataclasses.replace(result, gradient=found)


def held(self, arguments, result):
    KEPT.append(result.valid_loss.clone())


def grown(self, arguments, result):
    KEPT[:1] = [torch.cat([KEPT[0], torch.zeros(9)]) if KEPT else torch.zeros(9)]


def emptied(self, arguments, result):
    arguments[0].model.zero_grad()


def written(self, arguments, result):
    arguments[4][0].clamp_(-0.5, 0.5)


def taken(self, arguments, result):
    arguments[3].pop()


def touch(what):
    def change(self, arguments, result):
        what(arguments[0])

    return changed(change)


def noise(tensor):
    return torch.rand(tensor.shape).to(tensor) * 1e-3


class Forgetful(OneStep):
    """Another estimator once it is copied."""

    factor = 1.0

    def estimate(self, *arguments):
        result = OneStep.estimate(self, *arguments)
        found = {name: self.factor * t for name, t in result.gradient.items()}
        return dataclasses.replace(result, gradient=found)

    def __deepcopy__(self, memo):
        other = Forgetful()
        other.factor = 2.0
        return other


def local():
    one = OneStep()
    one.function = lambda: None
    return one


WRONG = {
    "result_has_the_form_of_the_meta_parameters": [
        gradient(lambda name, tensor: tensor[None]),
        gradient(lambda name, tensor: tensor.clone().requires_grad_()),
        changed(
            lambda s, a, r: dataclasses.replace(r, gradient=dict(list(r.gradient.items())[1:]))
        ),
        changed(lambda s, a, r: dataclasses.replace(r, valid_loss=r.valid_loss[None])),
        changed(lambda s, a, r: dataclasses.replace(r, cost=Cost())),
    ],
    "gradient_is_the_derivative_of_the_objective": [gradient(lambda name, tensor: 1.01 * tensor)],
    "the_mean_of_calls_is_the_derivative_of_the_objective": [
        gradient(lambda name, tensor: 1.3 * tensor, on_average=True),
        gradient(lambda name, tensor: -tensor, on_average=True),
    ],
    "leaves_everything_as_it_was": [
        touch(lambda problem: torch.rand(())),
        touch(lambda problem: random.random()),
        touch(lambda problem: np.random.normal()),
        touch(lambda problem: problem.model[1].running_mean.add_(1.0)),
        touch(lambda problem: next(problem.meta.parameters()).requires_grad_(False)),
        touch(lambda problem: problem.model.eval()),
        touch(lambda problem: next(problem.meta.parameters()).data.add_(1e-3)),
        touch(lambda problem: next(problem.model.parameters()).detach().add_(0.0)),
        touch(lambda problem: problem.model.register_forward_hook(lambda *_: None)),
        touch(lambda problem: setattr(problem.meta, "cached", 1)),
        changed(written),
        changed(taken),
    ],
    "gradients_that_a_user_holds_stay": [
        touch(lambda problem: next(problem.model.parameters()).grad.zero_()),
        changed(emptied),
    ],
    "the_outer_loss_is_that_of_a_state_on_the_way": [
        changed(lambda s, a, r: dataclasses.replace(r, valid_loss=2 * r.valid_loss)),
        changed(lambda s, a, r: dataclasses.replace(r, valid_loss=torch.zeros_like(r.valid_loss))),
        changed(
            lambda s, a, r: dataclasses.replace(r, valid_loss=1.0001 * r.valid_loss),
            traits=Traits(kind="exact"),
        ),
    ],
    "the_same_state_gives_the_same_result_whatever_the_global_seed": [
        gradient(lambda name, tensor: tensor + noise(tensor))
    ],
    "running_statistics_move_in_real_steps_alone": [changed(moved)],
    "the_state_is_what_the_inner_learner_reaches": [changed(further)],
    "a_part_of_meta_that_the_training_loss_ignores_has_its_direct_gradient": [
        gradient(lambda name, tensor: 1.01 * tensor),
        gradient(lambda name, tensor: tensor + 1e-6),
    ],
    "a_meta_module_that_nothing_depends_on_is_an_error": [
        changed(held, estimate=zeros_where_it_fails)
    ],
    "non_finite_losses_are_errors_and_never_zeros": [changed(held, estimate=zeros_where_it_fails)],
    "a_non_finite_hypergradient_names_its_parameter": [changed(quiet)],
    "masks_are_those_of_the_inner_steps": [changed(first_key)],
    "batches_must_be_as_many_as_the_horizon": [changed(held, __call__=no_batches)],
    "a_wrong_batch_shape_tells_the_shapes": [changed(held, estimate=zeros_where_it_fails)],
    "lower_precision_points_the_same_way": [
        gradient(lambda name, tensor: tensor.double()),
        gradient(lambda name, t: t if t.dtype == torch.float64 else -t),
    ],
    "meta_parameters_of_another_type_than_the_model": [
        gradient(lambda name, tensor: tensor.float())
    ],
    "memory_does_not_grow": [changed(held), changed(grown)],
    "can_be_copied": [lambda: Forgetful()],
    "can_be_pickled": [local],
    "training_goes_on_bitwise_from_a_checkpoint": [changed(weaker)],
}


def test_every_check_has_an_estimator_that_fails_it():
    assert set(WRONG) == {check.function.__name__ for check in estimator_checks()}


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, make) for name, makes in WRONG.items() for make in makes],
    ids=[f"{name}-{place}" for name, makes in WRONG.items() for place in range(len(makes))],
)
def test_an_estimator_that_is_wrong_is_found(name, make):
    with pytest.raises(ConformanceError) as caught:
        check_estimator(make, [f"^{name}"])
    assert caught.value.check.startswith(name)
    assert caught.value.expected and caught.value.got


class Plain(Estimator):
    """A stranger's estimator, which says nothing of itself."""

    def estimate(self, *arguments):
        return OneStep().estimate(*arguments)

    def objective(self, *arguments):
        return OneStep().objective(*arguments)


def test_an_estimator_needs_no_traits():
    assert Plain().traits == Traits() and Traits().kind == "approximate"
    assert all(vars(Traits()).values())
    names = ["form_of", "gradient_is_the_derivative", "precision"]
    report = check_estimator(Plain(), names)
    chosen = [c.name for c in estimator_checks() if any(re.search(n, c.name) for n in names)]
    assert report.passed == chosen and not report.skipped


@pytest.mark.parametrize(
    ("name", "options"), [("GuidedEvoGrad", {"sigma": 1e-3}), ("EvolutionStrategies", {})]
)
def test_settings_that_are_none_for_bfloat16_are_told_and_no_fault(name, options):
    report = check_estimator(estimators.build(name, **options), ["lower_precision.*(ridge|inside)"])
    assert report.skipped and all("-bfloat16" in check for check in report.skipped)
    assert all("bfloat16" in reason for reason in report.skipped.values())


def test_what_is_no_estimator_is_refused():
    with pytest.raises(ConfigurationError, match="the estimator is 'Unrolled'"):
        check_estimator("Unrolled")
    with pytest.raises(ConfigurationError, match="an instance of Estimator"):
        check_estimator(dict)
    assert check_estimator(Unrolled, ["ridge"]).passed == [
        c.name for c in estimator_checks() if "ridge" in c.name
    ]
