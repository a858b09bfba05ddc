"""Packed folders of runs: what a report says of FOLDER.zip is what it says of FOLDER."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from run_folders import classifier, write_run

import seal
from reports import bundle, packed
from reports.folder import load_runs
from reports.ledger import looking_runs


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(a folder that has runs/, another that has runs.zip alone): the same runs."""
    top = tmp_path_factory.mktemp("places")
    runs = top / "folder/runs"
    for arm, strength in (("1_weak", 1.0), ("2_strong", 2.0)):
        for seed in range(3):
            rows = classifier(150, strength, seed, per_group=2)
            facts = {"settings": {"lr": strength}, "metrics": {"log_loss": 0.9, "n": 150}}
            run = write_run(runs / arm / f"seed_{seed}", rows, seed=seed, **facts)
            (run / "diff.patch").write_text(f"seed {seed}")
            (run / "test/analysis").mkdir()
            worst = {"id": "r1", "label": "A", "loss": 3.5, "text": "what it read"}
            (run / "test/analysis/worst_rows.jsonl").write_text(json.dumps(worst) + "\n")
            (run / "train/weights/best").mkdir(parents=True)
            (run / "train/weights/best/manifest.json").write_text("{}")
            (run / "train/weights/best/model.safetensors").write_bytes(bytes(1000))
            (run / "report.html").write_text("made again at any time")
    (runs / "sweep.yaml").write_text("paired: true\nmargin: 0.01\n")
    lost = write_run(runs / "2_strong/seed_3", None, seed=3, status="failed", settings={"lr": 2.0})
    record = json.loads((lost / "run.json").read_text())
    record["verdicts"] = ["diverged: the loss is NaN"]
    (lost / "run.json").write_text(json.dumps(record))
    (top / "file").mkdir()
    packed.pack(runs).rename(top / "file/runs.zip")
    return top / "folder", top / "file"


@pytest.fixture
def report_in(report, monkeypatch):
    """`report`, called in a folder."""

    def call(place, *words: str) -> str:
        monkeypatch.chdir(place)
        return report(*words)

    return call


@pytest.mark.parametrize(
    "words",
    [
        "table runs --markdown",
        "table runs/1_weak runs/2_strong --csv --each",
        "table runs --json",
        "compare runs/1_weak runs/2_strong",
        "compare runs --json",
        "compare runs/1_weak runs/2_strong --html",
        "compare runs/1_weak/seed_0 runs/2_strong/seed_1",
        "steps runs --markdown",
        "commands runs",
        "power --difference 0.1 --like runs/1_weak",
        "watch runs/1_weak/seed_1 --once",
        "table runs/nothing",
        "steps runs/1_weak/seed_0",
    ],
)
def test_a_report_on_the_file_is_the_report_on_the_folder(report_in, places, words):
    folder, file = places
    said = report_in(folder, *words.split())
    assert report_in(file, *words.split()) == said != ""


@pytest.mark.parametrize("runs", ["runs/2_strong/seed_1", "runs/1_weak"])
def test_a_page_of_the_file_is_the_page_of_the_folder(report_in, places, tmp_path, runs):
    for place, name in zip(places, ("a.html", "b.html"), strict=True):
        assert "page: " in report_in(place, "page", runs, "--output", str(tmp_path / name))
    page = (tmp_path / "a.html").read_bytes()
    assert page == (tmp_path / "b.html").read_bytes() and len(page) > 20_000


def test_a_page_of_a_packed_run_is_written_where_one_stands(report_in, places, tmp_path):
    shutil.copy(places[1] / "runs.zip", tmp_path)
    assert report_in(tmp_path, "page", "runs/1_weak/seed_0") == "page: report.html\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "runs.zip"]


def test_a_file_may_be_named_as_one(report_in, places):
    said = report_in(places[0], "table", "runs/1_weak")
    for name in ("runs.zip/1_weak", "./runs.zip/1_weak/", "runs/1_weak/"):
        assert report_in(places[1], "table", name) == said
    assert report_in(places[1], "table", "runs.zip") == report_in(places[0], "table", "runs")


def test_a_folder_of_packed_folders_is_read(report_in, places, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(places[0] / "runs", tmp_path / "a" / name)
        shutil.copytree(places[0] / "runs", tmp_path / "b" / name)
        report_in(tmp_path, "pack", f"b/{name}")
        shutil.rmtree(tmp_path / "b" / name)
    (tmp_path / "b/data.zip").write_bytes(b"no zip")
    shutil.make_archive(str(tmp_path / "b/notes"), "zip", tmp_path / "a/one", "1_weak/seed_0/test")
    for words in ("table . --each --columns run,log_loss", "steps one --json"):
        said = report_in(tmp_path / "a", *words.split())
        assert report_in(tmp_path / "b", *words.split()) == said and "1_weak" in said


def test_the_folder_is_read_where_both_are_and_the_file_where_it_is_named(
    report_in, places, tmp_path
):
    shutil.copytree(places[0] / "runs", tmp_path / "runs")
    shutil.copy(places[1] / "runs.zip", tmp_path)
    shutil.rmtree(tmp_path / "runs/2_strong")
    said = report_in(tmp_path, "table", "runs", "--each", "--columns", "run").splitlines()
    assert {line[:5] for line in said if "2_strong" in line} == {"note:"}
    assert "2_strong" in report_in(tmp_path, "table", "runs.zip", "--each", "--columns", "run")
    assert "no such folder" in report_in(tmp_path, "table", "runs/2_strong")


def test_intervals_are_made_once_more_in_the_file(report_in, places, tmp_path):
    for place, kind in zip(places, ("folder", "file"), strict=True):
        shutil.copytree(place, tmp_path / kind)
    said = report_in(tmp_path / "folder", "intervals", "runs")
    assert report_in(tmp_path / "file", "intervals", "runs") == said
    assert said.count(" intervals by ") == 6
    after = [report_in(tmp_path / kind, "table", "runs", "--json") for kind in ("folder", "file")]
    assert after[0] == after[1]
    name = "runs/1_weak/seed_2/test/metrics/metrics.json"
    assert packed.read_bytes(tmp_path / "file" / name) == (tmp_path / "folder" / name).read_bytes()
    assert "already" in report_in(tmp_path / "file", "intervals", "runs")


def test_a_packed_folder_has_what_reports_read_and_no_more(places, tmp_path):
    with zipfile.ZipFile(places[1] / "runs.zip") as file:
        names = {re.sub(r"^runs/(\d_\w+/seed_\d/)?", "", name) for name in file.namelist()}
        file.extractall(tmp_path)
    assert names == {
        *("sweep.yaml", "config.yaml", "run.json", "diff.patch"),
        *("train/metrics/metrics.jsonl", "test/metrics/metrics.json"),
        *("test/metrics/predictions.csv", "test/analysis/worst_rows.jsonl"),
    }
    assert (tmp_path / "runs/1_weak/seed_0/run.json").exists()  # unpacked beside, it is the folder
    again = packed.pack(tmp_path / "runs")
    assert again.read_bytes() == (places[1] / "runs.zip").read_bytes()


@pytest.mark.parametrize("with_top", [True, False])
def test_what_another_program_packed_is_read_too(report_in, places, tmp_path, with_top):
    folder = places[0]
    where = (folder, "runs") if with_top else (folder / "runs", ".")
    shutil.make_archive(str(tmp_path / "runs"), "zip", *where)
    assert report_in(tmp_path, "table", "runs") == report_in(folder, "table", "runs")


def test_a_damaged_member_costs_its_run_and_no_other(report_in, places, tmp_path):
    content = bytearray((places[1] / "runs.zip").read_bytes())
    with zipfile.ZipFile(places[1] / "runs.zip") as file:
        info = file.getinfo("runs/1_weak/seed_1/test/metrics/predictions.csv")
    content[info.header_offset + info.compress_size // 2 + 100] ^= 255
    (tmp_path / "runs.zip").write_bytes(content)
    said = report_in(tmp_path, "compare", "runs/1_weak", "runs/2_strong")
    assert re.search(r"seed_1: predictions.csv cannot be used: .*damaged in runs.zip", said)
    assert "(2 seeds)" in said


def test_a_torn_file_and_a_folder_without_runs_are_refused(report_in, places, tmp_path):
    (tmp_path / "runs.zip").write_bytes((places[1] / "runs.zip").read_bytes()[:-500])
    assert "runs.zip cannot be read as a packed folder" in report_in(tmp_path, "table", "runs")
    (tmp_path / "notes").mkdir()
    assert "no run folder in it" in report_in(tmp_path, "pack", "notes")
    assert "nowhere: no such folder" in report_in(tmp_path, "pack", "nowhere")
    assert not list(tmp_path.glob("*.tmp"))


def test_pack_says_what_it_wrote(report_in, places, tmp_path):
    shutil.copytree(places[0], tmp_path / "x")
    assert report_in(tmp_path / "x", "pack", "runs").startswith("packed: runs.zip (0.0")


# ------------------------------------------------------------------- what is there more than once


def sealed(folder: Path, seed: int) -> Path:
    run = write_run(folder, classifier(60, 1.0, seed), seed=seed, id=f"{folder}")
    seal.write_record(run, json.loads((run / "run.json").read_text()))
    return run


def notes_on(path: Path) -> tuple[list[str], str]:
    runs = load_runs([str(path)])
    return [run.name for run in runs], "\n".join(note for run in runs for note in run.notes)


def test_packing_takes_no_runs_away_that_are_in_the_file_alone(tmp_path):
    folder = tmp_path / "x"
    for seed in range(2):
        sealed(folder / f"seed_{seed}", seed)
    packed.pack(folder)
    shutil.rmtree(folder)
    sealed(folder / "seed_5", 5)
    for path in (folder, tmp_path):
        names, notes = notes_on(path)
        assert names == ["x/seed_5"]
        assert "x.zip is not read, as x is there as well, which lacks 2 runs (seed_0, …)" in notes
    with pytest.raises(ValueError, match=r"holds 2 runs \(seed_0, …\), which .*unpack it first"):
        packed.pack(folder)
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        file.extractall(tmp_path)
    packed.pack(folder)
    assert len(notes_on(folder)[0]) == 3 and "is not read" not in notes_on(folder)[1]


def test_a_packed_folder_that_is_damaged_is_named(tmp_path):
    sealed(tmp_path / "a", 0)
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 torn")
    names, notes = notes_on(tmp_path)
    assert len(names) == 1 and "b.zip cannot be read as a packed folder" in notes


def test_a_bundle_beside_its_runs_does_not_count_them_twice(tmp_path):
    for seed in range(3):
        sealed(tmp_path / f"x/seed_{seed}", seed)
    bundle.bundle([str(tmp_path / "x")], tmp_path / "share.zip", anyway=True)
    shutil.copytree(tmp_path / "x/seed_0", tmp_path / "x/copy")
    names, notes = notes_on(tmp_path)
    assert len(names) == 3 and notes.count("is a copy of it: left out") == 4
    assert len(looking_runs([str(tmp_path)])) == 3
