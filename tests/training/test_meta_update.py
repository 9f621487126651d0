"""A move of λ: the torch optimizer's, along the clipped hypergradient, at the scheduler's rate."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.testing import bank
from metatoolkit.training.meta_update import MetaUpdate
from tests.training.assembled import fit


def meta_of(case):
    return [p.detach().clone() for p in case.problem.meta.parameters()]


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_clipping_is_that_of_torch(limit):
    case, reference = bank.small_net(), bank.small_net()
    optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=1.0)
    gradient = case.call(Unrolled(1)).gradient
    given = {name: tensor.clone() for name, tensor in gradient.items()}
    norm = MetaUpdate(case.problem, optimizer, clip_norm=limit).move([gradient], torch.tensor(0.0))[
        "hypergradient_norm"
    ]
    other = torch.optim.SGD(reference.problem.meta.parameters(), lr=1.0)
    for name, parameter in reference.problem.meta.named_parameters():
        parameter.grad = given[name].clone()
    expected = torch.nn.utils.clip_grad_norm_(reference.problem.meta.parameters(), limit)
    other.step()
    torch.testing.assert_close(norm, expected)
    for one, two in zip(meta_of(case), meta_of(reference), strict=True):
        torch.testing.assert_close(one, two)
    # What the estimator returned is its own.
    assert all(torch.equal(gradient[name], given[name]) for name in given)


def test_the_metric_is_the_norm_before_it_is_clipped():
    case = bank.small_net()
    optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=0.1)
    trainer = mt.MetaTrainer(case.problem, case.inner, Unrolled(1), optimizer, clip_norm=1e-6)
    before = meta_of(case)
    last = fit(trainer, case, 1)
    moved = torch.cat([(a - b).flatten() for a, b in zip(meta_of(case), before, strict=True)])
    assert last["hypergradient_norm"] > 1e-3
    assert float(moved.norm()) == pytest.approx(0.1 * 1e-6, rel=1e-3)


def schedulers(optimizer, which):
    kinds = torch.optim.lr_scheduler
    halves = kinds.StepLR(optimizer, 2, 0.5)
    if which == "step":
        return halves
    if which == "chained":
        return kinds.ChainedScheduler([halves, kinds.ExponentialLR(optimizer, 0.9)])
    return kinds.SequentialLR(
        optimizer,
        [kinds.ConstantLR(optimizer, 0.1, 3), kinds.ExponentialLR(optimizer, 0.5)],
        milestones=[2],
    )


@pytest.mark.parametrize("which", ["step", "chained", "sequential"])
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_a_scheduler_moves_with_lambda_and_resumes_bitwise(tmp_path, which):
    def train(path, steps, resume):
        case, rates = bank.small_net(), []
        optimizer = torch.optim.Adam(case.problem.meta.parameters(), lr=0.1)
        scheduler = schedulers(optimizer, which)
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            Unrolled(1),
            optimizer,
            meta_scheduler=scheduler,
            meta_every=2,
        )
        fit(
            trainer,
            case,
            steps,
            evaluate=lambda _: rates.append(optimizer.param_groups[0]["lr"]) or {},
            evaluate_every=1,
            checkpoint=path,
            resume=resume,
        )
        return meta_of(case), rates

    case = bank.small_net()
    reference = torch.optim.Adam(case.problem.meta.parameters(), lr=0.1)
    scheduler, expected = schedulers(reference, which), []
    for step in range(9):
        if step % 2 == 0:
            reference.step()
            scheduler.step()
        expected.append(reference.param_groups[0]["lr"])
    whole, rates = train(tmp_path / "a.pt", 9, False)
    assert rates == expected and len(set(rates)) > 2
    train(tmp_path / "b.pt", 5, False)
    resumed, rates = train(tmp_path / "b.pt", 9, True)
    assert rates == expected[5:]
    assert all(torch.equal(one, two) for one, two in zip(whole, resumed, strict=True))


def test_a_scheduler_on_a_plateau_sees_the_outer_loss():
    case = bank.illustration()
    optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=0.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.0)
    trainer = mt.MetaTrainer(
        case.problem, mt.inner.SGD(lr=0.0), Unrolled(1), optimizer, meta_scheduler=scheduler
    )
    fit(trainer, case, 3)
    assert scheduler.best == pytest.approx(0.04) and scheduler.last_epoch == 3


def test_optimizers_that_cannot_move_lambda_are_refused():
    case = bank.small_net()
    problem = case.problem
    meta, model = list(problem.meta.parameters()), list(problem.model.parameters())
    for optimizer, message in [
        (torch.optim.LBFGS(meta), r"a LBFGS, whose step evaluates .*closure.*Adam"),
        (torch.optim.SparseAdam(meta), r"SparseAdam.*use Adam"),
        (torch.optim.Adam, r"the class Adam; a torch.optim.Optimizer is needed"),
        (meta, r"a list; a torch.optim.Optimizer is needed"),
        (torch.optim.SGD(model, lr=0.1), r"none of the meta-parameters"),
        (torch.optim.SGD([*meta, model[0]], lr=0.1), r"no meta-parameters \('0.weight'\)"),
        (
            torch.optim.SGD([*meta, torch.nn.Parameter(torch.ones(3))], lr=0.1),
            r"no meta-parameters \(one of shape \(3,\)\)",
        ),
        (torch.optim.SGD(meta[1:], lr=0.1), r"lacks the meta-parameters log_penalty.*freeze"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            mt.MetaTrainer(problem, case.inner, Unrolled(), optimizer)


def test_frozen_parameters_of_meta_may_be_in_its_optimizer_and_stay():
    case = bank.tied()
    meta = case.problem.meta
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.1, weight_decay=0.5)
    meta.frozen.grad = torch.ones_like(meta.frozen)
    fit(mt.MetaTrainer(case.problem, case.inner, Unrolled(), optimizer), case, 2)
    assert torch.equal(meta.frozen.detach(), torch.ones_like(meta.frozen))
    assert torch.equal(meta.frozen.grad, torch.ones_like(meta.frozen))


def test_schedulers_and_limits_that_make_no_sense():
    case = bank.small_net()
    optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=0.1)
    other = torch.optim.SGD(case.problem.meta.parameters(), lr=0.1)
    stranger = torch.optim.lr_scheduler.ExponentialLR(other, 0.9)
    for options, message in [
        ({"meta_scheduler": stranger}, "belongs to another optimizer"),
        ({"meta_scheduler": 0.1}, "meta_scheduler is a float"),
        ({"meta_scheduler": type(stranger)}, "meta_scheduler is the class ExponentialLR"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm is inf"),
        ({"clip_norm": float("nan")}, "clip_norm is nan"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            mt.MetaTrainer(case.problem, case.inner, Unrolled(), optimizer, **options)


def test_a_part_of_lambda_that_nothing_reaches_is_told_once():
    def train(steps, **frozen):
        case = bank.tied()
        for name in frozen:
            getattr(case.problem.meta, name).requires_grad_(False)
        problem = mt.BilevelProblem(
            case.problem.model, case.problem.meta, case.problem.train_loss, case.problem.valid_loss
        )
        optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.01)
        trainer = mt.MetaTrainer(problem, case.inner, Unrolled(1), optimizer)
        trainer.fit(case.train_batches, [case.valid_batch], steps, progress=False)

    train(9)
    with pytest.warns(UserWarning, match=r"of unused was exactly zero in the first 10 m") as told:
        train(25)
    assert [warning.filename.rsplit("/", 1)[-1] for warning in told] == ["meta_update.py"]
    # Nothing is told where it was meant, nor where a gradient is zero at the beginning alone.
    train(12, unused=True)
    case = bank.illustration()
    update = MetaUpdate(case.problem, torch.optim.SGD(case.problem.meta.parameters(), lr=0.1))
    for scale in [0.0] * 9 + [1.0] * 5:
        update.move([{"value": torch.tensor(scale, dtype=torch.float64)}], torch.tensor(0.0))


def test_gradients_are_put_back_where_the_optimizer_fails():
    case = bank.small_net()

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyboardInterrupt

    optimizer = Failing(case.problem.meta.parameters(), lr=0.1)
    trainer = mt.MetaTrainer(case.problem, case.inner, Unrolled(), optimizer)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, case, 1)
    assert all(parameter.grad is None for parameter in case.problem.meta.parameters())


def test_several_hypergradients_move_lambda_along_their_mean():
    problem = bank.illustration().problem
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.5)
    gradients = [{"value": torch.tensor(v, dtype=torch.float64)} for v in (1.0, 2.0, 6.0)]
    for clip, expected in ((None, 0.4 - 0.5 * 3.0), (1.5, 0.4 - 0.5 * 1.5)):
        with torch.no_grad():
            problem.meta.value.fill_(0.4)
        norm = MetaUpdate(problem, optimizer, clip_norm=clip).move(gradients, torch.tensor(0.0))[
            "hypergradient_norm"
        ]
        assert float(norm) == pytest.approx(3.0)
        assert float(problem.meta.value.detach()) == pytest.approx(expected, rel=1e-5)
        assert problem.meta.value.grad is None


def test_all_of_lambda_moves_from_any_group():
    case = bank.small_net()
    problem = case.problem
    named = dict(problem.meta.named_parameters())
    groups = [{"params": [p], "lr": 10.0**-i} for i, p in enumerate(named.values(), 1)]
    before = meta_of(case)
    gradients = [{n: torch.ones_like(p) for n, p in named.items()}]
    norm = MetaUpdate(problem, torch.optim.SGD(groups)).move(gradients, torch.tensor(0.0))[
        "hypergradient_norm"
    ]
    assert float(norm) == pytest.approx(sum(p.numel() for p in named.values()) ** 0.5)
    for index, (old, new) in enumerate(zip(before, meta_of(case), strict=True), 1):
        torch.testing.assert_close(new, old - 10.0**-index)


def test_an_optimizer_whose_step_takes_nothing_is_taken():
    case = bank.small_net()

    class Plain(torch.optim.SGD):
        def step(self):
            return super().step()

    before = meta_of(case)
    optimizer = Plain(case.problem.meta.parameters(), lr=0.1)
    fit(mt.MetaTrainer(case.problem, case.inner, Unrolled(), optimizer), case, 1)
    assert not all(map(torch.equal, before, meta_of(case)))


def test_names_are_told_up_to_five():
    meta = torch.nn.ParameterDict({n: torch.nn.Parameter(torch.ones(())) for n in "abcdefg"})

    def loss(model, meta, batch):
        return model.value * meta["a"]

    problem = mt.BilevelProblem(bank.Value(1.0, torch.float32), meta, loss, loss)
    update = MetaUpdate(problem, torch.optim.SGD(meta.parameters(), lr=0.1))
    gradients = [{name: torch.zeros(()) for name in "abcdefg"}]
    for _ in range(9):
        update.move(gradients, torch.tensor(0.0))
    with pytest.warns(UserWarning, match="of a, b, c, d, e was exactly zero"):
        update.move(gradients, torch.tensor(0.0))
    strangers = [torch.nn.Parameter(torch.ones(size)) for size in range(1, 8)]
    optimizer = torch.optim.SGD([*meta.parameters(), *strangers], lr=0.1)
    with pytest.raises(ConfigurationError, match=r"shape \(4,\), one of shape \(5,\)\); make"):
        MetaUpdate(problem, optimizer)
