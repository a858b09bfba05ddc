"""A run on votes whose source is planted ends in the verdict that is true of them."""

import json

import pytest
from conftest import WORDS
from test_style import few_trees, planted, write_rows  # noqa: F401
from tiny_models import build_tiny_model

import run_5_models
from settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
LEARNS = ["--epochs=12", "--lr=2e-3", "--dropout=0", "--max_length=40", "--prompt=false"]


@pytest.mark.parametrize("kind, verdict", [("length", "style only"), ("word", "more than style")])
def test_the_verdict_is_what_was_planted(kind, verdict, tmp_path):
    texts = [" ".join(WORDS)] * 3 + [f"{word} right wrong" for word in WORDS]
    model = build_tiny_model("bert", tmp_path / "encoder", texts)
    data = write_rows(planted(900, kind), tmp_path / "votes.csv")
    words = [f"--model={model}", f"--data={data}", f"--out={tmp_path}/run", *LEARNS]
    words += ["--pooling=mean", "--head=symmetric", "--swap=augment", "--val_frac=0.2"]
    words += ["--test_frac=0.2", "--device=cpu", "--page=false"]
    run_5_models.main(*parse_settings(run_5_models.Config, words, "run_5_models"))
    found = json.loads((tmp_path / "run/test/metrics/metrics.json").read_text())["beyond_style"]
    assert found["verdict"] == verdict, found
