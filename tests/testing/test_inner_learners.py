"""Each check of inner learners finds a learner that is wrong in its way."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from metatoolkit.errors import ConfigurationError, ConformanceError, UnsupportedError
from metatoolkit.inner import SGD, Adam, InnerLearner
from metatoolkit.inner.slots import zero_slots
from metatoolkit.testing import check_inner_learner, inner_learner_checks


def wrong(base=SGD, **methods):
    """A learner that overrides some methods."""
    return lambda: type("Wrong", (base,), {"__module__": __name__, **methods})(lr=0.1)


def stepping(change):
    """A learner whose step is followed by a change of what it returns."""

    def step(self, problem, state, meta, batch, create_graph=False):
        after, loss = InnerLearner.step(self, problem, state, meta, batch, create_graph)
        return change(self, problem, state, after, loss)

    return wrong(step=step)


def updating(change):
    """A learner whose update is θ − change(θ, g, rate)."""

    def update(self, parameter, gradient, slots, values, step):
        return parameter - change(parameter, gradient, values["lr"]), slots

    return wrong(update=update)


def shared(self, problem, seed=0):
    state = SGD.init(self, problem, seed)
    live = dict(problem.model.named_parameters())
    return state.replaced(parameters={n: live[n].detach() for n in state.parameters})


def one_key(self, problem, seed=0):
    return SGD.init(self, problem, 0)


def in_place(self, parameter, gradient, slots, values, step):
    slots["velocity"].add_(gradient.detach())
    return parameter - 0.1 * slots["velocity"], slots


def with_momentum(self, parameters):
    return zero_slots(parameters, "velocity")


def all_move(self, problem, state, meta, gradients):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.parameters.items()}
    return SGD.apply(self, problem, state, meta, zeros | gradients)


def widened(self, problem, state, meta, gradients):
    after = SGD.apply(self, problem, state, meta, gradients)
    return after.map(lambda t: t.double() if t.is_floating_point() else t)


def faster_below(self, parameter, gradient, slots, values, step):
    return parameter - (0.1 if parameter.dtype == torch.float64 else 0.2) * gradient, slots


class Forgetful(SGD):
    """Another learner once it is copied."""

    def __deepcopy__(self, memo):
        return SGD(lr=0.2)


def spoiling(self, problem, state, meta, batch, create_graph=False):
    found = InnerLearner.step(self, problem, state, meta, batch, create_graph)
    for tensor in tree_leaves(batch):
        if isinstance(tensor, torch.Tensor):
            tensor.mul_(2)
    return found


def emptying(self, problem, state, meta, batch, create_graph=False):
    problem.model.zero_grad()
    return InnerLearner.step(self, problem, state, meta, batch, create_graph)


def local():
    learner = SGD(lr=0.1)
    learner.function = lambda: None
    return learner


def counting(self, parameter, gradient, slots, values, step):
    self.steps = getattr(self, "steps", 0) + 1
    return parameter - 0.1 * gradient / self.steps, slots


def flat(self, parameter, gradient, slots, values, step):
    return (parameter - 0.1 * gradient).flatten(), slots


def smooth(parameter, gradient, rate):
    return rate * gradient / gradient.square().sum().sqrt().add(0.1)


def root(parameter, gradient, rate):
    return rate * gradient.abs().sqrt() * gradient.sign()


class Bent(SGD):
    """Says that its step is linear in the gradient, which it is not."""

    linear_in_gradient = True

    def update(self, parameter, gradient, slots, hyperparameters, step):
        return parameter - 0.1 * gradient.tanh(), slots


class Told(SGD):
    """Tells half its sensitivity."""

    def update(self, parameter, gradient, slots, hyperparameters, step):
        return parameter - 0.1 * gradient, slots

    def sensitivity(self, parameter, gradient, slots, hyperparameters, step):
        return torch.full_like(parameter, -0.05)


WRONG = {
    "the_first_state_is_a_copy_and_has_a_key_for_each_seed": [
        wrong(init=shared),
        wrong(init=one_key),
        wrong(init_slots=lambda self, parameters: {"s": {n: torch.zeros(7) for n in parameters}}),
    ],
    "a_step_moves_nothing_that_was_given": [
        wrong(init_slots=with_momentum, update=in_place),
        stepping(lambda self, problem, state, after, loss: (after, loss + 1)),
        stepping(lambda self, problem, state, after, loss: (after.replaced(step=7), loss)),
        stepping(
            lambda self, problem, state, after, loss: (after.replaced(key=state.key + 1), loss)
        ),
        stepping(lambda self, problem, state, after, loss: (state.replaced(step=2), loss)),
        updating(lambda p, g, rate: rate * g + 0 * torch.rand(())),
        wrong(step=spoiling),
        wrong(step=emptying),
    ],
    "the_same_step_again_is_the_same": [updating(lambda p, g, rate: rate * g * torch.rand(()))],
    "a_parameter_that_a_batch_does_not_reach_is_skipped": [wrong(apply=all_move)],
    "parameters_may_have_any_shape": [wrong(update=flat)],
    "a_step_keeps_the_type_of_the_parameters": [wrong(apply=widened), wrong(update=faster_below)],
    "a_group_has_values_of_its_own": [
        wrong(update=lambda self, p, g, slots, values, step: (p - 0.1 * g, slots))
    ],
    "with_a_graph_the_values_are_the_same_and_lead_to_state_and_meta": [
        updating(lambda p, g, rate: rate * (g if not g.requires_grad else 2 * g)),
        wrong(
            update=lambda self, p, g, slots, values, step: (p.detach() - 0.1 * g.detach(), slots)
        ),
    ],
    "derivatives_are_those_of_finite_differences": [
        updating(lambda p, g, rate: smooth(p, g.detach(), rate) + 0 * g)
    ],
    "coordinates_without_a_gradient_have_finite_derivatives": [updating(root)],
    "hyperparameters_may_be_meta_parameters": [
        updating(lambda p, g, rate: (rate.detach() if isinstance(rate, torch.Tensor) else rate) * g)
    ],
    "a_step_that_is_said_to_be_linear_in_the_gradient_is": [lambda: Bent(0.1)],
    "the_sensitivity_that_is_told_is_the_derivative_of_the_update": [lambda: Told(0.1)],
    "can_be_copied": [lambda: Forgetful(lr=0.1)],
    "can_be_pickled": [local],
    "a_stored_state_goes_on_bitwise": [wrong(update=counting)],
    "training_goes_on_bitwise_from_a_checkpoint": [wrong(update=counting)],
}


def test_every_check_has_a_learner_that_fails_it():
    assert set(WRONG) == {check.function.__name__ for check in inner_learner_checks()}


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, make) for name, makes in WRONG.items() for make in makes],
    ids=[f"{name}-{place}" for name, makes in WRONG.items() for place in range(len(makes))],
)
def test_a_learner_that_is_wrong_is_found(name, make):
    with pytest.raises(ConformanceError) as caught:
        check_inner_learner(make, [f"^{name}"])
    assert caught.value.check.startswith(name)
    assert caught.value.expected and caught.value.got


def test_a_hyperparameter_that_is_right_by_its_size_alone_is_found():
    # The rate's derivative outweighs that of the decay, which is cut.
    def update(self, parameter, gradient, slots, values, step):
        decay = values["weight_decay"]
        decay = decay.detach() if isinstance(decay, torch.Tensor) else decay
        return parameter - values["lr"] * gradient - 1e-4 * decay * parameter, slots

    learner = type("Wrong", (SGD,), {"update": update})(lr=0.1, weight_decay=0.02)
    with pytest.raises(ConformanceError, match="as the derivative in weight_decay; got 0"):
        check_inner_learner(learner, ["hyperparameters_may_be"])


def test_a_learner_that_does_not_fit_a_problem_is_not_checked_on_it():
    learner = Adam(groups=[{"params": ["first"], "lr": 0.1}])
    report = check_inner_learner(learner, ["the_same_step"])
    assert report.passed == ["the_same_step_again_is_the_same-matrices"]
    assert all("does not fit the problem" in reason for reason in report.skipped.values())
    with pytest.raises(ConformanceError, match="applies: expected a problem"):
        check_inner_learner(Adam(groups=[{"params": ["mine"], "lr": 0.1}]))


def test_a_learner_that_refuses_is_not_checked():
    def init_slots(self, parameters):
        raise UnsupportedError("this learner takes nothing; use SGD.")

    with pytest.raises(ConformanceError, match="takes nothing"):
        check_inner_learner(wrong(init_slots=init_slots))


def test_what_is_no_learner_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"(?s)the inner learner is .*instance of InnerLearner"
    ):
        check_inner_learner(torch.optim.SGD([torch.ones(1)], lr=0.1))
    with pytest.raises(ConfigurationError, match="instance of InnerLearner"):
        check_inner_learner(lambda: 0.1)
