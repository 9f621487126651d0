"""EvoGrad on one parameter (Bohdal et al. 2021, arXiv 2106.10575, section 3.2).

The inner loss is (x − 1)² + λx², the outer one (x − ½)², so that the true hypergradient is
(λ − 1) / (λ + 1)³. Three parts, each a named configuration: ``gradients`` (the estimate at random x
against the truth), ``trajectories`` (five steps of x and λ) and ``bias_variance`` (against K, σ and
τ, and beside every other estimator of the toolkit, which the paper lacks).

With ``seed=1`` the draws are those of the paper's notebook, number by number. What differs from it,
on purpose: there the "ground truth" of the trajectories moves λ along the true hypergradient at the
λ that EvoGrad has reached, so that it hangs on K; here at its own.

Expected: see docs/illustration.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from applications.illustration import estimators, replay
from applications.illustration.problem import mean_limit_estimate, true_hypergradient
from applications.illustration.settings import NAMED, IllustrationSettings
from metatoolkit import records
from metatoolkit.experiments.configured import configure

experiment = records.experiment("illustration")
settings_of = configure(experiment, IllustrationSettings, NAMED)


def run_gradients(run: Any, config: dict[str, Any]) -> dict[str, float]:
    """Record mean and deviation of EvoGrad's estimates at each λ, for each K.

    Args:
        run: The Sacred run.
        config: Its configuration.

    Returns:
        Mean over λ of the absolute bias, and of the deviation, for each K.
    """
    penalties = _penalties(config)
    sigma, temperature = config["sigma"], config["temperature"]
    truth = true_hypergradient(penalties)
    _log(run, "penalty", penalties)
    _log(run, "true_hypergradient", truth)
    _log(run, "limit", mean_limit_estimate(penalties, sigma, temperature))
    noise = replay.NotebookNoise(config["seed"])
    result = {}
    for count in config["candidates"]:
        drawn = replay.sample_estimates(
            penalties, config["trials"], count, sigma, temperature, noise
        )
        mean, std = drawn.mean(1), drawn.std(1, correction=0)
        _log(run, f"mean_k{count}", mean)
        _log(run, f"std_k{count}", std)
        result[f"bias_k{count}"] = float((mean - truth).abs().mean())
        result[f"std_k{count}"] = float(std.mean())
    return result


def run_trajectories(run: Any, config: dict[str, Any]) -> dict[str, float]:
    """Record the trajectories of EvoGrad for each K, and those of the true hypergradient.

    Args:
        run: The Sacred run.
        config: Its configuration.

    Returns:
        x and λ at the end, and for each K the mean distance of the ends from the true ones.
    """
    noise = replay.NotebookNoise(config["seed"])
    steps, lr = config["steps"], config["lr"]
    ends: dict[str, list[tuple[float, float]]] = {}
    for index, start in enumerate(config["starts"]):
        path = replay.true_trajectory(start, steps, lr)
        ends.setdefault("truth", []).append(_log_path(run, f"truth_start{index}", path))
    for count in config["candidates"]:
        for index, start in enumerate(config["starts"]):
            path = replay.evograd_trajectory(
                start, steps, lr, count, config["sigma"], config["temperature"], noise
            )
            ends.setdefault(f"k{count}", []).append(_log_path(run, f"k{count}_start{index}", path))
    result = {}
    for kind, points in ends.items():
        for index, (x, penalty) in enumerate(points):
            result[f"x_{kind}_start{index}"] = x
            result[f"penalty_{kind}_start{index}"] = penalty
        away = np.linalg.norm(np.subtract(points, ends["truth"]), axis=1)
        result[f"distance_{kind}"] = float(away.mean())
    return result


def run_bias_variance(run: Any, config: dict[str, Any]) -> dict[str, float]:
    """Record EvoGrad's bias and deviation against K, σ and τ, and those of all estimators.

    Both are means over λ, the bias in absolute value, with x ~ N(0, 1) at each.

    Args:
        run: The Sacred run.
        config: Its configuration.

    Returns:
        Bias and deviation of each estimator, by label.
    """
    penalties = _penalties(config)
    truth = true_hypergradient(penalties)
    _log(run, "true_hypergradient", truth)
    generator = torch.Generator().manual_seed(config["seed"])
    shape = (len(penalties), config["trials"])
    fixed = {"candidates": config["candidates"][0]}
    fixed |= {name: config[name] for name in ("sigma", "temperature")}

    def sample(point: dict[str, Any]) -> tuple[float, float]:
        x, epsilon = (
            torch.randn(*size, generator=generator, dtype=torch.float64)
            for size in (shape, (*shape, point["candidates"]))
        )
        drawn = replay.estimates(
            x, penalties.unsqueeze(1), epsilon, point["sigma"], point["temperature"]
        )
        return float((drawn.mean(1) - truth).abs().mean()), float(drawn.std(1).mean())

    for name, values in config["sweep"].items():
        for step, value in enumerate(values):
            point = {**fixed, name: value}
            bias, std = sample(point)
            limit = mean_limit_estimate(penalties, point["sigma"], point["temperature"])
            run.log_scalar(f"{name}_value", float(value), step)
            run.log_scalar(f"{name}_bias", bias, step)
            run.log_scalar(f"{name}_std", std, step)
            run.log_scalar(f"{name}_limit_bias", float((limit - truth).abs().mean()), step)
    measured = estimators.measure(
        estimators.build_estimators(config["horizon"], config["sigma"], config["temperature"]),
        penalties.tolist(),
        lr=config["lr"],
        horizon=config["horizon"],
        nodes=config["nodes"],
        draws=config["draws"],
        seed=config["seed"],
        progress=config["progress"],
    )
    errors = {f"EvoGrad, K = {fixed['candidates']}": sample(fixed)}
    for label, moments in measured.items():
        if not moments.note:
            errors[label] = moments.errors(penalties.tolist())
    result = {}
    for label, (bias, std) in errors.items():
        for kind, value in (("bias", bias), ("std", std)):
            run.log_scalar(f"{kind}: {label}", value, 0)
            result[f"{kind}: {label}"] = value
    run.info["left_out"] = {label: m.note for label, m in measured.items() if m.note}
    return result


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Run one part, and record its curves.

    Returns:
        The figures that sum it up.
    """
    config = settings_of(_config)
    parts = {
        "gradients": run_gradients,
        "trajectories": run_trajectories,
        "bias_variance": run_bias_variance,
    }
    return parts[config["part"]](_run, config)


def _penalties(config: dict[str, Any]) -> torch.Tensor:
    return torch.linspace(*config["penalties"].values(), dtype=torch.float64)


def _log(run: Any, name: str, values: torch.Tensor) -> None:
    for step, value in enumerate(values.tolist()):
        run.log_scalar(name, value, step)


def _log_path(run: Any, name: str, path: list[tuple[float, float]]) -> tuple[float, float]:
    for step, (x, penalty) in enumerate(path):
        run.log_scalar(f"x_{name}", x, step)
        run.log_scalar(f"penalty_{name}", penalty, step)
    return path[-1]
