"""table: one line a setting, its seeds folded, with the columns that say something.

A column is a setting that differs, or a figure that some run has. Any name of config.yaml,
run.json or metrics.json can be asked for, and `command`: what makes the line again (with seeds
folded, its first run).
"""

import csv
import difflib
import io
import math
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation.metrics import CONSTANTS, digits_of, doubtful_groups
from evaluation.published import published_figures
from evaluation.stats import mean_interval
from reports.arms import group_runs, is_seed, labels_of, settings_of, show, without_repeats
from reports.folder import BESIDE, RunFolder, interval_of, number
from reports.outcomes import counted
from settings import flatten

# What a table shows without being asked, where a run has it.
FIGURES = (
    "glue",
    "superglue",
    "superglue_without_multirc",
    "train_loss",
    "val_loss",
    "val_perplexity",
    "accuracy",
    "f1",
    "f1_macro",
    "f1_a",
    "matthews_correlation",
    "pearson",
    "spearman",
    "log_loss",
    "loss",
    "perplexity",
    "response_loss",
    "response_perplexity",
    "nats_per_char",
    "bits_per_byte",
    "judge",
    "judge_corrected",
    "judge_wins",
    "parameters",
    "trained_parameters",
    "parameters_mb",
    "tokens_per_second",
    "minutes",
    "peak_memory_gib",
)
PASSPORTS = ("judge_passport", "judge_wins_passport")  # how far its judge agrees with people
COMMAND_WIDTH = 92  # characters of a line
DIGITS = {"minutes": 1, "peak_memory_gib": 2, "perplexity": 2, "parameters_mb": 2}
DIGITS |= {"val_perplexity": 2, "response_perplexity": 2, "tokens_per_second": 0}
SIZES = ("parameters", "trained_parameters", "parameters_mb")  # where lines differ in them
# These come first, in the order in which researchers keep them.
SETTINGS_FIRST = (
    "script",
    "model",
    "data",
    "batch",
    "epochs",
    "optimizer",
    "lr",
    "min_lr",
    "schedule",
    "warmup_frac",
    "weight_decay",
    "lora_r",
    "lora_alpha",
)


@dataclass
class Cell:
    """A value of one line: text, or a number with its interval (mean over seeds, or a run's).

    seeds: of how many it is the mean, where some have none: 2 of 3.
    """

    value: Any
    low: float = math.nan
    high: float = math.nan
    seeds: str = ""

    @property
    def number(self) -> float:
        """What a column is sorted by; NaN of a text."""
        try:
            return float(self.value)
        except (TypeError, ValueError, OverflowError):
            return math.nan

    def text(self, digits: int = 4) -> str:
        if isinstance(self.value, float | int) and abs(self.value) >= 1e7:  # FLOPs, bytes
            counted = isinstance(self.value, int) and abs(self.value) < 1e10  # parameters
            return str(self.value) if counted else f"{self.value:.3g}"
        if not isinstance(self.value, float):
            return show(self.value)
        shown = f"{self.value:.{digits}f}"
        if not math.isnan(self.low):
            shown += f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{shown} ({self.seeds})" if self.seeds else shown


def command_of(run: RunFolder) -> str:
    """The words that began a run, without those that only say where it lies."""
    command = run.record.get("command")
    words, kept = list(map(str, command)) if isinstance(command, list) else [], []
    for before, word in zip(["", *words], words, strict=False):
        place = word.removeprefix("--").startswith(("out=", "page="))
        if not place and "--out" not in (before, word):
            kept.append(word)
    processes = run.record.get("world_size") or 1
    launcher = ["python"] if processes == 1 else ["torchrun", f"--nproc_per_node={processes}"]
    return shlex.join([*launcher, *kept]) if kept else ""


def commands(runs: Sequence[RunFolder]) -> str:
    """For each line of the table what makes it again (of several seeds the first), wrapped."""
    groups = group_runs(runs)
    parts = []
    for label, group in zip(labels_of(groups), groups, strict=True):
        words = shlex.split(command_of(group[0]))
        if not words:
            parts.append(f"# {label}: not recorded")
            continue
        lines = [""]
        # a flag and its value stay together
        text = shlex.join(words)
        for word in re.findall(r"--[^\s=]+ (?!-)(?:'[^']*'|\S+)|(?:'[^']*'|\S)+", text):
            if lines[-1].strip() and len(lines[-1]) + len(word) > COMMAND_WIDTH:
                lines.append("   ")
            lines[-1] += f" {word}" if lines[-1] else word
        parts.append(f"# {label}\n" + " \\\n".join(lines))
    return "\n".join(parts)


def figures_of(run: RunFolder) -> dict[str, Any]:
    """Every figure of a run by name: facts of run.json, losses of training, test metrics."""
    last, evaluations = run.ends
    recorded = {k: v for k, v in run.record.items() if k != "published"}
    facts = flatten({k: v for k, v in recorded.items() if not isinstance(v, list)})
    validation: dict[str, float] = {}
    known = [row for row in evaluations if number(row.get("val_loss")) is not None]
    if known:  # all of the evaluation of the weights that are tested
        best = min(known, key=lambda row: row["val_loss"])
        tested = run.metrics.get("tested_with", run.config.get("test_with"))
        best = known[-1] if tested == "final" or "diverged" in run.failures else best
        validation = {k: v for k, v in best.items() if k.startswith("val_")}
    facts["command"] = command_of(run)
    figures = {**facts, "train_loss": last.get("train_loss"), **validation, **flatten(run.metrics)}
    seconds = number(run.record.get("seconds")) or number(last.get("seconds"))
    figures["minutes"] = None if seconds is None else seconds / 60
    memory = number(run.record.get("peak_memory_bytes")) or number(last.get("peak_memory_bytes"))
    figures["peak_memory_gib"] = None if memory is None else memory / 2**30
    if number(figures.get("parameters")) is not None:
        figures["parameters_mb"] = figures["parameters"] * 4 / 2**20  # in fp32
    tokens, spent = number(last.get("tokens")), number(last.get("seconds"))
    if tokens and spent:
        figures["tokens_per_second"] = tokens / spent
    if number(figures.get("judge")) is not None:  # judged before there were passports
        figures.setdefault("judge_passport", "none")
    if "perplexity" not in figures and number(figures.get("nats_per_token")) is not None:
        nats = figures["nats_per_token"]
        figures["perplexity"] = math.exp(nats) if nats < 700 else None
    return figures


def published_text(run: RunFolder) -> str:
    """What the published run got that the run's config repeats."""
    figures = published_figures(run.record.get("published"))
    return "; ".join(f"{figure.metric} {figure.text}" for figure in figures)


def build_table(
    runs: Sequence[RunFolder], columns: Sequence[str] | None = None, fold: bool = True
) -> tuple[list[str], list[dict[str, Cell]]]:
    """(column names, one dict of cells a line). ValueError names a column that no run has."""
    groups = [[run] for run in runs]
    if fold:  # a run that was made twice is one seed, as in a comparison
        groups = list(map(without_repeats, group_runs(runs)))
        for group in groups:
            _note_other_settings(group)
    settings = [settings_of(group[0]) for group in groups]
    figures = [[figures_of(run) for run in group] for group in groups]
    if columns is None:
        columns = _columns_to_show(groups, settings, figures)
    known = {"run", "seeds", "status", "verdicts", "published"}.union(
        *settings, *(each for group in figures for each in group)
    )
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"they have {', '.join(sorted(known))}"
            raise ValueError(f"no run has a column '{name}': {hint}")
    lines = []
    for label, *about in zip(labels_of(groups), groups, settings, figures, strict=True):
        cells = {name: _cell(name, *about) for name in columns}
        lines.append(cells | ({"run": Cell(label)} if "run" in cells else {}))
    return list(columns), lines


def _note_other_settings(group: Sequence[RunFolder]) -> None:
    """A note on the first run, whose settings a line shows, where a folder's seeds have others."""
    each = [settings_of(run) for run in group if is_seed(run)]
    names = dict.fromkeys(name for settings in each for name in settings)
    differing = [n for n in names if len({show(settings.get(n)) for settings in each}) > 1]
    if differing:
        note = f"{BESIDE}seeds of other settings ({', '.join(differing)}), which its line counts"
        group[0].notes += [note] * (note not in group[0].notes)


def _columns_to_show(groups: list, settings: list, figures: list) -> list[str]:
    names = dict.fromkeys([*SETTINGS_FIRST, *(name for each in settings for name in each)])
    differing = [name for name in names if len({show(each.get(name)) for each in settings}) > 1]
    several = any(len(group) > 1 for group in groups)
    present = [
        name
        for name in FIGURES
        if any(number(each.get(name)) is not None for group in figures for each in group)
    ]
    for name in SIZES:
        if len({show(number(each.get(name))) for group in figures for each in group}) < 2:
            present = [each for each in present if each != name]
    # of responses only where they are what was trained on: validation is of them as well then
    if not any(each.get("trained_on") == "response" for group in figures for each in group):
        present = [name for name in present if not name.startswith("response_")]
    if "log_loss" in present:  # in classification both are the same
        present = [name for name in present if name != "loss"]
    few = any(doubtful_groups(each) for group in figures for each in group)
    devices = {show(each.get("device")) for group in figures for each in group}
    unfinished = any(run.status != "finished" for group in groups for run in group)
    judged = any(run.kinds or run.failures for group in groups for run in group)
    repeated = any(published_text(run) for group in groups for run in group)
    passports = [name for name in PASSPORTS if any(name in each for g in figures for each in g)]
    return [
        *("run", *differing, *(["seeds"] if several else []), *present),
        *passports,
        *(["published"] if repeated else []),
        *(["groups"] if few else []),
        *(["device"] if len(devices) > 1 else []),
        *(["status"] if unfinished else []),
        *(["verdicts"] if judged else []),
    ]


def _cell(name: str, group: list[RunFolder], setting: dict, figures: list[dict]) -> Cell:
    if name == "seeds":
        return Cell(", ".join(show(run.seed) for run in group))
    if name == "status":
        states = [run.status for run in group]
        return Cell(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    if name == "verdicts":
        return Cell(counted(group) or None)
    if name == "published":
        return Cell(published_text(group[0]) or None)
    raw = [each.get(name) for each in figures]
    values = [float(value) for value in map(number, raw) if value is not None]
    without = [
        run
        for run, value in zip(group, map(number, raw), strict=True)
        if value is None and "diverged" in run.failures
    ]
    if name not in setting and without and name != "minutes":
        if not values:
            return Cell("diverged")
        return Cell(float(np.mean(values)), seeds=f"{len(values)} of {len(group)}")
    if not values or name in setting:
        value = setting.get(name, raw[0])
        written = isinstance(value, int | float) and not isinstance(value, bool)
        return Cell(show(value) if written else value)
    there = [value for value in raw if number(value) is not None]
    # a count, the same in all runs
    if isinstance(there[0], int) and there.count(there[0]) == len(there):
        return Cell(there[0])
    if len(group) > 1:
        mean, low, high = mean_interval(values)
        seeds = f"{len(values)} of {len(group)}" if len(values) < len(group) else ""
        # of what depends on the machine's mood an interval says nothing
        return Cell(mean, seeds=seeds) if name in MEASURES else Cell(mean, low, high, seeds)
    interval = interval_of(figures[0], name) or (math.nan, math.nan)
    return Cell(values[0], *interval)


def sort_lines(lines: list[dict[str, Cell]], by: str) -> list[dict[str, Cell]]:
    """By a column, upwards; `-column`: downwards. Lines without a value come last."""
    name, downwards = by.removeprefix("-"), by.startswith("-")
    if lines and name not in lines[0]:
        raise ValueError(f"--sort {by}: the table has {', '.join(lines[0])}")

    numbers = np.array([line[name].number for line in lines])
    if np.isnan(numbers).all():
        return sorted(lines, key=lambda line: show(line[name].value), reverse=downwards)
    order = np.argsort(-numbers if downwards else numbers, kind="stable")  # NaN last either way
    return [lines[i] for i in order]


MEASURES = ("tokens_per_second", "minutes", "peak_memory_gib")  # of the machine, not of the model
LABEL = 32  # characters of a run's name on a line of the terminal


def render_terminal(
    columns: Sequence[str], lines: Sequence[dict[str, Cell]], width: int | None = None
) -> str:
    """The columns in this order, figures as exactly as their intervals allow. Columns beyond
    `width` are left out and named below."""
    cells = cell_texts(columns, lines)
    shown, left, used = [], [], 0
    for name in columns:
        longest = max(len(name) + 2, *map(len, cells[name]))  # as tabulate pads headers
        needed = min(longest, LABEL) if name == "run" else longest
        fits = width is None or not shown or used + needed <= width
        (shown if fits else left).append(name)
        used += needed + 2 if fits else 0
    rows = [[cells[name][row] for name in shown] for row in range(len(lines))]
    number = [any(isinstance(line[name].value, float) for line in lines) for name in shown]
    table = tabulate(
        rows,
        shown,
        disable_numparse=True,
        colalign=["right" if each else "left" for each in number],
        maxcolwidths=[LABEL if name == "run" and width else None for name in shown],
    )
    more = f"{len(left)} more columns (--wide): {', '.join(left)}"
    return f"{table}\n{textwrap.fill(more, width)}" if left and width else str(table)


def cell_texts(columns: Sequence[str], lines: Sequence[dict[str, Cell]]) -> dict[str, list[str]]:
    """Each column's cells, with as many digits as its best known figure allows."""
    digits = {name: _digits(name, lines) for name in columns}
    return {name: [line[name].text(digits[name]) for line in lines] for name in columns}


def figures_first(columns: Sequence[str], runs: Sequence[RunFolder]) -> list[str]:
    """For a terminal: figures, the runs' primary ones before all others, then what differs."""
    primary = {run.metrics.get("primary") for run in runs}
    figures = [name for name in columns if name in FIGURES and name not in MEASURES + SIZES]
    last = ("train_loss", "val_loss", "val_perplexity")  # of other rows than the test
    figures.sort(key=lambda name: (name not in primary, name in last))
    states = [name for name in columns if name in ("status", "verdicts", "groups")]
    order = ["run", *figures[:2], *states, *figures[2:], "seeds"]
    order = [name for name in order if name in columns]
    order += [name for name in columns if name not in (*order, *MEASURES)]
    return order + [name for name in columns if name in MEASURES]


def _digits(name: str, lines: Sequence[dict[str, Cell]]) -> int:
    """Of a column: as many as its best known figure allows."""
    known = [line[name] for line in lines if not math.isnan(line[name].low)]
    if known and name not in DIGITS:
        return max(digits_of(cell.low, cell.high) for cell in known)
    return DIGITS.get(name, 4)


def baseline_line(runs: Sequence[RunFolder], columns: Sequence[str]) -> dict[str, Cell]:
    """What an answer without a model gets, where that is the same for all runs; else nothing."""
    cells = {}
    for name in columns:
        constant = CONSTANTS.get(name, ("",))[0]
        values = [number(run.metrics.get(constant)) for run in runs]
        if None not in values and max(values) - min(values) < 1e-9:
            cells[name] = Cell(values[0])
    if not cells:
        return {}
    return {name: Cell("") for name in columns} | cells | {"run": Cell("(without a model)")}


def render(columns: Sequence[str], lines: Sequence[dict[str, Cell]], style: str) -> str:
    """`style`: csv, with each interval in two columns of its own, or a format of tabulate."""
    if style == "csv":
        return _csv(columns, lines)
    rows = [[line[name].text(DIGITS.get(name, 4)) for name in columns] for line in lines]
    align = [
        "right" if any(isinstance(ln[c].value, float) for ln in lines) else "left" for c in columns
    ]
    table = tabulate(rows, columns, tablefmt=style, disable_numparse=True, colalign=align)
    if style == "github":  # commands are long: what a browser does not show is left out
        table = re.sub(r"-{4,}", "---", re.sub(r" {2,}", " ", table))
    return str(table)


def as_json(columns: Sequence[str], lines: Sequence[dict[str, Cell]]) -> dict[str, Any]:
    """{"schema", "columns", "lines": [{column: value, or [value, low, high] where it has an
    interval}]}"""

    def plain(cell: Cell) -> Any:
        value = cell.value
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        return value if math.isnan(cell.low) else [value, float(cell.low), float(cell.high)]

    table = [{name: plain(line[name]) for name in columns} for line in lines]
    return {"schema": 1, "columns": list(columns), "lines": table}


def _csv(columns: Sequence[str], lines: Sequence[dict[str, Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    with_interval = {
        name for name in columns if any(not math.isnan(line[name].low) for line in lines)
    }
    partly = {name for name in columns if any(line[name].seeds for line in lines)}
    names = []
    for name in columns:
        names += [name, *([f"{name}_low", f"{name}_high"] if name in with_interval else [])]
        names += [f"{name}_seeds"] * (name in partly)
    writer.writerow(names)
    for line in lines:
        row: list[Any] = []
        for name in columns:
            cell = line[name]
            row.append("" if cell.value is None else cell.value)
            if name in with_interval:
                row += ["" if math.isnan(bound) else bound for bound in (cell.low, cell.high)]
            row += [cell.seeds] * (name in partly)
        writer.writerow(row)
    return text.getvalue().rstrip("\n")
