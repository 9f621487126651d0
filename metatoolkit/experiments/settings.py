"""Entries that configurations of several applications have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.components import META_METHODS, build_estimator, build_inner
from metatoolkit.experiments.configuration import (
    Among,
    Count,
    CountOrZero,
    Device,
    Field,
    OpenSettings,
    Positive,
    Seed,
    Settings,
    Share,
    ShareBelowOne,
    Text,
    entry,
)
from metatoolkit.hypergradients import estimators
from metatoolkit.inner import learners
from metatoolkit.networks import NETWORKS


class RunSettings(Settings):
    """What :func:`metatoolkit.experiments.run.fit_recorded` reads."""

    seed: Seed = entry(..., "Seed of all that is drawn; drawn itself where it is not given.")
    steps: Count = entry(..., "Inner steps of training.")
    device: Device = entry("cpu", "Where to train.")
    evaluate_every: CountOrZero = entry(250, "Steps between evaluations; 0 for the last alone.")
    log_every: Count = entry(10, "Steps between values of the training's metrics.")
    checkpoint_every: CountOrZero = entry(250, "Steps between checkpoints; 0 for the last alone.")
    checkpoint: Text | None = entry(None, "File of the checkpoint; None for one named by the run.")
    resume: bool = entry(False, "Whether to go on from the checkpoint of an interrupted run.")
    progress: bool = entry(True, "Whether to show a progress bar.")


class _EvoGradOptions(Settings):
    candidates: Annotated[int, Field(ge=2)] = entry(2, "Candidates for the parameters.")
    temperature: Positive = entry(0.05, "Temperature of the softmax that weights them.")
    noise: Literal["sign", "gaussian"] = entry("sign", "Distribution of what they differ by.")
    rescale: bool = entry(True, "Whether to scale the hypergradient to the inner learning rate.")
    perturb: Annotated[list[Text], Field(min_length=1)] | None = entry(
        None, "Patterns of the parameters that candidates differ in; None for all."
    )
    streamed: bool | Literal["vmap"] | None = entry(
        None, "Whether to hold one candidate at a time; 'vmap' for all at once, None to choose."
    )


class EvoGradSettings(_EvoGradOptions):
    """Options of :class:`metatoolkit.hypergradients.EvoGrad`."""

    sigma: Positive = entry(1e-3, "Standard deviation of what candidates differ by.")


class TunedEvoGradSettings(_EvoGradOptions):
    """The same where σ may be left to what was tuned."""

    sigma: Positive | None = entry(
        None, "Standard deviation of what candidates differ by; None for what was tuned."
    )


class ChosenEstimator(OpenSettings):
    """A registered estimator, its options beside its name."""

    name: Annotated[str, Among(estimators)] | None = entry(
        None, "Estimator in the place of the method's own."
    )


class ChosenLearner(OpenSettings):
    """A registered inner learner, its options beside its name."""

    name: Annotated[str, Among(learners)] | None = entry(
        None, "Inner learner in the place of the application's own."
    )


class NoiseSettings(Settings):
    """Corruption of the training labels."""

    kind: Literal["uniform", "flip", "flip2"] = entry("flip", "How labels are corrupted.")
    probability: Share = entry(0.4, "Share of the labels that are corrupted.")


class ClassifierSettings(Settings):
    """Classifier; an option that is None keeps the network's own default."""

    name: Annotated[str, Among(NETWORKS)] = entry("mlp", "Network.")
    hidden: list[Count] | None = entry(None, "Widths of hidden layers; None for its own.")
    width: Count | None = entry(None, "Width, or its factor; None for the network's own.")
    depth: Count | None = entry(None, "Depth; None for the network's own.")
    dropout: ShareBelowOne | None = entry(None, "Dropout; None for the network's own.")


class MethodSettings(RunSettings):
    """What every application has that trains one model, beside the settings of its method.

    Attributes:
        learning: Methods that learn λ, whose place an estimator that is named takes.
    """

    learning: ClassVar[tuple[str, ...]] = META_METHODS

    method: Annotated[str, Among(("plain", *META_METHODS))] = entry(
        "second_order", "What learns λ: nothing, an estimator by its usual options, or `estimator`."
    )
    estimator: ChosenEstimator = entry(ChosenEstimator(), "Options of the estimator.")
    inner: ChosenLearner = entry(ChosenLearner(), "Options of the inner learner.")

    @classmethod
    @override
    def settle(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Check a configuration, and say in its method whether the estimator is chosen by name.

        The estimator that ``estimator.name`` names takes the place of the method's own, and the
        method is then ``"meta"``.

        Returns:
            The configuration with its method.

        Raises:
            ConfigurationError: A value is not accepted; or the method takes no estimator, or is
                ``"meta"`` without one; or options are given to a component that is not named.
            UnknownNameError: A name is unknown.
        """
        cls.check(config)
        for part in ("estimator", "inner"):
            given = [name for name in config[part] if name != "name"]
            if config[part]["name"] is None and given:
                raise ConfigurationError(
                    f"{part}.{given[0]} is given, but {part}.name is not; give both."
                )
        # Made once to see that its options are right, before anything is loaded.
        build_inner(config, 1.0)
        method, chosen = config["method"], config["estimator"]["name"]
        if chosen is None:
            if method == "meta":
                raise ConfigurationError(
                    "method is 'meta', but estimator.name is None; name one: "
                    f"{', '.join(estimators)}."
                )
            return dict(config)
        if method not in cls.learning:
            raise ConfigurationError(
                f"method is {method!r}, which takes no estimator, but estimator.name is "
                f"{chosen!r}; leave one of them out."
            )
        settled = {**config, "method": "meta"}
        build_estimator(settled)
        return settled


class TrainingSettings(MethodSettings):
    """The same with learning rates and the options of EvoGrad.

    An application overrides methods and defaults, and adds its own entries.
    """

    lr: Positive = entry(0.1, "Learning rate of the inner learner.")
    meta_lr: Positive = entry(1e-3, "Learning rate of λ.")
    evograd: EvoGradSettings = entry(EvoGradSettings(), "Options of EvoGrad.")


class TunedSettings(MethodSettings):
    """The same where these may be left to what was tuned for the method."""

    tuned: bool = entry(True, "Whether entries that are None take what was tuned for the method.")
    lr: Positive | None = entry(None, "Inner learning rate; None for what was tuned.")
    meta_lr: Positive | None = entry(None, "Learning rate of λ; None for what was tuned.")
    evograd: TunedEvoGradSettings = entry(TunedEvoGradSettings(), "Options of EvoGrad.")
