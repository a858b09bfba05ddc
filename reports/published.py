"""A run, or the seeds of one setting, against the published run that its config repeats."""

import math
from collections.abc import Sequence
from typing import Any

from evaluation import published
from evaluation.published import Figure, Ours
from evaluation.stats import mean_interval
from reports.arms import without_repeats
from reports.folder import RunFolder, interval_of, number
from reports.table import figures_of

BASELINE = "baseline_"  # of a published figure: before training


def reference_of(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """`published` of run.json, where it is one for all of them; else {}."""
    found = [run.record.get("published") for run in runs]
    one = found and isinstance(found[0], dict) and all(each == found[0] for each in found)
    return found[0] if one else {}


def sentences(runs: Sequence[RunFolder], label: str = "") -> list[str]:
    """Each published figure that these runs have, ours beside it; then what differs."""
    runs = without_repeats(runs)
    reference = reference_of(runs)
    pairs = [(f, ours_of(runs, f)) for f in published.published_figures(reference)]
    lines = [published.against(figure, ours).sentence for figure, ours in pairs if ours]
    lines = [f"{label}, {line}" if label else line for line in lines]
    if lines and (differs := published.what_differs(reference)):
        who = f"{label} differs" if label else "Differs"
        lines.append(f"{who} from the published run: {'; '.join(differs)}.")
    return lines


def ours_of(runs: Sequence[RunFolder], figure: Figure) -> Ours | None:
    """The figure of these runs; None where one of them lacks it, as a seed that diverged does."""
    name = figure.metric.removeprefix(BASELINE)
    before = name != figure.metric
    values = [number((run.baseline if before else figures_of(run)).get(name)) for run in runs]
    if not values or None in values:
        return None
    metrics = runs[0].baseline if before else runs[0].metrics
    rows = interval_of(metrics, name) or (math.nan, math.nan)
    if len(values) == 1:
        return Ours(values[0], *rows)
    return published.over_seeds(values, rows, mean_interval(values)[1:])
