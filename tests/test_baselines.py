"""The TF-IDF baseline: a run folder that report.py compares with a model's on the same rows."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import PROJECT, WORDS
from test_texts import write_csv

from commands import tfidf
from data import texts
from settings import parse_settings


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    draw = np.random.default_rng(0)
    rows = []
    for i in range(200):
        words = [*draw.choice(WORDS, 8), "aye" if i % 2 else "nay"]
        rows.append((f"{' '.join(words)} {i}", "yes" if i % 2 else "no"))
    return write_csv(tmp_path_factory.mktemp("data") / "own.csv", rows)


def run_tfidf(*words: str) -> None:
    tfidf.tfidf(parse_settings(tfidf.Config, words, "tfidf")[0])


def test_it_finds_the_word_that_decides_and_reports_as_a_run(labelled, tmp_path, capsys):
    out = tmp_path / "tfidf"
    run_tfidf(f"--task={labelled}", "--test_frac=0.3", f"--out={out}")
    assert f"finished: {out}" in capsys.readouterr().out
    metrics = json.loads((out / "test/metrics/metrics.json").read_text())
    rows, classes, _ = texts.load_rows(str(labelled), None, 0.1, 0.3)
    test_rows = [row for row in rows if row.split == "test"]
    assert metrics["n"] == len(test_rows) and metrics["accuracy"] > 0.95
    assert metrics["inverse_penalty"] in tfidf.STRENGTHS
    lines = (out / "test/metrics/predictions.csv").read_text().splitlines()
    assert lines[0] == "id,group,label,prediction,p_no,p_yes"
    assert [line.split(",")[0] for line in lines[1:]] == [row.id for row in test_rows]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"] == "tfidf" and config["test_frac"] == 0.3
    # fewer training rows leave the test rows as they are: what report.py pairs by
    run_tfidf(
        f"--task={labelled}", "--test_frac=0.3", "--train_frac=0.1", f"--out={tmp_path / 'few'}"
    )
    report = [sys.executable, "report.py", "compare", str(tmp_path / "few"), str(out)]
    done = subprocess.run(report, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and "train_frac" in done.stdout, done.stderr
    assert "different" not in done.stdout
    with pytest.raises(ValueError, match="holds a run already"):
        run_tfidf(f"--task={labelled}", f"--out={out}")


def test_a_class_without_training_rows_gets_no_probability(tmp_path):
    def row(number: int, label: int, split: str) -> texts.TextRow:
        text = f"{WORDS[label]} {WORDS[label + 3]} text"
        return texts.TextRow(str(number), str(number), text, label, split)

    train = [row(i, i % 2, "train") for i in range(20)]
    parts = {"train": train, "val": train, "test": [row(30, 1, "test"), row(31, 2, "test")]}
    p, p_val, _, count = tfidf.fit(parts, 3)
    assert np.allclose(p.sum(axis=1), 1) and (p[:, 2] == 0).all() and p[0, 1] > 0.5
    assert count > 3 and p_val.shape == (20, 3)
    with pytest.raises(ValueError, match="one label"):
        tfidf.fit({**parts, "train": train[::2]}, 3)
