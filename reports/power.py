"""power: what a comparison can see, before any run is paid for."""

import argparse
import math

import numpy as np
from tabulate import tabulate

from evaluation import comparisons

# Two runs of one setting often disagree in whether they are right on a tenth to a third of rows.
ASSUMED_DISAGREEMENT = (0.1, 0.2, 0.3)


def report(arguments: argparse.Namespace) -> str:
    """Rows and seeds for `--difference`, and what is detectable with the rows that there are."""
    given = arguments
    if given.difference is not None and given.difference == 0:
        raise ValueError("--difference 0: no number of rows shows that there is none")
    for name in ("rows", "row_std", "seed_std"):
        value = getattr(given, name)
        if value is not None and not (value > 0 or (name == "seed_std" and value == 0)):
            raise ValueError(f"--{name} {value:g}: expected more than 0")
    if given.difference is not None and not math.isfinite(given.difference):
        raise ValueError(f"--difference {given.difference:g}: expected a number")
    lines, cases = [], []
    seed_std = given.seed_std
    if given.like:
        row_std, seed_std, groups, words = figures_like(given.like, given.metric)
        given.rows = given.rows or groups
        cases = [(words, row_std)]
    elif given.row_std is not None:
        cases = [(f"row std {given.row_std:g}", given.row_std)]
    else:
        shares = ASSUMED_DISAGREEMENT
        if given.disagreement is not None:
            shares = (given.disagreement,)
        else:
            lines.append(
                "Not given, so assumed: --disagreement .1, .2 or .3 (--like RUNS reads it)."
            )
        if given.disagreement is None:  # two models disagree on more rows than they differ by
            possible = [share for share in shares if share > abs(given.difference or 0)]
            shares = possible or [(1 + abs(given.difference)) / 2]
        for share in shares:
            _check_share(share, given.difference or 0.0, given.accuracy)
            cases.append((f"{share:.0%} disagree", math.sqrt(share - (given.difference or 0) ** 2)))
    if given.difference is None and given.rows is None:
        raise ValueError("give --difference, --rows, or both")
    if given.difference is not None:
        lines += ["", *_needed(given.difference, cases, seed_std, given.accuracy)]
    if given.rows is not None:
        lines += ["", *_detectable(given.rows, cases, seed_std)]
    lines += ["", "80 % power, two-sided at 5 %, both models on the same rows."]
    return "\n".join(lines).strip()


def _check_share(share: float, difference: float, accuracy: float | None) -> None:
    if not abs(difference) < share <= 1:
        raise ValueError(
            f"--disagreement {share:g}: two models whose accuracy differs by {abs(difference):g} "
            "disagree on more rows than that, and on no more than all"
        )
    if accuracy is not None and not 0 < accuracy < 1:
        raise ValueError(f"--accuracy {accuracy:g}: a share between 0 and 1")


def _needed(
    difference: float, cases: list[tuple[str, float]], seed_std: float, accuracy: float | None
) -> list[str]:
    """A table of rows by seeds, one column a case."""
    seeds = (1,) if not seed_std else (3, 5, 10, 20)
    rows = []
    for k in seeds:
        counts = [comparisons.rows_needed(difference, std, k, seed_std) for _, std in cases]
        shown = [f"{n:,}" if n else "no number suffices" for n in counts]
        rows.append([k if seed_std else "two models", *shown])
    lines = [
        f"Test rows that show a difference of {abs(difference):g}:",
        tabulate(rows, ["seeds an arm", *(words for words, _ in cases)], disable_numparse=True),
    ]
    if accuracy is not None:
        other = min(max(accuracy + difference, 0.0), 1.0)
        spread = accuracy * (1 - accuracy) + other * (1 - other)
        alone = comparisons.rows_needed(difference, math.sqrt(spread))
        many = f"{alone:,}" if alone else "more than 100 million"
        lines.append(f"On two different sets of rows (unpaired): {many} each.")
    return lines


def _detectable(rows: int, cases: list[tuple[str, float]], seed_std: float) -> list[str]:
    seeds = (1,) if not seed_std else (3, 5, 10, 20)
    lines = [
        [k if seed_std else "two models"]
        + [f"{comparisons.detectable_difference(rows, std, k, seed_std):.4f}" for _, std in cases]
        for k in seeds
    ]
    return [
        f"Smallest difference that {rows:,} test rows show:",
        tabulate(lines, ["seeds an arm", *(words for words, _ in cases)], disable_numparse=True),
    ]


def figures_like(paths: list[str], metric: str) -> tuple[float, float, int, str]:
    """(row std, seed std, groups, words) from earlier runs on the same rows.

    The row std is that of the difference of two of the runs; between seeds of one setting it
    holds no effect, only what rows and chance answers add.
    """
    from evaluation.stats import resampled_sums
    from reports.compare import Arm, refusal
    from reports.folder import load_runs

    arm = Arm("", load_runs(paths))
    if why := refusal([arm]):
        raise ValueError(f"--like: {why}")
    runs = arm.predictions
    if len(runs) < 2:
        notes = [f"{run.path}: {note}" for run in arm.runs for note in run.notes]
        raise ValueError("; ".join(["--like needs two runs with test rows at least", *notes]))
    if metric not in runs[0].statistics:
        raise ValueError(f"--metric {metric}: these runs have {', '.join(runs[0].statistics)}")
    num_groups = len(np.unique(runs[0].groups))
    stacked = np.column_stack([runs[0].columns, runs[1].columns])
    sums = resampled_sums(stacked, runs[0].groups, comparisons.REPEATS)
    width = runs[0].columns.shape[1]
    first = runs[0].statistics[metric](np.column_stack([sums[:, :width], sums[:, -1]]))
    second = runs[0].statistics[metric](np.column_stack([sums[:, width:-1], sums[:, -1]]))
    row_std = float((second - first).std() * math.sqrt(num_groups))
    values = [rows.value(metric) for rows in runs]
    seed_std = float(np.std(values, ddof=1)) if len(runs) >= comparisons.MIN_SEEDS else 0.0
    words = f"{metric} as in {len(runs)} runs"
    return row_std, seed_std, num_groups, words
