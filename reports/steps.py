"""steps: a ladder of changes, each arm against the one before it, and all that changed with it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.compare import (
    Arm,
    caveats,
    compare,
    differences,
    figure_of,
    metrics_in_common,
    refusal,
    shortest_tails,
    show_p,
    without_repeats,
)
from reports.folder import find_runs, is_run, shared_notes
from reports.outcomes import has_test_rows, lost_runs
from reports.outcomes import notes as notes_on_outcomes
from reports.table import Cell, build_table, render


def report(
    paths: Sequence[str], metric: str | None, columns: Sequence[str] | None, style: str
) -> str:
    """One line an arm, as text; `style` is tabulate's name of a table format.

    paths: runs or folders of runs, in the order of the steps; or one folder whose folders are the
    steps, in the order of their names. metric: that of the differences, else the first that all
    have. columns: those of `table` to show beside it. ValueError when the rows are not the same.
    """
    arms, notes = _arms_of(_steps_in(paths[0]) if len(paths) == 1 else paths)
    if len(arms) < 2:
        raise ValueError("\n".join([*notes, "give two steps or more, or a folder of them"]))
    if why := refusal(arms):
        raise ValueError(f"not compared: {why}")
    metric = metric or metrics_in_common(arms)[0]
    comparisons = compare(arms, [metric], previous=True)
    lines = []
    for number, arm in enumerate(arms):
        line = {"step": Cell(arm.label), "what changed": Cell("")}
        cells = _cells(arm, ["seeds", *(columns or [])])
        line |= {"seeds": cells.pop("seeds"), metric: figure_cell(arm, metric), **cells}
        line |= {name: Cell("") for name in ("against the one before", "p", "")}
        if number:
            step = comparisons[number - 1]
            d, p = step.difference, show_p(step.p_holm)
            verdict = "differ" if step.separable else "not separable"
            line |= {
                "what changed": Cell(changes(arms[number - 1], arm)),
                "p": Cell(p),
                "against the one before": Cell(difference_text(d)),
                "": Cell(step.verdict if step.over_seeds else verdict),
            }
        lines.append(line)
    table = render(list(lines[0]), lines, style)
    if style == "csv":
        return table
    runs = [run for arm in arms for run in arm.runs]
    notes += notes_on_outcomes(runs)
    return "\n".join([*notes, *shared_notes(runs), table, "", *caveats(comparisons)])


def figure_cell(arm: Arm, metric: str) -> Cell:
    """The figure of a step; how many of its seeds it is of, where some diverged."""
    tested, lost = len(arm.predictions), len(lost_runs(arm.runs))
    if lost and not tested:
        return Cell("diverged")
    return Cell(*figure_of(arm, metric), f"{tested} of {tested + lost}" if lost else "")


def difference_text(d: Any) -> str:
    if math.isnan(d.value):
        return "diverged"
    if math.isnan(d.low):
        return f"{d.value:+.4f} without what diverged"
    return f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def _steps_in(folder: str) -> list[str]:
    """ValueError where a folder is a run, or no folder."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if is_run(path):
        raise ValueError(
            f"{folder}: give two steps or more, or a folder that has one folder a step"
        )
    folders = {run.parent for run in path.glob("*/run.json")}  # a run a step, or its seeds
    folders |= {run.parent.parent for run in path.glob("*/*/run.json")}
    return sorted(map(str, folders))


def _arms_of(paths: Sequence[str]) -> tuple[list[Arm], list[str]]:
    """(each path as a step, of its runs with test rows; notes on those without)."""
    arms, notes = [], []
    labels = shortest_tails([Path(path).absolute().parts for path in paths])
    for label, path in zip(labels, paths, strict=True):
        there = find_runs(path)
        counted = [run for run in there if has_test_rows(run) or lost_runs([run])]
        runs = sorted(without_repeats(counted), key=lambda run: run.path)
        kept = {run.path for run in runs}
        notes += [
            f"note: {run.path} has no test rows yet, or repeats a run"
            for run in there
            if run.path not in kept
        ]
        arms += [Arm(label, runs)] if runs else []
    return arms, notes


def _cells(arm: Arm, columns: Sequence[str]) -> dict[str, Cell]:
    _, lines = build_table(arm.runs, columns)
    if len(lines) > 1:
        raise ValueError(f"{arm.label}: its runs differ in more than the seed")
    return lines[0]


def changes(before: Arm, arm: Arm) -> str:
    """Settings as `name old → new`, then what of data and environment is another, by name."""
    tables = differences([before, arm])
    settings = [
        f"{name} {old} → {new}" for name, old, new in tables.pop("settings", []) if name != "seed"
    ]
    others = [name for rows in tables.values() for name, *_ in rows]
    return ", ".join(settings or ["nothing"]) + (f"; also {', '.join(others)}" if others else "")
