"""Figures of the illustration, drawn from the metrics of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def draw_gradients(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the estimate against the true hypergradient over λ, one panel for each K.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`; its first run is drawn.
        path: File to write.
    """
    run = frame["run"].iloc[0]
    penalty, truth = run.metrics["penalty"], run.metrics["true_hypergradient"]
    counts = run.config["candidates"]
    figure = _figure(5 * len(counts), 4)
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, count in zip(axes, counts, strict=True):
        mean, std = run.metrics[f"mean_k{count}"], run.metrics[f"std_k{count}"]
        axis.plot(penalty, mean, color="tab:blue", label="EvoGrad, mean")
        axis.fill_between(
            penalty, mean - std, mean + std, color="tab:blue", alpha=0.2, label="± deviation"
        )
        limit = run.metrics["limit"]
        axis.plot(penalty, limit, color="black", linestyle=":", label="mean for K → ∞")
        axis.plot(penalty, truth, color="tab:red", label="true hypergradient")
        axis.set(title=f"K = {count}", xlabel="λ", ylim=(-1, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("hypergradient")
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)


def draw_trajectories(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the trajectories of EvoGrad and of the true hypergradient over the outer loss.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`; its first run is drawn.
        path: File to write.
    """
    run = frame["run"].iloc[0]
    counts, starts = run.config["candidates"], run.config["starts"]
    figure = _figure(5 * len(counts), 4)
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    x = np.linspace(-2, 2, 200)
    backdrop = np.broadcast_to((x - 0.5) ** 2, (2, 200))
    for axis, count in zip(axes, counts, strict=True):
        axis.imshow(backdrop, extent=(-2, 2, 0, 2), origin="lower", aspect="auto", cmap="Blues")
        for index in range(len(starts)):
            for kind, color, name in (
                ("truth", "tab:red", "true hypergradient"),
                (f"k{count}", "black", "EvoGrad"),
            ):
                axis.plot(
                    run.metrics[f"x_{kind}_start{index}"],
                    run.metrics[f"penalty_{kind}_start{index}"],
                    color=color,
                    marker=".",
                    linewidth=1,
                    label=name if index == 0 else None,
                )
        axis.set(title=f"K = {count}", xlabel="x", xlim=(-2, 2), ylim=(0, 2))
    axes[0].set_ylabel("λ")
    axes[0].legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=120)


def draw_bias_variance(frame: pandas.DataFrame, path: Path) -> None:
    """Draw EvoGrad's bias and deviation against K, σ and τ, and those of all estimators.

    Args:
        frame: Frame of :func:`metatoolkit.experiments.studies.collect`; its first run is drawn.
        path: File to write.
    """
    run = frame["run"].iloc[0]
    figure = _figure(12, 8.5)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.3), squeeze=False).flatten()
    fixed = {
        "candidates": f"K = {run.config['candidates'][0]}",
        "sigma": f"σ = {run.config['sigma']:g}",
        "temperature": f"τ = {run.config['temperature']:g}",
    }
    labels = {"candidates": "candidates K", "sigma": "σ", "temperature": "temperature τ"}
    size = float(np.abs(run.metrics["true_hypergradient"]).mean())
    axes = above.subplots(1, 3, sharey=True)
    for axis, name in zip(axes, labels, strict=True):
        values = run.metrics[f"{name}_value"]
        axis.plot(values, run.metrics[f"{name}_bias"], "o-", label="bias")
        axis.plot(values, run.metrics[f"{name}_std"], "s-", label="deviation")
        limit = run.metrics[f"{name}_limit_bias"]
        axis.plot(values, limit, "k:", label="bias for K → ∞")
        axis.axhline(size, color="gray", linewidth=1, label="size of the true hypergradient")
        others = ", ".join(text for key, text in fixed.items() if key != name)
        axis.set(xscale="log", yscale="log", xlabel=f"{labels[name]}   ({others})")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean over λ")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize="small")
    _draw_estimators(below.subplots(1, 2, sharey=True), run, size)
    figure.savefig(path, dpi=120)


def _draw_estimators(axes: Any, run: Any, size: float) -> None:
    found = [name.removeprefix("bias: ") for name in run.metrics if name.startswith("bias: ")]
    names = sorted(found, key=lambda name: float(run.metrics[f"bias: {name}"].iloc[-1]))
    places = range(len(names))
    for axis, kind, label in zip(
        axes, ("bias", "std"), ("absolute bias", "standard deviation"), strict=True
    ):
        values = [float(run.metrics[f"{kind}: {name}"].iloc[-1]) for name in names]
        axis.barh(places, values, color="tab:blue", alpha=0.6)
        axis.axvline(size, color="gray", linewidth=1)
        axis.set(xscale="log", xlabel=f"{label}, mean over λ", xlim=(1e-4, 10))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(list(places), names)
    axes[0].invert_yaxis()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
