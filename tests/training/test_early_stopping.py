"""Early stopping: when a training ends, and with which state."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.testing import bank
from metatoolkit.training.early_stopping import Watch
from tests.training.assembled import fit, same, tensors_of, trainer_of

SCORES = [3.0, 1.0, 2.0, 0.9, 0.8, 0.85, float("nan"), 0.81, 0.1, 0.0, 0.0, 0.0]


def scored(scores):
    return lambda trainer: {"score": scores[trainer.steps_done - 1]}


def train(case, stopping, scores=SCORES, steps=12, **options):
    trainer = trainer_of(case)
    options = {"evaluate": scored(scores), "evaluate_every": 1} | options
    return trainer, fit(trainer, case, steps, early_stopping=stopping, **options)


def after(steps):
    case = bank.small_net()
    fit(trainer_of(case), case, steps)
    return tensors_of(case.problem)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("patience", "min_delta", "stops", "best"),
    [(1, 0.0, 3, 2), (2, 0.0, 7, 5), (3, 0.0, 8, 5), (5, 0.0, 12, 10), (3, 0.25, 5, 2)],
)
def test_it_ends_where_the_metric_gets_no_better(mode, patience, min_delta, stops, best):
    case = bank.small_net()
    scores = SCORES if mode == "min" else [-score for score in SCORES]
    stopping = mt.EarlyStopping("score", patience, mode, min_delta)
    trainer, last = train(case, stopping, scores)
    assert trainer.steps_done == stops
    assert trainer.watch.step == best and trainer.watch.value == scores[best - 1]
    assert same(tensors_of(case.problem), after(best))
    assert trainer.state.step == best
    # What is returned belongs to the state that is kept.
    assert last["score"] == scores[best - 1]
    assert (
        last["train_loss"]
        == dict((step, value) for name, value, step in trainer.history if name == "train_loss")[
            best
        ]
    )


def test_the_last_state_is_kept_where_the_best_is_not_asked_for():
    case = bank.small_net()
    trainer, last = train(case, mt.EarlyStopping("score", 2, keep_best=False))
    assert trainer.steps_done == 7 and trainer.state.step == 7
    assert same(tensors_of(case.problem), after(7))
    assert ("train_loss", last["train_loss"], 7) in trainer.history


def test_the_step_that_ends_it_is_reported_in_full():
    case, logged = bank.small_net(), []
    stopping = mt.EarlyStopping("score", 2)
    train(case, stopping, log=lambda *entry: logged.append(entry), log_every=5)
    steps = {name: [s for n, _, s in logged if n == name] for name, _, _ in logged}
    assert steps["train_loss"] == [5, 7] and steps["score"] == [1, 2, 3, 4, 5, 6, 7]
    logged.clear()
    case = bank.small_net()
    # A loss that ends it is followed by an evaluation.
    trainer = trainer_of(case, lr=0.0)
    case.inner.hyperparameters["lr"] = 0.0
    stopping = mt.EarlyStopping("train_loss", 1, "max", min_delta=100.0)
    fit(
        trainer,
        case,
        9,
        early_stopping=stopping,
        log=lambda *entry: logged.append(entry),
        evaluate=scored(SCORES),
    )
    assert trainer.steps_done == 2
    assert [step for name, _, step in logged if name == "score"] == [2]


@pytest.mark.parametrize("pause", [3, 6])
def test_it_resumes_bitwise(tmp_path, pause):
    stopping = mt.EarlyStopping("score", 3)
    whole = bank.small_net()
    expected, last = train(whole, stopping)
    path, parts = tmp_path / "c.pt", bank.small_net()
    train(parts, stopping, steps=pause, checkpoint=path)
    resumed = bank.small_net()
    trainer, found = train(resumed, stopping, checkpoint=path, resume=True)
    assert same(tensors_of(whole.problem), tensors_of(resumed.problem))
    assert trainer.history == expected.history and found == last
    # One that has ended stays ended.
    again = bank.small_net()
    trainer, found = train(again, stopping, checkpoint=path, resume=True)
    assert trainer.steps_done == 8 and found == last
    assert same(tensors_of(whole.problem), tensors_of(again.problem))
    with pytest.raises(CheckpointError, match=r"watched 'score' \(min\).*'score' \(max\)"):
        train(again, mt.EarlyStopping("score", 3, "max"), checkpoint=path, resume=True)


def test_a_metric_that_nothing_reports_is_told():
    case = bank.small_net()
    with pytest.raises(ConfigurationError, match=r"watches 'accuracy', .*there are .*score"):
        train(case, mt.EarlyStopping("accuracy"))
    with pytest.raises(ConfigurationError, match=r"watches 'score'.*evaluate_every is 0"):
        train(case, mt.EarlyStopping("score"), evaluate_every=0)
    with pytest.raises(ConfigurationError, match=r"watches 'score'.*evaluate is missing"):
        train(case, mt.EarlyStopping("score"), evaluate=None)
    with pytest.raises(ConfigurationError, match=r"watches 'valid_loss', which nothing reports"):
        trainer_of(case, None).fit(
            case.train_batches,
            steps=2,
            progress=False,
            early_stopping=mt.EarlyStopping("valid_loss"),
        )


def test_what_is_not_said():
    assert mt.EarlyStopping("score") == mt.EarlyStopping("score", 5, "min", 0.0, True)
    watch = Watch(mt.EarlyStopping("score"))
    assert (watch.value, watch.step, watch.waited, watch.stopped) == (None, 0, 0, False)
    saved = watch.state_dict()
    assert saved["meta"] == {} and saved["state"] is None and saved["value"] is None
    problem = bank.ridge().problem
    assert watch.best_state(problem) is None


def test_settings_out_of_range():
    for arguments, message in [
        ({"metric": 3}, "metric is 3"),
        ({"patience": 0}, "patience is 0"),
        ({"mode": "best"}, "mode is 'best'; accepted: 'min', 'max'"),
        ({"min_delta": -0.1}, "min_delta is -0.1"),
        ({"min_delta": float("nan")}, "min_delta is nan"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            mt.EarlyStopping(**({"metric": "score"} | arguments))
    case = bank.small_net()
    with pytest.raises(ConfigurationError, match=r"early_stopping is a str; give mt"):
        train(case, "score")


def test_the_best_state_is_no_view_of_the_live_one():
    case = bank.small_net()
    trainer, _ = train(case, mt.EarlyStopping("score", 2))
    kept = [tensor.clone() for tensor in trainer.state.tensors()]
    meta = [parameter.detach().clone() for parameter in case.problem.meta.parameters()]
    with torch.no_grad():
        for parameter in [*case.problem.model.parameters(), *case.problem.meta.parameters()]:
            parameter.add_(1.0)
    assert same(kept, trainer.state.tensors())
    assert not any(t.requires_grad for t in trainer.watch.state_dict()["meta"].values())
    trainer.watch.best_state(case.problem)
    assert same(meta, case.problem.meta.parameters())


def test_a_best_state_goes_to_the_device_of_the_training_where_it_is_kept():
    case = bank.small_net()
    trainer, _ = train(case, mt.EarlyStopping("score", 2))
    saved = trainer.watch.state_dict()
    watch = Watch(mt.EarlyStopping("score", 2))
    watch.load_state_dict(saved, torch.device("meta"))
    state = watch.best_state(case.problem)
    assert {tensor.device.type for tensor in state.tensors()} == {"meta"} and state.step == 5
    assert (watch.value, watch.step, watch.waited) == (0.8, 5, 2) and watch.stopped
    without = Watch(mt.EarlyStopping("score", 2, keep_best=False))
    without.load_state_dict(saved, torch.device("cpu"))
    assert without.best_state(case.problem) is None and without.value == 0.8


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_must_be_better_by_more_than_the_least_difference(mode):
    problem, sign = bank.ridge().problem, 1 if mode == "max" else -1
    watch = Watch(mt.EarlyStopping("score", 3, mode, min_delta=0.5))
    seen = []
    for step, value in enumerate((1.0, 1.5, 1.75, 2.0, 2.25, 2.5), 1):
        watch.see({"score": sign * value, "other": 9.0}, step, problem, None)
        watch.see({"other": 0.0}, step, problem, None)
        seen.append((watch.value, watch.step, watch.waited))
    one, two, three = sign * 1.0, sign * 1.75, sign * 2.5
    expected = [(one, 1, 0), (one, 1, 1), (two, 3, 0), (two, 3, 1), (two, 3, 2), (three, 6, 0)]
    assert seen == expected


def test_what_has_seen_nothing_is_stored_and_found_again():
    watch = Watch(mt.EarlyStopping("score"))
    watch.load_state_dict(Watch(mt.EarlyStopping("score")).state_dict(), torch.device("cpu"))
    assert (watch.value, watch.step, watch.waited) == (None, 0, 0)
    assert watch.best_state(bank.ridge().problem) is None


def test_it_looks_when_the_metric_is_reported_and_not_before():
    case = bank.small_net()
    trainer, _ = train(case, mt.EarlyStopping("score", 9), evaluate_every=2, steps=5)
    assert trainer.watch.step == 5 and trainer.watch.value == 0.8
    assert [step for name, _, step in trainer.history if name == "score"] == [2, 4, 5]
    case = bank.small_net()
    options = {"evaluate": None, "evaluate_every": 0, "log_every": 3}
    trainer, _ = train(case, mt.EarlyStopping("train_loss", 9), steps=7, **options)
    assert {step for _, _, step in trainer.history} == {3, 6, 7}
    assert trainer.watch.step in (3, 6, 7)


def test_it_may_begin_or_end_with_a_resume(tmp_path):
    stopping, path = mt.EarlyStopping("score", 9), tmp_path / "c.pt"
    train(bank.small_net(), stopping, steps=3, checkpoint=path)
    case = bank.small_net()
    trainer, _ = train(case, None, steps=4, checkpoint=path, resume=True)
    assert trainer.watch is None and trainer.steps_done == 4
    case = bank.small_net()
    trainer, _ = train(case, stopping, steps=6, checkpoint=path, resume=True)
    assert (trainer.watch.value, trainer.watch.step) == (0.8, 5)
