"""Rows without ties: two classes in training, figures, answers, and 0 in Kaggle's third column."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from systems import build_systems

import report
from commands import predict, preference_judge
from data import instructions, layouts
from data.arena import load_arena
from files import add_to_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_classes")
    system = build_systems(folder)["preference"]
    rows, _ = load_arena(str(folder / "pairs.csv"))
    lines = [
        {"prompt": row.prompt[0], "chosen": row.response_a[0], "rejected": row.response_b[0]}
        for row in rows
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "chosen.jsonl").write_text(text)
    system.words.append(f"--data={folder / 'chosen.jsonl'}")
    return system, folder


@pytest.fixture(scope="module")
def runs(system, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    heads = ("concat", "symmetric")
    return {name: system[0].train(folder / name, f"--head={name}", "--swap=both") for name in heads}


@pytest.fixture(params=["concat", "symmetric"])
def run(runs, request) -> Path:
    return runs[request.param]


def predictions_of(run: Path) -> list[dict[str, str]]:
    with open(run / "test/metrics/predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_two_classes(run):
    metrics = json.loads((run / "test/metrics/metrics.json").read_text())
    assert np.shape(metrics["confusion_matrix"]) == (2, 2)
    assert metrics["uniform_log_loss"] == pytest.approx(np.log(2))
    assert "recall_B" in metrics and "recall_tie" not in metrics
    assert json.loads((run / "run.json").read_text())["classes"] == ["A", "B"]
    for row in predictions_of(run):
        assert list(row) == ["id", "group", "label", "prediction", "p_A", "p_B"]
        assert float(row["p_A"]) + float(row["p_B"]) == pytest.approx(1)


def test_predict_knows_the_classes_of_a_run(run, system, tmp_path):
    output = tmp_path / "submission.csv"
    data = str(system[1] / "chosen.jsonl")
    predict.predict(predict.PredictConfig(run_folder=str(run), data=data, output=str(output)))
    with open(output, newline="") as file:
        found = {row["id"]: row for row in csv.DictReader(file)}
    assert len(found) == 60
    for row in predictions_of(run):
        p = [float(found[row["id"]][name]) for name in layouts.WINNER_COLUMNS]
        assert p == pytest.approx([float(row["p_A"]), float(row["p_B"]), 0], abs=1e-5)


def test_a_run_judges_answers_without_ties(run, monkeypatch):
    """An answer equal to the reference gets 50."""
    with pytest.raises(ValueError, match="not better than the constant answer"):
        preference_judge.check_preference_run(run)
    monkeypatch.setattr(preference_judge, "check_preference_run", lambda *words: None)
    asked = {"instruction": "write", "input": "", "group": "g", "output": "a good film"}
    asked["prompt"] = instructions.format_prompt("write")
    rows = [asked | {"model_response": text} for text in ("a good film", "slow and sad")]
    found = preference_judge.PreferenceJudge(run, "cpu").score(rows)
    assert found[0, 0] == pytest.approx(50, abs=1e-3) and 0 < found[1, 0] < 100


def test_reports_read_it(runs):
    folders = list(map(str, runs.values()))
    for words in (["table", *folders], ["compare", *folders], ["page", folders[0]]):
        said = report.run_command(report.build_parser().parse_args(words))
        assert words[0] == "page" or "log_loss" in said
    assert (runs["concat"] / "report.html").stat().st_size


def test_a_run_without_recorded_classes_has_three(system, tmp_path):
    """As all runs before there were two."""
    run = system[0].train(tmp_path / "run", f"--data={system[1] / 'pairs.csv'}")
    weights = run / "train/weights/best"
    facts = json.loads((weights / "preference.json").read_text())
    assert facts.pop("classes") == ["A", "B", "tie"]
    add_to_folder(weights, "preference.json", json.dumps(facts))
    predictor = predict.Predictor(predict.PredictConfig(run_folder=str(run)))
    assert predictor.classes == ("A", "B", "tie")
    assert predictor.answer.model.head.out.out_features == 3
