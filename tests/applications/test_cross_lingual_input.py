"""What the cross-lingual application answers to wrong input."""

import pytest

from applications.cross_lingual.experiment import assemble, load_task, settings_of
from metatoolkit.errors import ConfigurationError, DataError, LabelError, UnknownNameError
from tests.applications.cross_lingual import smoke


def write_language(folder, tags):
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [f"Word{n} {tag}\nend O\n" for n in range(4) for tag in tags]
        (folder / f"{split}.txt").write_text("\n".join(lines))


def test_conll_folders_and_label_sets_that_differ(tmp_path):
    write_language(tmp_path / "aa", ["B-PER", "B-LOC"])
    write_language(tmp_path / "bb", ["B-PER", "B-LOC"])
    write_language(tmp_path / "cc", ["B-PER", "B-MISC"])

    def settings(target, **more):
        data = {"name": "conll", "root": str(tmp_path), "source": "aa", "target": target}
        return settings_of(smoke(data={**data, "target_examples": 4, "source_examples": 8, **more}))

    assert load_task(settings("bb")).labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    with pytest.raises(LabelError, match=r"'aa' lacks B-MISC.*'cc' lacks B-LOC"):
        load_task(settings("cc"))
    assert "B-MISC" in load_task(settings("cc", labels="union")).labels
    with pytest.raises(DataError, match="dd does not exist"):
        load_task(settings("dd"))
    silent = (tmp_path / "bb" / "dev.txt").read_text().replace("B-PER", "O").replace("B-LOC", "O")
    (tmp_path / "bb" / "dev.txt").write_text(silent)
    with pytest.raises(DataError, match="dev of 'bb' holds no span"):
        load_task(settings("bb"))


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({"method": "evogard"}, UnknownNameError, "evograd"),
        ({"data": {"name": "masakanher"}}, UnknownNameError, "masakhaner"),
        ({"data": {"name": "conll"}}, ConfigurationError, r"data\.source is None"),
        ({"data": {"target": "generated-0"}}, ConfigurationError, "name two languages"),
        ({"data": {"target": "generated-7"}}, UnknownNameError, "generated-1"),
        (
            {"data": {"target_examples": 61}},
            ConfigurationError,
            r"data\.target_examples is 61",
        ),
        ({"data": {"name": "masakhaner", "root": "/missing"}}, DataError, "masakhane-ner"),
        ({"target_batch_size": 1}, ConfigurationError, "at least 2 is needed"),
        ({"target_batch_size": 21}, ConfigurationError, r"target_batch_size is 21.* 20 target"),
        ({"batch_size": 41}, ConfigurationError, r"batch_size is 41, but there are 40 source"),
        ({"transform": {"layers": [2]}}, ConfigurationError, "the encoder has 2 layers"),
        ({"encoder": {"embeddings": 100}}, ConfigurationError, "100 embeddings"),
        ({"evograd": {"candidates": 1}}, ConfigurationError, "candidates is 1"),
        ({"evograd": {"sigma": 0.0}}, ConfigurationError, "sigma"),
        ({"evograd": {"perturb": None}}, ConfigurationError, "prefix depends on inner parameters"),
        ({"batch_size": 0}, ConfigurationError, "batch_size is 0"),
    ],
)
def test_wrong_input_is_answered(updates, error, message):
    with pytest.raises(error, match=message):
        assembly = assemble(smoke(**updates))
        assembly.trainer.fit(assembly.train_batches, assembly.valid_batches, progress=False)


def test_command_line_names_the_nearest_method(command_line):
    code, told = command_line("cross_lingual", "with", "smoke", "method=evogard")
    assert code == 2
    assert "Did you mean 'evograd'?" in told
    assert "Traceback" not in told
