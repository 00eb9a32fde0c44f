"""A folder of Parquet files on a Ray cluster: each file whole, each row once, also when a worker is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COMPANIES, TEXTS
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from fintune.deploy import fleet
from fintune.deploy.label_file import label_file, run_fingerprint
from fintune.errors import UserError
from fintune.results.verify import read_result

HEADLINES = [text.format(company) for texts in TEXTS.values() for text in texts for company in COMPANIES]
FILES, ROWS = 5, 2000  # a second's work each


@pytest.fixture
def folder(tmp_path) -> Path:
    """Files of 2,000 rows, of which 40 are empty."""
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        texts = [f"{HEADLINES[row % len(HEADLINES)]} {number} {row}" if row % 50 else "" for row in range(ROWS)]
        rows = pa.table({"id": range(number * ROWS, (number + 1) * ROWS), "text": texts})
        pq.write_table(rows, tmp_path / f"in/part-{number}.parquet")
    (tmp_path / "in/_SUCCESS").touch()
    return tmp_path


def labeller(run_dir: Path, source, target) -> fleet.Labeller:
    return fleet.Labeller(str(run_dir), str(source), str(target), ("text", 0.0, ""), None)


def test_a_cluster_that_loses_a_worker_loses_and_doubles_no_row(run_dir, classifier, folder, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    node = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node})
    try:
        workers = [cluster.add_node(num_cpus=1, **node) for _ in range(2)]
        command = [sys.executable, "-m", "fintune.cli", "predict", str(run_dir), "in", "--engine", "ray", "-o", "out"]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        done = []
        while not done and process.poll() is None:
            done = list((folder / "out").glob("*.parquet"))
            time.sleep(0.05)
        assert len(done) < FILES  # in the middle
        cluster.remove_node(workers[0], allow_graceful=False)
        assert process.wait(timeout=240) == 3, (folder / "log").read_text()[-3000:]
        again = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    said = f"{FILES * ROWS:,} rows: {FILES * 1960:,} labelled, {FILES * 40:,} rejected"
    assert said in (folder / "log").read_text()
    assert f"5 files, 5 of them done before\n{said}" in again.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(
        ["_run.json", *(f"part-{n}.parquet" for n in range(FILES))]
    )
    for number in range(FILES):
        name = f"part-{number}.parquet"
        label_file(classifier, run_dir, folder / "in" / name, folder / name, "text", 0.0)
        alone, found = pq.read_table(folder / name), pq.read_table(folder / "out" / name)
        assert found["id"].equals(alone["id"])
        assert found["label"].equals(alone["label"])
        assert found["rejected"].equals(alone["rejected"])
        assert found["rejected"].null_count == 1960


def test_files_pass_through_a_nodes_own_folder_where_the_place_is_no_path(run_dir, folder, monkeypatch):
    """pyarrow's interface of file systems, which a bucket has too; here over a folder."""
    bucket = SubTreeFileSystem(str(folder), LocalFileSystem())
    monkeypatch.setattr(fleet, "location", lambda place: (bucket, place))
    assert fleet.parquet_files("in") == [f"part-{n}.parquet" for n in range(FILES)]
    assert fleet.parquet_files("out", missing_ok=True) == []
    with pytest.raises(UserError, match="cannot be listed"):
        fleet.parquet_files("elsewhere")
    fleet._check_run("out", ["b"], begun=False)
    fleet._check_run("out", ["a"], begun=False)  # nothing was labelled yet
    fleet._check_run("out", ["a"], begun=True)
    with pytest.raises(UserError, match="begun with another run"):
        fleet._check_run("out", ["b"], begun=True)
    assert labeller(run_dir, "in", "out")({"file": ["part-1.parquet"]}) == {"file": ["part-1.parquet"], "error": [""]}
    assert fleet.count("in", "out", ["part-1.parquet"]) == (1960, 40)
    assert labeller(run_dir, "in", "out")({"file": ["part-1.parquet"]})["error"] == [""]  # a retry of a finished file
    assert pq.read_table(folder / "out/part-1.parquet")["rejected"].to_pylist().count("empty") == 40


def test_from_a_bucket_to_a_path_a_file_is_whole_or_not_there(run_dir, folder, monkeypatch):
    bucket, location, copied = SubTreeFileSystem(str(folder), LocalFileSystem()), fleet.location, []
    monkeypatch.setattr(fleet, "location", lambda place: (bucket, place) if place == "in" else location(place))
    copy_files = fleet.copy_files
    monkeypatch.setattr(fleet, "copy_files", lambda *args: copied.append(args[1]) or copy_files(*args))
    assert labeller(run_dir, "in", folder / "out")({"file": ["part-1.parquet"]})["error"] == [""]
    assert [Path(place).parent.name for place in copied] == ["in"]  # the output is renamed, never copied
    assert fleet.count("in", str(folder / "out"), ["part-1.parquet"]) == (1960, 40)


def test_a_foreign_run_json_stays(folder):
    (folder / "out").mkdir()
    (folder / "out/_run.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"its _run\.json is not of `fintune predict`; move it away"):
        fleet._check_run(str(folder / "out"), ["a"], begun=False)
    assert (folder / "out/_run.json").read_text() == '{"mine": 1}'
    (folder / "out/_run.json").write_text("")  # killed as it was written
    fleet._check_run(str(folder / "out"), ["a"], begun=False)
    assert (folder / "out/_run.json").read_text() == '["a"]'


def test_of_two_commands_into_one_folder_the_second_is_refused(folder, monkeypatch):
    """Both find no file yet; without a lock each would write its own _run.json, and files of both would mix."""
    source, target, asked = str(folder / "in"), str(folder / "out"), []

    def second(names, settings):
        asked.append(names)
        for run in (["a"], ["b"]):
            with pytest.raises(UserError, match="out: another command is labelling into it; wait for that one"):
                fleet.label_folder(Path("run"), run, source, target, "text", 0.0, "")
        return [{"file": names[0], "error": "power cut"}]

    monkeypatch.setattr(fleet, "_failed", second)
    for _ in range(2):  # the first one's end, an error too, lets the next begin
        with pytest.raises(UserError, match="power cut"):
            fleet.label_folder(Path("run"), ["a"], source, target, "text", 0.0, "")
    assert len(asked) == 2 and len(asked[0]) == FILES and sorted(os.listdir(target)) == ["_run.json"]
    with pytest.raises(UserError, match="power cut"):  # nothing was labelled, so another run may
        fleet.label_folder(Path("run"), ["b"], source, target, "text", 0.0, "")


def test_what_cannot_be_labelled_is_said(run_dir, folder):
    actor = labeller(run_dir, folder / "in", folder / "out")
    pq.write_table(pa.table({"title": ["x"]}), folder / "in/part-9.parquet")
    (folder / "in/part-8.parquet").write_bytes(b"PAR1 and no more")
    assert "column 'text' is missing from" in actor({"file": ["part-9.parquet"]})["error"][0]
    assert "not a complete Parquet file" in actor({"file": ["part-8.parquet"]})["error"][0]

    (folder / "out").mkdir(exist_ok=True)
    cut = pa.table({"rejected": pa.array([None] * 1999, pa.string())})
    pq.write_table(cut, folder / "out/part-0.parquet")
    with pytest.raises(UserError, match="1999 rows of 2000"):
        fleet.count(str(folder / "in"), str(folder / "out"), ["part-0.parquet"])
    for content in (b"PAR1", (folder / "in/part-1.parquet").read_bytes()):  # cut; not labelled
        (folder / "out/part-1.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"(?s)part-1\.parquet: is no file that was labelled .* remove it and"):
            fleet.count(str(folder / "in"), str(folder / "out"), ["part-1.parquet"])
    result = read_result(run_dir)
    run = run_fingerprint(run_dir, result["data"]["labels"], result["calibration"])
    for source, target, message in (
        ("in", "in", "is the input's folder"),
        ("out/none", "more", "cannot be listed"),
        ("log", "more", "no .parquet file"),
        ("what://ever", "more", "give a path, or a URI"),
    ):
        (folder / "log").mkdir(exist_ok=True)
        place = source if "://" in source else str(folder / source)
        with pytest.raises(UserError, match=message):
            fleet.label_folder(run_dir, run, place, str(folder / target), "text", 0.0, "")
