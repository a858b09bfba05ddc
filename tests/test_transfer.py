"""sweep.py push and pull, with folders in the place of machines; over ssh: tests/long."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from many_sweeps import SCRIPT

import sweep
from claims import Claims
from files import PROJECT
from sweeps import manifest, transfer
from sweeps.ended import has_ended
from sweeps.transfer import Moved, Remote, out_there


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """(home, away): two copies of a small project with git at home; ssh is a shell in `away`."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "fake.py").write_text(SCRIPT.format(project=str(PROJECT)))
    (home / "data").mkdir()
    (home / "data/committed.csv").write_text("text,label\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        name = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", *name, *words], cwd=home, check=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr(transfer, "PROJECT", home)
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nshift\ncd "{away}" && exec sh -c "$*"\n')
    ssh.chmod(0o755)

    def rsync(remote: Remote, words: list[str], names: list[str] = ()) -> None:
        source, target = (Path(str(word).replace("host:", f"{away}/")) for word in words[-2:])
        if not names:
            shutil.copytree(source, target, dirs_exist_ok=True)
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)

    monkeypatch.setattr(Remote, "rsync", rsync)
    monkeypatch.setattr(sweep, "report", lambda *words: None)
    return home, away, str(ssh)


def plan(home: Path) -> list[str]:
    (home / "rows.csv").write_text("text,label\nfine,1\n")
    (home.parent / "more").mkdir(exist_ok=True)
    (home.parent / "more/rows.csv").write_text("text,label\nbad,0\n")
    content = {"script": "fake.py", "seeds": 2, "pace": 0.01, "data": "rows.csv"}
    content["arms"] = {"one": {}, "two": {"extra": str(home.parent / "more")}}
    (home / "plan.yaml").write_text(yaml.safe_dump(content))
    return ["--config", "plan.yaml", "--out", "o"]


def test_a_sweep_goes_there_and_its_runs_come_back(machines, capsys, monkeypatch):
    home, away, ssh = machines
    words = plan(home)
    assert sweep.main([*words, "--seeds", "1"]) == 0  # a part of it is done at home
    at_home = manifest.ended_runs(Path("o"), True)
    assert sweep.main(["push", "host:ablate", "--ssh", ssh, *words]) == 0
    said = capsys.readouterr()
    assert "2 files or folders of rows" in said.out and "2 runs that have ended" in said.out
    assert "cd ablate && bash startup.sh && " in said.out
    there = away / "ablate"
    told = yaml.safe_load((there / "o/sweep.yaml").read_text())["arms"]["two"]
    assert told["data"].startswith("rows/") and (there / told["data"]).read_text().endswith("1\n")
    assert (there / told["extra"] / "rows.csv").is_file() and not (there / "plan.yaml").exists()
    commit = ["git", "rev-parse", "HEAD"]
    heads = [subprocess.run(commit, cwd=f, capture_output=True).stdout for f in (home, there)]
    assert heads[0] == heads[1] != b""
    monkeypatch.chdir(there)
    assert sweep.main(["--config", "o/sweep.yaml", "--out", "o"]) == 0
    assert Claims(Path("o"), Path("one/seed_1")).look().number == 1
    monkeypatch.chdir(home)
    capsys.readouterr()
    # damaged on the way: it is not put to its place, and taken again
    sums = manifest.sums
    monkeypatch.setattr(manifest, "sums", lambda folder, names: dict.fromkeys(names, [0, ""]))
    assert sweep.main(["pull", "host:ablate", "--ssh", ssh, *words]) == 1
    assert "arrived otherwise than it left" in capsys.readouterr().out
    assert not Path("o/one/seed_1").exists()
    monkeypatch.setattr(manifest, "sums", sums)
    assert sweep.main(["pull", "host:ablate", "--ssh", ssh, *words]) == 0
    assert "o: 2 runs came home and are as they were there, 2 were here" in capsys.readouterr().out
    assert sorted(manifest.ended_runs(Path("o"), True)) == [
        "one/seed_0", "one/seed_1", "two/seed_0", "two/seed_1",
    ]  # fmt: skip
    assert manifest.ended_runs(Path("o"), True)["one/seed_0"] == at_home["one/seed_0"]
    assert not list(Path("o/one/seed_1").rglob("step_*")) and not Path("o/attempts/pulled").exists()
    assert Path("o/one/seed_1.log").read_text().startswith("$ ")
    # there and back, nothing is left to do, and nothing comes twice
    assert sweep.main(["pull", "host:ablate", "--ssh", ssh, *words]) == 0
    assert "0 runs came home" in capsys.readouterr().out
    # another run of that name stays as it is
    path = Path("o/one/seed_1/test/metrics/metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 1.0}))
    assert sweep.main(["pull", "host:ablate", "--ssh", ssh, *words]) == 1
    assert "one/seed_1: the run here is another one than that of host" in capsys.readouterr().out
    assert '"accuracy": 1.0' in path.read_text()


def test_a_run_that_is_half_done_goes_on_there(machines):
    home, away, ssh = machines
    words = plan(home)
    assert sweep.main([*words, "--seeds", "1"]) == 0
    attempt = Path("o/attempts/1/one/seed_0")
    os.rename("o/one/seed_0", attempt)
    record = json.loads((attempt / "run.json").read_text())
    (attempt / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    assert sweep.main(["push", "host:ablate", "--ssh", ssh, *words]) == 0
    place = away / "ablate/o/one/seed_0"
    assert json.loads((place / "run.json").read_text())["status"] == "stopped"
    assert (place / "train/weights/step_00000012/manifest.json").is_file()


def test_code_that_is_not_committed_is_refused(machines):
    home, _, ssh = machines
    words = plan(home)
    (home / "fake.py").write_text("1")
    with pytest.raises(SystemExit, match="fake.py differ from it: commit first"):
        sweep.main(["push", "host:ablate", "--ssh", ssh, *words])
    with pytest.raises(SystemExit, match="--checkpoints is of pull"):
        sweep.main(["push", "host:ablate", "--checkpoints", *words])


def test_paths_of_settings_are_those_of_the_other_machine(machines, tmp_path):
    home, _, _ = machines
    moved = Moved(home)
    assert moved.value("data", "data/committed.csv") == "data/committed.csv"
    assert moved.value("data", str(home / "data/committed.csv")) == "data/committed.csv"
    assert moved.value("model", "bert-base-uncased") == "bert-base-uncased"
    assert moved.value("lr", 1e-3) == 1e-3 and moved.value("data", "") == ""
    assert moved.value("tune", {"model": ["a", "b"]}) == {"model": ["a", "b"]}
    (tmp_path / "own.py").write_text("")
    with pytest.raises(SystemExit, match="own.py: this script is not in the commit"):
        moved.value("script", str(tmp_path / "own.py"))
    assert str(out_there(Path("results/sweeps/a"))) == "results/sweeps/a"
    assert str(out_there(tmp_path / "volume/a")) == "results/sweeps/a"


@pytest.mark.parametrize("text", ["host", ":folder", "host:", "-oProxyCommand=x:y"])
def test_where_to_is_a_host_and_a_folder(text):
    with pytest.raises(SystemExit, match="expected HOST:FOLDER"):
        Remote.parse(text, "ssh")
    assert Remote.parse("me@host:~/ablate", "ssh").place("o") == "me@host:ablate/o"


def test_a_suite_in_which_a_task_diverged_has_ended(tmp_path):
    record = {"status": "failed", "verdicts": ["cola: diverged: the loss is NaN"]}
    for name, verdicts in (("suite", record["verdicts"]), ("other", ["overfitted: by far"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record | {"verdicts": verdicts}))
        assert has_ended(tmp_path / name) == (name == "suite")
    assert list(manifest.ended_runs(tmp_path, False)) == ["suite"]
