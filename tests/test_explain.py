"""Two runs that differ in several settings: what is said of them, and the runs between them; with
a script that trains nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import forked
import pytest
import yaml
from conftest import PROJECT, environment
from run_folders import write_run
from tiny_script import finished_run

import report
import sweep
from reports import arms, effects, packed
from reports.folder import load_run
from sweeps import explain

# Losses depend on --prompt alone. `runs.launch(` is by what a script of ours is known.
SCRIPT = f"""
import sys
sys.path[:0] = ["{PROJECT}", "{PROJECT / "tests"}"]
from dataclasses import asdict, dataclass
from pathlib import Path
from settings import Section, parse_settings

@dataclass
class Config(Section):
    ONLY_WITH = {{"frac": "prompt"}}
    batch: int = 32
    lr: float = 1e-3
    prompt: bool = False
    frac: float = 0.4
    data: str = "rows.csv"
    limit: int = 100
    pace: float = 0.0
    out: str = ""
    seed: int = 0

if __name__ == "__main__":  # runs.launch(
    import time
    from tiny_script import finished_run
    config, _ = parse_settings(Config, sys.argv[1:], "tiny.py")
    time.sleep(config.pace)
    settings = asdict(config)
    settings.pop("out")
    finished_run(Path(config.out), **settings, command=["tiny.py", *sys.argv[1:]])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture
def ends(folder):
    a = finished_run(Path("results/a"), 0, batch=32, prompt=False)
    b = finished_run(Path("results/b"), 0, batch=8, prompt=True)
    return [str(a), str(b)]


def said(capsys, *words: str) -> str:
    report.main([str(word) for word in words])
    return capsys.readouterr().out


# ---------------------------------------------------------------------------- one experiment


def test_two_scripts_of_one_experiment_differ_in_settings_also_in_old_runs(tmp_path):
    new = {"init": "pretrained", "freeze": "none", "cache_features": True}
    runs = [
        write_run(tmp_path / "1", None, script="run_1_distilbert.py"),
        write_run(tmp_path / "2", None, script="run_2_appendprompt.py"),
        write_run(
            tmp_path / "3", None, script="run_5_models.py", settings={"prompt": False, **new}
        ),
        write_run(tmp_path / "4", None, script="run_5_models.py", settings=new),
    ]
    settings = [arms.settings_of(load_run(run)) for run in runs]
    assert settings[0] == settings[2] and settings[1] == settings[3]
    differing = {n for n in settings[0] if settings[0][n] != settings[1][n]}
    assert differing == {"prompt"}
    twin = write_run(tmp_path / "5", None, script="run_6_light.py")
    assert arms.settings_of(load_run(twin))["script"] == "run_6_light.py"


# ------------------------------------------------------------------------------- the question


def test_settings_existing_runs_cost_and_command(ends, capsys):
    finished_run(Path("results/deep/er/b8"), 1, batch=8)
    finished_run(Path("results/other_rows"), 2, batch=8, limit=50)
    finished_run(Path("results/other_lr"), 2, batch=8, lr=2e-3)
    unfinished = finished_run(Path("results/unfinished"), 3, batch=8)
    record = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    content = json.loads(said(capsys, "explain", *ends, "--json"))
    changed = {
        name: (f["from"][name], f["to"][name]) for f in content["settings"] for name in f["to"]
    }
    assert changed == {"batch": ("32", "8"), "prompt": ("false", "true")}
    assert content["seeds"] == [1, 2, 3] and content["missing"] == 11
    there = {p["settings"]: list(p["runs"]) for p in content["points"] if p["runs"]}
    assert there == {"batch=8, prompt=false": ["1"]}
    # 600 / 32 seconds of A, 600 / 8 of B and of what is there, twice A's in the middle
    assert content["minutes"] == pytest.approx((3 * 18.75 + 2 * 75 + 3 * 37.5 + 3 * 75) / 60)
    assert content["command"] == f"python sweep.py explain {ends[0]} {ends[1]} --seeds 1,2,3"
    text = said(capsys, "explain", *ends)
    assert "settings that differ" in text and "results/deep/er/b8" in text
    assert "12 runs, 1 of them there already" in text and content["command"] in text


def test_a_run_in_a_packed_folder_is_named_and_does_not_count(ends, capsys):
    finished_run(Path("results/deep/b8"), 1, batch=8)
    packed.pack(Path("results/deep"))
    shutil.rmtree("results/deep")
    content = json.loads(said(capsys, "explain", *ends, "--json"))
    assert content["missing"] == 12  # no link leads into a file
    assert any("1 such runs lie in packed folders, e.g. results/deep/b8" in n
               for n in content["notes"])  # fmt: skip


def test_a_margin_that_is_none_is_refused_before_a_plan_has_it(ends):
    with pytest.raises(SystemExit, match="expected a difference above 0"):
        sweep.main(["explain", *ends, "--margin", "0", "--out", "o"])
    assert not Path("o").exists()


def test_what_no_run_separates_is_said_apart(folder, capsys):
    a = finished_run(Path("results/a"), 0, batch=32)
    b = finished_run(Path("results/b"), 1, batch=8, limit=50)
    record = json.loads((b / "run.json").read_text())
    record |= {"commit": "another", "versions": {"torch": "9"}}
    (b / "run.json").write_text(json.dumps(record))
    text = said(capsys, "explain", a, b)
    assert "tested on other rows (limit 100 → 50), which no run separates" in text
    assert "versions.torch" in text and "commit" in text
    content = json.loads(said(capsys, "explain", a, b, "--rows", "b", "--json"))
    assert [list(f["to"]) for f in content["settings"]] == [["batch"]]
    with pytest.raises(SystemExit, match="--rows"):
        sweep.main(["explain", str(a), str(b)])


def test_settings_of_which_one_means_nothing_without_the_other_are_joined(folder, capsys):
    a = finished_run(Path("results/a"), 0)
    b = finished_run(Path("results/b"), 0, prompt=True, frac=0.7, batch=8)
    content = json.loads(said(capsys, "explain", a, b, "--json"))
    assert [set(f["to"]) for f in content["settings"]] == [{"batch"}, {"prompt", "frac"}]
    assert len(content["points"]) == 4
    assert re.search("Taken as one: .* would change nothing", content["joined"][0])
    other = said(capsys, "explain", a, b, "--together", "batch,frac")
    assert "as --together says: batch, frac" in other and "2 of " not in other
    with pytest.raises(SystemExit, match="lr does not differ; these do: batch, prompt, frac"):
        report.main(["explain", str(a), str(b), "--together", "lr,batch"])


def test_what_cannot_be_explained_is_refused_with_the_reason(ends, folder):
    same = finished_run(Path("results/c"), 5)
    finished_run(Path("results/grid/x"), 0, batch=4)
    finished_run(Path("results/grid/y"), 0, batch=2)
    other = finished_run(Path("results/d"), 5)
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(record | {"script": "train_headlines.py"}))
    for words, why in (
        ([ends[0], same], "differ in no setting"),
        ([ends[0], "results/grid"], "differ in more than the seed"),
        ([ends[0], other], "two programs"),
        ([ends[0], "results/nowhere"], "no such folder"),
        ([*ends, "--seeds", "0,1,2"], "seed 0 is of a run that raised the question"),
        ([*ends, "--seeds", "many"], "expected how many"),
    ):
        with pytest.raises(SystemExit, match=why):
            report.main(["explain", *map(str, words)])


def test_more_than_four_settings_are_taken_by_their_ends(ends):
    factors = [effects.Factor({f"s{i}": "0"}, {f"s{i}": "1"}) for i in range(5)]
    question = explain.ask(ends)
    question.factors, question.changes = factors, [({}, {f"s{i}": 1}) for i in range(5)]
    question.is_full = False
    assert len(question.points) == 12 and question.settings(0b10001)["s4"] == 1


# ------------------------------------------------------------------------------ the runs


def test_the_runs_between_are_made_and_judged(ends, folder, copies, capfd):
    there = finished_run(Path("results/elsewhere"), 2, batch=8)
    assert sweep.main(["explain", *ends, "--seeds", "4"]) == 0
    out = next(Path("results/sweeps").iterdir())
    link = out / "batch=8,prompt=false/seed_2"
    assert link.is_symlink() and link.resolve() == there.resolve()
    plan = yaml.safe_load((out / "sweep.yaml").read_text())
    assert plan["paired"] is True and plan["explain"]["a"] == ["results/a"]
    text = capfd.readouterr().out
    assert re.search(r"^prompt false → true \(-0.*, better\) did it; batch 32 → 8", text, re.M)
    assert "raised the question as A, not counted: results/a" in text
    assert (out / "effects.png").is_file() and "(4 seeds)" in text
    found = effects.build_effects([str(out)])
    assert found.grid.seeds == [1, 2, 3, 4] and found.grid.name(0) == "batch=32, prompt=false"
    # the same command again runs nothing, and says the same
    before = sorted((path, path.stat().st_mtime) for path in out.rglob("run.json"))
    assert sweep.main(["explain", f"{ends[0]}/", str(Path(ends[1]).absolute())]) == 0
    assert sorted((path, path.stat().st_mtime) for path in out.rglob("run.json")) == before
    assert "16 of 16 are finished already" in capfd.readouterr().out
    for words, why in (
        (["--seeds", "5"], "results must not choose"),
        (["--margin", "1"], "no margin 1"),
    ):
        with pytest.raises(SystemExit, match=why):
            sweep.main(["explain", *ends, *words])


def test_a_killed_one_goes_on(folder, copies):
    a = finished_run(Path("results/a"), 0, pace=0.5)
    b = finished_run(Path("results/b"), 0, prompt=True, pace=0.5)
    words = [
        forked.INTERPRETER,
        str(PROJECT / "sweep.py"),
        "explain",
        str(a),
        str(b),
        "--seeds",
        "2",
    ]
    killed = subprocess.Popen(words, env=environment(), start_new_session=True)
    for _ in range(300):
        time.sleep(0.1)
        if list(Path("results/sweeps").glob("*/*/seed_*/run.json")):
            break
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    plan = next(Path("results/sweeps").glob("*/sweep.yaml")).read_text()
    assert sweep.main(words[2:]) == 0
    assert next(Path("results/sweeps").glob("*/sweep.yaml")).read_text() == plan
    assert len(list(Path("results/sweeps").glob("*/*/seed_*/run.json"))) == 4


def test_a_dry_run_writes_nothing(ends, capsys):
    before = sorted(Path("results").rglob("*"))
    assert sweep.main(["explain", *ends, "--dry_run"]) == 0
    assert sorted(Path("results").rglob("*")) == before
    assert "12 runs, 0 of them there already" in capsys.readouterr().out
