"""steps: a ladder of changes, each arm against the one before it, and all that changed with it."""

from collections.abc import Sequence
from pathlib import Path

from reports import packed
from reports.arms import Arm, differences, refusal, shortest_tails, without_repeats
from reports.compare import (
    SCHEMA,
    caveats,
    compare,
    difference_text,
    figure_of,
    margin_notes,
    metrics_of,
    require_margin,
    show_p,
)
from reports.folder import find_runs, is_run, not_there, shared_notes
from reports.outcomes import has_test_rows, lost_runs
from reports.outcomes import notes as notes_on_outcomes
from reports.plan import plan_of
from reports.table import Cell, build_table, render


def report(
    paths: Sequence[str],
    metric: str | None,
    columns: Sequence[str] | None,
    style: str,
    margin: float | None = None,
    as_json: bool = False,
) -> str | dict:
    """One line an arm, as text; `style` is tabulate's name of a table format.

    paths: runs or folders of runs, in the order of the steps; or one folder whose folders are the
    steps, in the order of their names. metric: that of the differences, else the primary one.
    columns: those of `table` to show beside it. ValueError when the rows are not the same.
    as_json: an object in place of the text (docs/statistics.md).
    """
    require_margin(margin)
    arms, notes = _arms_of(_steps_in(paths[0]) if len(paths) == 1 else paths)
    if len(arms) < 2:
        raise ValueError("\n".join([*notes, "give two steps or more, or a folder of them"]))
    if why := refusal(arms):
        raise ValueError(f"not compared: {why}")
    runs = [run for arm in arms for run in arm.runs]
    plan = plan_of(runs)
    judged, _ = metrics_of(arms, [metric] if metric else None)
    metric = judged[0]
    margin = plan.margin if margin is None else margin
    steps = compare(arms, judged, previous=True, margin=margin, plan=plan)
    notes += [*notes_on_outcomes(runs), *shared_notes(runs), *plan.notes]
    if len(paths) == 1:
        there = {run.path.absolute().parent.name for run in runs}
        missing = [label for label in plan.labels if label not in there]
        notes += [f"note: no run of {label} has ended: it is no step here" for label in missing]
    if as_json:
        pairs = zip(arms, arms[1:], steps, strict=False)
        return {
            "schema": SCHEMA,
            "steps": [
                {**step.as_json(), "changed": changes(before, arm)} for before, arm, step in pairs
            ],
            "notes": [*notes, *caveats(steps), *margin_notes(steps, plan)],
        }
    lines = []
    for number, arm in enumerate(arms):
        line = {"step": Cell(arm.label), "what changed": Cell("")}
        cells = _cells(arm, ["seeds", *(columns or [])])
        line |= {"seeds": cells.pop("seeds"), metric: figure_cell(arm, metric), **cells}
        line |= {name: Cell("") for name in ("against the one before", "p", "")}
        if number:
            step = steps[number - 1]
            line |= {
                "what changed": Cell(changes(arms[number - 1], arm)),
                "p": Cell(show_p(step.p)),
                "against the one before": Cell(difference_text(step)),
                "": Cell(step.decision if step.over_seeds else f"{step.decision} on these rows"),
            }
        lines.append(line)
    table = render(list(lines[0]), lines, style)
    if style == "csv":
        return table
    return "\n".join([*notes, table, "", *caveats(steps), *margin_notes(steps, plan)])


def figure_cell(arm: Arm, metric: str) -> Cell:
    """The figure of a step; how many of its seeds it is of, where some diverged."""
    tested, lost = len(arm.predictions), len(lost_runs(arm.runs))
    if lost and not tested:
        return Cell("diverged")
    return Cell(*figure_of(arm, metric), f"{tested} of {tested + lost}" if lost else "")


def _steps_in(folder: str) -> list[str]:
    """ValueError where a folder is a run, or no folder."""
    path = Path(folder)
    if not packed.is_dir(path):
        raise ValueError(f"{folder}: {not_there(path)}")
    if is_run(path):
        raise ValueError(
            f"{folder}: give two steps or more, or a folder that has one folder a step"
        )
    inside = [file.relative_to(path) for file in packed.files_below(path)]
    runs = [file for file in inside if file.name == "run.json" and len(file.parts) in (2, 3)]
    return sorted({str(path / run.parts[0]) for run in runs})  # a run a step, or its seeds


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
