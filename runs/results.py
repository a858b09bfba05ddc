"""What a test says: predictions.csv, metrics.json, the worst rows, and lines for the console."""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import beyond_style
from evaluation.metrics import CONSTANTS, digits_of, doubtful_groups, with_interval
from experiments.experiment import Result
from files import csv_text, write_text


def write_result(folder: Path, result: Result) -> None:
    """One part (baseline/, test/) of a run folder; metrics.json last: with it the part is whole."""
    for name, text in result.files.items():
        write_text(folder / name, text)
    if result.rows:
        worst = map(finite, worst_rows(result.rows, result.read))
        lines = "".join(json.dumps(row) + "\n" for row in worst)
        write_text(folder / "analysis/worst_rows.jsonl", lines)
        write_text(folder / "metrics/predictions.csv", predictions_csv(result.rows))
    write_text(folder / "metrics/metrics.json", json.dumps(result.metrics, indent=1))


def predictions_csv(rows: list[dict]) -> str:
    """The rows without their texts."""
    names = [name for name in rows[0] if name != "text"] if rows else ["id"]
    return csv_text(names, ([row[name] for name in names] for row in rows))


def row_loss(row: dict[str, Any]) -> float:
    """How wrong a row of predictions.csv is: nats, nats a target, or the error of a number."""
    if "loss_sum" in row:
        return row["loss_sum"] / max(row["num_targets"], 1)
    if f"p_{row['label']}" in row:
        return -math.log(max(row[f"p_{row['label']}"], np.finfo(np.float64).eps))
    return abs(float(row["label"]) - float(row["prediction"]))


def worst_rows(
    rows: Iterable[dict],
    read: Callable[[int], dict[str, str]] | None = None,
    count: int = 20,
    characters: int = 2000,
) -> list[dict]:
    """The rows with a text that the model got most wrong, worst first, long texts cut; with what
    it read of them (Result.read)."""
    with_text = [(place, row) for place, row in enumerate(rows) if "text" in row]
    worst = heapq.nlargest(count, with_text, key=lambda each: row_loss(each[1]))

    def cut(texts: dict[str, str]) -> dict[str, str]:
        return {name: text[:characters] for name, text in texts.items()}

    return [
        row
        | {"loss": row_loss(row), "text": cut(row["text"])}
        | ({"read": cut(read(place))} if read else {})
        for place, row in worst
    ]


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The figures that have an interval, the primary one first, one a line and none twice, as
    exactly as their intervals allow; beside each what an answer without a model gets."""
    lines, said = [], set()
    first = metrics.get("primary")
    for name in sorted(metrics, key=lambda name: name != first):
        value, interval = metrics[name], metrics.get(f"{name}_ci95")
        if not (isinstance(value, float) and interval) or (value, *interval) in said:
            continue
        said.add((value, *interval))
        digits = digits_of(*interval)
        shown = with_interval(value, *interval)
        constant = metrics.get(CONSTANTS.get(name, ("",))[0])
        beside = f"  without a model {constant:.{digits}f}" if constant is not None else ""
        lines.append(f"  {name:<28} {shown}{beside}")
    if lines:
        groups = doubtful_groups(metrics)
        only = f"; {groups}" if groups else ""
        lines.insert(0, f"  test rows: {metrics.get('n')} (95 % intervals in brackets{only})")
    return lines


def last_lines(metrics: dict[str, Any], verdicts: Sequence[str]) -> list[str]:
    """What a run says at its end: the figures, and below them what they do not say."""
    figures = summary_lines(metrics) or ["  (it has no test metrics)"] * (not metrics)
    if sentence := beyond_style.in_words(metrics.get("beyond_style") or {}):
        figures.append(f"  {sentence}")
    return [*figures, *(f"verdict: {verdict}" for verdict in verdicts)]


def finite(value: Any) -> Any:
    """NaN and Inf as None, which is all that JSON has for them."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
