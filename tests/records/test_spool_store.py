import pytest

from metatoolkit import records
from metatoolkit.errors import QueryError, UnknownNameError

from .experiments import make


@pytest.fixture
def connection(home, monkeypatch):
    """Three runs that no database has, the last of which failed."""
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")

    def body(_run, seed):
        for step in range(5):
            _run.log_scalar("loss", seed / (step + 1), 10 * step)
        print(f"epoch {seed}")
        if seed == 3:
            raise ValueError("out of memory")
        return {"accuracy": 0.1 * seed}

    for seed in (1, 2, 3):
        experiment = make(body, lr=0.1)
        if seed == 3:
            with pytest.raises(ValueError, match="memory"):
                experiment.run(config_updates={"seed": seed})
        else:
            experiment.run(config_updates={"seed": seed})
    with records.connect() as opened:
        yield opened


def test_the_spool_answers_as_a_database_does(connection):
    def seeds(expression):
        return sorted(run.config["seed"] for run in connection.find(expression))

    for expression, wanted in {
        "metrics.loss.last < 0.5": [1, 2],
        "metrics.loss.at[10] == 1.0": [2],
        "metrics.loss.at[11] > 0": [],
        "metrics.loss.last * 5 == config.seed": [1, 2, 3],
        "result.accuracy < config.lr * 1.5": [1],
        "reason == 'ValueError: out of memory'": [3],
        "contains(output, 'epoch 2')": [2],
        "not exists(reason)": [1, 2],
    }.items():
        assert seeds(expression) == wanted, expression
    table = connection.find().sort("config.seed").table(["metrics.loss.at[40]", "reason"])
    assert table["metrics.loss.at[40]"].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert connection.best("loss", at=20).config["seed"] == 3
    with pytest.raises(QueryError, match=r"config\.lr is a number"):
        seeds("config.lr != '0.1'")
    with pytest.raises(UnknownNameError, match="Did you mean 'loss'"):
        seeds("metrics.los.last != 3")
    assert any(name.endswith("test_spool_store.py") for name in connection["latest"].sources)
