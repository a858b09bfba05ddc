"""What decides whether settings are those of a run: what a path leads to, not how it is written."""

import errno
import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from run_folders import classifier, write_run

import core
import files
import runs
import sweep
from device import Machine
from files import content_digest
from reports import arms
from reports.folder import load_run
from runs.folder import RunFolder
from settings import Settings, parse_settings

WORLD = core.World(torch.device("cpu"), Machine())


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with rows, a model and a run of them that began."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,label\ngood,1\n")
    Path("tiny").mkdir()
    Path("tiny/model.safetensors").write_bytes(bytes(range(200)))
    begin("tiny", "rows.csv")
    return tmp_path


def begin(model: str, data: str, status: str = "stopped") -> None:
    record = folder_for(model, data)
    record.open()
    record.read_record()
    record.status = status
    record.write_record()
    (record.path / "train").mkdir(exist_ok=True)


def folder_for(model: str, data: str) -> RunFolder:
    return RunFolder(Settings(model=model, data=data, out="run"), WORLD, "run_x.py")


def differences(model: str, data: str) -> list[str]:
    return folder_for(model, data).other_settings(Path("run"))


def test_other_spellings_links_and_copies_are_the_same_setting(here):
    os.symlink("rows.csv", "link.csv")
    Path("copy.csv").write_bytes(Path("rows.csv").read_bytes())
    Path("sub").mkdir()
    Path("rows.csv").rename("sub/moved.csv")
    os.symlink("sub/moved.csv", "rows.csv")
    for data in (
        "./rows.csv",
        str(here / "rows.csv"),
        "link.csv",
        "copy.csv",
        "sub/../sub/moved.csv",
    ):
        assert differences("tiny", data) == []
    for model in ("./tiny", "tiny/", str(here / "tiny")):
        assert differences(model, "copy.csv") == []
    Path("tiny").rename("elsewhere")
    assert differences("elsewhere", "rows.csv") == []


def test_other_content_is_another_setting_under_any_name(here):
    Path("other.csv").write_text("text,label\nbad,0\n")
    assert differences("tiny", "other.csv") == ["data: 'rows.csv' there, 'other.csv' now"]
    assert differences("tiny", "nowhere.csv") == ["data: 'rows.csv' there, 'nowhere.csv' now"]
    Path("tiny/model.safetensors").write_bytes(bytes(200))
    assert differences("tiny", "rows.csv") == ["model: 'tiny' holds something else now"]
    assert differences("./tiny", "rows.csv") == ["model: 'tiny' there, './tiny' now"]


def test_changed_rows_end_what_is_finished_and_are_looked_at_where_a_run_goes_on(here):
    Path("rows.csv").write_text("text,label\ngood,1\n\n")  # another file, the same rows
    assert differences("tiny", "rows.csv") == []
    saved = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(saved | {"status": "finished"}))
    assert differences("tiny", "rows.csv") == ["data: 'rows.csv' holds something else now"]


def test_an_older_run_that_knows_no_contents_is_compared_by_what_its_paths_lead_to(here):
    saved = json.loads(Path("run/run.json").read_text())
    del saved["contents"]
    Path("run/run.json").write_text(json.dumps(saved))
    assert differences("./tiny", str(here / "rows.csv")) == []
    Path("copy.csv").write_bytes(Path("rows.csv").read_bytes())
    assert differences("tiny", "copy.csv") == ["data: 'rows.csv' there, 'copy.csv' now"]


def test_without_out_another_spelling_continues_the_unfinished_run(here):
    paths = []
    for model in ("tiny", "./tiny"):
        record = RunFolder(Settings(model=model, data="rows.csv"), WORLD, "run_x.py")
        record.open()
        record.read_record()
        record.status = "stopped"
        record.write_record()
        (record.path / "train").mkdir(exist_ok=True)
        paths.append(record.path)
    assert paths[0] == paths[1] and paths[0].parent == Path("results/tiny")


def test_looking_at_contents_does_not_count_as_reading_a_setting(here):
    config, _ = parse_settings(Settings, ["--model=tiny", "--data=rows.csv"], "x")
    RunFolder(config, WORLD, "x.py").contents  # noqa: B018
    assert not config.__dict__["_reads"][0] & {"model", "data"}


@pytest.mark.parametrize("size", [3, 1000, 20 << 20])
def test_equal_content_has_equal_digests_and_a_changed_part_another(size, tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        (folder / "part").mkdir(parents=True)
        (folder / "part/one.bin").write_bytes(bytes(size))
        (folder / "two.bin").write_bytes(bytes(size // 3))
    first, second = folders
    assert content_digest(first) == content_digest(second) is not None
    (second / "README.md").write_text("no part of it")
    (second / ".git/objects").mkdir(parents=True)
    (second / ".git/objects/ab").write_text("nor this")
    assert content_digest(first) == content_digest(second)
    (second / "two.bin").write_bytes(bytes(size // 3) + b"x")
    assert content_digest(first) != content_digest(second)
    (first / "two.bin").write_bytes(bytes(size // 3)[:-1] + b"x")  # one byte of the same size
    assert content_digest(first) != content_digest(second)
    assert content_digest(tmp_path / "nowhere") is None


def test_a_pipe_is_left_to_its_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert content_digest(tmp_path / "pipe") is None  # and does not wait for a writer


def test_reports_call_two_spellings_of_one_thing_one_setting(tmp_path):
    rows = classifier(40, 1.0, 0)
    spelled = ({"data": "rows.csv", "model": "tiny"}, {"data": "./rows.csv", "model": "/x/tiny"})
    paths = [
        write_run(tmp_path / f"r{n}", rows, seed=n, settings=settings, contents={"model": "abc"})
        for n, settings in enumerate(spelled)
    ]
    assert len(arms.group_runs([load_run(path) for path in paths])) == 1
    other = write_run(
        tmp_path / "r2", rows, seed=2, settings=spelled[0], contents={"model": "other"}
    )
    assert len(arms.group_runs([load_run(path) for path in [*paths, other]])) == 2


# ------------------------------------------------------------------- from another folder


def test_a_config_of_the_project_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/preference/run_1_128.yaml"
    kind = importlib.import_module("run_1_distilbert").Config
    config, _ = parse_settings(kind, [f"--config={name}"], "x")
    assert config.max_length == 128
    assert sweep.find(name, "config") == PROJECT / name
    Path("configs/preference").mkdir(parents=True)
    Path(name).write_text("max_length: 77")  # one's own comes first
    assert parse_settings(kind, [f"--config={name}"], "x")[0].max_length == 77
    with pytest.raises(SystemExit, match="no such file, neither here nor in"):
        parse_settings(Settings, ["--config=configs/none.yaml"], "x")


# ------------------------------------------------------------------- a cache of one's own


@dataclass
class Command:
    """Settings of a command that has none."""


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_names_its_variable(number, monkeypatch):
    monkeypatch.delenv("ABLATE_CACHE", raising=False)

    def message(path: Path) -> str:
        def act(config):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(sys, "argv", ["x.py", "act"])
        with pytest.raises(SystemExit) as ended:
            runs.launch(print, Settings, {"act": (act, Command)})
        return str(ended.value)

    assert "ABLATE_CACHE=FOLDER" in message(PROJECT / "cache/tokens/ab.tmp")
    assert "ABLATE_CACHE=FOLDER" in message(files.cache_folder())
    assert "ABLATE_CACHE" not in message(PROJECT / "results")
