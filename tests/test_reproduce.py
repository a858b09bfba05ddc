"""`reproduce`: steps of a run again are the same, or depart where something was changed."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from conftest import SCRATCH, run_script
from systems import System, build_systems

from commands import reproduce
from experiments import training
from files import read_json, write_text
from reports import packed

pytestmark = pytest.mark.usefixtures("one_thread")
MORE = ["--epochs=2", "--schedule=linear", "--warmup_frac=0.25", "--keep_every=1", "--save_every=2"]


@pytest.fixture(scope="module")
def systems(tmp_path_factory) -> dict[str, System]:
    return build_systems(tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="module")
def runs(systems, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    names = ("preference", "bert", "headlines")
    return {name: systems[name].train(folder / name, *MORE) for name in names}


@pytest.fixture(autouse=True)
def copies(monkeypatch, tmp_path):
    """What measures rounding starts as a copy; the steps go to a cache of this test's own."""
    monkeypatch.setattr(sys, "executable", forked.variables(SCRATCH)["PYTHON_EXEC"])
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))


def again(system: System, run: Path, **settings) -> None:
    module = __import__(system.script)
    config = reproduce.Config(run_folder=str(run), **settings)
    reproduce.again(config, module.main, module.Config)


def test_the_first_steps_of_each_kind_of_run_are_the_same_again(systems, runs, capsys):
    for name, run in runs.items():
        again(systems[name], run, steps="4")
        said = capsys.readouterr().out
        assert "identical to the last digit: steps 1 to 4" in said, said
        assert "weights of step 4: all" in said and "are equal" in said, said


def test_the_steps_after_a_kept_checkpoint_are_the_same_again(systems, runs, capsys, tmp_path):
    run = runs["preference"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again(systems["preference"], run, steps="2", from_step=4, output=str(tmp_path / "there"))
    said = capsys.readouterr().out
    assert "identical to the last digit: steps 5 to 6" in said, said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="kept: 2, 3, 4, 6"):
        again(systems["preference"], run, from_step=1)


def test_a_packed_run_and_all_steps(systems, runs, capfd, tmp_path, monkeypatch):
    shutil.copytree(runs["headlines"], tmp_path / "theirs/one")
    packed.pack(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs")
    again(systems["headlines"], tmp_path / "theirs.zip/one", steps="all")
    total = read_json(runs["headlines"] / "run.json")["steps"]
    said = capfd.readouterr().out
    assert f"identical to the last digit: steps 1 to {total}" in said
    ours = tmp_path / "cache/reproduced" / read_json(runs["headlines"] / "run.json")["id"]
    for file in ("metrics.json", "predictions.csv"):
        there, here = (folder / "test/metrics" / file for folder in (runs["headlines"], ours))
        assert there.read_bytes() == here.read_bytes()


def test_a_planted_change_is_found_at_its_step(systems, runs, capsys, monkeypatch):
    """A learning rate that is another at one step alone."""
    plain = training.schedule_of
    record = read_json(runs["preference"] / "run.json")
    at = 3 / record["total_steps"]  # of step 4

    def planted(config, *more):
        schedule = plain(config, *more)
        return lambda fraction: schedule(fraction) * (1.5 if abs(fraction - at) < 1e-9 else 1)

    monkeypatch.setattr(training, "schedule_of", planted)
    monkeypatch.setattr(reproduce, "measure_rounding", lambda *_: [])
    with pytest.raises(SystemExit) as ended:
        again(systems["preference"], runs["preference"], steps="6")
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "departs at step 4: lr was" in said, said
    assert "weights of step 6:" in said and "tensors differ" in said


def test_a_change_of_the_code_departs_in_loss_and_is_no_rounding(systems, runs, capsys, tmp_path):
    """The log of a run that had another label smoothing, told as this one's."""
    other = systems["preference"].train(tmp_path / "other", *MORE, "--label_smoothing=0.001")
    copy = tmp_path / "copy"
    shutil.copytree(runs["preference"], copy)
    shutil.copy(other / "train/metrics/metrics.jsonl", copy / "train/metrics/metrics.jsonl")
    with pytest.raises(SystemExit):
        again(systems["preference"], copy, steps="2")
    said = capsys.readouterr().out
    assert said.count("for rounding: the same steps with") == 2
    assert "departs at step 1: train_loss was" in said and "rounding explains" in said, said


def test_two_processes_say_the_same(systems, runs, capsys):
    system, run = systems["preference"], runs["preference"]
    done = run_script(f"{system.script}.py", "reproduce", str(run), "--steps=3", processes=2)
    assert "identical to the last digit: steps 1 to 3" in done.stdout, done.stdout + done.stderr


def fake(folder: Path, losses: list[float]) -> SimpleNamespace:
    lines = [
        {"step": step, "train_loss": loss, "lr": 0.1, "examples": step}
        for step, loss in enumerate(losses, 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(folder / "train/metrics/metrics.jsonl", text)
    write_text(folder / "run.json", json.dumps({"versions": {"torch": "2.13.0"}}))
    record = {"versions": {"torch": "2.12.0"}, "commit": ""}
    return SimpleNamespace(path=folder, record=record, lines=(lines, []))


@pytest.mark.parametrize(("change", "departs"), [(3e-7, False), (3e-5, True)])
def test_what_rounding_may_change_is_measured(change, departs, tmp_path):
    run = fake(tmp_path / "run", [1.0 + change, 0.5 + change])
    fake(tmp_path / "again", [1.0, 0.5])
    found = reproduce.Comparison(run, tmp_path / "again", 0)
    assert found.departs
    found.allow([{(1, "train_loss"): 1.0 + 1e-7, (2, "train_loss"): 0.5 - 2e-7}])
    assert found.departs is departs
    said = str(found)
    assert ("departs at step 1" if departs else "equal within rounding: steps 1 to 2") in said
    assert "torch 2.12.0 then, 2.13.0 now" in said
    assert "the code of commit unknown is not in this repository" in said


def test_what_cannot_be_repeated_is_refused(systems, runs, tmp_path):
    with pytest.raises(ValueError, match="use that script"):
        again(systems["gpt2"], runs["preference"])
    with pytest.raises(ValueError, match="reproduce needs a run"):
        again(systems["preference"], Path(""))
    hours = systems["preference"].train(tmp_path / "hours", "--budget=1e-5", "--budget_unit=hours")
    with pytest.raises(ValueError, match="clock on the wall"):
        again(systems["preference"], hours)
    with pytest.raises(ValueError, match="expected a number of steps"):
        reproduce.Config(steps="some")
