"""Few-shot classification and regression, learned across tasks."""

import dataclasses

import pytest
import torch

from applications.few_shot.experiment import assemble as assemble_images
from applications.few_shot.experiment import experiment as images
from applications.few_shot.settings import DEFAULT as FEW_SHOT
from applications.few_shot.settings import NAMED as FEW_SHOT_NAMED
from applications.few_shot.study import COMPARISON as IMAGES
from applications.few_shot.study import FEDERATED_DIGITS as USERS
from applications.few_shot.tuning import SEARCH
from applications.regression_tasks.experiment import assemble as assemble_functions
from applications.regression_tasks.experiment import experiment as functions
from applications.regression_tasks.settings import DEFAULT as REGRESSION
from applications.regression_tasks.settings import NAMED as REGRESSION_NAMED
from applications.regression_tasks.study import COMPARISON as FUNCTIONS
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError
from metatoolkit.experiments import tuning
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.run import measure_costs
from metatoolkit.experiments.studies import collect, jobs_of
from metatoolkit.records.fields import flatten
from tests.drawings import lines
from tests.tasks.images import write_image

SMALL = {**FEW_SHOT, **FEW_SHOT_NAMED["smoke"], "seed": 1, "progress": False}


def _run(experiment, **updates):
    config = {"progress": False, **updates}
    return experiment.run(named_configs=["smoke"], config_updates=config)


def test_a_run_records_the_accuracy_over_meta_steps_and_that_of_the_test():
    run = _run(images, seed=3)
    assert run.status == "COMPLETED"
    with records.connect() as database:
        stored = database[records.run_id(run)]
        accuracy = stored.metrics["valid_accuracy"]
        assert accuracy.index.tolist() == [2, 4]
        assert set(stored.artifacts) == {"curves.png", "checkpoint.pt"}
    result = run.result
    assert result["valid_accuracy"] == accuracy.iloc[-1]
    # Shares of the 6 queries of each of 5 tasks.
    assert (result["test_accuracy"] * 30) % 1 == pytest.approx(0, abs=1e-4)
    assert 0 < result["test_interval"] < 1 and result["lambda_distance"] > 0
    assert {"flops", "peak_memory_bytes", "base_flops"} < set(run.info)


def test_the_control_learns_nothing_across_tasks():
    run = _run(functions, seed=3, algorithm="scratch")
    assert set(run.result) == {"test_error", "test_interval"}
    assert run.result == _run(functions, seed=3, algorithm="scratch", steps=9).result
    assert run.result["test_error"] != _run(functions, seed=3).result["test_error"]


def test_held_out_tasks_are_adapted_to_by_refined_rates():
    aruba = {"seed": 3, "algorithm": "aruba", "batching": "loop", "lr": 0.1}
    plain = _run(functions, **aruba).result["test_error"]
    refined = _run(functions, **aruba, options={"refinement": 5.0}).result["test_error"]
    config = {**REGRESSION, **REGRESSION_NAMED["smoke"], **aruba}
    assembly = assemble_functions(config)
    assembly.trainer.fit(assembly.train_batches, steps=config["steps"], progress=False)
    found = {c: _adapted_error(assembly, config, c) for c in (0.0, 5.0)}
    assert (plain, refined) == pytest.approx((found[0.0], found[5.0]), rel=1e-5)
    assert abs(plain - refined) > 1e-3 * plain


def _adapted_error(assembly, config, coefficient):
    """The mean error on test tasks of ARUBA++'s steps by hand, in float64."""
    problem = assembly.trainer.problem
    b, g = problem.meta["rates"].statistics()
    start = {n: p.detach().double() for n, p in problem.model.named_parameters()}
    errors = []
    for number in range(config["test_tasks"]):
        support, query = assembly.task("test").task(number)
        place, energy = start, {n: value.double() for n, value in g.items()}

        def loss(place, batch):
            outputs = torch.func.functional_call(problem.model, place, (batch[0].double(),))
            return (outputs - batch[1]).square().mean()

        for _ in range(config["inner_steps"]):
            slopes = torch.func.grad(loss)(place, support)
            place = {n: p - (b[n] / energy[n]).sqrt() * slopes[n] for n, p in place.items()}
            energy = {n: e + coefficient * slopes[n].square() for n, e in energy.items()}
        errors.append(float(loss(place, query)))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("experiment", [images, functions], ids=["images", "functions"])
def test_maml_and_that_of_learn2learn_are_one_training_in_double(experiment):
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    libraries = ("metatoolkit", "learn2learn")
    own, other = (_run(experiment, seed=3, dtype="float64", library=x).result for x in libraries)
    assert own == pytest.approx(other, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("assemble", "config"),
    [
        (assemble_images, SMALL),
        (assemble_functions, {**REGRESSION, **REGRESSION_NAMED["smoke"], "seed": 1}),
    ],
    ids=["images", "functions"],
)
def test_a_training_in_double_begins_at_the_same_values_and_tasks(assemble, config):
    single, double = (assemble({**config, "dtype": dtype}) for dtype in ("float32", "float64"))
    starts = [one.trainer.problem.meta_parameters() for one in (single, double)]
    (batch, _), (other, _) = (next(one.train_batches) for one in (single, double))
    pairs = [*((starts[0][name], value) for name, value in starts[1].items()), (batch[0], other[0])]
    for before, value in pairs:
        assert before.dtype == torch.float32 and value.dtype == torch.float64
        assert torch.equal(before.double(), value)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_that_was_interrupted_resumes_bitwise(interrupt):
    # The way in which tasks run is chosen by time, and a resumed run keeps it.
    options = {"seed": 7, "batching": "vmap", "algorithm": "meta_sgd"}
    whole = _run(functions, **options).result
    interrupt(lambda: _run(functions, **options), 3)
    # Workers make tasks ahead, and the place is that of those that were learned from.
    assert _run(functions, **options, workers=1, resume=True).result == whole


def test_maml_learns_sinusoids():
    config = {**REGRESSION, "seed": 1, "width": 20, "tasks": 10, "batching": "vmap"}
    assembly = assemble_functions({**config, "meta_lr": 1e-2, "lr": 0.02})
    held_out = assembly.task("valid").batch(0, 40)
    trainer = assembly.trainer

    def error():
        return float(trainer.tasks(held_out, trainer.tasks.begin(trainer.state)).valid_loss)

    before = error()
    trainer.fit(assembly.train_batches, steps=150, progress=False)
    assert error() < 0.7 * before


def test_held_out_tasks_are_the_same_for_all_seeds_and_no_training_tasks():
    one, two = (assemble_images({**SMALL, "seed": seed}).task for seed in (1, 2))
    same = {}
    for split in ("train", "valid", "test"):
        first, second = (source(split).batch(0, 3)[0][0] for source in (one, two))
        same[split] = torch.equal(first, second)
    assert same == {"train": False, "valid": True, "test": True}
    source = assemble_functions({**REGRESSION, "seed": 1}).task
    inputs = [source(split).task(0)[0][0] for split in same]
    assert len({tuple(one.flatten().tolist()) for one in inputs}) == 3


def test_images_of_digits_are_learned_as_functions_and_tested_on_other_digits():
    config = {**REGRESSION, **REGRESSION_NAMED["digits"], "seed": 1, "width": 8}
    assembly = assemble_functions(config)
    assert assembly.trainer.problem.model.layers[0].in_features == 2
    inputs, targets = assembly.train_batches.task(0)[0]
    assert inputs.shape == (20, 2) and targets.shape == (20, 1)
    with pytest.raises(DataError, match="64 pixels, fewer than the 65"):
        assemble_functions({**config, "queries": 45})


def test_users_of_federated_digits_share_ten_labels():
    config = {**FEW_SHOT, **FEW_SHOT_NAMED["federated"], "seed": 1}
    assembly = assemble_images(config)
    (images, labels), _ = assembly.train_batches.task(0)
    assert images.shape == (15, 1, 8, 8) and len(labels.unique()) == 3
    assert assembly.trainer.problem.model(images).shape == (15, 10)
    same = [assembly.task(split).task(0)[0][0] for split in ("valid", "test")]
    assert not torch.equal(*same)
    other = assemble_images({**config, "seed": 2})
    assert torch.equal(other.task("test").task(0)[0][0], same[1])
    assert not torch.equal(other.train_batches.task(0)[0][0], images)
    with pytest.raises(ConfigurationError, match="augment is 1"):
        assemble_images({**config, "augment": 1})


def test_the_single_rate_and_aruba_are_tuned_over_their_own_settings():
    first = {label: tuning.trials(space, 8) for label, space in SEARCH.spaces.items()}
    # The first point of a Halton sequence is 1/2, the others by the bits of its number.
    rates = [trial.updates["lr"] for trial in first["single rate"]]
    assert rates[:3] == [0.3, 0.095, 0.95] and min(rates) < 0.041 and len(set(rates)) == 8
    assert [trial.updates["lr"] for trial in first["ARUBA"]] == rates
    assert first["ARUBA"][0].updates["options"] == {"zeta": 0.01}
    for label, (trial, *_) in first.items():
        row = USERS.rows[label]
        # What was tuned is what the study sets, and nothing else.
        assert set(flatten(row.updates)) == set(flatten(trial.updates)) and row.named == trial.named
        config = {**FEW_SHOT, **FEW_SHOT_NAMED["federated"], **trial.updates, "seed": 1}
        assembly = assemble_images(config)
        rates = assembly.trainer.problem.meta
        assert ("rates" in rates) == (label == "ARUBA") and trial.named == ("federated",)


def test_the_study_of_federated_digits_has_seeds_of_its_own_and_rows_that_run():
    assert len(USERS.seeds) >= 10
    assert not set(USERS.seeds) & set(range(SEARCH.first_seed, SEARCH.first_seed + 100))
    kinds = {label: _rates_of(row) for label, row in USERS.rows.items()}
    assert kinds == {
        "single rate": (False, False),
        "ARUBA": (False, False),
        "ARUBA, one rate": (True, False),
        "ARUBA++": (False, True),
    }


def _rates_of(row):
    """Whether rates of an assembled row are isotropic, and refined."""
    config = {**FEW_SHOT, **FEW_SHOT_NAMED["federated"], **row.updates, "seed": 1}
    assembly = assemble_images(config)
    meta = assembly.trainer.problem.meta
    return "rates" in meta and meta["rates"].isotropic, assembly.refined is not None


def test_the_cost_of_a_meta_step_is_measured_without_a_trace():
    assembly = assemble_functions(
        {**REGRESSION, "seed": 1, "width": 8, "tasks": 4, "batching": "vmap"}
    )
    place = assembly.train_batches.state_dict()
    costs = measure_costs(assembly)
    assert assembly.train_batches.state_dict() == place
    # Five points through 1-8-8-1: products of two layers backward to both, of the first to weights.
    forward = 2 * 5 * (8 + 64 + 8)
    assert costs["base_flops"] == forward + 2 * 5 * (2 * (64 + 8) + 8)
    assert costs["flops"] > 4 * 5 * costs["base_flops"]


def test_a_folder_of_images_is_learned_from(tmp_path):
    for number in range(16):
        for drawing in range(4):
            write_image(tmp_path / "all" / f"class{number:02}" / f"{drawing}.png", 9 * number)
    config = {**SMALL, "dataset": str(tmp_path / "all"), "shots": 2, "augment": 1}
    (pixels, labels), _ = next(assemble_images(config).train_batches)
    assert pixels.shape == (2, 6, 3, 16, 16) and labels.shape == (2, 6)


@pytest.mark.parametrize(
    "study",
    [pytest.param(IMAGES, marks=pytest.mark.slow), FUNCTIONS],
    ids=["images", "functions"],
)
def test_every_row_of_a_study_runs_and_is_drawn(study, tmp_path, drawn):
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    rows = {label: dataclasses.replace(row, named=("smoke",)) for label, row in study.rows.items()}
    study = dataclasses.replace(study, rows=rows, seeds=(1,))
    jobs = jobs_of(study, updates={"progress": False})
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(study, jobs, database)
        assert frame["row"].tolist() == list(rows)
        study.draw(frame, tmp_path / "study.png")
        curves, times, tests = drawn.axes("study.png", tmp_path)
        (means, *_), scores = tests.containers[0], frame[study.columns[0].header]
        assert means.get_xdata().tolist() == pytest.approx(scores.tolist())
        found = lines(curves)
        assert set(found) == set(rows) - {"scratch"}
        learned = frame[frame["row"] != "scratch"]
        for line, (_, row) in zip(times.lines, learned.iterrows(), strict=True):
            steps = row["run"].metrics["lambda_distance"].index
            seconds = row["run"].info["milliseconds_per_step"] * steps / 1e3
            assert line.get_xdata().tolist() == pytest.approx(seconds.tolist())
        for label, run in zip(frame["row"], frame["run"], strict=True):
            metric = [name for name in run.metrics if name.startswith("valid_") and name[6] != "l"]
            if label != "scratch":
                series = run.metrics[metric[0]]
                assert found[label] == (series.index.tolist(), series.tolist())


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"ways": 7}, DataError, "fewer than the 7 ways"),
        ({"shots": 500}, DataError, "fewer than the 502 of shots and queries"),
        ({"tasks": 0}, ConfigurationError, "tasks is 0"),
        ({"test_tasks": 1}, ConfigurationError, "test_tasks is 1"),
        ({"dtype": "float16"}, UnknownNameError, "dtype 'float16'.*Accepted: float32, float64"),
        ({"algorithm": "mamml"}, UnknownNameError, "Did you mean 'maml'"),
        ({"options": {"per": "coordinate"}}, UnknownNameError, "per"),
        ({"algorithm": "boil", "library": "learn2learn"}, UnknownNameError, "'boil'"),
        ({"dataset": "glyfs"}, UnknownNameError, "Did you mean 'glyphs'"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        assemble_images({**SMALL, **updates})
