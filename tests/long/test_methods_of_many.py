"""Each method that chooses what has a gradient gives the same on one, two and three processes."""

import json

import pytest
from conftest import run_script

METHODS = {
    "sophia": ["--optimizer=sophiag", "--sophia.every=4", "--sophia.rows=16"],
    "stacking": [
        *("--stacking.enabled=true", "--stacking.initial_layers=2", "--stacking.fractions=[0.4]"),
    ],
    "layer drop": ["--layer_drop.enabled=true"],
    "selection": ["--selection.name=selective_backprop"],
}
WORDS = [
    *("--data=reviews", "--model=bert-tiny", "--vocab_size=800", "--max_length=32", "--batch=32"),
    *("--micro_batch=8", "--limit=3000", "--lr=2e-3", "--budget=16", "--budget_unit=steps"),
]


def losses(folder, processes: int, *words: str) -> list[float]:
    out = folder / str(processes)
    run_script("pretrain_bert.py", *WORDS, *words, f"--out={out}", processes=processes)
    lines = map(json.loads, (out / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line["train_loss"] for line in lines if "train_loss" in line]


@pytest.mark.parametrize("name", METHODS)
def test_many_processes_train_as_one(name, tmp_path, cache_folder):
    alone = losses(tmp_path, 1, *METHODS[name])
    assert len(alone) == 16 and alone[-1] < alone[0] - 0.1
    for processes in (2, 3):
        assert losses(tmp_path, processes, *METHODS[name]) == pytest.approx(alone, rel=1e-5)


def test_gradients_in_bf16_train_nearly_as_those_in_fp32(tmp_path, cache_folder):
    exact = losses(tmp_path / "fp32", 2)
    rounded = losses(tmp_path / "bf16", 2, "--reduce_dtype=bf16")
    assert rounded != exact and rounded == pytest.approx(exact, abs=1e-3)
