"""What does not fit into the document of a run."""

from metatoolkit import records

from .experiments import run, stored


def test_what_is_too_large_for_a_document_becomes_an_artifact(database):
    def main(_run):
        _run.info["small"] = 1
        _run.info["large"] = list(range(300_000))
        return {"accuracy": 1.0, "trace": "y" * 17_000_000}

    run(main)
    with records.connect() as connection:
        found = connection[1]
        assert found.info["small"] == 1
        assert found.info["large"] == {"artifact": "info.large.json"}
        assert found.result["accuracy"] == 1.0
        assert len(found.artifacts["result.trace.json"].read()) > 17_000_000


def test_metadata_of_artifacts_never_outgrow_the_document(database, tmp_path, capsys):
    (tmp_path / "weights.bin").write_bytes(b"w")

    def main(_run):
        _run.add_artifact(tmp_path / "weights.bin", "one", {"text": "x" * 17_000_000})
        for number in range(30):
            metadata = {"list": [0] * 8_000, "huge": 2**70, "a.b": number}
            _run.add_artifact(tmp_path / "weights.bin", f"small{number}", metadata)
        _run.add_artifact(tmp_path / "weights.bin", "n" * 17_000_000, content_type="t" * 17_000_000)
        return {"accuracy": 1.0}

    document, _ = stored(database, records.run_uuid(run(main)))
    assert document["status"] == "COMPLETED" and document["result"] == {"accuracy": 1.0}
    entries = {one["name"]: one for one in document["artifacts"]}
    assert entries["one"]["metadata"] == {"artifact": "one.metadata.json"}
    kept = [entries[f"small{number}"]["metadata"] for number in range(30)]
    assert kept[0] == {"list": [0] * 8_000, "huge": float(2**70), "a．b": 0}
    assert kept[29] == {"artifact": "small29.metadata.json"}
    assert "n" * 1000 in entries
    assert "(17,0" in capsys.readouterr().err
    with records.connect() as connection:
        assert len(connection[1].artifacts["one.metadata.json"].read()) > 17_000_000


def test_sections_are_as_long_as_the_database_counts(database, monkeypatch):
    """A list of small numbers is six times as long there as in JSON."""
    from metatoolkit.records import document as documents

    monkeypatch.setattr(documents, "SECTION_LIMIT", documents.SECTION_LIMIT // 10)
    monkeypatch.setattr(documents, "ENTRY_LIMIT", documents.ENTRY_LIMIT // 10)
    zeros = {f"part{number}": [0] * 49_000 for number in range(2)}

    def main(_run):
        _run.info.update(zeros)
        return zeros

    document, _ = stored(database, records.run_uuid(run(main, zeros=zeros)))
    assert document["status"] == "COMPLETED"
    assert document["info"]["part0"] == {"artifact": "info.part0.json"}
    assert document["config"]["zeros"] == {"artifact": "config.zeros.json"}


def test_very_many_resources_and_long_names_of_metrics_fit(database, tmp_path, monkeypatch, capsys):
    from metatoolkit.records import document as documents
    from metatoolkit.records import push

    monkeypatch.setattr(documents, "SECTION_LIMIT", 1_000)
    monkeypatch.setattr(push, "NAMES_LENGTH", 5_000)

    def main(_run):
        for number in range(30):
            (tmp_path / f"{number}").write_text("")
            _run.open_resource(tmp_path / f"{number}").close()
            _run.log_scalar(f"{number:02}" + "x" * 900, number)

    uuid = records.run_uuid(run(main))
    document = database["runs"].find_one({"run_uuid": uuid})
    assert 0 < len(document["resources"]) < 30 and "too many" in capsys.readouterr().err
    assert document["unlisted_metrics"] == 25
    with records.connect() as connection:
        assert len(connection[1].metrics) == 30
        assert connection[1].metrics["29" + "x" * 900].tolist() == [29]
