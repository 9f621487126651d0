"""What a benchmark declares: problems, and contenders that compute the same of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metatoolkit.inner import SGD, InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState

Call = Callable[..., Any]
"""Returns a :class:`metatoolkit.hypergradients.Hypergradient`, or its tensors in order."""
Rate = float | Callable[[Any, int], Tensor]


@dataclasses.dataclass
class Setup:
    """One problem with its data, which each contender reads and leaves as it is.

    Attributes:
        problem: The bilevel problem.
        tasks: Training batches, one for each inner step, and the batch of the outer loss; several
            where the outer loss is the mean over tasks.
        lr: Learning rate of SGD, or a function of λ and the step.
        momentum: Its momentum.
        weight_decay: Its weight decay.
        learner: Inner learner in the place of SGD with these.
        start: State to start from in the place of the model's own.
        truth: The hypergradient where it is known, in the order of the leaves.
        begins_with_meta: Whether λ is where the steps start, so that the model's parameters are λ.
        unit: A forward pass in the place of that over the first training batch.
    """

    problem: BilevelProblem
    tasks: Sequence[tuple[Sequence[Any], Any]]
    lr: Rate = 0.1
    momentum: Rate = 0.0
    weight_decay: Rate = 0.0
    learner: InnerLearner | None = None
    start: InnerState | None = None
    truth: Sequence[Tensor] | None = None
    begins_with_meta: bool = False
    unit: Callable[[], Any] | None = None

    @property
    def steps(self) -> int:
        """The number of inner steps."""
        return len(self.tasks[0][0])

    @property
    def inner(self) -> InnerLearner:
        """The inner learner, as ours takes it."""
        own = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return self.learner or SGD(lr=self.lr, **own)

    @property
    def state(self) -> InnerState:
        """The state that all contenders start from."""
        return self.inner.init(self.problem) if self.start is None else self.start

    @property
    def leaves(self) -> list[Tensor]:
        """What is differentiated with respect to."""
        held = self.problem.model if self.begins_with_meta else self.problem.meta
        return list(held.parameters())

    def forward(self) -> None:
        """Evaluate the training loss of the first batch, as PyTorch does: one F."""
        with torch.no_grad():
            if self.unit is not None:
                self.unit()
            else:
                self.problem.train_loss(self.problem.model, self.problem.meta, self.tasks[0][0][0])


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to compute what a benchmark compares.

    Attributes:
        build: Makes of a setup what is called; it may take a number as ``draw`` where it is random.
        needs: Module of the library that it takes, as it is imported; none by default.
        random: Whether it is called several times for its error.
    """

    build: Callable[[Setup], Call]
    needs: str = ""
    random: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem of a benchmark, on which contenders take turns in one process.

    Attributes:
        setup: Makes the problem; the same at each call.
        contenders: What is measured, by label.
        reference: Label of the contender that errors are told from where the truth is not known,
            and that ratios are to; where it is missing, the first one that is not.
        rounds: Number of timed turns; where it is 1, the first call is timed.
        size: Where the case stands on the axis of a figure with curves.
        quick: Whether it is a part of a quick look.
        counted: Whether operations and the memory of tensors are counted, which takes two more
            calls, each slower than a plain one.
    """

    setup: Callable[[], Setup]
    contenders: Mapping[str, Contender]
    reference: str = ""
    rounds: int = 5
    size: float = 1.0
    quick: bool = True
    counted: bool = True


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Problems and contenders that make a page.

    Attributes:
        name: Its name on the command line and of its page.
        title: Title of the page.
        about: What is measured, in Markdown.
        cases: The problems by label.
        figure: What is drawn: ``"errors"`` is a figure for each case, of error against cost;
            ``"curves"`` is time and memory over the sizes of the cases; ``"ratios"`` is both as
            multiples of the reference's.
        axis: What the sizes are, for curves.
        per_size: Whether curves show time divided by the size.
        told: What is told of cases, in Markdown, by label: it makes each a section of the page.
        after: What is to be told below the figure, in Markdown.
    """

    name: str
    title: str
    about: str
    cases: Mapping[str, Case]
    figure: Literal["errors", "curves", "ratios"] = "ratios"
    axis: str = ""
    per_size: bool = False
    told: Mapping[str, str] = dataclasses.field(default_factory=dict)
    after: str = ""
