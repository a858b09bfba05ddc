"""Settings of commands: one that is given is read or refused, as in training."""

import csv
import dataclasses
import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from run_folders import write_run

import core
import files
import runs
from commands import (
    answers,
    attention,
    calibrate,
    download,
    generate,
    inspect,
    judge,
    merge_export,
    params,
    predict,
    titles,
)
from commands.verdicts import run_of
from data import instructions
from models import pretrained
from settings import Section, Settings, parse_settings


def test_every_command_has_settings_that_know_what_was_given():
    found = 0
    for path in sorted((PROJECT / "commands").glob("[a-z]*.py")):
        module = importlib.import_module(f"commands.{path.stem}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and kind.__module__ == module.__name__
            if own and dataclasses.is_dataclass(kind) and kind.__name__.endswith("Config"):
                assert issubclass(kind, Section), kind
                found += 1
    assert found > 15


@pytest.mark.parametrize(
    "kind, words",
    [
        (predict.PredictConfig, "--data=rows.csv --prompt=why"),
        (predict.PredictConfig, "--output=here.csv"),
        (predict.PredictConfig, "--skip_bad_rows"),
        (params.ParamsConfig, "--lora_layers=last:2"),
        (params.ParamsConfig, "--lora_qkv=fused"),
        (download.DownloadConfig, "c4-subset --data=mp"),
        (inspect.InspectConfig, "--samples=0 --seed=3"),
        (inspect.InspectConfig, "--samples=0 --temperature=0.5"),
        (generate.GenerateConfig, "--instruction=why --limit=3"),
        (titles.GenerateConfig, "--temperature=0 --top_k=3"),
        (judge.JudgeConfig, "--answers=a --base=b"),
    ],
)
def test_what_would_change_nothing_is_refused(kind, words):
    with pytest.raises(SystemExit, match="would change nothing: it counts"):
        parse_settings(kind, words.split(), "command")


@pytest.mark.parametrize(
    "words, problem",
    [
        ("--answers=a --data=b", "no run is to answer"),
        ("--answers=a --against=b --max_new_tokens=7", "no run is to answer"),
        ("--passport=rows.csv --by=some/run --prompts=score", "reads no prompt"),
        ("--answers=a --against={} --data=b --by=nobody", "expected gemini"),  # it is, of that run
    ],
)
def test_settings_of_a_run_that_answers_need_one(words, problem, tmp_path):
    words = words.format(tmp_path).split()
    with pytest.raises(ValueError, match=problem):
        judge.run_judge(parse_settings(judge.JudgeConfig, words, "judge")[0])


@dataclass
class Forgets(Section):
    """Settings of a command that reads one of them."""

    read: int = 0
    """is read"""
    idle: int = 0
    """is not"""


def launch(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["x.py", "forgets", *words])
    runs.launch(lambda *_: None, Settings, {"forgets": (lambda config: config.read, Forgets)})


def test_a_command_that_does_not_read_what_was_given_says_so(monkeypatch):
    launch(monkeypatch, "--read=1")
    with pytest.raises(SystemExit, match="--idle was given, but nothing in this run uses it"):
        launch(monkeypatch, "--read=1", "--idle=2")


def test_a_command_that_is_not_shared_refuses_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="x.py forgets: 2 processes would each do all of it"):
        launch(monkeypatch, "--read=1")


def test_a_run_in_a_packed_folder_is_to_be_unpacked_first(tmp_path, monkeypatch, report):
    write_run(tmp_path / "x/a", None)
    report("pack", tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    commands = {"predict": (predict.predict, predict.PredictConfig)}
    for run in (tmp_path / "x/a", tmp_path / "x.zip/a"):
        monkeypatch.setattr("sys.argv", ["x.py", "predict", f"--run_folder={run}"])
        with pytest.raises(SystemExit, match="--run_folder .* lies in a packed folder: unpack it"):
            runs.launch(lambda *_: None, Settings, commands)


@pytest.mark.parametrize(
    "kind, words",
    [
        (calibrate.CalibrateConfig, "--repeats=0"),  # the price would be NaN
        (calibrate.CalibrateConfig, "--micro_batch=-1"),
        (attention.Config, "--tokens=0"),
        (inspect.InspectConfig, "--samples=-1"),
    ],
)
def test_numbers_of_nothing_are_refused(kind, words):
    with pytest.raises((ValueError, SystemExit), match="expected [01] or more"):
        parse_settings(kind, [words], "command")


def test_a_seed_of_nothing_drawn_is_refused():
    words = ["--temperature=0", "--seed=3"]
    with pytest.raises(ValueError, match="--seed 3 would change nothing"):
        inspect.inspect(parse_settings(inspect.InspectConfig, words, "inspect")[0])


def shares(*words: str) -> tuple:
    return generate.shares_of(parse_settings(generate.GenerateConfig, words, "generate")[0])


def test_answers_are_of_the_split_that_the_run_was_trained_with(tmp_path):
    weights = tmp_path / "train/weights/best"
    weights.mkdir(parents=True)
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    (tmp_path / "config.yaml").write_text("val_frac: 0.2\ntest_frac: 0.3\n")
    for model in (tmp_path, weights):
        assert shares(f"--model={model}") == ((0.2, 0.3), [])
    (chosen, said) = shares(f"--model={tmp_path}", "--data=x", "--split=test", "--test_frac=0.1")
    assert chosen == (0.2, 0.1) and "trained with val_frac 0.2 and test_frac 0.3" in said[0]
    assert shares("--model=gpt2") == ((0.05, 0.1), [])
    with pytest.raises(ValueError, match="leave something to train on"):
        instructions.load_rows("rows.json", 0.5, 0.5)


def test_of_chosen_and_rejected_answers_predict_says_which_side_they_stood_on(
    tmp_path, monkeypatch
):
    """A hash of the row draws it, and the submission has no labels."""

    def answers(rows) -> np.ndarray:
        shown = np.array([row.response_a[0].startswith("good") for row in rows])
        assert 0 < shown.sum() < len(rows)
        return np.where(shown[:, None], [[0.9, 0.1]], [[0.2, 0.8]])

    monkeypatch.setattr(predict, "Predictor", lambda config: answers)
    rows = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"data": str(tmp_path / "rows.jsonl"), "output": str(tmp_path / "out.csv")}
    predict.predict(predict.PredictConfig(run_folder="run", **where))
    with open(tmp_path / "out.csv") as one, open(tmp_path / "out.chosen.csv") as other:
        for p, side in zip(csv.DictReader(one), csv.DictReader(other), strict=True):
            assert p["id"] == side["id"]
            assert p["winner_model_a"] == {"A": "0.9", "B": "0.2"}[side["chosen"]]


def test_the_run_of_weights_that_are_named_from_within_it(tmp_path, monkeypatch):
    (tmp_path / "train/weights/best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "train")
    assert run_of("weights/best") == tmp_path and run_of(tmp_path) == tmp_path


def test_a_folder_to_look_in_that_is_not_there_is_named(tmp_path, report):
    words = ["explain", tmp_path / "a", tmp_path / "b", "--under", tmp_path / "typo"]
    for name in "ab":
        write_run(tmp_path / name, None)
    assert "typo: no such folder" in report(*words)


def test_a_bundle_is_not_written_over_what_it_is_read_from(tmp_path, report):
    for name in "ab":
        write_run(tmp_path / f"x/{name}", None)
    report("pack", tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    before = (tmp_path / "x.zip").read_bytes()
    said = report("bundle", tmp_path / "x.zip/a", "--anyway", "--output", tmp_path / "x.zip")
    assert "is what these runs are read from" in said
    assert (tmp_path / "x.zip").read_bytes() == before


# -------------------------------------------------------------------------------------- judge

WINS = np.array([[100.0, 100.0], [0.0, 0.0]])


def answer_file(path: Path, ids: str) -> Path:
    lines = [
        {"id": name, "instruction": f"ask {name}", "output": "o", "model_response": f"{path.stem}"}
        for name in ids
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_labels_need_to_know_which_answer_is_meant(tmp_path):
    file = answer_file(tmp_path / "a.jsonl", "abb")
    file.write_text(file.read_text().replace('"a"}', '"other"}', 2).replace('"other"}', '"a"}', 1))
    rows = answers.read_answers(file, None)
    (tmp_path / "labels.csv").write_text("id,human\nb,80\n")
    config = judge.JudgeConfig(labels=str(tmp_path / "labels.csv"))
    with pytest.raises(ValueError, match="1 of the answers have an id that another answer has"):
        answers.read_labels(config, rows)


@pytest.mark.parametrize("run_is", ["one", "other"])
def test_a_limit_holds_for_a_run_against_a_file(run_is, tmp_path, monkeypatch):
    """The run answers so many rows; the file has answers to all of them."""
    run, file = answer_file(tmp_path / "run.jsonl", "db"), answer_file(tmp_path / "f.jsonl", "abcd")
    judged = []
    monkeypatch.setattr(judge, "asker", lambda *_: lambda _, pairs: judged.extend(pairs) or WINS)
    monkeypatch.setattr(judge, "write", lambda *_: None)
    monkeypatch.setattr(judge, "say_result", lambda *_: None)
    names = {"run_folder": "r", "against": str(file)}
    files = [run, file]
    if run_is == "other":
        names, files = {"answers": str(file), "against": str(tmp_path)}, files[::-1]
    judge.compare_answers(judge.JudgeConfig(**names, limit=2), files, object())
    assert {pair.id for pair in judged} == {"b", "d"} and len(judged) == 2


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("tested", ["best", "final", None])
def test_commands_open_the_weights_that_a_run_was_tested_with(tested, tmp_path, monkeypatch):
    for name in ("best", "final"):
        files.write_folder(tmp_path / f"train/weights/{name}", lambda beside: None)
    write_run(tmp_path, None, metrics={"tested_with": tested} if tested else {})
    assert Path(pretrained.weights_folder(str(tmp_path), None)).name == (tested or "best")
    assert Path(pretrained.weights_folder(str(tmp_path), "final")).name == "final"
    opened = []
    monkeypatch.setattr(predict, "open_run", lambda *words: opened.append(words[2]) or Opened())
    predict.Predictor(predict.PredictConfig(run_folder=str(tmp_path)), core.single_world("cpu"))
    predict.Predictor(
        predict.PredictConfig(run_folder=str(tmp_path), weights="final"), core.single_world("cpu")
    )
    assert opened == [tested or "best", "final"]
    for kind in (generate.GenerateConfig, judge.JudgeConfig, titles.GenerateConfig,
                 inspect.InspectConfig, attention.Config, merge_export.WriteConfig):  # fmt: skip
        assert kind().weights is None


class Opened:
    classes, precision = 3, "fp32"
