import copy
import math

import pandas
import pytest
import torch
from torch import nn

import metatoolkit as mt
from applications.cross_domain_few_shot import figures
from applications.cross_domain_few_shot.experiment import assemble, experiment
from applications.cross_domain_few_shot.horizon_study import (
    DERIVATIVES,
    DIFFERENCES,
    LEARNED,
    STRENGTH,
)
from applications.cross_domain_few_shot.horizons import check_horizons, strength_slopes
from applications.cross_domain_few_shot.settings import DEFAULT, NAMED
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.jobs import configuration_of
from metatoolkit.experiments.studies import jobs_of
from tests.drawings import legend

LR, MOMENTUM = 0.3, 0.4


class Followed(nn.Module):
    """A parameter θ, and a buffer that follows λ in train mode as running statistics do."""

    def __init__(self, meta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("level", torch.tensor(0.0, dtype=torch.float64))
        self.strength = [meta]

    def forward(self):
        if self.training:
            with torch.no_grad():
                self.level.lerp_(self.strength[0].value, MOMENTUM)
        return self.theta


class Strength(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))


def trainer():
    meta = Strength()
    problem = mt.BilevelProblem(
        Followed(meta),
        meta,
        train_loss=lambda model, meta, target: (model() - meta.value * target).square() / 2,
        valid_loss=lambda model, meta, weight: weight * (model() + model.level),
        valid_mode="eval",
    )
    return mt.MetaTrainer(problem, mt.inner.SGD(lr=LR))


@pytest.mark.parametrize("horizon", [1, 3])
def test_slopes_in_the_logarithm_of_the_strength_have_the_closed_form(horizon):
    looked_at = trainer()
    before = copy.deepcopy(looked_at.state)
    targets, weights = [1.0, 2.0, -1.0, 0.5, 3.0, 1.5], [2.0, 4.0]
    found = strength_slopes(looked_at, targets, weights, horizon, 2)

    def by_theta(batches):
        return sum(LR * (1 - LR) ** (horizon - 1 - i) * b for i, b in enumerate(batches))

    # θ and the level are linear in λ, so that the central difference in log λ is sinh(h) / h of it.
    through_level = 1 - (1 - MOMENTUM) ** horizon
    derivatives = [
        0.8 * weight * by_theta(targets[i * horizon : (i + 1) * horizon])
        for i, weight in enumerate(weights)
    ]
    stretch = math.sinh(0.1) / 0.1
    differences = [
        stretch * (own + 0.8 * weight * through_level)
        for own, weight in zip(derivatives, weights, strict=True)
    ]
    for name, values in (("slope", derivatives), ("slope_with_statistics", differences)):
        values = torch.tensor(values, dtype=torch.float64)
        assert found[f"{name}_{horizon}"] == pytest.approx(float(values.mean()), rel=1e-9)
        deviation = found[f"{name}_{horizon}_deviation"]
        assert deviation == pytest.approx(float(values.std()), rel=1e-9)
    after = looked_at.state
    for kept, left in ((before.parameters, after.parameters), (before.buffers, after.buffers)):
        assert kept.keys() == left.keys() and len(kept) == 1
        assert all(torch.equal(kept[name], left[name]) for name in kept)


def test_forward_mode_gives_the_slope_of_unrolled_steps():
    looked_at = trainer()
    found = strength_slopes(looked_at, [1.0, 2.0, -1.0], [2.0], 3, 1)
    assert "slope_3_deviation" not in found
    estimator = mt.hypergradients.ForwardMode(3)
    batches = [torch.tensor(target) for target in (1.0, 2.0, -1.0)]
    result = estimator(looked_at.problem, looked_at.inner, looked_at.state, batches, 2.0)
    assert found["slope_3"] == pytest.approx(0.8 * float(result.gradient["value"]), rel=1e-12)


def _run(**updates):
    return experiment.run(
        named_configs=["smoke"], config_updates={"progress": False, "seed": 3, **updates}
    )


def test_a_run_records_what_the_outer_loss_says_of_the_strength():
    asked = {"steps": [1, 2], "at": 3, "inner_steps": 4, "valid_episodes": 2}
    run = _run(method="fixed_transform", horizons=asked, transform={"per": "layer"})
    plain = _run(method="fixed_transform", transform={"per": "layer"})
    slopes = {
        f"{name}_{horizon}{end}"
        for name in ("slope", "slope_with_statistics")
        for horizon in (1, 2)
        for end in ("", "_deviation")
    }
    assert set(run.result) - set(plain.result) == slopes | {"outer_loss"}
    assert all(math.isfinite(run.result[name]) for name in slopes)
    assert run.result["outer_loss"] > 0
    # It is only looked at.
    assert run.result["test_accuracy"] == plain.result["test_accuracy"]


def _config(**updates):
    config = copy.deepcopy(DEFAULT)
    for changes in ({"seed": 1, "progress": False}, NAMED["smoke"], updates):
        for name, value in copy.deepcopy(changes).items():
            nested = isinstance(value, dict) and isinstance(config.get(name), dict)
            config[name] = {**config[name], **value} if nested else value
    return config


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"horizons": {"steps": [1], "at": 4}}, "evaluations are due every 3 and after 6"),
        ({"horizons": {"steps": [1], "at": 9}}, "horizons.at is 9"),
        ({"horizons": {"steps": [1], "at": 3}, "evaluate_every": 0}, "due only after 6"),
        ({"horizons": {"steps": [1], "at": 3}, "reset_every": 3}, "leave auxiliary.domain"),
        ({"horizons": {"steps": [1]}, "auxiliary": {"domain": "digits"}}, "training on episodes"),
        (
            {"horizons": {"steps": [1], "at": 3}, "method": "meta", "evaluate_every": 1}
            | {"estimator": {"name": "Unrolled", "steps": 2}},
            "due every 2 and after 6",
        ),
    ],
)
def test_what_would_not_be_measured_is_refused(updates, message):
    config = _config(**updates)
    with pytest.raises(ConfigurationError, match=message):
        check_horizons(config, assemble(config))


def test_options_of_learning_reach_the_trainer():
    config = _config(
        method="second_order",
        meta_optimizer="sgd",
        meta_momentum=0.8,
        accumulate=2,
        keep_lookahead=False,
        reset_every=4,
        milestones=[0.5],
        transform={"per": "layer", "scale": 1.0},
    )
    trainer = assemble(config).trainer
    assert isinstance(trainer.meta_optimizer, torch.optim.SGD)
    assert trainer.meta_optimizer.param_groups[0]["momentum"] == 0.8
    assert (trainer.accumulate, trainer.reset_every) == (2, 4)
    assert {tuple(p.shape) for p in trainer.problem.meta.parameters()} == {(1,)}
    # The rate falls within each training, not within all of them together.
    rate = trainer.inner.hyperparameters["lr"]
    assert [rate(None, step) for step in (1, 2)] == pytest.approx([1e-3, 1e-4])
    adam = assemble(_config(method="second_order", meta_momentum=0.99)).trainer.meta_optimizer
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["betas"] == (0.99, 0.999)
    kept = _config(method="second_order", keep_lookahead=True, order="meta_first")
    assert assemble(kept).trainer.keep_lookahead


def test_studies_share_what_they_have_in_common_and_ask_what_is_measured():
    digests = {}
    for study in (STRENGTH, LEARNED):
        for job in jobs_of(study, [1]):
            config = configuration_of(job)
            check_horizons(config, assemble(config))
            digests[study.name, job.label] = job.info["study"]["configuration"]
    fixed = {label: digests["few_shot_learned", f"fixed {label}"] for label in ("1, 1", "0.3, 0.5")}
    assert fixed == {label: digests["few_shot_strength", label] for label in fixed}


def test_the_figure_of_the_strength(tmp_path, drawn):
    found = []
    for place, label in enumerate(STRENGTH.rows):
        for seed in (1, 2, 3):
            line = {column.header: place + 0.1 * seed for column in STRENGTH.columns}
            if label == "none":
                line |= {column.header: math.nan for column in (*DERIVATIVES, *DIFFERENCES)}
            found.append({"row": label, "seed": seed, **line})
    figures.draw_strength(pandas.DataFrame(found), tmp_path / "figure.png")
    panels = drawn.axes("figure.png", tmp_path)
    assert len(panels) == 4
    for panel, series in zip(panels, (1, 1, 3, 3), strict=True):
        assert [text.get_text() for text in panel.get_xticklabels()] == list(STRENGTH.rows)
        rows = len(STRENGTH.rows) - (series == 3)
        assert len(panel.containers) == series * rows
        # The half-width of three values that lie 0.1 apart: 4.303 times 0.1 / √3.
        point, _, (interval,) = panel.containers[-1]
        assert point.get_ydata()[0] == pytest.approx(len(STRENGTH.rows) - 1 + 0.2)
        (low, high) = interval.get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(0.2484, abs=1e-4)
    assert legend(panels[2]) == legend(panels[3]) == ["T = 1", "T = 5", "T = 20"]
