"""The page of a run, or of several on shared axes: one HTML file, or Markdown with picture files.

    write_page([Path("results/minilm/2026-11-22_02-15-00")])      # its report.html and pictures

A page is a list of plain blocks; what becomes of them in HTML and in Markdown stands at the end.
"""

import csv
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from evaluation.stats import proportion_interval
from reports import plots
from reports.folder import RunFolder, clean, duration, interval_of, load_runs, number
from reports.plots import Curve, Picture
from reports.watch import MACHINE, total_steps
from settings import flatten

# Figures to open with, the first four that a run has.
HEADLINES = (
    *("accuracy", "log_loss", "matthews_correlation", "pearson", "spearman", "perplexity"),
    *("loss", "nats_per_char", "bits_per_byte", "f1_macro", "expected_calibration_error"),
)
# What an answer without a model gets: for each figure, its name and whether more is better.
CONSTANTS = {
    "accuracy": ("constant_accuracy", True),
    "log_loss": ("prior_entropy", False),
    "loss": ("unigram_entropy", False),  # token frequencies, whatever the context
}
SHARE = re.compile(r"accuracy|recall|consistency|agreement|exact_match|win_rate|_share$")
CALIBRATION_BINS = 15  # as in expected_calibration_error
MOST_CLASSES = 200  # of a confusion matrix
WORST_ROWS = 20
MOST_MAPS = 24  # of attention
SIGNS = {"good": "✓ ", "bad": "✗ ", "note": ""}
LONGEST_TEXT = 4000  # characters of a field of a row


@dataclass
class Heading:
    text: str
    kind: ClassVar[str] = "heading"


@dataclass
class Text:
    text: str
    kind: ClassVar[str] = "text"


@dataclass
class Finding:
    """A sentence on the run; `tone` is good, bad or note."""

    text: str
    tone: str
    kind: ClassVar[str] = "finding"


@dataclass
class Tile:
    """A figure to see first, with what to hold it against."""

    name: str
    value: str
    interval: str
    beside: list[str]
    kind: ClassVar[str] = "tile"


@dataclass
class Table:
    head: list[str]
    rows: list[list[str]]
    numbers: bool = True  # columns after the first are figures
    folded: str = ""  # the line to click on
    kind: ClassVar[str] = "table"


@dataclass
class Figure:
    title: str
    caption: str
    picture: Picture
    kind: ClassVar[str] = "figure"


@dataclass
class Row:
    """A row of the data with its texts."""

    title: str
    texts: dict[str, str]
    kind: ClassVar[str] = "row"


Block = Heading | Text | Finding | Tile | Table | Figure | Row


@dataclass
class Page:
    title: str
    subtitle: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        return [block for block in self.blocks if isinstance(block, Figure)]


def write_page(paths: list[Path], output: Path | None = None, markdown: bool = False) -> Path:
    """Write the page of the runs at or below `paths`; returns its path.

    One run: RUN/report.html, and its pictures into train/analysis and test/analysis; several:
    ./report.html. `markdown`: page.md with picture files in the folder `output`, by default report
    in the same place. ValueError when a path holds no run.
    """
    runs = load_runs(paths)
    if not runs:
        raise ValueError("a page needs a run folder")
    one = runs[0] if len(runs) == 1 else None
    page = page_of_run(one) if one else page_of_runs(runs)
    home = one.path if one else Path()
    if markdown:
        folder = output or home / "report"
        for figure in page.figures:
            _write(folder / _file_name(figure), figure.picture.png())
        return _write(folder / "page.md", to_markdown(page).encode())
    if one and output is None:
        for figure in page.figures:
            part, name = figure.picture.name.split("/")
            _write(one.path / part / "analysis" / f"{name}.png", figure.picture.png())
    return _write(output or home / "report.html", to_html(page).encode())


def _write(path: Path, content: bytes) -> Path:
    """All of it or nothing: somebody may be looking at the page of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(content)
    os.replace(beside, path)
    return path


# ------------------------------------------------------------------------------- one run


def page_of_run(run: RunFolder) -> Page:
    training, _ = run.lines
    body = [
        *section("Results", results(run)),
        *section("Training", [*training_figures([run], [""]), *layer_figure(training)]),
        *section("Answers on the test rows", answers_of(run)),
        *section("Speed and memory", speed([run], [""])),
        *section("Samples before and after training", samples(run)),
        *section("Attention", attention_figures(run)),
        *section("What it got most wrong", worst_rows(run)),
        *section("Tasks", tasks(run)),
        *section("Settings and environment", provenance(run)),
    ]
    # the last to be made: what could not be read above is said here
    verdicts = section("Verdicts", [*findings(run), *learned(run)])
    return Page(clean(run.name), subtitle(run), verdicts + body)


def section(title: str, blocks: Iterable[Block]) -> list[Block]:
    blocks = list(blocks)
    return [Heading(title), *blocks] if blocks else []


def subtitle(run: RunFolder) -> str:
    config, record = run.config, run.record
    model = " on ".join(str(config[name]) for name in ("model", "data") if config.get(name))
    seed = "" if run.seed is None else f"seed {run.seed}"
    return " · ".join(
        cut(clean(part), 100) for part in (record.get("script"), model, seed, run.status) if part
    )


def findings(run: RunFolder, label: str = "") -> list[Finding]:
    """Verdicts and what the reader must know before any figure, the worst first."""
    prefix = f"{label}: " if label else ""
    found = [Finding(verdict, "bad") for verdict in run.verdicts]
    found += [Finding(note, "note") for note in run.notes]
    if run.status == "finished" and not run.verdicts:
        text = "finished; no check found it collapsed, diverged or overfitted"
        found.append(Finding(text, "good"))
    training, _ = run.lines
    if run.status != "finished" and training:
        step, total = training[-1]["step"], total_steps(run, training[-1])
        text = f"step {step:,}" + (f" of {total:,}" if total else "")
        text += "; the test rows are read once, at the end" * (not run.metrics)
        found.append(Finding(text, "note"))
    return [replace(finding, text=cut(clean(prefix + finding.text), 1000)) for finding in found]


def learned(run: RunFolder) -> list[Finding]:
    """Whether the test figures are better than an answer that needs no model."""
    found = []
    for name, (constant_name, more_is_better) in CONSTANTS.items():
        constant = number(run.metrics.get(constant_name))
        interval = interval_of(run.metrics, name)
        if constant is None or interval is None:
            continue
        low, high = interval
        better, worse = (low > constant, high < constant)
        if not more_is_better:
            better, worse = high < constant, low > constant
        tone = "good" if better else "bad"
        word = "better than" if better else "worse than" if worse else "not separable from"
        found.append(
            Finding(
                f"{readable(name).capitalize()} {written(name, run.metrics[name])} "
                f"[{written(name, low)}, {written(name, high)}] is {word} "
                f"a constant answer ({written(name, constant)})",
                tone,
            )
        )
    return found


def results(run: RunFolder) -> list[Block]:
    metrics, before = run.metrics, run.baseline
    tiles = [tile(name, metrics, before) for name in headlines(metrics)]
    rows = []
    for name, value in metrics.items():
        if name.endswith("_ci95") or isinstance(value, list | dict):
            continue
        if name in ("loss", "n") and metrics.get("log_loss", value) == value:
            continue
        row = [readable(name), written(name, value), interval_text(metrics, name)]
        rows.append(row + [written(name, before[name]) if name in before else ""] * bool(before))
    if not rows:
        return []
    count = number(metrics.get("n"))
    of = f" on {count:,} test rows" if count else ""
    head = ["figure", "", "95 % interval"] + ["before training"] * bool(before)
    return [*tiles, Table(head, rows, folded=f"All figures{of}")]


def headlines(metrics: dict[str, Any]) -> list[str]:
    names = [name for name in HEADLINES if number(metrics.get(name)) is not None]
    if "log_loss" in names and "loss" in names:
        names.remove("loss")
    others = [name for name in metrics if interval_of(metrics, name) and name not in HEADLINES]
    return (names or others)[:4]


def tile(name: str, metrics: dict[str, Any], before: dict[str, Any]) -> Tile:
    beside = []
    constant_name, _ = CONSTANTS.get(name, ("", None))
    if number(metrics.get(constant_name)) is not None:
        which = metrics.get("constant_class") if name == "accuracy" else None
        which = f" ({cut(clean(which), 40)})" if which else ""
        beside.append(f"constant answer{which}: {written(name, metrics[constant_name])}")
    if number(before.get(name)) is not None:
        beside.append(f"before training: {written(name, before[name])}")
    title = readable(name) + " (nats)" * (name == "log_loss")
    return Tile(title, written(name, metrics[name]), interval_text(metrics, name), beside)


def interval_text(metrics: dict[str, Any], name: str) -> str:
    interval = interval_of(metrics, name)
    return " to ".join(written(name, end) for end in interval) if interval else ""


def written(name: str, value: Any) -> str:
    """A figure as a reader wants it: 65.8 %, 0.7104, 29.41, 1,234, yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = value if number(value) is not None or isinstance(value, str) else None
    if value is None or isinstance(value, str):
        return "–" if value is None else cut(clean(value), 60)
    if SHARE.search(name) and 0 <= value <= 1:
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def readable(name: str) -> str:
    name = re.sub("^val_", "validation ", clean(name))
    return cut(name.replace("_", " "), 60)


# ------------------------------------------------------------------------------- curves


def training_figures(runs: list[RunFolder], labels: list[str]) -> list[Figure]:
    """Loss, the other validation figures, learning rates and gradient norm of one or more runs."""
    one = len(runs) == 1
    found = loss_figures(runs, labels, "step")
    if not one and different_pace(runs):
        found += loss_figures(runs, labels, "seconds")
    found += validation_figures(runs, labels)
    rates = learning_rates(runs, labels)
    groups = "of each group of parameters" if one and len(rates) > 1 else "at each step"
    found.append(
        figure("Learning rate", groups, plots.curves("train/learning_rate", rates, "learning rate"))
    )
    limits = {number(run.config.get("max_grad_norm")) for run in runs}
    limit = limits.pop() if len(limits) == 1 else None
    norms = step_curves(runs, labels, "grad_norm", "smoothed")
    picture = plots.curves(
        "train/gradient_norm",
        norms,
        "gradient norm",
        references=[("clipped to", limit)] * (limit is not None),
        from_zero=True,
    )
    found.append(figure("Gradient norm", "over all parameters, before clipping", picture))
    return [drawn for drawn in found if drawn]


def loss_figures(runs: list[RunFolder], labels: list[str], x_name: str) -> list[Figure | None]:
    """Training and validation loss: on the same axes for one run, side by side for several."""
    training, validation, stars = [], [], []
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        steps, evaluations = run.lines
        training.append(
            Curve(label or "training", *columns(steps, x_name, "train_loss"), i, "smoothed")
        )
        x_of_step = dict(zip(*columns(steps, "step", x_name), strict=True))
        placed = [{x_name: x_of_step.get(line["step"]), **line} for line in evaluations]
        x, y = columns(placed, x_name, "val_loss")
        validation.append(Curve(label or "validation", x, y, i if label else 1, "points"))
        at = [line for line in placed if line["step"] == best_step(run)]
        said = "best of each run" * (not stars) if label else f"best, step {best_step(run):,}"
        stars += [(said, *point) for point in zip(*columns(at, x_name, "val_loss"), strict=True)]
    unit, scale = ("", 1.0) if x_name == "step" else time_unit(training)
    x_label = f"training time ({unit})" if unit else "step"
    training, validation = (
        [replace(curve, x=curve.x / scale) for curve in found] for found in (training, validation)
    )
    stars = [(said, x / scale, y) for said, x, y in stars if math.isfinite(y)]
    priors = {
        number(run.metrics.get("prior_entropy", run.metrics.get("unigram_entropy"))) for run in runs
    }
    references = [("constant answer", prior) for prior in priors if prior and len(priors) == 1]
    dashed = "; dashed: what a constant answer gets on the test rows" * bool(references)
    faint = "line: training, smoothed, with the raw one faint behind"
    name, after = ("train/loss", "") if not unit else ("train/loss_by_time", " by training time")
    if len(runs) == 1:
        points = "; points: validation" * any(len(curve.finite) for curve in validation)
        both = plots.curves(name, training + validation, "loss", x_label, references, stars)
        return [figure(f"Loss{after}", f"{faint}{points}{dashed}", both)]
    trained = plots.curves(name, training, "training loss", x_label, references)
    validated = plots.curves(
        name.replace("loss", "val_loss"), validation, "validation loss", x_label, references, stars
    )
    return [
        figure(f"Training loss{after}", f"{faint}{dashed}", trained),
        figure(f"Validation loss{after}", f"at each evaluation{dashed}", validated),
    ]


def validation_figures(runs: list[RunFolder], labels: list[str]) -> list[Figure | None]:
    """One run: all shares on the same axes, and each other figure; several: each figure."""
    names = [name for run in runs for line in run.lines[1] for name in line]
    # the last two are facts that each evaluation of titles repeats: no curves
    wanted = re.compile("val_(?!loss$|share_scored$|tokenizer_exact$)")
    names = [name for name in dict.fromkeys(names) if wanted.match(name)]
    shares = [name for name in names if SHARE.search(name)]
    together = [shares] if len(runs) == 1 else [[name] for name in shares]
    together += [[name] for name in names if name not in shares]
    found = []
    for group in [group for group in together if group][:4]:
        drawn = []
        for i, (name, (run, label)) in enumerate(
            itertools.product(group, zip(runs, labels, strict=True))
        ):
            x, y = columns(run.lines[1], "step", name)
            drawn.append(Curve(label or readable(name), x, y, i, "points"))
        constants = {number(run.metrics.get("constant_accuracy")) for run in runs}
        known = "val_accuracy" in group and len(constants) == 1 and None not in constants
        title = "Validation" if len(group) > 1 else readable(group[0]).capitalize()
        caption = "at each evaluation" + "; dashed: a constant answer on the test rows" * known
        picture = plots.curves(
            f"train/{group[0]}",
            drawn,
            "share of rows" if len(group) > 1 else readable(group[0]),
            references=[("constant answer", constants.pop())] * known,
            shares=group[0] in shares,
        )
        found.append(figure(title, caption, picture))
    return found


def learning_rates(runs: list[RunFolder], labels: list[str]) -> list[Curve]:
    if len(runs) > 1:
        return step_curves(runs, labels, "lr")
    training, _ = runs[0].lines
    names = [name for name in (training[-1] if training else {}) if name.startswith("lr_")]
    return [
        Curve(clean(name.removeprefix("lr_")), *columns(training, "step", name), i)
        for i, name in enumerate(names or ["lr"])
    ]


def layer_figure(training: list[dict]) -> list[Figure]:
    lines = [line for line in training if isinstance(line.get("grad_norms"), dict)]
    norms = [
        {clean(layer): number(norm) or math.nan for layer, norm in line["grad_norms"].items()}
        for line in lines
    ]
    picture = plots.layers("train/gradient_norm_layers", [line["step"] for line in lines], norms)
    caption = "first layer on top; colour: the norm, logarithmic; blank: zero or not finite"
    return [drawn for drawn in [figure("Gradient norm of each layer", caption, picture)] if drawn]


def speed(runs: list[RunFolder], labels: list[str]) -> list[Block]:
    """What the runs cost, in figures and curves."""
    costs = [cost(run) for run in runs]
    names = list(dict.fromkeys(name for found in costs for name in found))
    if not names:
        return []
    rows = [
        [label, *(found.get(name, "–") for name in names)]
        for label, found in zip(labels, costs, strict=True)
    ]
    summary = Table(["", *names], rows)
    if len(runs) == 1:
        summary = Text(" · ".join(f"{name}: {value}" for name, value in costs[0].items()))
    drawn = []
    for title, caption, name, unit, scale in (
        ("Rows", "per second, at each step", "examples_per_second", "rows a second", 1),
        ("Tokens", "per second, at each step", "tokens_per_second", "tokens a second", 1),
        ("Memory", "the most that was in use", "peak_memory_bytes", "GiB", 2**30),
    ):
        if name == "peak_memory_bytes" and len(runs) == 1 and machine_lines(runs[0]):
            continue  # is in the monitor's picture
        found = step_curves(runs, labels, name, "smoothed" if scale == 1 else "line")
        found = [replace(curve, y=curve.y / scale) for curve in found]
        picture = plots.curves(f"train/{name}", found, unit, from_zero=True)
        drawn.append(figure(title, caption, picture))
    if len(runs) == 1:
        drawn += machine_figures(runs[0])
    blocks = [summary, *(found for found in drawn if found)]
    if len(runs) == 1 and len(rows := epoch_rows(runs[0])) > 1:
        blocks.append(Table(["epoch", "training", "tokens"], rows, folded="Seconds per epoch"))
    return blocks


def machine_lines(run: RunFolder) -> list[dict]:
    """What the monitor logged, each with its step."""
    lines = [line for line in run.lines[0] if isinstance(line.get("machine"), dict)]
    return [{**line["machine"], "step": line["step"]} for line in lines]


def machine_figures(run: RunFolder) -> list[Figure | None]:
    """How busy the machine was, and its memory, as the monitor saw them."""
    lines = machine_lines(run)
    shares = [
        Curve(title, *columns(lines, "step", name), i)
        for i, (name, title) in enumerate(MACHINE.items())
    ]
    peak = columns(run.lines[0], "step", "peak_memory_bytes")
    memory = [Curve("at most", *peak, 3)] if lines else []
    for i, name in enumerate(("memory_bytes", "device_memory_bytes")):
        title = "on the device" if i else "of the process"
        memory.append(Curve(title, *columns(lines, "step", name), i))
    memory = [replace(curve, y=curve.y / 2**30) for curve in memory]
    shares, memory = ([c for c in found if len(c.finite)] for found in (shares, memory))
    busy = plots.curves("train/machine", shares, "share", shares=True, from_zero=True)
    caption = "CPU: of all cores, whoever used them, and by this process; waiting: of the time"
    return [
        figure("How busy", caption, busy),
        figure("Memory", "in use", plots.curves("train/memory", memory, "GiB", from_zero=True)),
    ]


def epoch_rows(run: RunFolder) -> list[list[str]]:
    """Training time and tokens of each whole epoch; evaluation and saving are not in it."""
    ends: dict[int, tuple[float, float]] = {}
    for line in run.lines[0]:
        epoch, seconds = number(line.get("epoch")), number(line.get("seconds"))
        if epoch is not None and seconds is not None:
            # a step that crosses the end of an epoch is counted with the one that it ends
            ends.setdefault(math.floor(epoch + 1e-9), (seconds, number(line.get("tokens")) or 0))
    rows, before = [], (0.0, 0.0)
    for epoch, (seconds, tokens) in sorted(ends.items()):
        if epoch >= 1:
            took = seconds - before[0]
            rows.append([str(epoch), f"{took:,.1f} s", f"{tokens - before[1]:,.0f}"])
            before = (seconds, tokens)
    return rows


def cost(run: RunFolder) -> dict[str, str]:
    training, _ = run.lines
    last = training[-1] if training else {}
    steps = number(run.record.get("steps")) or number(last.get("step"))
    seconds = number(run.record.get("seconds")) or number(last.get("seconds"))
    found = {}
    if steps:
        found["steps"] = f"{steps:,}"
    if seconds:
        found["training"] = duration(seconds)
    for name, title in (("examples_per_second", "rows/s"), ("tokens_per_second", "tokens/s")):
        _, y = columns(training, "step", name)
        if np.isfinite(y).any():
            found[f"{title}, median"] = f"{np.nanmedian(y):,.0f}"
    _, y = columns(training, "step", "peak_memory_bytes")
    if np.isfinite(y).any():
        found["peak memory"] = f"{np.nanmax(y) / 2**30:.2f} GiB"
    lines = machine_lines(run)
    for name, title in (("cpu_share", "CPU"), ("data_share", "waiting for data")):
        _, y = columns(lines, "step", name)
        if np.isfinite(y).any():
            found[f"{title}, median"] = f"{np.nanmedian(y):.0%}"
    if (seconds := number(run.record.get("evaluation_seconds"))) is not None:
        found["evaluation"] = duration(seconds)
    written = number(run.record.get("checkpoint_bytes"))
    seconds = number(run.record.get("checkpoint_seconds"))
    if written is not None and seconds is not None:
        found["checkpoints"] = f"{written / 2**30:.2f} GiB in {duration(seconds)}"
    return found


def step_curves(
    runs: list[RunFolder], labels: list[str], name: str, kind: str = "line"
) -> list[Curve]:
    return [
        Curve(label or readable(name), *columns(run.lines[0], "step", name), i, kind)
        for i, (run, label) in enumerate(zip(runs, labels, strict=True))
    ]


def columns(lines: list[dict], x_name: str, y_name: str) -> tuple[list[float], list[float]]:
    """x and y of the lines that have both; NaN where y is there and not finite."""
    found = [(number(line.get(x_name)), line[y_name]) for line in lines if y_name in line]
    found = [(x, number(y)) for x, y in found if x is not None]
    return [x for x, _ in found], [math.nan if y is None else y for _, y in found]


def figure(title: str, caption: str, picture: Picture | None) -> Figure | None:
    """None without data, as the picture is."""
    if picture is None:
        return None
    return Figure(title, "; ".join(filter(None, (caption, picture.left_out))), picture)


def best_step(run: RunFolder) -> int:
    """The step with the lowest validation loss; 0, which no step has, when there is none."""
    if isinstance(found := run.metrics.get("best_step"), int):
        return found
    steps, losses = columns(run.lines[1], "step", "val_loss")
    return int(steps[np.nanargmin(losses)]) if np.isfinite(losses).any() else 0


def time_unit(drawn: list[Curve]) -> tuple[str, float]:
    longest = max((curve.x.max() for curve in drawn if len(curve.x)), default=0)
    return ("s", 1.0) if longest < 300 else ("min", 60.0) if longest < 10_800 else ("h", 3600.0)


def different_pace(runs: list[RunFolder]) -> bool:
    """Whether a step took more than 5 % longer in one run than in another."""
    lasts = [run.lines[0][-1] for run in runs if run.lines[0]]
    paces = [number(last.get("seconds")) for last in lasts]
    paces = [p / last["step"] for p, last in zip(paces, lasts, strict=True) if p and last["step"]]
    return len(paces) > 1 and max(paces) > 1.05 * min(paces)


# ----------------------------------------------------------------------------- test rows


def answers_of(run: RunFolder) -> list[Block]:
    """Pictures of predictions.csv, by what its columns say it is."""
    names, rows = read_predictions(run)
    try:
        if "loss_sum" in names and "num_targets" in names:
            return language_answers(rows)
        if not rows or "label" not in names or "prediction" not in names:
            return []
        classes = [name.removeprefix("p_") for name in names if name.startswith("p_")]
        if classes or "accuracy" in run.metrics:
            return class_answers(rows, classes)
        labels, predictions = numbers(rows, "label"), numbers(rows, "prediction")
    except ValueError as error:
        run.notes.append(f"predictions.csv is not drawn: {error}")
        return []
    picture = plots.scatter("test/predictions", labels, predictions)
    return [Figure("Predictions", "against the labels of the test rows", picture)]


def read_predictions(run: RunFolder) -> tuple[list[str], list[dict[str, str]]]:
    path = run.path / "test/metrics/predictions.csv"
    if not path.exists():
        return [], []
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            found = list(reader)
            names = list(reader.fieldnames or [])
    except (OSError, csv.Error) as error:
        run.notes.append(f"predictions.csv cannot be read: {error}")
        return [], []
    whole = [row for row in found if None not in row and None not in row.values()]
    if len(whole) < len(found):
        run.notes.append(f"{len(found) - len(whole)} torn rows of predictions.csv are left out")
    return names, whole


def numbers(rows: list[dict[str, str]], name: str) -> np.ndarray:
    values = np.array([float(row[name]) for row in rows])
    if not np.isfinite(values).all():
        raise ValueError(f"column {name} holds values that are not finite")
    return values


def class_answers(rows: list[dict[str, str]], classes: list[str]) -> list[Block]:
    labels, predictions = [row["label"] for row in rows], [row["prediction"] for row in rows]
    names = list(dict.fromkeys([*classes, *sorted({*labels, *predictions})]))
    place = {name: i for i, name in enumerate(names)}
    found: list[Block] = []
    if len(names) <= MOST_CLASSES:
        counts = np.zeros((len(names), len(names)), dtype=int)
        np.add.at(counts, ([place[x] for x in labels], [place[x] for x in predictions]), 1)
        shown = [clean(name) for name in names]
        caption = "counts, and shares of the row: what became of the rows of a label"
        picture = plots.confusion("test/confusion_matrix", shown, counts)
        found.append(Figure("Confusion matrix", caption, picture))
    if classes:
        confidence = np.max([numbers(rows, f"p_{name}") for name in classes], axis=0)
        hits = np.array(labels) == np.array(predictions)
        groups = [row.get("group") or row.get("id") or str(i) for i, row in enumerate(rows)]
        found.append(calibration_figure(confidence, hits, groups))
    return found


def calibration_figure(confidence: np.ndarray, hits: np.ndarray, groups: list[str]) -> Figure:
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bins = np.digitize(confidence, inner_edges, right=True)
    members = [np.flatnonzero(bins == b) for b in np.unique(bins)]
    picture = plots.calibration(
        "test/calibration",
        np.array([confidence[rows].mean() for rows in members]),
        np.array([hits[rows].mean() for rows in members]),
        [proportion_interval(hits[rows], [groups[row] for row in rows]) for rows in members],
        np.array([len(rows) for rows in members]),
        np.array([[b, b + 1] for b in np.unique(bins)]) / CALIBRATION_BINS,
    )
    how = "Wilson" if len(set(groups)) == len(groups) else "rows of a group resampled together"
    caption = (
        f"share of right answers among rows of like confidence, with 95 % intervals ({how}); "
        "below the dashed line the model is too sure. Bars: rows"
    )
    return Figure("Calibration", caption, picture)


def language_answers(rows: list[dict[str, str]]) -> list[Block]:
    targets, sums = numbers(rows, "num_targets"), numbers(rows, "loss_sum")
    some = targets > 0
    if not some.any():
        return []
    picture = plots.histogram(
        "test/row_loss",
        sums[some] / targets[some],
        float(sums.sum() / targets.sum()),
        "loss a token (nats)",
    )
    caption = "mean loss of each test row; the line is the mean over all tokens"
    return [Figure("Loss of the test rows", caption, picture)]


def attention_figures(run: RunFolder) -> list[Block]:
    """The maps of test/analysis/attention.jsonl."""
    found: list[Block] = []
    texts, count = json_rows(run, "attention.jsonl"), 0
    for number_of_text, row in enumerate(texts, start=1):
        try:
            tokens = [clean(token) for token in row["tokens"]]
            maps = [(m["layer"], m["head"], np.array(m["weights"], float)) for m in row["maps"]]
            assert all(w.shape == (len(tokens), len(tokens)) for *_, w in maps)
        except (KeyError, TypeError, ValueError, AssertionError):
            run.notes.append(f"text {number_of_text} of attention.jsonl is not drawn: no maps")
            continue
        for layer, head, weights in maps:
            count += 1
            if count > MOST_MAPS:
                continue
            title = f"Text {number_of_text}, layer {layer}, "
            title += "mean of the heads" if head is None else f"head {head}"
            name = f"test/attention_{number_of_text}_{layer}" + ("" if head is None else f"_{head}")
            caption = "each row is what one token reads; colour: its share"
            picture = plots.attention(name, tokens, np.nan_to_num(weights))
            found.append(Figure(clean(title), caption, picture))
    if count > MOST_MAPS:
        found.insert(0, Text(f"The first {MOST_MAPS} of {count} maps; attention.jsonl has all."))
    return found


def worst_rows(run: RunFolder) -> list[Block]:
    """The texts of test/analysis/worst_rows.jsonl."""
    found = json_rows(run, "worst_rows.jsonl")
    more = f", the first {WORST_ROWS} of {len(found)}" if len(found) > WORST_ROWS else ""
    first = [Text(f"Test rows by their loss, highest first{more}.")] if found else []
    return first + [worst_row(row) for row in found[:WORST_ROWS]]


def json_rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """The objects of a file in test/analysis, a line each; what cannot be read is noted."""
    path = run.path / "test/analysis" / name
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        run.notes.append(f"{name} cannot be read: {error}")
        return []
    found, torn = [], 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            found.append(row)
        else:
            torn += 1
    if torn:
        run.notes.append(f"{torn} lines of {name} cannot be read and are left out")
    return found


def worst_row(row: dict[str, Any]) -> Row:
    parts = []
    if "label" in row or "prediction" in row:
        parts.append(f"label {row.get('label', '–')}, predicted {row.get('prediction', '–')}")
    if (loss := number(row.get("loss"))) is not None:
        parts.append(f"loss {loss:.3f}")
    shares = row.get("probabilities")
    if isinstance(shares, dict):
        parts += [f"{name} {p:.1%}" for name, p in shares.items() if number(p) is not None]
    parts.append(f"id {row.get('id', '–')}")
    texts = row.get("text", "")
    texts = texts if isinstance(texts, dict) else {"text": texts}
    return Row(
        cut(clean(" · ".join(parts)), 300),
        {cut(clean(k), 60): shortened(v) for k, v in texts.items()},
    )


def samples(run: RunFolder) -> list[Block]:
    """What the model answered to the same instructions: <part>/analysis/samples.jsonl."""
    asked: dict[tuple[str, str], dict[str, str]] = {}
    for part, name in (("baseline", "before"), ("test", "after")):
        path = run.path / part / "analysis/samples.jsonl"
        if not path.exists():
            continue
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for row in rows:
                texts = asked.setdefault((row["instruction"], row["input"]), {})
                texts[name] = shortened(row["response"]) or "(nothing)"
                if row.get("reference"):
                    texts["reference"] = shortened(row["reference"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            run.notes.append(f"{path.relative_to(run.path)} cannot be read: {error}")
    return [
        Row(
            cut(clean(str(instruction)), 300),
            {**({"input": shortened(given)} if given else {}), **texts},
        )
        for (instruction, given), texts in asked.items()
    ]


def shortened(text: Any) -> str:
    """The text without control characters, and its beginning only where it is very long."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return cut(clean(text).strip(), LONGEST_TEXT)


def cut(text: str, longest: int) -> str:
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]}… ({more:,} more characters)"


def tasks(run: RunFolder) -> list[Block]:
    """The figures of a suite's tasks, which lie below the run."""
    rows = []
    for path in sorted(run.path.glob("*/test/metrics/metrics.json")):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            count = written("n", metrics.get("n"))
        except (OSError, ValueError, AttributeError):
            run.notes.append(f"{path.relative_to(run.path)} cannot be read")
            continue
        for name in headlines(metrics)[:2]:
            figures = [written(name, metrics[name]), interval_text(metrics, name), count]
            rows.append([clean(path.parts[-4]), readable(name), *figures])
    return [Table(["task", "figure", "", "95 % interval", "rows"], rows)] if rows else []


def provenance(run: RunFolder) -> list[Block]:
    """All settings, and all that run.json says of where the run came from."""
    left_out = ("schema_version", "status", "verdicts", "sessions", "exit_reason")
    record = {name: value for name, value in run.record.items() if name not in left_out}
    for count, (before, now) in enumerate(itertools.pairwise(run.sessions), 2):
        before, now = flatten(before), flatten(now)
        step = now.pop("from_step", "unknown")
        new = [f"{name} {plain(now[name])}" for name in now if now[name] != before.get(name)]
        record[f"session {count}"] = f"from step {plain(step)}, " + (
            f"with another {', '.join(new)}" if new else "with the same machine and versions"
        )
    if (run.path / "diff.patch").exists():
        record["code"] = "differed from the commit: see diff.patch in the run folder"
    return [
        Table([what, "value"], rows, numbers=False, folded=f"{title} ({len(rows)})")
        for title, what, found in (
            ("Settings", "setting", run.config),
            ("Environment", "what", record),
        )
        if (rows := [[clean(name), plain(value)] for name, value in flatten(found).items()])
    ]


def plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        text = shlex.join(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    return cut(clean(text), 1000)


# --------------------------------------------------------------------------- several runs


def page_of_runs(runs: list[RunFolder]) -> Page:
    labels = distinct_names(runs)
    body = [
        *section("Results", results_of_runs(runs, labels)),
        *section("Training", training_figures(runs, labels)),
        *section("Speed and memory", speed(runs, labels)),
        *section("What differs", difference_tables(runs, labels)),
    ]
    pairs = zip(runs, labels, strict=True)
    found = [finding for run, label in pairs for finding in findings(run, label)]
    verdicts = section("Verdicts", [*found, *comparable(runs)])
    if len(runs) == 2:
        return Page(" and ".join(labels), "two runs on shared axes", verdicts + body)
    return Page(f"{len(runs)} runs", ", ".join(labels), verdicts + body)


def distinct_names(runs: list[RunFolder]) -> list[str]:
    """The last parts of the paths: as many as tell the runs apart, without what all share."""
    paths = [run.path.resolve().parts for run in runs]
    count = 2
    while len({path[-count:] for path in paths}) < len(paths):
        count += 1
    tails = [list(path[-count:]) for path in paths]
    while len(tails[0]) > 1 and len({tail[0] for tail in tails}) == 1:
        tails = [tail[1:] for tail in tails]
    return [clean("/".join(tail)) for tail in tails]


def comparable(runs: list[RunFolder]) -> list[Finding]:
    found = []
    for name, what in (("data_fingerprint", "data"), ("split_fingerprint", "test rows")):
        if len({str(run.record.get(name)) for run in runs}) > 1:
            text = f"the runs did not have the same {what} ({name} differs): figures side by side "
            found.append(Finding(text + "are not a comparison", "bad"))
    text = (
        "each interval is that of one run alone. Whether a change is better, over seeds and on the "
        "same rows, is what report.py compare answers"
    )
    return [*found, Finding(text, "note")]


def results_of_runs(runs: list[RunFolder], labels: list[str]) -> list[Block]:
    names = list(dict.fromkeys(name for run in runs for name in headlines(run.metrics)))
    blocks: list[Block] = []
    for name in names:
        rows = [
            (label, run.metrics[name], interval_of(run.metrics, name))
            for run, label in zip(runs, labels, strict=True)
            if number(run.metrics.get(name)) is not None
        ]
        constants = {number(run.metrics.get(CONSTANTS.get(name, ("",))[0])) for run in runs}
        constant = constants.pop() if len(constants) == 1 else None
        reference = None if constant is None else ("constant answer", constant)
        title, share, some = readable(name), bool(SHARE.search(name)), any(row[2] for row in rows)
        picture = plots.intervals(f"test/{name}", title, rows, reference, share)
        blocks.append(
            Figure(title.capitalize(), "with 95 % intervals" if some else "no interval", picture)
        )
    every = [name for run in runs for name in run.metrics if interval_of(run.metrics, name)]
    every = ["n", *names, *(name for name in every if name != "loss")]
    rows = []
    for name in dict.fromkeys(every):
        cells = [
            written(name, run.metrics.get(name))
            + (f" [{interval_text(run.metrics, name)}]" if interval_of(run.metrics, name) else "")
            for run in runs
        ]
        rows.append([readable(name) if name != "n" else "test rows", *cells])
    return [*blocks, Table(["", *labels], rows)] if names else []


def difference_tables(runs: list[RunFolder], labels: list[str]) -> list[Block]:
    """Settings, data and environment in which the runs differ."""
    from reports.compare import Arm, differences

    found = differences([Arm(label, [run]) for run, label in zip(runs, labels, strict=True)])
    return [
        Table([what, *labels], [[clean(cell) for cell in row] for row in rows], numbers=False)
        for what, rows in found.items()
    ] or [Text("Nothing: no setting, version or fingerprint.")]


# ------------------------------------------------------------------------------- writing


def to_html(page: Page) -> str:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    together = [
        (kind, list(group)) for kind, group in itertools.groupby(page.blocks, lambda b: b.kind)
    ]
    return environment.get_template("page.html.j2").render(
        page=page, groups=together, colors=plots.COLORS, svg=lambda picture: Markup(picture.svg())
    )


def to_markdown(page: Page) -> str:
    """CommonMark with pipe tables and MyST's figure directive."""
    write: dict[str, Callable[[Any], str]] = {
        "heading": lambda b: f"## {escaped(b.text)}\n",
        "text": lambda b: f"{escaped(b.text)}\n",
        "finding": lambda b: f"* {SIGNS[b.tone]}{escaped(b.text)}",
        "tile": lambda b: "* " + ", ".join(map(escaped, tile_words(b))),
        "table": lambda b: markdown_table(b.head, b.rows),
        "figure": markdown_figure,
        "row": markdown_row,
    }
    parts = [f"# {escaped(page.title)}\n", f"{escaped(page.subtitle)}\n"]
    for kind, blocks in itertools.groupby(page.blocks, lambda block: block.kind):
        lines = [write[kind](block) for block in blocks]
        parts.append("\n".join(lines) + "\n" * (kind in ("finding", "tile")))
    return "\n".join(parts)


def tile_words(b: Tile) -> list[str]:
    interval = f" (95 %: {b.interval})" if b.interval else ""
    return [f"{b.name} {b.value}{interval}", *b.beside]


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    lines = [[cell if cell == "---" else escaped(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown_row(b: Row) -> str:
    texts = [f"*{escaped(name)}*: {escaped(text)}" for name, text in b.texts.items()]
    return "\n>\n".join(f"> {line}" for line in [f"**{escaped(b.title)}**", *texts]) + "\n"


def markdown_figure(b: Figure) -> str:
    alt = re.sub(r"[\s#<>`\"'\\]+", " ", b.picture.alt)  # an option is a line, # begins a comment
    name = _file_name(b)
    return (
        f"```{{figure}} {name}\n:alt: {alt}\n:width: 100%\n\n"
        f"**{escaped(b.title)}**: {escaped(b.caption)}.\n```\n"
    )


def _file_name(b: Figure) -> str:
    return b.picture.name.replace("/", "-") + ".png"


def escaped(text: str) -> str:
    """Text as Markdown that shows exactly it, on one line."""
    text = re.sub(r"([\\`*_{}\[\]<>#|$@~^&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=%:]|[.)](?=\s|$))", r"\1\\\2", text)
