"""Options and states of torch optimizers that are taken over, one by one."""

import pytest
import torch
from torch import nn

from metatoolkit import inner
from metatoolkit.errors import ConfigurationError, UnsupportedError
from tests.inner import heads, reference


@pytest.mark.parametrize(
    "own",
    [
        {"ns_steps": 3},
        {"ns_coefficients": (2.0, -1.5, 0.5)},
        {"adjust_lr_fn": "match_rms_adamw"},
        {"eps": 1e-3},
    ],
)
def test_what_muon_has_for_all_matrices_may_not_differ(own):
    model = nn.ParameterDict({n: nn.Parameter(torch.ones(2, 3)) for n in ("a", "b")})
    optimizer = torch.optim.Muon([{"params": [model["a"]]}, {"params": [model["b"]], **own}])
    with pytest.raises(UnsupportedError, match=f"{next(iter(own))} differs.*Muon has one for all"):
        inner.from_torch(optimizer, model)
    both = torch.optim.Muon(model.parameters(), **own)
    name, value = next(iter(own.items()))
    assert inner.from_torch(both, model).options()[name] == value


def test_what_differs_becomes_a_group():
    model = nn.ParameterDict({n: nn.Parameter(torch.ones(2)) for n in ("a", "b", "c", "d")})
    groups = [
        {"params": [model["a"]]},
        {"params": [model["b"]], "eps": 1e-3, "betas": [torch.tensor(0.5), 0.999]},
        {"params": [model["c"]], "lr": torch.tensor(0.25)},
        {"params": [model["d"]]},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.1, foreach=False, capturable=False, fused=False)
    learner = inner.from_torch(optimizer, model)
    assert learner.groups == [
        {"params": ["b"], "eps": 1e-3, "beta1": 0.5, "beta2": 0.999},
        {"params": ["c"], "lr": 0.25},
    ]
    assert learner.hyperparameters == inner.Adam(lr=0.1).hyperparameters
    # Options are those of now, not those that the optimizer was made with.
    optimizer.param_groups[3]["weight_decay"] = 0.5
    assert inner.from_torch(optimizer, model).groups[2] == {
        "params": ["d"],
        "weight_decay": 0.5,
    }


def test_frozen_parameters_are_left_out():
    model = nn.ParameterDict({n: nn.Parameter(torch.ones(2)) for n in ("a", "b")})
    model["b"].requires_grad_(False)
    held = torch.optim.SGD([{"params": [model["b"]], "lr": 9.0}, {"params": [model["a"]]}], lr=0.1)
    learner = inner.from_torch(held, model)
    assert learner.hyperparameters["lr"] == 0.1 and learner.groups == []
    assert inner.from_torch(torch.optim.SGD([model["a"]], lr=0.1), model).groups == []


def test_what_is_missing_is_told_up_to_five_names():
    names = "abcdefg"
    model = nn.ParameterDict({n: nn.Parameter(torch.ones(2)) for n in names})
    for held, text in ((names[:2], "c, d, e, f, g, which"), (names[:1], "b, c, d, e, f, ..., ")):
        optimizer = torch.optim.SGD([model[n] for n in held])
        with pytest.raises(
            ConfigurationError, match=f"inner parameters {text}".replace(".", r"\.")
        ):
            inner.from_torch(optimizer, model)


def test_hooks_after_a_step_are_not_taken_over_either():
    model = heads.Heads()
    optimizer = torch.optim.SGD(model.parameters())
    handle = optimizer.register_step_post_hook(lambda *arguments: None)
    with pytest.raises(UnsupportedError, match="step hooks"):
        inner.from_torch(optimizer, model)
    handle.remove()
    assert isinstance(inner.from_torch(optimizer, model), inner.SGD)


@pytest.mark.parametrize(("momentum", "step"), [(0.0, 0), (0.9, 1)])
def test_the_state_of_sgd_counts_its_momenta_alone(momentum, step):
    batches, _ = heads.make_batches("aaa")
    problem = heads.make_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=momentum)
    for batch in batches:
        optimizer.zero_grad()
        heads.train_loss(problem.model, problem.meta, batch).backward()
        optimizer.step()
    state = inner.state_from_torch(optimizer, problem, seed=4)
    assert state.key == inner.SGD(0.1).init(problem, 4).key
    assert state.key == inner.state_from_torch(optimizer, problem, 4).key
    assert inner.state_from_torch(optimizer, problem).key == inner.SGD(0.1).init(problem).key
    reached = {"trunk", "a", "bias_a", "still"}
    missed = dict.fromkeys(set(problem.parameter_names) - reached, 1) if momentum else {}
    assert (state.step, state.missed) == (step, missed)
    if momentum:
        buffer = optimizer.state[problem.model.a]["momentum_buffer"]
        kept = state.optimizer["velocity"]["a"]
        assert torch.equal(kept, buffer) and kept.data_ptr() != buffer.data_ptr()
        assert not state.optimizer["velocity"]["b"].any()


def test_the_state_of_parameters_that_are_none_of_the_problem_is_left_out():
    problem = heads.make_problem()
    still = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([*problem.model.parameters(), still], lr=0.1)
    still.grad = torch.ones_like(still)
    optimizer.step()
    optimizer.step()
    still.requires_grad_(False)
    state = inner.state_from_torch(optimizer, problem)
    assert state.step == 0 and state.missed == {}


def test_a_meta_parameter_is_no_number_of_its_value():
    meta = nn.ParameterDict({"lr": nn.Parameter(torch.tensor(0.1).double())})
    problem = reference.make_problem(meta)
    model = problem.model
    rest = [*model.tied.parameters(), model.scale]
    own = {"params": list(model.head.parameters()), "lr": meta["lr"]}
    learner = inner.from_torch(torch.optim.SGD([{"params": rest}, own], lr=0.1), problem)
    assert learner.groups == [{"params": ["head.weight", "head.bias"], "lr": meta["lr"]}]
    assert learner.groups[0]["lr"] is meta["lr"] and learner.hyperparameters["lr"] == 0.1
    turned = inner.from_torch(torch.optim.SGD([own, {"params": rest, "lr": 0.1}], lr=0.1), problem)
    assert turned.hyperparameters["lr"] is meta["lr"] and turned.groups[0]["lr"] == 0.1


def test_a_state_is_detached():
    problem = heads.make_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    saved = optimizer.state[problem.model.a]
    saved["momentum_buffer"] = torch.ones(2, dtype=torch.float64, requires_grad=True)
    velocity = inner.state_from_torch(optimizer, problem).optimizer["velocity"]["a"]
    assert velocity.tolist() == [1.0, 1.0] and not velocity.requires_grad
