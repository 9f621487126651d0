"""The profile of a training: phases that are known, a trace, and nothing that stays replaced."""

import json

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics import profile
from metatoolkit.diagnostics.measure import peak_memory, peak_memory_by
from metatoolkit.diagnostics.profile import PHASES, TrainingProfile, profile_training
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvoGrad, ForwardMode, Unrolled


def weighted(model, meta, batch):
    return (meta.bias.exp() * (model(batch[0]) - batch[1]).square()).mean()


def plain(model, meta, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def trainer_of(estimator):
    torch.manual_seed(0)
    problem = mt.BilevelProblem(nn.Linear(3, 2), nn.Linear(1, 2), weighted, plain)
    optimizer = estimator and torch.optim.SGD(problem.meta.parameters(), lr=0.1)
    return mt.MetaTrainer(problem, mt.inner.SGD(lr=0.1), estimator, optimizer)


@pytest.fixture
def batches():
    return [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)]


@pytest.mark.parametrize(
    ("estimator", "forward", "backward", "products", "noise"),
    [
        # Training and outer loss, and the base step; the product is that of the one step.
        (Unrolled(1), 3, 3, 1, False),
        (Unrolled(1, product="forward_over_reverse"), None, None, None, False),
        (EvoGrad(2, 1e-3, 0.05, streamed=False), 4, 3, 0, True),
    ],
)
def test_passes_by_phase(batches, estimator, forward, backward, products, noise):
    found = profile_training(trainer_of(estimator), batches, batches, steps=4, progress=False)
    assert list(found.seconds) == list(found.calls) == list(found.peak_bytes) == list(PHASES)
    assert found.steps == 4 and min(found.seconds.values()) >= 0
    if forward is not None:
        given = [found.calls[name] for name in ("forward", "backward", "HVP")]
        assert given == [forward, backward, products]
    else:
        assert found.calls["HVP"] > 0
    assert (found.calls["noise"] > 0) == noise == (found.seconds["noise"] > 0)
    # A batch for each loss, an update of θ by the look-ahead and by the step, one of λ.
    assert found.calls["data"] in (2, 2.5, 2.75, 3) and found.calls["meta optimizer"] == 1
    assert found.seconds["meta optimizer"] > 0 and found.calls["inner optimizer"] >= 1


def test_what_trains_is_trained_as_without(batches):
    watched, other = trainer_of(Unrolled(2)), trainer_of(Unrolled(2))
    profile_training(watched, batches, batches, steps=2, progress=False)
    other.fit(batches, batches, steps=4, progress=False)
    assert watched.steps_done == other.steps_done == 4
    for one, same in zip(
        watched.problem.meta.parameters(), other.problem.meta.parameters(), strict=True
    ):
        assert torch.equal(one, same)


def test_the_trace_names_the_phases_and_nothing_stays_replaced(batches, tmp_path, capfd):
    before = torch.autograd.grad, mt.BilevelProblem._evaluate
    found = profile_training(
        trainer_of(Unrolled(1)), batches, batches, steps=1, trace=tmp_path / "t.json", progress=True
    )
    names = {
        event.get("name") for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    }
    assert {"forward", "backward", "HVP", "inner optimizer", "meta optimizer", "data"} <= names
    assert "aten::addmm" in names and "noise" not in names
    assert (torch.autograd.grad, mt.BilevelProblem._evaluate) == before
    assert max(found.peak_bytes.values()) > 0 and "4/4" in capfd.readouterr().err


def test_an_error_leaves_nothing_replaced(batches):
    before = torch.autograd.grad

    def failing():
        yield batches[0]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        profile_training(trainer_of(Unrolled(1)), failing(), batches, progress=False)
    assert torch.autograd.grad is before


def test_forward_mode_has_products(batches):
    found = profile_training(trainer_of(ForwardMode(2)), batches, batches, steps=1, progress=False)
    assert found.calls["HVP"] > 0


def test_what_cannot_be_profiled_is_refused(batches):
    with pytest.raises(ConfigurationError, match="steps is 0"):
        profile_training(trainer_of(Unrolled(1)), batches, batches, steps=0)
    with pytest.raises(ConfigurationError, match="no estimator"):
        profile_training(trainer_of(None), batches)


def test_nested_phases_count_once(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(profile.time, "process_time", lambda: next(times))
    clock = profile._Clock()
    with clock.within("forward"), clock.within("noise"):
        pass
    assert clock.stop() == (
        {"other": 6.0, "forward": 6.0, "noise": 3.0},
        {"forward": 1, "noise": 1},
    )


def test_rows_by_hand():
    seconds = dict.fromkeys(PHASES, 0.0) | {"forward": 0.03, "other": 0.01}
    calls, peaks = dict.fromkeys(PHASES, 0.0) | {"forward": 2.0}, dict.fromkeys(PHASES, 2**20)
    rows = {row[0]: row[1:] for row in TrainingProfile(seconds, calls, peaks, 3).rows()}
    assert list(rows) == [*PHASES, "step"]
    assert rows["forward"] == pytest.approx((2, 30, 0.75, 1)) and rows["noise"] == (0, 0, 0, 1)
    assert rows["step"] == pytest.approx((1, 40, 1, 1))


def test_memory_by_phase():
    phase = "first"

    def call():
        nonlocal phase
        kept = torch.zeros(100) + 1
        phase = "second"
        return kept + torch.zeros(50).sum()

    peaks = peak_memory_by(call, lambda: phase)
    # Two tensors of 100 at most; then one, another of 50 and its sum, or the result.
    assert peaks["first"] == 800 and 800 <= peaks["second"] < 900
    phase = "first"
    assert peak_memory(call) == max(peaks.values())
