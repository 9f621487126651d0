"""Names of random streams: which integer tells the draws for one purpose from their siblings."""

from __future__ import annotations

import enum
from typing import Self


@enum.unique
class Stream(int, enum.Enum):
    """Integer for :func:`fold_in`, by what is drawn; unique among the streams of one parent key.

    Beside counted keys (a step, a candidate, a batch, from 0 on) a stream is negative.

    Args:
        parent: What the key belongs to that the stream is folded into.
        number: The integer.

    Attributes:
        parent: As given.

    Example:
        >>> from metatoolkit.randomness import fold_in
        >>> fold_in(7, Stream.RESET, 2) == fold_in(7, -8, 2)
        True
    """

    parent: str

    def __new__(cls, parent: str, number: int) -> Self:
        """Return the integer, with its parent."""
        member = int.__new__(cls, number)
        member._value_ = (parent, number)
        member.parent = parent
        return member

    # Keys of an inner state, beside those of its steps.
    RESET = "state", -8
    REPEATED_CALL = "state", -9
    META_BATCH = "state", -10
    TASK = "state", -11
    REDRAWN = "state", -13

    # Keys of a step, beside those of candidates for θ.
    VALID_LOSS = "step", -1
    CANDIDATES = "step", -2
    LINEAR_SOLVER = "step", -3
    PENALIZED_VALID_LOSS = "step", -4
    DIRECTIONS = "step", -5
    PERTURBED_META = "step", -7

    # Keys of an evaluation of a loss, beside which it draws by its own key.
    PIECE = "evaluation", -12

    # Seed of an inner state.
    TRAJECTORY = "inner seed", 0
    REPLAY_ORDER = "inner seed", 1

    # Seeds of labels that are corrupted, and of what is set aside.
    TRANSITIONS = "label noise", 0
    NOISY_LABELS = "label noise", 1
    VALID_SPLIT = "label noise", 2
    TUNING_SPLIT = "label noise", 3
    ROTATED_SPLIT = "rotated images", -11

    # Seeds of batches: an epoch or a number comes first, then what is drawn for it.
    EPOCH_ORDER = "epoch", 0
    BATCH_TRANSFORMS = "epoch", 1
    BATCH_PLACES = "batch", 0
    BATCH_TRANSFORM = "batch", 1
    SUPPORT_TRANSFORM = "batch", 2

    # Seeds of data distillation.
    SYNTHETIC_EXAMPLES = "distillation", 0
    FRESH_NETWORKS = "distillation", 1

    # Seed of few-shot episodes; those of pseudo-unseen domains are paired with the others.
    EPISODE_DOMAINS = "episodes", 0
    EPISODES = "episodes", 1
    UNSEEN_EPISODES = "episodes", 2

    # Seeds of tasks that are no episodes.
    FUNCTIONS = "tasks", 0
    TASKSET_PLACES = "tasks", 1
    TASKSET_TASKS = "tasks", 2
    TASKSET_DATA = "tasks", 3
    VALID_TASKS = "tasks", 4
    TEST_TASKS = "tasks", 5
    TASK_TURNS = "tasks", 6
    TABLE_ROWS = "tasks", 7
    SERIES_WINDOWS = "tasks", 8
    MIXED_SOURCES = "tasks", 9
    MIXED_SEEDS = "tasks", 10
    PIXELS = "tasks", 11
    FEDERATED_USERS = "tasks", 12
    FAMILY_SCALE = "tasks", 13

    # Seeds of few-shot training on labeled images.
    WARM_UP = "labeled images", 1
    AUXILIARY = "labeled images", 2

    # Seeds of a network that is trained anew, for evaluation.
    FRESH_NETWORK = "training anew", 0
    FRESH_BATCHES = "training anew", 1

    # Seed of a search over settings.
    BLACK_BOX = "search", 0

    # Seeds of what is generated.
    DRAWN_IMAGES = "drawn images", 0
    EXAMPLES_OF_SPLIT = "corpus", 0
    SOUNDS = "languages", 1
    SHARED_WORDS = "languages", 2
    OWN_WORDS = "languages", 3
    SHARED_NAMES = "languages", 4
    OWN_NAMES = "languages", 5
    NEWS = "languages", 6
    GRAMMAR = "languages", 7
    REVIEWS = "languages", 8
