"""Documents, and which of them expressions select."""

import datetime

from metatoolkit.records.stores import MongoStore

DOCUMENTS = [
    {"_id": 1, "config": {"method": "evograd", "lr": 0.1, "a．b": 1}, "status": "COMPLETED",
     "result": {"acc": 0.9}, "omniboard": {"tags": ["paper"]},
     "start_time": datetime.datetime(2026, 11, 17, 12), "duration": 1.0,
     "stop_time": datetime.datetime(2026, 11, 17, 13), "artifacts": [{"name": "w.pt"}],
     "summary": {"val．loss": {"min": 0.2, "at": {"10": 0.4, "-1": 0.5}}}},
    {"_id": 2, "config": {"method": "plain", "lr": 1, "flag": True}, "status": "FAILED",
     "result": {"acc": float("nan")}, "experiment": {"name": "label_noise"},
     "start_time": datetime.datetime(2026, 11, 20, 12), "duration": 5400,
     "artifacts": [{"name": "a.png"}, {"name": "b"}], "captured_out": "epoch 6\nepoch 7\n"},
    {"_id": 3, "config": {"method": None, "layers": [1, 2], "nested": {"x": "y", "in": [[5]]}},
     "status": "RUNNING", "start_time": datetime.datetime(2026, 11, 21, 12)},
]  # fmt: skip

EXPECTED = {
    "config.method == 'evograd' and result.acc > 0.8": [1],
    "config.method == 'evograd' or status == \"FAILED\"": [1, 2],
    "not config.method == 'evograd'": [2, 3],
    "config.method != 'evograd'": [2, 3],
    "0.05 < config.lr <= 1": [1, 2],
    "1 > config.lr": [1],
    "config.lr == 1.0": [2],
    "config.flag == true": [2],
    "config.flag": [2],
    "config.lr == True": [],
    "status in ['FAILED', 'RUNNING']": [2, 3],
    "status not in ('FAILED', 'RUNNING')": [1],
    "'paper' in tags": [1],
    "'paper' not in tags": [2, 3],
    "tags == 'paper'": [1],
    "2 in config.layers": [3],
    "config.layers == [1, 2]": [3],
    "config.nested.x == 'y'": [3],
    "config.layers[1] == 2": [3],
    "config.nested['in'][0] == [5]": [3],
    "config.nested['in'][0] == 5": [],
    "config['a.b'] == 1": [1],
    "metrics['val.loss'].min < 0.3": [1],
    "result.acc == nan": [2],
    "result.acc <= nan": [2],
    "result.acc > nan": [],
    "exists(config.lr)": [1, 2],
    "not exists(config.lr)": [3],
    "config.lr == none": [3],
    "config.method == None": [3],
    "matches(config.method, '^evo')": [1],
    "contains(config.method, 'lai')": [2],
    "startswith(config.method, 'pl')": [2],
    "startswith(config.method, '.')": [],
    "experiment == 'label_noise'": [2],
    "start_time >= '2026-11-18' and start_time < '2026-11-21'": [2],
    "id == 3": [3],
    "id > -1": [1, 2, 3],
    "config.method == 'it''s'": [],
    "": [1, 2, 3],
    "  \n config.lr\n == 1 ": [2],
    "config.lr > 'text'": [],
    "config.method > 5": [],
    "config.lr == 99999999999999999999999": [],
    "config.lr < 10**-0.5": [1],
    "config.lr == 2 * 0.5": [2],
    "duration > '1 second'": [2],
    "duration <= '1h 30min' and duration >= '0.5 s'": [1, 2],
    "'w.pt' in artifacts": [1],
    "contains(artifacts, '.p')": [1, 2],
    "contains(output, 'epoch 7')": [2],
    "metrics.val.loss.min < 0.3": [1],
    "exists(metrics['val.loss'])": [1],
    "exists(metrics)": [1],
}
# What MongoDB does not know, and metrics at a step.
COMPUTED = {
    "config.lr < result.acc": [1],
    "result.acc - config.lr > 0.75": [1],
    "2 * config.lr >= 0.2 and config.lr**2 <= 1": [1, 2],
    "abs(config.lr - 0.5) > 0.4": [2],
    "-config.lr < -0.5": [2],
    "config.lr % 2 == 1": [2],
    "config.method == config.nested.x": [],
    "config.method != config.nested.x": [1, 2, 3],
    "config.missing == config.absent": [],
    "not config.lr < result.acc": [2, 3],
    "config.lr / (config.lr - 1) < 0": [1],
    "config.flag + 1 == 2": [],
    "start_time + 86400 * 2 > '2026-11-22'": [2, 3],
    "start_time < stop_time": [1],
    "stop_time - start_time > duration": [1],
    "duration * 2 > 3": [2],
    "metrics['val.loss'].min + 0.1 < 0.5": [1],
    "metrics['val.loss'].at[10] == 0.4": [1],
    "metrics['val.loss'].at[-1] == 0.5 or metrics['val.loss'].at[0.5] == 2": [1],
    "metrics['val.loss'].at[11] == 0.4": [],
}


def on_a_server(database, query):
    """Return the ids of what the server's prefilter and then the predicate select."""
    paths = [field.path for field in query.fields]
    headers = MongoStore(database, None, None).headers(query.prefilter, paths)
    return [one["_id"] for one in headers if query.holds(one)]
