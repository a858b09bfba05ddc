"""How one or more runs trained, in figures: losses, rates, gradients, and what it cost."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from reports import plots
from reports.blocks import SHARE, Block, Figure, Table, Text, figure, readable, written
from reports.folder import RunFolder, clean, duration, number
from reports.plots import Curve
from reports.watch import MACHINE

MOST_VALIDATION = 4  # figures beside the loss
SAME_CURVE = 1e-3  # relative: values of another name that are the same, but for their unit


@dataclass
class Drawn:
    """Figures of curves, each curve once: what was seen at one step is a number, and a curve that
    was drawn before, in the same or another unit, is named below that one."""

    figures: list[Figure] = field(default_factory=list)
    numbers: list[list[str]] = field(default_factory=list)
    _curves: list[tuple[list[Curve], Figure]] = field(default_factory=list)

    def add(self, title: str, caption: str, name: str, lines: list[Curve], *how: Any, **more: Any):
        lines = [curve for curve in lines if len(curve.finite)]
        if all(len(curve.finite) == 1 for curve in lines):
            for curve in lines:
                [at] = np.flatnonzero(np.isfinite(curve.y))
                label = title if len(lines) == 1 else curve.label
                if len(lines) > 1 and not label.startswith(title.lower()):
                    label = f"{title}: {label}"
                value = written(name.partition("/")[2], float(curve.y[at]))
                self.numbers.append([label, value, f"{curve.x[at]:,.4g}"])
            return
        for before, drawn in self._curves:
            if same_curves(before, lines):
                drawn.caption += f"; {title[:1].lower()}{title[1:]} is the same curve"
                return
        picture = figure(title, caption, plots.curves(name, lines, *how, **more))
        if picture:
            self.figures.append(picture)
            self._curves.append((lines, picture))

    def knows(self, lines: list[Curve]) -> None:
        """These stand among the curves of the last figure."""
        if self.figures and len(lines[0].finite) > 1:
            self._curves.append((lines, self.figures[-1]))

    @property
    def blocks(self) -> list[Block]:
        head = ["measured once", "", "at step"]
        return [*self.figures, *([Table(head, self.numbers)] if self.numbers else [])]


def same_curves(some: list[Curve], others: list[Curve]) -> bool:
    """Equal, or in another unit (bits for nats, but not nats a token for nats a character, whose
    ratio is each tokenizer's), or e to the other's values."""
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        if not np.array_equal(one.x, other.x):
            return False
        if (np.isfinite(one.y) != np.isfinite(other.y)).any():
            return False
    x, y = (np.concatenate([curve.finite for curve in curves]) for curves in (some, others))
    if np.allclose(x, y, rtol=SAME_CURVE**2, atol=0):
        return True
    if (x <= 0).any() or (y <= 0).any() or np.ptp(x) < 10 * SAME_CURVE * x.max():
        return False  # a line that hardly moves is like any other such line
    ratio = y / x
    exponential = (np.allclose(np.log(a), b, SAME_CURVE, SAME_CURVE) for a, b in ((x, y), (y, x)))
    return bool(np.ptp(ratio) < SAME_CURVE * ratio.max() or any(exponential))


def training_figures(
    runs: list[RunFolder], labels: list[str], more: Sequence[Figure] = ()
) -> list[Block]:
    """Loss, the other validation figures, learning rates and gradient norm of one or more runs."""
    one, drawn = len(runs) == 1, Drawn()
    loss_figures(drawn, runs, labels, "step")
    if not one and different_pace(runs):
        loss_figures(drawn, runs, labels, "seconds")
    validation_figures(drawn, runs, labels)
    rates = learning_rates(runs, labels)
    groups = "of each group of parameters" if one and len(rates) > 1 else "at each step"
    drawn.add("Learning rate", groups, "train/learning_rate", rates, "learning rate")
    limits = {number(run.config.get("max_grad_norm")) for run in runs}
    limit = limits.pop() if len(limits) == 1 else None
    norms = step_curves(runs, labels, "grad_norm", "smoothed")
    drawn.add(
        *("Gradient norm", "over all parameters, before clipping", "train/gradient_norm", norms),
        "gradient norm",
        references=[("clipped to", limit)] * (limit is not None),
        from_zero=True,
    )
    drawn.figures += more
    return drawn.blocks


def loss_figures(drawn: Drawn, runs: list[RunFolder], labels: list[str], x_name: str) -> None:
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
        several = sum(map(math.isfinite, y)) > 1  # of one evaluation nothing is the best
        at = [line for line in placed if several and line["step"] == best_step(run)]
        said = "best of each run" * (not stars) if label else f"best, step {best_step(run):,}"
        stars += [(said, *point) for point in zip(*columns(at, x_name, "val_loss"), strict=True)]
    unit, scale = ("", 1.0) if x_name == "step" else time_unit(training)
    x_label = f"training time ({unit})" if unit else "step"
    training, validation = (
        [replace(curve, x=curve.x / scale) for curve in part] for part in (training, validation)
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
        both, caption = training + validation, f"{faint}{points}{dashed}"
        drawn.add(f"Loss{after}", caption, name, both, "loss", x_label, references, stars)
        drawn.knows(validation)
        return
    named = f"Training loss{after}", f"{faint}{dashed}", name
    drawn.add(*named, training, "training loss", x_label, references)
    named = (
        f"Validation loss{after}",
        f"at each evaluation{dashed}",
        name.replace("loss", "val_loss"),
    )
    drawn.add(*named, validation, "validation loss", x_label, references, stars)


def validation_figures(drawn: Drawn, runs: list[RunFolder], labels: list[str]) -> None:
    """One run: all shares on the same axes, and each other figure; several: each figure."""
    names = [name for run in runs for line in run.lines[1] for name in line]
    # the last two are facts that each evaluation of titles repeats: no curves
    wanted = re.compile("val_(?!loss$|share_scored$|tokenizer_exact$)")
    names = [name for name in dict.fromkeys(names) if wanted.match(name)]
    shares = [name for name in names if SHARE.search(name)]
    together = [shares] if len(runs) == 1 else [[name] for name in shares]
    together += [[name] for name in names if name not in shares]
    before = len(drawn.figures)
    for group in filter(None, together):
        if len(drawn.figures) - before == MOST_VALIDATION:
            return
        lines = []
        for i, (name, (run, label)) in enumerate(
            itertools.product(group, zip(runs, labels, strict=True))
        ):
            x, y = columns(run.lines[1], "step", name)
            lines.append(Curve(label or readable(name), x, y, i, "points"))
        constants = {number(run.metrics.get("constant_accuracy")) for run in runs}
        known = "val_accuracy" in group and len(constants) == 1 and None not in constants
        title = "Validation" if len(group) > 1 else readable(group[0]).capitalize()
        caption = "at each evaluation" + "; dashed: a constant answer on the test rows" * known
        drawn.add(
            *(title, caption, f"train/{group[0]}", lines),
            "share of rows" if len(group) > 1 else readable(group[0]),
            references=[("constant answer", constants.pop())] * known,
            shares=group[0] in shares,
        )


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
    if len(lines) < 2:
        return []
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
    names = list(dict.fromkeys(name for each in costs for name in each))
    if not names:
        return []
    rows = [
        [label, *(each.get(name, "–") for name in names)]
        for label, each in zip(labels, costs, strict=True)
    ]
    summary = Table(["", *names], rows)
    if len(runs) == 1:
        summary = Text(" · ".join(f"{name}: {value}" for name, value in costs[0].items()))
    drawn = Drawn()
    for title, caption, name, unit, scale in (
        ("Tokens a second", "at each step", "tokens_per_second", "tokens a second", 1),
        ("Rows a second", "at each step", "examples_per_second", "rows a second", 1),
        ("Memory", "the most that was in use", "peak_memory_bytes", "GiB", 2**30),
    ):
        if name == "examples_per_second" and drawn.figures:
            continue  # nearly the curve of tokens once more
        if name == "peak_memory_bytes" and len(runs) == 1 and machine_lines(runs[0]):
            continue  # is in the monitor's picture
        lines = step_curves(runs, labels, name, "smoothed" if scale == 1 else "line")
        lines = [replace(curve, y=curve.y / scale) for curve in lines]
        drawn.add(title, caption, f"train/{name}", lines, unit, from_zero=True)
    if len(runs) == 1:
        machine_figures(drawn, runs[0])
    blocks = [summary, *drawn.figures]  # what was measured once is in the summary
    if len(runs) == 1 and len(rows := epoch_rows(runs[0])) > 1:
        blocks.append(Table(["epoch", "training", "tokens"], rows, folded="Seconds per epoch"))
    return blocks


def machine_lines(run: RunFolder) -> list[dict]:
    """What the monitor logged, each with its step."""
    lines = [line for line in run.lines[0] if isinstance(line.get("machine"), dict)]
    return [{**line["machine"], "step": line["step"]} for line in lines]


def machine_figures(drawn: Drawn, run: RunFolder) -> None:
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
    shares, memory = ([c for c in group if len(c.finite)] for group in (shares, memory))
    caption = "CPU: of all cores, whoever used them, and by this process; waiting: of the time"
    look = {"shares": True, "from_zero": True}
    drawn.add("How busy", caption, "train/machine", shares, "share", **look)
    drawn.add("Memory", "in use", "train/memory", memory, "GiB", from_zero=True)


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
    costs = {}
    if steps:
        costs["steps"] = f"{steps:,}"
    if seconds:
        costs["training"] = duration(seconds)
    for name, title in (("examples_per_second", "rows/s"), ("tokens_per_second", "tokens/s")):
        _, y = columns(training, "step", name)
        if np.isfinite(y).any():
            costs[f"{title}, median"] = f"{np.nanmedian(y):,.0f}"
    _, y = columns(training, "step", "peak_memory_bytes")
    if np.isfinite(y).any():
        costs["peak memory"] = f"{np.nanmax(y) / 2**30:.2f} GiB"
    lines = machine_lines(run)
    for name, title in (("cpu_share", "CPU"), ("data_share", "waiting for data")):
        _, y = columns(lines, "step", name)
        if np.isfinite(y).any():
            costs[f"{title}, median"] = f"{np.nanmedian(y):.0%}"
    if (seconds := number(run.record.get("evaluation_seconds"))) is not None:
        costs["evaluation"] = duration(seconds)
    written = number(run.record.get("checkpoint_bytes"))
    seconds = number(run.record.get("checkpoint_seconds"))
    if written is not None and seconds is not None:
        costs["checkpoints"] = f"{written / 2**30:.2f} GiB in {duration(seconds)}"
    return costs


def step_curves(
    runs: list[RunFolder], labels: list[str], name: str, kind: str = "line"
) -> list[Curve]:
    return [
        Curve(label or readable(name), *columns(run.lines[0], "step", name), i, kind)
        for i, (run, label) in enumerate(zip(runs, labels, strict=True))
    ]


def columns(lines: list[dict], x_name: str, y_name: str) -> tuple[list[float], list[float]]:
    """x and y of the lines that have both; NaN where y is there and not finite."""
    points = [(number(line.get(x_name)), line[y_name]) for line in lines if y_name in line]
    points = [(x, number(y)) for x, y in points if x is not None]
    return [x for x, _ in points], [math.nan if y is None else y for _, y in points]


def best_step(run: RunFolder) -> int:
    """The step with the lowest validation loss; 0, which no step has, when there is none."""
    if isinstance(step := run.metrics.get("best_step"), int):
        return step
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
