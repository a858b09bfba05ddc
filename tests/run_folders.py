"""Run folders as the contract has them, written without training anything."""

import csv
import json
from pathlib import Path

import numpy as np
import yaml

CLASSES = ("A", "B", "tie")
SETTINGS = {"model": "minilm", "data": "rows.csv", "batch": 32, "epochs": 1.0, "lr": 1e-4}


def classifier(
    rows: int, strength: float, seed: int, rows_seed: int = 0, per_group: int = 1
) -> dict[str, list]:
    """Test rows of a made-up classifier; higher strength, more rows right.

    How hard a row is depends on rows_seed alone, so that two classifiers agree more than by chance.
    """
    rows_draw, own_draw = np.random.default_rng(rows_seed), np.random.default_rng(1000 + seed)
    labels = rows_draw.integers(3, size=rows)
    hard = rows_draw.normal(size=(rows, 3))
    logits = hard + 0.5 * own_draw.normal(size=(rows, 3)) + strength * np.eye(3)[labels]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    columns = {
        "id": [f"r{number}" for number in range(rows)],
        "group": [f"g{number // per_group}" for number in range(rows)],
        "label": [CLASSES[label] for label in labels],
        "prediction": [CLASSES[k] for k in p.argmax(axis=1)],
    }
    return columns | {f"p_{name}": p[:, k].tolist() for k, name in enumerate(CLASSES)}


def write_run(folder: Path, predictions: dict[str, list] | None, seed: int = 0, **facts) -> Path:
    """A finished run; `facts` go to config.yaml (settings=…), metrics (metrics=…) and run.json."""
    settings = SETTINGS | {"seed": seed} | facts.pop("settings", {})
    metrics = facts.pop("metrics", {})
    steps = facts.pop("steps", 3)
    for place in ("train/metrics", "test/metrics"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    record = {
        **{"schema_version": 1, "status": "finished", "exit_reason": "all steps done"},
        **{"verdicts": [], "script": "run_2_appendprompt.py", "seed": seed, "world_size": 1},
        **{"device": "cpu", "split_fingerprint": "s1", "data_fingerprint": "d1", "seconds": 60.0},
        **{"command": ["run_2_appendprompt.py"], "commit": "abcdef", "dirty": False},
        "versions": {"torch": "2.13.0"},
    }
    (folder / "run.json").write_text(json.dumps(record | facts))
    with open(folder / "train/metrics/metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "epoch": step / steps, "train_loss": 1 / step, "lr": 1e-4}
            line |= {"grad_norm": 1.0, "examples": 32 * step, "tokens": 640 * step}
            file.write(json.dumps(line | {"seconds": 20.0 * step}) + "\n")
        file.write(json.dumps({"step": steps, "val_loss": 0.5 + seed / 100}) + "\n")
    if predictions is not None:
        with open(folder / "test/metrics/predictions.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(predictions)
            writer.writerows(zip(*predictions.values(), strict=True))
        metrics = {"n": len(predictions["id"]), **metrics}
    (folder / "test/metrics/metrics.json").write_text(json.dumps(metrics))
    return folder
