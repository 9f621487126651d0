"""Signal and noise of a hypergradient: does λ learn, or does it walk at random?"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from metatoolkit.diagnostics.comparison import Call
from metatoolkit.diagnostics.hypergradient_samples import Samples
from metatoolkit.diagnostics.signal_display import draw, summary
from metatoolkit.errors import ConfigurationError, DataError, check_installed, optional_import
from metatoolkit.hypergradients.arguments import require_estimator
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_ALL_FLIPS = 12
_FLIPS = 4095
_LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Signal:
    """Signal and noise of a part of λ, in squared units of the hypergradient.

    Attributes:
        signal: Unbiased estimate of the squared norm of the expected hypergradient. It is below 0
            where the samples agree less than chance would have them.
        noise: Trace of the covariance of one hypergradient: the mean squared distance of what one
            meta step sees from what it would see on the average.
        draw_noise: The part of ``noise`` that the key makes (perturbations, dropout) on the same
            batches; ``nan`` where each batch was drawn once.
        ratio: ``signal / noise``.
        chance: The ratio below which 95 of 100 samples of this size stay whose expectation is zero:
            that of the same samples with signs drawn, both signal and noise.
        p_value: Probability that such samples agree as much as these do.
        steps: ``noise / signal``: so many meta steps, averaged, have as much signal as noise, so
            that their mean has a cosine of about 0.7 with the right direction; infinite where there
            is no signal. McCandlish et al. (2018), equation 2.9, call it the simple noise scale.
    """

    signal: float
    noise: float
    draw_noise: float
    ratio: float
    chance: float
    p_value: float
    steps: float


@dataclasses.dataclass(frozen=True)
class SignalToNoise:
    """What :func:`signal_to_noise` found.

    Attributes:
        total: Of all of λ together.
        parameters: Of each meta-parameter, by its name.
        mean: Mean hypergradient by name, in the shapes of the meta-parameters, in float64, or in
            complex128 where they are complex.
        deviation: Standard deviation of one hypergradient in each coordinate, in the same shapes,
            in float64.
        batches: Meta batches that were drawn.
        draws: Calls for each of them.
    """

    total: Signal
    parameters: dict[str, Signal]
    mean: dict[str, Tensor]
    deviation: dict[str, Tensor]
    batches: int
    draws: int

    @property
    def shows(self) -> bool:
        """Whether the signal in all is told from chance at the level of 5 %."""
        return self.total.p_value < _LEVEL

    @functools.cached_property
    def table(self) -> pandas.DataFrame:
        """One row in all and one per meta-parameter; the extra ``records`` installs pandas."""
        with optional_import("the table of signal and noise"):
            import pandas
        rows = {name: dataclasses.asdict(row) for name, row in self._rows().items()}
        return pandas.DataFrame.from_dict(rows, orient="index")

    @functools.cached_property
    def figure(self) -> Figure:
        """Each ratio beside what chance gives; the extra ``plots`` installs what draws."""
        return draw(self._rows())

    def __str__(self) -> str:
        """Return the rows, strongest first, and what follows from them, as text."""
        return summary(self._rows(), self.batches, self.draws, self.shows)

    def _rows(self) -> dict[str, Signal]:
        return {"in all": self.total, **self.parameters}


def signal_to_noise(
    problem: BilevelProblem,
    inner: InnerLearner,
    estimator: Estimator,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    state: InnerState | None = None,
    *,
    batches: int = 20,
    draws: int | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    show: bool = True,
    progress: bool = True,
) -> SignalToNoise:
    """Tell how much of a hypergradient is direction and how much is noise, at one inner state.

    The estimator is called on ``batches`` meta batches, ``draws`` times on each, every time with a
    random key of its own; the problem, the state and the estimator stay as they are. The squared
    norm of the expectation is estimated without bias from inner products of hypergradients on
    different meta batches. Chance is what the same samples give when their signs are drawn: exact
    for samples whose distribution is symmetric about zero, however few they are.

    It takes ``batches * draws`` hypergradients, and memory for ``batches + 1`` copies of λ in
    float64 on the CPU.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Hypergradient estimator; each call is of a copy that begins anew, where the
            estimator can. SOBA, which carries its answer from call to call, has none at first.
        train_batches: Training batches, as many for each meta batch as the estimator's horizon;
            drawn independently, or the noise looks smaller than it is.
        valid_batches: A validation batch for each meta batch.
        state: Where to look, such as ``trainer.state``; by default ``inner.init(problem)``.
        batches: Meta batches, at least 2. With fewer than 6 no ``p_value`` is below 0.05.
        draws: Calls for each meta batch; by default 2 for an estimator whose traits say that it is
            random, else 1. With 2 or more the noise of the key is told from that of the data.
        seed: Seed of the signs.
        path: File to write the figure to, which takes the extra ``plots``.
        show: Whether to print the table and what follows from it.
        progress: Whether to show a progress bar.

    Returns:
        Signal, noise and chance, per meta-parameter and in all.

    Raises:
        ConfigurationError: A number is too small or none, or another argument is of another kind
            than it must be.
        DataError: There are fewer batches than are needed.
        MissingDependencyError: ``path`` is given and nothing that draws is installed.

    Example:
        >>> import torch, metatoolkit as mt
        >>> meta = torch.nn.Linear(1, 1, bias=False)
        >>> problem = mt.BilevelProblem(
        ...     torch.nn.Linear(3, 1),
        ...     meta,
        ...     train_loss=lambda model, meta, x: (meta(model(x)) - 1).square().mean(),
        ...     valid_loss=lambda model, meta, x: (model(x) - 1).square().mean(),
        ... )
        >>> _ = torch.manual_seed(0)
        >>> data = torch.randn(20, 2, 8, 3)
        >>> found = mt.signal_to_noise(
        ...     problem,
        ...     mt.inner.SGD(lr=0.1),
        ...     mt.hypergradients.Unrolled(1),
        ...     train_batches=data[:, 0],
        ...     valid_batches=data[:, 1],
        ...     show=False,
        ...     progress=False,
        ... )
        >>> found.shows
        True
    """
    if path is not None:
        check_installed("the figure of signal and noise", "matplotlib")
    require_estimator("estimator", estimator)
    require_learner(inner)
    if draws is None:
        draws = 2 if estimator.traits.kind == "stochastic" else 1
    _check(batches, draws, seed, state)
    state = inner.init(problem) if state is None else state.detach()
    given = _meta_batches(train_batches, valid_batches, batches, estimator.horizon)
    samples = {name: Samples(batches, draws) for name in problem.meta_parameter_names}
    bar = tqdm(total=batches * draws, desc="signal", disable=not progress, leave=False)
    with bar:
        for number, (train, valid) in enumerate(given):
            for repeat in range(draws):
                key = fold_in(state.key, Stream.META_BATCH, number, repeat)
                at = dataclasses.replace(state, key=key)
                call = Call(ProblemInstance(problem, inner, train, valid, at), estimator)
                for name, tensor in call().gradient.items():
                    samples[name].add(tensor)
                bar.update()
    found = _evaluate(samples, batches, draws, seed)
    if path is not None:
        found.figure.savefig(path, dpi=120)
    if show:
        print(found)
    return found


def _meta_batches(
    train_batches: Iterable[Any], valid_batches: Iterable[Any], batches: int, horizon: int
) -> Iterable[tuple[list[Any], Any]]:
    """Draw meta batches one by one, and say which stream ends too early."""
    train, valid = _opened("train_batches", train_batches), _opened("valid_batches", valid_batches)
    for number in range(batches):
        steps = list(itertools.islice(train, horizon))
        outer = list(itertools.islice(valid, 1))
        if len(steps) < horizon or not outer:
            name = "train_batches" if len(steps) < horizon else "valid_batches"
            size = batches * horizon if name == "train_batches" else batches
            raise DataError(
                f"{name} ends in meta batch {number + 1} of {batches}: {size} batches are needed. "
                "Give more of them, or ask for fewer with `batches`; the same ones over again "
                "would hide the noise of the data."
            )
        yield steps, outer[0]


def _check(batches: object, draws: object, seed: object, state: object) -> None:
    whole = [type(number) is int for number in (batches, draws, seed)]
    if not all(whole) or batches < 2 or draws < 1:  # type: ignore[operator]
        raise ConfigurationError(
            f"batches={batches!r}, draws={draws!r}, seed={seed!r}; whole numbers are needed, at "
            "least 2 batches and 1 draw."
        )
    if state is not None and not isinstance(state, InnerState):
        raise ConfigurationError(
            f"state is of type {type(state).__name__}; give an inner state, such as trainer.state, "
            "or None for that of inner.init(problem)."
        )


def _opened(name: str, batches: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(batches)
    except TypeError:
        raise ConfigurationError(
            f"{name} is {batches!r}; give a list of batches, or what else makes them one by one."
        ) from None


def _evaluate(samples: Mapping[str, Samples], batches: int, draws: int, seed: int) -> SignalToNoise:
    signs = _signs(batches, seed)
    mean, deviation, rows = {}, {}, {}
    products = torch.zeros(batches, batches, dtype=torch.float64)
    noise = draw_noise = 0.0
    for name, sample in samples.items():
        center, variance, draw_variance = sample.moments()
        mean[name], deviation[name] = sample.shaped(center, variance)
        own, told = float(variance.sum()), float(draw_variance.sum())
        gram = sample.products()
        rows[name] = _signal(gram, own, told, draws, signs)
        products, noise, draw_noise = products + gram, noise + own, draw_noise + told
    total = _signal(products, noise, draw_noise, draws, signs)
    return SignalToNoise(total, rows, mean, deviation, batches, draws)


def _signal(products: Tensor, noise: float, draw_noise: float, draws: int, signs: Tensor) -> Signal:
    """Judge the agreement of meta batches by all their inner products but the squares."""
    count = len(products)
    apart = products - products.diag().diag()
    # The first row of signs is that of the samples as they are.
    agreements = ((signs @ apart) * signs).sum(1) / (count * (count - 1))
    signal = float(agreements[0])
    rounding = 1e-12 * float(products.diag().sum())
    at_least = int((agreements >= signal - rounding).sum())
    by_chance = float(agreements.quantile(1 - _LEVEL, interpolation="higher"))
    # Signs leave the sum of squares alone: what one of the two gains the other loses.
    noise_by_chance = max(noise + signal - by_chance, 0.0)
    return Signal(
        signal=signal,
        noise=noise,
        draw_noise=draw_noise if draws > 1 else math.nan,
        ratio=_ratio(signal, noise),
        chance=_ratio(by_chance, noise_by_chance),
        p_value=at_least / len(signs),
        steps=_ratio(noise, signal) if signal > 0 else math.inf,
    )


def _ratio(one: float, other: float) -> float:
    if other == 0:
        return math.copysign(math.inf, one) if one else math.nan
    return one / other


def _signs(count: int, seed: int) -> Tensor:
    """Return rows of signs, the first all plus; all that there are where these are few.

    A row and its opposite give the same agreement, so that the first sign is always plus.
    """
    if count <= _ALL_FLIPS:
        rows: Sequence[tuple[float, ...]] = list(itertools.product((1.0, -1.0), repeat=count - 1))
        drawn = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), count - 1)
        return torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), drawn], 1)
    generator = torch.Generator().manual_seed(seed)
    flips = torch.randint(0, 2, (_FLIPS, count), generator=generator, dtype=torch.float64)
    return torch.cat([torch.ones(1, count, dtype=torch.float64), 1 - 2 * flips])
