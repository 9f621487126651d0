"""Settings and state of torch optimizers taken over, and what is said where one is given."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit import inner
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.testing import bank
from tests.inner import heads, reference

KINDS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"lr": 0.05, "betas": (0.7, 0.9), "amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"lr": 0.05, "eps": 1e-3},
    "RMSprop": {"lr": 0.02, "centered": True, "momentum": 0.5, "maximize": True},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2},
    "RAdam": {"lr": 0.05, "betas": (0.7, 0.8), "decoupled_weight_decay": True, "weight_decay": 0.1},
    "NAdam": {"lr": 0.05, "betas": (0.7, 0.8), "momentum_decay": 0.2, "weight_decay": 0.1},
    "Adamax": {"lr": 0.05, "betas": (0.7, 0.6), "eps": 1e-3, "weight_decay": 0.1},
    "Adadelta": {"lr": 0.5, "rho": 0.7, "eps": 1e-3, "maximize": True},
    "ASGD": {"lr": 0.05, "lambd": 0.2, "alpha": 0.6, "t0": 1.0},
    "Rprop": {"lr": 0.05, "etas": (0.4, 1.7), "step_sizes": (1e-3, 0.1)},
}
kinds = pytest.mark.parametrize(("kind", "options"), KINDS.items(), ids=KINDS)
OWN = {
    "SGD": {"nesterov": False, "momentum": 0.5},
    "Adagrad": {"lr": 0.01},
    "NAdam": {"decoupled_weight_decay": True, "momentum_decay": 0.5},
    "ASGD": {"t0": 2.0, "alpha": 0.1},
    "Rprop": {"etas": (0.2, 2.0)},
}


def grouped(kind, options, model):
    """A torch optimizer with a group of its own for the heads."""
    own = ({} if kind == "Rprop" else {"weight_decay": 0.3}) | {"lr": 0.02} | OWN.get(kind, {})
    names = dict(model.named_parameters())
    first = [p for n, p in names.items() if n not in ("a", "b")]
    groups = [{"params": first}, {"params": [names["a"], names["b"]], **own}]
    return getattr(torch.optim, kind)(groups, **options)


def train(model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        heads.train_loss(model, heads.Weights(), batch).backward()
        with reference.float64_by_default():
            optimizer.step()


@kinds
def test_settings_and_state_go_on_as_in_torch(kind, options):
    batches, _ = heads.make_batches("abbaaba")
    problem = heads.make_problem()
    optimizer = grouped(kind, options, problem.model)
    learner = inner.from_torch(optimizer, problem)
    assert type(learner).__name__ == kind and len(learner.groups) == 1
    assert learner.groups[0]["params"] == ["a", "b"]
    fresh = learner.init(problem)
    for batch in batches:
        fresh, _ = learner.step(problem, fresh, problem.meta_parameters(), batch)
    train(problem.model, optimizer, batches[:4])
    state = inner.state_from_torch(optimizer, problem)
    for batch in batches[4:]:
        state, _ = learner.step(problem, state, problem.meta_parameters(), batch)
    train(problem.model, optimizer, batches[4:])
    for name, parameter in problem.model.named_parameters():
        for found in (fresh, state):
            torch.testing.assert_close(
                found.parameters[name], parameter.detach(), rtol=1e-11, atol=1e-13
            )
    if kind != "SGD":
        assert state.step == 7 and state.steps_of("a") == 4 and state.steps_of("never") == 0


@kinds
def test_a_model_is_enough_and_implementation_does_not_matter(kind, options):
    model = heads.Heads()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options, foreach=True)
    learner = inner.from_torch(optimizer, model)
    assert learner.groups == [] and learner.hyperparameters["lr"] == options["lr"]


def test_muon_is_taken_over_as_torch_computes_it():
    model = nn.Linear(3, 4, bias=False).double()
    optimizer = torch.optim.Muon(model.parameters(), lr=0.02, ns_steps=3)
    learner = inner.from_torch(optimizer, model)
    assert learner.options()["ns_steps"] == 3 and learner.ns_dtype == torch.bfloat16
    problem = mt.BilevelProblem(
        model,
        bank.Value(0.1),
        lambda m, meta, batch: m(batch).square().sum() * meta.value,
        lambda m, meta, batch: m(batch).square().sum(),
    )
    batch = torch.eye(3, dtype=torch.float64)
    start = learner.init(problem)
    for step in range(2):
        optimizer.zero_grad()
        problem.train_loss(model, problem.meta, batch).backward()
        optimizer.step()
        start, _ = learner.step(problem, start, problem.meta_parameters(), batch)
        torch.testing.assert_close(start.parameters["weight"], model.weight.detach())
        reached = inner.state_from_torch(optimizer, problem)
        momentum = reached.optimizer["momentum"]["weight"]
        torch.testing.assert_close(momentum, start.optimizer["momentum"]["weight"])
        assert step == 0 or reached.step == 1


def test_a_rate_that_is_a_meta_parameter_stays_one():
    meta = nn.ParameterDict({n: nn.Parameter(torch.tensor(0.1).double()) for n in ("lr", "own")})
    problem = reference.make_problem(meta)
    model = problem.model
    groups = [
        {"params": [*model.tied.parameters(), model.scale]},
        {"params": list(model.head.parameters()), "lr": meta["own"]},
    ]
    optimizer = torch.optim.SGD(groups, lr=meta["lr"])
    learner = inner.from_torch(optimizer, problem)
    batches = reference.make_batches(3)
    result = hg.Unrolled(2)(problem, learner, learner.init(problem), batches[:2], batches[2])
    assert float(result.gradient["lr"]) != float(result.gradient["own"])
    assert all(float(value.abs()) > 1e-4 for value in result.gradient.values())
    fixed = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.25))
    assert inner.from_torch(fixed, problem).hyperparameters["lr"] == 0.25


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        ("SGD", {"momentum": 0.9, "dampening": 0.3}, 5),
        ("SGD", {}, 5),
        ("ASGD", {"lambd": 0.1}, None),
        ("NAdam", {}, 5),
        ("Adamax", {}, None),
    ],
)
def test_a_scheduled_training_goes_on_with_a_schedule(kind, options, steps):
    batches, _ = heads.make_batches("aabbbabaabbabab")
    problem = heads.make_problem()
    optimizer = getattr(torch.optim, kind)(problem.model.parameters(), lr=0.1, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    learner = getattr(inner, kind)(lr=inner.exponential(0.1, 0.9), **options)

    def go_on(some):
        for batch in some:
            train(problem.model, optimizer, [batch])
            scheduler.step()

    go_on(batches[:5])
    state = inner.state_from_torch(optimizer, problem, steps=steps)
    assert state.step == 5 and state.steps_of("never") == 0
    state = heads.run(learner, problem, state, batches[5:])
    go_on(batches[5:])
    heads.assert_equal(state, problem.model)


def test_steps_that_cannot_be():
    batches, _ = heads.make_batches("ab")
    problem = heads.make_problem()
    parameters = list(problem.model.parameters())
    counted, uncounted = torch.optim.Adam(parameters), torch.optim.SGD(parameters, lr=0.1)
    train(problem.model, counted, batches)
    with pytest.raises(ConfigurationError, match=r"steps is 1; accepted: at least 2"):
        inner.state_from_torch(counted, problem, steps=1)
    assert inner.state_from_torch(counted, problem).step == 2
    torch.optim.lr_scheduler.ExponentialLR(uncounted, 0.9)
    with pytest.raises(ConfigurationError, match=r"SGD does not count its steps; give steps="):
        inner.state_from_torch(uncounted, problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@kinds
def test_other_types_go_on_to_their_rounding(kind, options, dtype):
    problem = heads.make_problem()
    problem.model.to(dtype)
    batches = [
        (head, *(part.to(dtype) for part in parts))
        for head, *parts in heads.make_batches("ab" * 7)[0]
    ]
    if "eps" in getattr(inner, kind)(lr=0.1).hyperparameters:
        # Smaller ones are 0 in float16, where a gradient of zero is divided by them, as in torch.
        options = options | {"eps": 1e-3}
    optimizer = grouped(kind, options, problem.model)
    learner = inner.from_torch(optimizer, problem)
    train(problem.model, optimizer, batches[:4])
    state = inner.state_from_torch(optimizer, problem)
    state = heads.run(learner, problem, state, batches[4:])
    train(problem.model, optimizer, batches[4:])
    rounding = 40 * torch.finfo(dtype).eps
    for name, parameter in problem.model.named_parameters():
        assert state.parameters[name].dtype == dtype
        torch.testing.assert_close(
            state.parameters[name], parameter.detach(), rtol=rounding, atol=rounding
        )


def test_names_are_no_patterns():
    model = nn.ParameterDict(
        {"w[1]": nn.Parameter(torch.ones(2)), "w1": nn.Parameter(torch.ones(2))}
    )
    optimizer = torch.optim.SGD([{"params": [model["w1"]]}, {"params": [model["w[1]"]], "lr": 1.0}])
    meta = bank.Value(0.1)
    problem = mt.BilevelProblem(
        model,
        meta,
        lambda m, meta, b: m["w[1]"].sum() + m["w1"].sum(),
        lambda m, meta, b: meta.value,
    )
    learner = inner.from_torch(optimizer, problem)
    after, _ = learner.step(problem, learner.init(problem), problem.meta_parameters(), None)
    assert float(after.parameters["w[1]"][0]) == 0.0
    assert float(after.parameters["w1"][0]) == pytest.approx(1 - 1e-3)


def test_adam_with_decoupled_decay_is_adamw():
    model = heads.Heads()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.2, decoupled_weight_decay=True)
    assert isinstance(inner.from_torch(optimizer, model), inner.AdamW)
    optimizer.param_groups[0]["decoupled_weight_decay"] = False
    assert type(inner.from_torch(optimizer, model)) is inner.Adam


class Own(torch.optim.SGD):
    pass


def two_groups(model, kind, **own):
    parameters = list(model.parameters())
    return kind([{"params": parameters[:1]}, {"params": parameters[1:], **own}])


def with_scheduler(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return optimizer


def with_hook(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *arguments: None)
    return optimizer


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: torch.optim.LBFGS(m.parameters()), UnsupportedError, "LBFGS has no counterpart"),
        (
            lambda m: torch.optim.Adafactor(m.parameters()),
            UnsupportedError,
            "Adafactor has no counterpart",
        ),
        (lambda m: Own(m.parameters()), UnsupportedError, "Own has no counterpart"),
        (with_scheduler, ConfigurationError, r"has a scheduler.*mt.inner.cosine"),
        (with_hook, UnsupportedError, "SGD has step hooks"),
        (lambda m: torch.optim.SGD([m.trunk]), ConfigurationError, "does not hold .*a, bias_a"),
        (
            lambda m: torch.optim.SGD([*m.parameters(), nn.Parameter(torch.ones(3))]),
            ConfigurationError,
            r"of shape \(3,\) that is no inner parameter",
        ),
        (
            lambda m: two_groups(m, torch.optim.Adagrad, initial_accumulator_value=0.5),
            UnsupportedError,
            "initial_accumulator_value differs",
        ),
        (
            lambda m: two_groups(m, torch.optim.Adam, decoupled_weight_decay=True),
            UnsupportedError,
            "decoupled_weight_decay differs",
        ),
        (lambda m: torch.optim.SGD, ConfigurationError, "accepted: an instance"),
    ],
)
def test_what_is_not_taken_over(make, error, message):
    model = heads.Heads()
    with pytest.raises(error, match=message):
        inner.from_torch(make(model), model)


def test_the_optimizer_of_meta_parameters_is_not_taken_over():
    problem = heads.make_problem()
    optimizer = torch.optim.SGD([*problem.model.parameters(), *problem.meta.parameters()])
    with pytest.raises(ConfigurationError, match="holds the meta-parameter 'logits'"):
        inner.from_torch(optimizer, problem)
    with pytest.raises(ConfigurationError, match="problem is a list; accepted: a BilevelProblem"):
        inner.from_torch(optimizer, [])


GIVEN = {
    "SGD": (torch.optim.SGD, r"torch optimizer SGD.*mt.inner.SGD\(...\).*from_torch"),
    "AdamW": (torch.optim.AdamW, r"torch optimizer AdamW.*mt.inner.AdamW\(...\).*from_torch"),
    "LBFGS": (torch.optim.LBFGS, r"LBFGS.*line search.*no counterpart.*mt.inner.SGD.*from_torch"),
    "Rprop": (torch.optim.Rprop, r"torch optimizer Rprop.*mt.inner.Rprop\(...\).*from_torch"),
    "Adafactor": (torch.optim.Adafactor, r"Adafactor.*no counterpart.*mt.inner.Adam.*from_torch"),
}


@pytest.mark.parametrize(("kind", "message"), GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("instance", [True, False])
def test_a_torch_optimizer_as_inner_is_an_error(kind, message, instance):
    problem = heads.make_problem()
    assert_refused(problem, kind(problem.model.parameters()) if instance else kind, message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            inner.SGD,
            r"inner is the class SGD; give an instance, for instance mt.inner.SGD\(lr=0.1\)",
        ),
        (None, "inner is a NoneType; give an inner learner"),
        ("SGD", "inner is a str; give an inner learner"),
        (dict, "inner is the class dict; give an inner learner"),
    ],
)
def test_anything_else_as_inner_is_an_error(given, message):
    assert_refused(heads.make_problem(), given, message)


def assert_refused(problem, given, message):
    batches, valid_batch = heads.make_batches("a")
    state = inner.SGD(lr=0.1).init(problem)
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.1)
    for call in (
        lambda: mt.MetaTrainer(problem, given),
        lambda: mt.MetaTrainer(problem, given, hg.Unrolled(1), optimizer),
        lambda: hg.Unrolled(1)(problem, given, state, batches, valid_batch),
        lambda: hg.EvoGrad(2, 0.1, 0.5)(problem, given, state, batches, valid_batch),
        lambda: mt.check_hypergradient(problem, given, hg.Unrolled(1), batches, valid_batch),
        lambda: mt.compare_estimators(
            problem, given, {"one": hg.Unrolled(1)}, batches, valid_batch
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            call()
