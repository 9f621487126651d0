import pytest
import torch

from benchmarks import estimators
from metatoolkit.hypergradients import Unrolled
from tests.drawings import bars


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_page_is_written(tmp_path, drawn):
    arguments = ["weights", "--draws", "1", "--repeats", "1", "--output", str(tmp_path)]
    assert estimators.main(arguments) == 0
    page = (tmp_path / "estimators.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| FiniteDifference"))
    cosine, error = row.split("|")[2:4]
    assert float(cosine) > 0.99 and float(error) < 0.05
    axes = drawn.axes("estimators_weights.png", tmp_path)
    assert bars(axes[0])["FiniteDifference"] == pytest.approx(float(error), rel=0.1, abs=1e-3)
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert set(bars(axes[0])) <= rows and len(bars(axes[0])) > 5


@pytest.mark.parametrize("problem", estimators.PROBLEMS)
def test_peers_give_the_same_hypergradient(problem):
    setup = estimators.PROBLEMS[problem]()
    if setup["peer_steps"] is None:
        pytest.skip("peers take no hyper-parameter of the optimizer for λ here")
    kinds = {"higher": estimators.Higher, "torchopt": estimators.TorchOpt}
    ours = Unrolled(2)
    theirs = [kind(2) for module, kind in kinds.items() if estimators.installed(module)]
    if not theirs:
        pytest.skip("no peer is installed: pip install -e '.[benchmarks]'")
    state = setup["inner"].init(setup["problem"])
    batches = (setup["train_batches"] * 2)[:2]
    results = [
        estimator(setup["problem"], setup["inner"], state, batches, setup["valid_batch"])
        for estimator in (ours, *theirs)
    ]
    for result in results[1:]:
        for name, gradient in results[0].gradient.items():
            error = (result.gradient[name] - gradient).norm() / gradient.norm()
            assert float(error) < 1e-5


@pytest.mark.parametrize("peer", ["betty", "hypergrad"])
def test_implicit_peers_give_the_same_hypergradient(peer):
    if not estimators.installed(peer):
        pytest.skip(f"{peer} is not installed")
    setup = estimators.PROBLEMS["penalties"]()
    # Betty's released conjugate gradient does not converge; its Neumann series does.
    kind = estimators.Betty("neumann", 600, 0.3) if peer == "betty" else None
    kind = kind or estimators.Hypertorch("CG", 20)
    state = setup["inner"].init(setup["problem"])
    arguments = (setup["problem"], setup["inner"], state, setup["train_batches"][:1])
    result = kind(*arguments, setup["valid_batch"])
    error = (result.gradient["log"] - setup["reference"]["log"]).norm()
    assert float(error / setup["reference"]["log"].norm()) < 1e-5
