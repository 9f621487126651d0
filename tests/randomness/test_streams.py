"""Random streams: one name for each, and the integers that earlier numbers were drawn with."""

import ast
import copy
import pickle
from pathlib import Path

import pytest

import applications
import baselines
import metatoolkit
from metatoolkit.randomness import Stream, fold_in

VALUES = {
    "state": {"RESET": -8, "REPEATED_CALL": -9, "META_BATCH": -10, "TASK": -11, "REDRAWN": -13},
    "step": {
        "VALID_LOSS": -1,
        "CANDIDATES": -2,
        "LINEAR_SOLVER": -3,
        "PENALIZED_VALID_LOSS": -4,
        "DIRECTIONS": -5,
        "PERTURBED_META": -7,
    },
    "evaluation": {"PIECE": -12},
    "inner seed": {"TRAJECTORY": 0, "REPLAY_ORDER": 1},
    "label noise": {"TRANSITIONS": 0, "NOISY_LABELS": 1, "VALID_SPLIT": 2, "TUNING_SPLIT": 3},
    "rotated images": {"ROTATED_SPLIT": -11},
    "epoch": {"EPOCH_ORDER": 0, "BATCH_TRANSFORMS": 1},
    "batch": {"BATCH_PLACES": 0, "BATCH_TRANSFORM": 1, "SUPPORT_TRANSFORM": 2},
    "distillation": {"SYNTHETIC_EXAMPLES": 0, "FRESH_NETWORKS": 1},
    "episodes": {"EPISODE_DOMAINS": 0, "EPISODES": 1, "UNSEEN_EPISODES": 2},
    "tasks": {
        "FUNCTIONS": 0,
        "TASKSET_PLACES": 1,
        "TASKSET_TASKS": 2,
        "TASKSET_DATA": 3,
        "VALID_TASKS": 4,
        "TEST_TASKS": 5,
        "TASK_TURNS": 6,
        "TABLE_ROWS": 7,
        "SERIES_WINDOWS": 8,
        "MIXED_SOURCES": 9,
        "MIXED_SEEDS": 10,
        "PIXELS": 11,
        "FEDERATED_USERS": 12,
        "FAMILY_SCALE": 13,
    },
    "labeled images": {"WARM_UP": 1, "AUXILIARY": 2},
    "training anew": {"FRESH_NETWORK": 0, "FRESH_BATCHES": 1},
    "search": {"BLACK_BOX": 0},
    "drawn images": {"DRAWN_IMAGES": 0},
    "corpus": {"EXAMPLES_OF_SPLIT": 0},
    "languages": {
        "SOUNDS": 1,
        "SHARED_WORDS": 2,
        "OWN_WORDS": 3,
        "SHARED_NAMES": 4,
        "OWN_NAMES": 5,
        "NEWS": 6,
        "GRAMMAR": 7,
        "REVIEWS": 8,
    },
}


def test_streams_keep_their_integers_and_differ_below_one_parent():
    found = {}
    for stream in Stream:
        found.setdefault(stream.parent, {})[stream.name] = int(stream)
    assert found == VALUES
    # One name for one integer; a second would be an alias, which iteration leaves out.
    assert len(Stream.__members__) == len(list(Stream))
    for parent, numbers in found.items():
        assert len(set(numbers.values())) == len(numbers), parent


def test_two_streams_of_one_parent_cannot_share_an_integer():
    assert Stream(("step", -1)) is Stream.VALID_LOSS
    with pytest.raises(ValueError, match="is not a valid Stream"):
        Stream(("step", 0))


def test_a_stream_is_its_integer_where_keys_are_folded():
    for stream in Stream:
        assert fold_in(3, stream, 4) == fold_in(3, int(stream), 4)
    assert fold_in(3, Stream.EPISODES + 1) == fold_in(3, 2)


def test_streams_are_copied_as_themselves():
    assert copy.deepcopy(Stream.NEWS) is Stream.NEWS
    assert pickle.loads(pickle.dumps(Stream.NEWS)) is Stream.NEWS


def test_streams_beside_counted_keys_are_negative():
    # Steps and candidates for θ are counted from 0 on below the same keys.
    for stream in Stream:
        assert stream < 0 or stream.parent not in ("state", "step")


def _folded(tree):
    """Yield each integer argument of fold_in, numbers and constants of the module alike."""
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", None) == "fold_in"):
            continue
        for argument in node.args[1:]:
            for part in ast.walk(argument):
                number = isinstance(part, ast.Constant) and isinstance(part.value, int)
                named = isinstance(part, ast.Name) and part.id in constants
                if number or named:
                    yield ast.unparse(node)


def test_no_module_folds_in_a_number_of_its_own():
    wrong = {}
    for package in (metatoolkit, applications, baselines):
        folder = Path(next(iter(package.__path__)))
        for path in folder.rglob("*.py"):
            if path.name == "streams.py":
                continue
            if found := list(_folded(ast.parse(path.read_text()))):
                wrong[str(path.relative_to(folder.parent))] = found
    assert wrong == {}


@pytest.mark.parametrize("call", ["fold_in(key, 3)", "fold_in(key, -3, s)", "fold_in(key, 1 + n)"])
def test_a_number_is_found(call):
    assert list(_folded(ast.parse(call)))
    assert list(_folded(ast.parse("_X = -3\nfold_in(key, _X)")))
    assert not list(_folded(ast.parse("fold_in(key, step, Stream.CANDIDATES + index)")))
