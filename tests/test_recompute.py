"""report.py intervals: older runs get today's intervals, and figures stay."""

import json

import numpy as np
import pytest
from run_folders import classifier, write_run

from evaluation import metrics, stats
from reports import recompute

OLD = [0.1, 0.9]


def read(run):
    return json.loads((run / "test/metrics/metrics.json").read_text())


def test_intervals_are_made_again_and_figures_stay(tmp_path):
    rows = classifier(120, 1.0, 0, per_group=2)
    p = np.column_stack([rows[f"p_{name}"] for name in ("A", "B", "tie")])
    labels = np.array([("A", "B", "tie").index(label) for label in rows["label"]])
    today = metrics.classification_metrics(p, labels, rows["group"], ("A", "B", "tie"))
    old = {name: value for name, value in today.items() if not name.endswith("_ci95")}
    for name in ("primary", "interval_method", "groups", "effective_groups"):
        del old[name]
    names = ("accuracy", "log_loss", "loss", "f1_macro", "recall_A", "flip_consistency")
    old |= {"flip_consistency": 0.5, **{f"{name}_ci95": OLD for name in names}}
    run = write_run(tmp_path / "run", rows, metrics=old)
    said = recompute.report([str(run)])
    found = read(run)
    assert f"5 intervals by {stats.METHOD}, as they were: flip_consistency" in said
    for name in ("accuracy", "log_loss", "loss", "f1_macro", "recall_A"):
        assert found[f"{name}_ci95"] == pytest.approx(today[f"{name}_ci95"]), name
    assert found["flip_consistency_ci95"] == OLD
    assert found["other_interval_method"] == {"flip_consistency": "percentile bootstrap"}
    assert found["groups"] == 60 and found["primary"] == "log_loss"
    assert {name: found[name] for name in old if "_ci95" not in name} == {
        name: value for name, value in old.items() if "_ci95" not in name
    }
    assert "already" in recompute.report([str(run)]) and read(run) == found


def test_figures_that_the_rows_do_not_give_are_left_alone(tmp_path):
    """Weights were changed, or predictions are of another split: then nothing is guessed."""
    other = {"accuracy": 0.123, "accuracy_ci95": OLD}
    run = write_run(tmp_path / "run", classifier(50, 1.0, 0), metrics=other)
    assert "0 intervals" in recompute.report([str(run)])
    assert read(run)["accuracy_ci95"] == OLD
    none = write_run(tmp_path / "none", None, metrics=other)
    before = read(none)
    assert "unchanged" in recompute.report([str(none)]) and read(none) == before


def test_perplexity_follows_its_loss(tmp_path):
    rows = {"id": list(range(60)), "loss_sum": [30.0 + n % 7 for n in range(60)]}
    rows |= {"num_targets": [10 + n % 3 for n in range(60)]}
    loss = sum(rows["loss_sum"]) / sum(rows["num_targets"])
    old = {"loss": loss, "perplexity": np.exp(loss), "loss_ci95": OLD, "perplexity_ci95": OLD}
    run = write_run(tmp_path / "run", rows, metrics=old)
    recompute.report([str(run)])
    found = read(run)
    assert found["perplexity_ci95"] == pytest.approx(np.exp(found["loss_ci95"]).tolist())
