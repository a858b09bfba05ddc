"""intervals: those of metrics.json made once more by today's method, from predictions.csv."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.metrics import add_interval, interval_facts
from evaluation.stats import METHOD, Interval, proportion_interval
from reports import packed
from reports.compare import run_interval
from reports.folder import RunFolder, load_runs, number
from reports.predictions import Predictions, load_predictions
from seal import amend, amended

FIGURES = "test/metrics/metrics.json"
CLOSE = 1e-5  # relative: predictions.csv has all digits, metrics.json may be of float32 sums
OTHER_NAMES = {"val_loss": "loss", "nats_per_token": "loss"}  # of one figure; loss: or log_loss


def report(paths: Sequence[str]) -> str:
    """What was done, a line a run. Figures stay as they are, and so do the intervals that
    predictions.csv cannot give: `other_interval_method` names those."""
    lines, in_packed = [], {}
    for run in load_runs(paths):
        if run.metrics.get("interval_method") == METHOD:
            lines.append(f"{run.path}: intervals are by {METHOD} already")
        elif not run.metrics:  # what cannot be read is not written over
            lines.append(f"{run.path}: unchanged ({'; '.join(run.notes) or 'no figures'})")
        elif (rows := load_predictions(run)) is None:
            why = run.notes[-1] if run.notes else "no predictions.csv"
            lines.append(f"{run.path}: unchanged ({why})")
        else:
            metrics, made, others = recomputed(run, rows)
            text = json.dumps(metrics, indent=1)
            if packed.is_packed(run.path / FIGURES):
                in_packed[run.path / FIGURES] = text
                was = packed.read_bytes(run.path / FIGURES)
                if record := amended(run.record, FIGURES, was, text.encode()):
                    in_packed[run.path / "run.json"] = json.dumps(record, indent=1)
            else:
                amend(run.path, FIGURES, text)
            left = f", as they were: {', '.join(others)}" if others else ""
            lines.append(f"{run.path}: {len(made)} intervals by {METHOD}{left}")
    packed.write_texts(in_packed)
    return "\n".join(lines)


def recomputed(run: RunFolder, rows: Predictions) -> tuple[dict[str, Any], list[str], list[str]]:
    """(metrics, names of intervals that were made, names of those that stay as they were)."""
    older = run.metrics.get("interval_method", "percentile bootstrap")
    metrics = interval_facts(rows.primary, rows.groups, rows.influence(rows.primary).leverage)
    made, others = [], []
    for key, value in run.metrics.items():
        name = key.removesuffix("_ci95")
        if key in ("no_interval", *metrics):
            continue
        if name == key or name.startswith("judge"):  # the judge's is over answers
            metrics[key] = value
        elif found := interval_for(name, run, rows):
            add_interval(metrics, name, found)
            made.append(name)
        else:
            metrics[key] = value
            metrics.setdefault("other_interval_method", {})[name] = older
            others.append(name)
    return metrics, made, others


def interval_for(name: str, run: RunFolder, rows: Predictions) -> Interval | None:
    """None where the rows do not give this figure, or give another value."""
    value = number(run.metrics.get(name))
    if value is None:
        return None
    if name.startswith("recall_") and rows.right is not None and rows.labels is not None:
        chosen = np.flatnonzero(rows.labels == name.removeprefix("recall_"))
        hits = rows.right[chosen]
        if len(chosen) and math.isclose(hits.mean(), value, rel_tol=CLOSE):
            return proportion_interval(hits, rows.groups[chosen])
        return None
    curve = math.exp if name.endswith("perplexity") else float
    figure = name.replace("perplexity", "loss")
    for candidate in (figure, OTHER_NAMES.get(figure, figure), "log_loss", "mse"):
        if candidate in rows.statistics and candidate not in rows.others:
            found = rows.value(candidate)
            if found < 700 and math.isclose(curve(found), value, rel_tol=CLOSE, abs_tol=1e-9):
                ends = run_interval(rows, candidate)
                return ends._replace(low=curve(ends.low), high=curve(ends.high))
    return None
