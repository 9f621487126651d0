import copy
import sys

import pandas
import pytest
import torch
from torch import nn

from applications.cross_domain_few_shot import figures, training_parts
from applications.cross_domain_few_shot.experiment import assemble, build_estimator, experiment
from applications.cross_domain_few_shot.settings import DEFAULT, METHODS, NAMED
from applications.cross_domain_few_shot.study import COMPARISON
from metatoolkit import records, tasks
from metatoolkit.errors import CheckpointError, ConfigurationError, DataError, UnknownNameError
from metatoolkit.hypergradients import EvoGrad, GuidedEvoGrad, Unrolled
from metatoolkit.networks import Conv4
from metatoolkit.tasks import ImageSet, domain_of
from metatoolkit.tasks.labeled_batches import LabeledBatches
from tests.drawings import bars, legend, lines

# The package gives its name to the Sacred experiment.
application = sys.modules[assemble.__module__]


def _run(*named, **updates):
    return experiment.run(
        named_configs=["smoke", *named], config_updates={"progress": False, **updates}
    )


def _config(*named, **updates):
    def merge(config, changes):
        for name, value in changes.items():
            if isinstance(value, dict) and isinstance(config.get(name), dict):
                merge(config[name], value)
            else:
                config[name] = copy.deepcopy(value)

    config = copy.deepcopy(DEFAULT)
    for changes in ({"seed": 1, "progress": False}, *(NAMED[name] for name in named), updates):
        merge(config, changes)
    return config


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_records(method, tmp_path):
    run = _run(method=method, seed=3)
    assert run.status == "COMPLETED"
    # A whole number of queries, and an interval that such a mean can have.
    config = run.config
    queries = config["test_episodes"] * config["ways"] * config["test_queries"]
    right = run.result["test_accuracy"] * queries
    assert right == pytest.approx(round(right), abs=1e-6) and 0 < round(right) < queries
    share = run.result["test_accuracy"]
    most = 1.96 * (share * (1 - share) / (config["test_episodes"] - 1)) ** 0.5
    assert 0 < run.result["test_interval"] <= most + 1e-9
    meta_learns = method in ("evograd", "second_order")
    assert (run.result["lambda_distance"] > 0) == meta_learns
    assert ("peak_memory_bytes" in run.info) == meta_learns
    with records.connect() as database:
        stored = database[records.run_id(run)]
        assert {"transforms.png", "transforms.csv", "curves.png"} <= set(stored.artifacts)
        rows = stored.artifacts["transforms.csv"].save(tmp_path).read_text().splitlines()
    assert rows[0] == "layer,channel,scale,shift"
    assert len(rows) == 1 + 4 * 4


@pytest.mark.slow
def test_an_interrupted_run_resumes_bitwise_and_another_seed_gives_another_result(interrupt):
    whole = _run(seed=7, auxiliary={"domain": "digits"}).result
    interrupt(lambda: _run(seed=7, auxiliary={"domain": "digits"}), 5)
    assert _run(seed=7, auxiliary={"domain": "digits"}, resume=True).result == whole
    assert _run(seed=6, auxiliary={"domain": "digits"}).result != whole


@pytest.mark.parametrize("warm_up", [{"domain": "digits", "steps": 3}, {"checkpoint": "file"}])
def test_a_resumed_run_repeats_no_warm_up(warm_up, tmp_path, monkeypatch, interrupt):
    if "checkpoint" in warm_up:
        warm_up = {"checkpoint": str(tmp_path / "encoder.pt")}
        torch.save(Conv4(channels=1, width=4, pools=1).state_dict(), warm_up["checkpoint"])
    updates = {"seed": 9, "warm_up": warm_up, "auxiliary": {"domain": "textures"}}
    whole = _run(**updates).result
    interrupt(lambda: _run(**updates), 5)

    def never(*arguments):
        raise AssertionError("the warm-up was repeated")

    monkeypatch.setattr(application, "warm_up", never)
    monkeypatch.setattr(application, "load_encoder", never)
    assert _run(**updates, resume=True).result == whole


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"test_queries": 500}, r"ways=5, shots=1, test_queries=500: class .* has 40 images"),
        ({"shots": 39}, r"test_queries=2: class .* has 40 images, fewer than the 41"),
        ({"unseen": "digits", "ways": 7}, r"'valid' of domain 'digits' has 6 classes"),
        (
            {"auxiliary": {"domain": "digits", "batch_size": 10**6}},
            r"auxiliary\.batch_size is 1000000",
        ),
        ({"transform": {"where": ["bn9"]}}, "matches no BatchNorm"),
        ({"backbone": {"pools": 4}}, "sides of at least 16 pixels"),
    ],
)
def test_what_cannot_be_tested_or_trained_is_told_before_the_warm_up(updates, message, monkeypatch):
    def never(*arguments):
        raise AssertionError("the warm-up began")

    monkeypatch.setattr(application, "warm_up", never)
    warm_up = {"domain": "textures", "steps": 1}
    with pytest.raises((DataError, ConfigurationError), match=message):
        assemble(_config("smoke", warm_up=warm_up, **updates))


@pytest.mark.parametrize("head", ["graph", "matching", "prototypical", "relation"])
@pytest.mark.parametrize("method", ["evograd", "second_order"])
def test_every_head_gets_a_hypergradient(head, method):
    assembly = assemble(_config("smoke", head={"name": head}, method=method))
    trainer = assembly.trainer
    before = [p.detach().clone() for p in trainer.problem.meta.parameters()]
    trainer.fit(assembly.train_batches, assembly.valid_batches, steps=1, progress=False)
    after = trainer.problem.meta.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_unseen_domain_has_no_part_in_learning():
    assembly = assemble(_config("smoke", unseen="letters"))
    for batches in (assembly.train_batches, assembly.valid_batches):
        assert {batches.domain_of(number) for number in range(50)} == {"digits", "textures"}
    pairs = [
        (assembly.train_batches.domain_of(i), assembly.valid_batches.domain_of(i))
        for i in range(50)
    ]
    assert all(seen != unseen for seen, unseen in pairs)
    assert assembly.task.unseen.name == "letters"


def test_methods_start_from_the_same_network_and_see_the_same_episodes():
    assemblies = [assemble(_config("smoke", method=method)) for method in METHODS]
    states = [assembly.trainer.state.parameters for assembly in assemblies]
    episodes = [next(assembly.train_batches) for assembly in assemblies]
    for state, episode in zip(states[1:], episodes[1:], strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())
        assert torch.equal(episode.support, episodes[0].support)


def test_transforms_act_in_the_training_loss_of_all_methods_but_one():
    for method in METHODS:
        assembly = assemble(_config("smoke", method=method))
        problem, episode = assembly.trainer.problem, next(assembly.train_batches)
        parameters, meta = problem.parameters(), problem.meta_parameters()
        first, second = (
            problem.evaluate_train(parameters, meta, problem.buffers(), episode, key)[0]
            for key in (1, 2)
        )
        assert torch.equal(first, second) == (method == "no_transform")


@pytest.mark.parametrize(("depth", "size"), [(10, 3712), (18, 5632), (34, 9344)])
def test_the_published_protocol_has_the_published_sizes(depth, size, monkeypatch):
    class Images:
        labels = torch.zeros(1, dtype=torch.int64)
        class_names = ("a",)

        def load(self, indices):
            return torch.zeros(len(indices), 3, 224, 224, dtype=torch.uint8)

    class Folder:
        train = Images()

    from applications.cross_domain_few_shot.experiment import Domains, build_network
    from metatoolkit.metaparameters import insert_feature_wise_transforms

    config = _config(f"resnet{depth}", warm_up={"steps": 0})
    transform = lambda images, generator: images.float()  # noqa: E731
    network = build_network(config, Domains({}, Folder(), transform, transform))
    meta = insert_feature_wise_transforms(network.encoder, **config["transform"])
    assert sum(p.numel() for p in meta.parameters()) == size
    assert sum(p.numel() for p in network.head.parameters()) == 7_085_073


def test_warm_up_trains_the_encoder_alone_and_is_stored_and_loaded(tmp_path):
    cold = assemble(_config("smoke")).trainer.state.parameters
    options = {"domain": "digits", "steps": 3, "batch_size": 8}
    warm = assemble(_config("smoke", warm_up=options))
    values = warm.trainer.state.parameters
    changed = {name for name in cold if not torch.equal(cold[name], values[name])}
    assert changed
    assert all(name.startswith("encoder.") for name in changed)
    encoder = Conv4(channels=1, width=4, pools=1)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    loaded = assemble(_config("smoke", warm_up={"checkpoint": str(tmp_path / "encoder.pt")}))
    for name, parameter in encoder.named_parameters():
        assert torch.equal(loaded.trainer.state.parameters[f"encoder.{name}"], parameter)


def test_warm_up_lowers_the_classification_loss():
    config = _config("smoke")
    domains = assemble(config).task
    torch.manual_seed(0)
    encoder = Conv4(channels=1, width=8, pools=1)
    digits = domains.seen["digits"]
    before = encoder.blocks[0][0].weight.detach().clone()
    training_parts.warm_up(encoder, LabeledBatches(digits, "train", 32), 40, 0.01, False)
    assert not torch.equal(before, encoder.blocks[0][0].weight)
    images, labels = next(LabeledBatches(digits, "train", 200, seed=9))
    encoder.eval()
    with torch.no_grad():
        features = encoder(images).mean(dim=(2, 3))
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    nearest = torch.cdist(features, means).argmin(1)
    assert float((nearest == labels).float().mean()) > 0.5


def test_the_auxiliary_loss_is_added_with_a_weight_that_decays():
    config = _config(
        "smoke", auxiliary={"domain": "digits", "weight": 0.5, "decay": 0.1, "decays": 3}, steps=6
    )
    assembly = assemble(config)
    weights = [next(assembly.train_batches)[2] for _ in range(6)]
    torch.testing.assert_close(weights, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005])
    problem, batch = assembly.trainer.problem, next(assembly.train_batches)
    model, meta = problem.model, problem.meta
    episode, (images, labels), _ = batch
    with meta.disabled():
        alone = training_parts.episode_cross_entropy(model, meta, episode)
        buffers = copy.deepcopy(dict(model.named_buffers()))
        both = training_parts.episode_and_auxiliary_loss(model, meta, (*batch[:2], 2.0))
        assert model.encoder.training
    assert buffers["encoder.blocks.0.1.num_batches_tracked"] == 1
    model.eval()
    logits = model.auxiliary(model.encoder(images).mean(dim=(2, 3)))
    expected = alone + 2 * nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(both, expected, rtol=0.1, atol=0.1)


def test_estimators_follow_the_configuration():
    config = _config(method="evograd", lr=0.5, evograd={"candidates": 3})
    estimator = build_estimator(config)
    assert isinstance(estimator, EvoGrad)
    assert (estimator.candidates, estimator.learning_rate) == (3, 0.5)
    guided = build_estimator(_config(method="evograd", evograd={"guided": True}))
    assert isinstance(guided, GuidedEvoGrad)
    assert guided.learning_rate == _config()["lr"]
    paper = build_estimator(_config("resnet10", method="evograd"))
    assert paper.learning_rate == pytest.approx(1e-5)
    assert isinstance(build_estimator(_config(method="second_order")), Unrolled)
    assert build_estimator(_config(method="fixed_transform")) is None


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"method": "evogard"}, UnknownNameError, "evograd"),
        ({"unseen": "letter"}, UnknownNameError, "Did you mean 'letters'"),
        ({"source": "photo"}, UnknownNameError, "Did you mean 'photos'"),
        ({"optimizer": "adamw"}, UnknownNameError, "adam, sgd"),
        ({"ways": 300}, DataError, "fewer than the 300 ways"),
        ({"domains": ["digits", "letters"]}, ConfigurationError, "domain"),
        ({"auxiliary": {"domain": "letters"}}, UnknownNameError, "a seen domain"),
        ({"warm_up": {"steps": 1}}, UnknownNameError, "warm_up.domain"),
        ({"warm_up": {"checkpoint": "/nowhere.pt"}}, CheckpointError, "warm_up.checkpoint"),
        ({"warm_up": {"checkpoint": __file__}}, CheckpointError, "no file of tensors"),
        ({"domains": ["digits", "letters", "letters"]}, ConfigurationError, "'letters' twice"),
        ({"evograd": {"candidates": 1}}, ConfigurationError, "candidates is 1"),
        ({"transform": {"where": ["bn9"]}}, ConfigurationError, "'bn9' matches no BatchNorm"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        assemble(_config("smoke", **updates))


def test_the_published_protocol_runs_on_small_photographs(monkeypatch):
    def photographs(names, root):
        labels = torch.arange(20).repeat_interleave(4)
        classes = tuple(f"{label:02}" for label in range(20))
        images = torch.randint(0, 256, (80, 3, 40, 44), dtype=torch.uint8)
        return {name: domain_of(name, ImageSet(images, labels, classes)) for name in names}

    monkeypatch.setattr(tasks, "photo_domains", photographs)
    config = _config(
        "resnet10",
        image_size=32,
        backbone={"width": 4, "stem": "small"},
        warm_up={"steps": 1},
        shots=1,
        queries=2,
        test_queries=2,
    )
    assembly = assemble(config)
    trainer = assembly.trainer
    assert set(assembly.task.seen) == {"miniimagenet", "cars", "places", "plantae"}
    assert next(assembly.train_batches)[0].query.shape == (5, 2, 3, 32, 32)
    before = [p.detach().clone() for p in trainer.problem.meta.parameters()]
    last = trainer.fit(assembly.train_batches, assembly.valid_batches, steps=1, progress=False)
    assert last["hypergradient_norm"] > 0
    after = trainer.problem.meta.parameters()
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_missing_photographs_are_answered_with_how_to_get_them(tmp_path):
    with pytest.raises(DataError, match=r"miniimagenet.*one folder of images for each class"):
        assemble(_config("resnet10", data_root=str(tmp_path)))


def test_command_line_names_the_nearest_method(command_line):
    code, told = command_line("cross_domain_few_shot", "with", "smoke", "method=evogard")
    assert code == 2
    assert "Did you mean 'evograd'?" in told
    assert "Traceback" not in told


def test_the_figure_of_the_study(tmp_path, drawn):
    class Run:
        config = {"steps": 100}
        metrics = {
            f"{kind}_deviation": pandas.Series([0.3, last], index=[10, 20])
            for kind, last in (("scale", 0.2), ("shift", 0.4))
        }

    found = [
        {"row": label, "seed": seed, "run": Run(), "test accuracy [%]": 60.0 + seed}
        for label in COMPARISON.rows
        for seed in (1, 2)
    ]
    figures.draw_comparison(pandas.DataFrame(found), tmp_path / "figure.png")
    accuracy, scale, shift = drawn.axes("figure.png", tmp_path)
    assert bars(accuracy) == dict.fromkeys(COMPARISON.rows, 61.5)
    for axis, kind, last in ((scale, "scale", 0.2), (shift, "shift", 0.4)):
        assert axis.get_ylabel() == f"mean deviation of the {kind}"
        # A curve for each seed, one label for each method.
        assert len(axis.lines) == 2 * len(COMPARISON.rows)
        # Five inner steps an outer one.
        curves = {label: ([50, 100], [0.3, last]) for label in COMPARISON.rows}
        assert lines(axis) == curves
    assert legend(shift) == list(COMPARISON.rows)
