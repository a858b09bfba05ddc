"""The pictures of a page: each function takes plain numbers and gives a Picture.

A picture is drawn once, small enough that its text can be read on a phone. As SVG it stands inside
an HTML page, whose style sheet decides the colours; as PNG it is a file of its own on white.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# name: (on white, on dark). A picture is drawn in the first; in SVG they become CSS variables.
COLORS = {
    "page": ("#fefefe", "#14171c"),
    "ink": ("#1c2128", "#e4e8ee"),
    "muted": ("#59626e", "#a3adba"),
    "grid": ("#d8dce2", "#363d47"),
    "blue": ("#0066a8", "#5ab4f0"),
    "orange": ("#c24a00", "#ff9355"),
    "green": ("#00785a", "#33c79b"),
    "purple": ("#a0408a", "#e08fcb"),
    "ochre": ("#856600", "#e3c032"),
    "slate": ("#4b5b9e", "#a9b6f5"),
}
LIGHT = {name: light for name, (light, dark) in COLORS.items()}
# Colour and dashes change together, so that neither alone has to tell two curves apart.
SERIES = [LIGHT[name] for name in ("blue", "orange", "green", "purple", "ochre", "slate")]
REFERENCE = {"color": LIGHT["muted"], "dashes": (4, 3), "linewidth": 1.2}
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3))]
MARKERS = "osD^vP"
MAX_POINTS = 600
DPI = 160
STYLE = {
    "font.size": 11,
    "text.parse_math": False,  # names come from data: "$" is a dollar
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "figure.facecolor": "none",
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",
}


@dataclass
class Picture:
    """`name` is "train/loss": the part of the run it belongs to, and the name of its file."""

    name: str
    alt: str
    draw: Callable[[Figure], None]
    height: float = 3.1  # inches, at a width of 5
    left_out: str = ""  # what the data has and the picture does not
    _figure: Figure | None = field(default=None, init=False, repr=False, compare=False)
    _files: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        part, _, name = self.name.partition("/")
        name = re.sub("[^a-zA-Z0-9_]+", "_", name)  # it may come from data
        self.name = f"{part}/{name[:60]}"

    def _saved(self, **how: Any) -> bytes:
        """Laid out once for both formats, which is most of the work."""
        file = io.BytesIO()
        style = {**STYLE, "svg.hashsalt": self.name}
        with matplotlib.rc_context(style), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a letter that the font has not
            if self._figure is None:
                self._figure = Figure(figsize=(5, self.height), dpi=DPI, layout="constrained")
                FigureCanvasAgg(self._figure)
                self.draw(self._figure)
                self._figure.get_layout_engine().execute(self._figure)
                self._figure.set_layout_engine(None)
            self._figure.savefig(file, **how)
        return file.getvalue()

    def png(self) -> bytes:
        """With our name in it, by which --fresh knows whose it is. The figure stays for svg()."""
        if "png" in self._files:
            return self._files.pop("png")
        marks = {"Software": "ablate"}
        return self._saved(format="png", dpi=DPI, facecolor="white", metadata=marks)

    def svg(self) -> str:
        """An <svg> element for an HTML page: no header, no addresses, colours as variables."""
        if "svg" in self._files:
            return self._files.pop("svg")
        text = self._saved(format="svg", metadata={"Date": None}).decode()
        self._figure = None  # a page of many runs has thousands
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
        text = text.replace("xlink:href", "href")
        # a page holds many pictures: ids that are used get its name, the others go
        used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", text))
        prefix = self.name.replace("/", "-")
        text = re.sub(r"(url\(|href=\")#([\w-]+)", rf"\1#{prefix}-\2", text)
        text = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text
        )
        text = re.sub(r'(style="font: [^;"<]*?px) [^;"<]*', r"\1 var(--font)", text)
        for name, light in LIGHT.items():
            text = text.replace(light, f"var(--{name})")
        return text.replace("<svg ", f'<svg role="img" aria-label="{escape(self.alt)}" ', 1)


def draw_ahead(pictures: Sequence[Picture], formats: Sequence[str], processes: int) -> None:
    """Draws them in forked processes, for png() and svg() to find; a picture's function cannot be
    pickled. With one process it does nothing: they draw when asked."""
    count = min(processes, len(pictures) // 2)
    if count < 2:
        return
    fork = multiprocessing.get_context("fork")
    with fork.Pool(count, _inherit, (pictures, formats)) as pool:
        for picture, files in zip(pictures, pool.imap(_draw, range(len(pictures))), strict=True):
            picture._files = files


def _inherit(pictures: Sequence[Picture], formats: Sequence[str]) -> None:
    global _inherited
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    _inherited = pictures, formats


def _draw(number: int) -> dict[str, Any]:
    pictures, formats = _inherited
    return {name: getattr(pictures[number], name)() for name in formats}


@dataclass
class Curve:
    """y over x, NaN where it was not finite. `kind`: line, smoothed (the raw one faint behind), or
    points. Curves with the same `number` have the same colour and dashes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    number: int = 0
    kind: str = "line"

    def __post_init__(self) -> None:
        self.x, self.y = np.asarray(self.x, dtype=float), np.asarray(self.y, dtype=float)

    @property
    def finite(self) -> np.ndarray:
        return self.y[np.isfinite(self.y)]


def curves(
    name: str,
    drawn: Iterable[Curve],
    y_label: str,
    x_label: str = "step",
    references: Sequence[tuple[str, float]] = (),
    stars: Sequence[tuple[str, float, float]] = (),
    shares: bool = False,
    from_zero: bool = False,
) -> Picture | None:
    """Curves on the same axes. `references` are horizontal lines (label, y), `stars` marked points
    (label, x, y); `shares` writes y as per cent. What spans more than a factor of 50 is shown
    logarithmically, anything else with `from_zero` down to zero."""
    drawn = [curve for curve in drawn if len(curve.finite)]
    if not drawn:
        return None
    low, high, cut = y_range(drawn, references)
    logarithmic = not shares and low > 0 and high > 50 * low

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for curve in drawn:
            _draw_curve(axes, curve, faint=1 / len(drawn))
        for label, y in references:
            axes.axhline(y, label=_name(label), **REFERENCE)
        for label, x, y in stars:
            axes.plot(
                [x], [y], "*", markersize=13, color=LIGHT["ink"], zorder=5, label=_name(label)
            )
            axes.lines[-1].set_markeredgecolor(LIGHT["page"])
        margin = 0.05 * (high - (min(0, low) if from_zero else low) or abs(high) or 1)
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.15, high * 1.15)
        else:
            bottom, top = low - margin, high + margin
            if shares:
                bottom, top = max(bottom, -0.005), min(top, 1.005)
            axes.set_ylim(min(0, low) if from_zero else bottom, top)
            axes.yaxis.set_major_locator(few_ticks())
        _finish(figure, axes, x_label, y_label, shares)

    said = [_said(curve, x_label, shares) for curve in drawn]
    said += [f"{label}: {_number(y, shares)}" for label, y in references]
    said += [label for label, _, _ in stars if label]
    gaps = sum(len(curve.y) - len(curve.finite) for curve in drawn)
    left_out = [f"{gaps:,} values were not finite"] if gaps else []
    left_out += [f"{cut:,} raw values lie above"] if cut else []
    alt = f"{y_label[:1].upper()}{y_label[1:]} against {x_label}. {'; '.join(said)}."
    return Picture(name, alt, draw, left_out="; ".join(left_out))


def y_range(
    drawn: Sequence[Curve], references: Sequence[tuple[str, float]] = ()
) -> tuple[float, float, int]:
    """(low, high, raw values outside): a few spikes do not flatten the rest of a smoothed curve."""
    ends = [y for _, y in references]
    for curve in drawn:
        low, usual, high = np.nanquantile(curve.y, [0, 0.997, 1])
        spikes = curve.kind == "smoothed" and len(curve.y) >= 100
        ends += [low, usual if spikes and high - low > 1.5 * (usual - low) else high]
    outside = sum(int((curve.finite > max(ends)).sum()) for curve in drawn)
    return float(min(ends)), float(max(ends)), outside


def _draw_curve(axes: Any, curve: Curve, faint: float) -> None:
    color = SERIES[curve.number % len(SERIES)]
    dashes = DASHES[curve.number % len(DASHES)]
    if curve.kind == "points":
        marker = MARKERS[curve.number % len(MARKERS)]
        axes.plot(
            curve.x,
            curve.y,
            marker,
            linestyle=dashes,
            color=color,
            markersize=4.5,
            linewidth=1,
            markeredgecolor=LIGHT["page"],
            label=_name(curve.label),
            zorder=4,
        )
        return
    x, y, low, high = binned(curve.x, curve.y)
    if len(x) < len(curve.x):
        axes.fill_between(x, low, high, color=color, alpha=0.3 * faint, linewidth=0)
    elif curve.kind == "smoothed":
        axes.plot(x, y, color=color, alpha=0.5 * faint, linewidth=0.8)
    if curve.kind == "smoothed":
        x, y, _, _ = binned(curve.x, smoothed(curve.y))
    alone = "o" if np.isfinite(y).sum() == 1 else None
    axes.plot(
        x,
        y,
        color=color,
        linestyle=dashes,
        marker=alone,
        label=_name(curve.label),
    )


def binned(
    x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, min, max) of at most `limit` bins of neighbours; unchanged when they are fewer."""
    if len(x) <= limit:
        return x, y, y, y
    starts = np.linspace(0, len(x), limit + 1).astype(int)[:-1]
    known = np.isfinite(y)
    counts = np.add.reduceat(known, starts, dtype=int)
    some = np.where(counts > 0, 1.0, np.nan)  # a bin of nothing but NaN is a gap
    mean = np.add.reduceat(np.where(known, y, 0), starts) / np.maximum(counts, 1) * some
    low = np.minimum.reduceat(np.where(known, y, np.inf), starts) * some
    high = np.maximum.reduceat(np.where(known, y, -np.inf), starts) * some
    return np.add.reduceat(x, starts) / np.diff([*starts, len(x)]), mean, low, high


def smoothed(y: np.ndarray) -> np.ndarray:
    """Exponential mean over a 15th of the values, 100 at most, with no weight on a start value.

    NaN stays a gap.
    """
    decay = 1 - 2 / (min(max(1.0, len(y) / 15), 100.0) + 1)
    result, total, weight = np.full(len(y), np.nan), 0.0, 0.0
    for i, value in enumerate(y):
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
            result[i] = total / weight
    return result


def layers(name: str, steps: Sequence[float], norms: Sequence[dict[str, float]]) -> Picture | None:
    """Gradient norm of each layer (downwards) at each step (to the right), as logarithmic colour.

    `norms` has a {"embeddings": 0.2, "layer 0": 0.1, …} per step, NaN where not finite.
    """
    names = list(max(norms, key=len, default={}))
    table = np.array([[row.get(layer, np.nan) for row in norms] for layer in names], dtype=float)
    table[~(table > 0)] = np.nan
    if not np.isfinite(table).any():
        return None
    steps = np.asarray(steps, dtype=float)
    columns = np.stack([binned(steps, row, 240)[1] for row in table])
    colors = np.nanquantile(columns, [0.01, 0.99])
    rows = range(0, len(names), math.ceil(len(names) / 20))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        half = (steps[-1] - steps[0]) / max(len(steps) - 1, 1) / 2 or 0.5
        image = axes.imshow(
            columns,
            aspect="auto",
            interpolation="none",
            cmap="cividis",
            norm=matplotlib.colors.LogNorm(colors[0], max(colors[1], 1.001 * colors[0])),
            extent=(steps[0] - half, steps[-1] + half, len(names) - 0.5, -0.5),
        )
        _color_bar(figure, axes, image)
        axes.set_yticks(rows, [_name(names[row], 16) for row in rows])
        _finish(figure, axes, "step", "", grid=False)

    medians = np.nanmedian(np.where(np.isfinite(table).any(1)[:, None], table, 0), axis=1)
    said = ", ".join(f"{n} {m:.3g}" for n, m in zip(names, medians, strict=True))
    alt = f"Gradient norm of each layer at each step, as colour. Medians: {said}."
    return Picture(name, alt, draw, height=min(2.2 + 0.17 * len(rows), 5))


def attention(name: str, tokens: Sequence[str], weights: np.ndarray) -> Picture:
    """Weights (token that reads, token that is read), each row a share of 1, as colour."""
    labels = [_name(token, 12) for token in tokens]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(
            weights,
            cmap="cividis",
            interpolation="none",
            aspect="auto",
            norm=matplotlib.colors.PowerNorm(0.5, 0, max(float(weights.max()), 1e-3)),
        )
        _color_bar(figure, axes, image, shares=True)
        small = 7 if len(labels) > 20 else 9
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=small)
        axes.set_yticks(range(len(labels)), labels, fontsize=small)
        axes.tick_params(length=0)
        axes.set_xlabel("is read")
        axes.set_ylabel("reads")

    top = weights.argmax(axis=1)
    said = "; ".join(
        f"{tokens[i].strip()} reads {tokens[j].strip()} {weights[i, j]:.0%}"
        for i, j in list(enumerate(top))[:12]
    )
    alt = f"Attention between {len(tokens)} tokens, as colour. Most read: {said}."
    return Picture(name, alt, draw, height=5)


def confusion(name: str, classes: Sequence[str], counts: np.ndarray) -> Picture:
    """Counts (true class, predicted class), coloured and labelled by the share of their row."""
    size = len(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = [_name(label, 14) for label in classes]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if size > 10:  # too many for numbers
            image = axes.imshow(shares, cmap="cividis", interpolation="none", aspect="auto")
            _color_bar(figure, axes, image, shares=True)
        for row, column in np.ndindex(counts.shape) if size <= 10 else ():
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (column - 0.48, row - 0.48),
                    0.96,
                    0.96,
                    linewidth=0,
                    facecolor=LIGHT["blue"],
                    alpha=0.06 + 0.5 * shares[row, column],
                )
            )
            text = f"{counts[row, column]:,}"
            if size <= 6:
                text += f"\n{100 * shares[row, column]:.0f} %"
            weight = "bold" if row == column else "normal"
            axes.text(column, row, text, ha="center", va="center", weight=weight)
        some = range(0, size, math.ceil(size / 20))
        crowded = sum(len(label) for label in labels) > 40
        axes.set_xticks(
            some,
            [labels[i] for i in some],
            rotation=(90 if size > 10 else 35) if crowded else 0,
            ha="right" if crowded else "center",
            va="center" if crowded and size > 10 else "top",
            rotation_mode="anchor" if crowded else "default",
        )
        axes.set_yticks(some, [labels[i] for i in some])
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")

    said = [
        f"of {counts[i].sum():,} rows labelled {classes[i]}: "
        + ", ".join(f"{counts[i, j]:,} {classes[j]}" for j in range(size))
        for i in range(min(size, 10))
    ]
    alt = f"Confusion matrix, {size} classes. {'; '.join(said)}{' and so on' * (size > 10)}."
    return Picture(name, alt, draw, height=min(1.4 + 0.55 * size, 5))


def calibration(
    name: str,
    confidence: np.ndarray,
    accuracy: np.ndarray,
    intervals: Sequence[tuple[float, float]],
    counts: np.ndarray,
    edges: np.ndarray,
) -> Picture:
    """Share of right answers against mean confidence, a point for each bin of `counts` rows.

    `edges` (bins, 2): the confidence where each bin begins and ends.
    """
    start = math.floor(10 * min(confidence)) / 10

    def draw(figure: Figure) -> None:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot([start, 1], [start, 1], label="as sure as right", **REFERENCE)
        for x, (low, high) in zip(confidence, intervals, strict=True):
            axes.plot([x, x], [low, high], color=LIGHT["blue"], linewidth=1.2)
        axes.plot(
            confidence, accuracy, "o", color=LIGHT["blue"], label="answers of this confidence"
        )
        axes.set_ylim(-0.03, 1.03)
        below.bar(
            edges[:, 0],
            counts,
            width=np.diff(edges)[:, 0],
            align="edge",
            color=LIGHT["blue"],
            alpha=0.5,
            edgecolor=LIGHT["page"],
            linewidth=0.8,
        )
        below.set_xlim(start - 0.02, 1.02)
        below.set_ylabel("rows")
        below.yaxis.set_major_locator(few_ticks(integer=True, most=2))
        _plain_ticks(below.yaxis)
        _finish(figure, axes, "", "right answers", shares=True)
        _plain_ticks(below.xaxis, True)
        below.set_xlabel("confidence")
        axes.tick_params(labelbottom=False)

    said = "; ".join(
        f"{c:.0%} sure: {a:.0%} right ({n:,} rows)"
        for c, a, n in zip(confidence, accuracy, counts, strict=True)
    )
    return Picture(name, f"Share of right answers by confidence. {said}.", draw, height=3.5)


def histogram(name: str, values: np.ndarray, mean: float, x_label: str) -> Picture:
    """How many rows have which value; the mean is marked."""
    # the last per cent would be a long empty tail
    low, high = values.min(), np.quantile(values, 0.99)
    counts, edges = np.histogram(np.minimum(values, high), bins=40, range=(low, high or 1))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(
            edges[:-1],
            counts,
            width=np.diff(edges),
            align="edge",
            color=LIGHT["blue"],
            alpha=0.6,
            edgecolor=LIGHT["page"],
            linewidth=0.5,
        )
        axes.axvline(mean, color=LIGHT["orange"], linewidth=1.7, label=f"mean {mean:.3f}")
        axes.yaxis.set_major_locator(few_ticks(integer=True))
        _finish(figure, axes, x_label, "rows", legend_from=1)

    quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    alt = (
        f"Histogram of {x_label} over {len(values):,} rows. Mean {mean:.3f}; least, quartiles and "
        f"most: {', '.join(f'{q:.3f}' for q in quartiles)}."
    )
    return Picture(name, alt, draw)


def scatter(name: str, labels: np.ndarray, predictions: np.ndarray) -> Picture:
    """Label against prediction, one point a row, evenly thinned to 1,500; the diagonal is right."""
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), 1500)).astype(int)
    ends = [labels.min(), labels.max()]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(ends, ends, label="right", **REFERENCE)
        axes.plot(
            labels[chosen],
            predictions[chosen],
            "o",
            color=LIGHT["blue"],
            alpha=0.5,
            markersize=4,
            markeredgewidth=0,
            label="a row",
        )
        _finish(figure, axes, "label", "prediction")

    off = np.abs(labels - predictions)
    alt = (
        f"Prediction against label, {len(labels):,} rows. Distance from the label: median "
        f"{np.median(off):.3g}, largest {off.max():.3g}."
    )
    return Picture(name, alt, draw, height=4)


def intervals(
    name: str,
    x_label: str,
    rows: Sequence[tuple[str, float, tuple[float, float] | None]],
    reference: tuple[str, float] | None = None,
    shares: bool = False,
) -> Picture:
    """A dot with its 95 % interval for each (label, value, interval), below each other."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if reference:
            axes.axvline(reference[1], label=_name(reference[0]), **REFERENCE)
        for i, (_, value, interval) in enumerate(rows):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            if interval:
                axes.plot(interval, [i, i], color=color, linewidth=2.2, solid_capstyle="butt")
            axes.plot([value], [i], marker, color=color, markersize=7)
        axes.set_yticks(range(len(rows)), [_name(row[0], 30) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(few_ticks())
        _finish(figure, axes, x_label, "", grid=False, legend_from=1)
        _plain_ticks(axes.xaxis, shares)
        axes.grid(axis="x")

    said = "; ".join(
        f"{label} {_number(value, shares)}"
        + (f" [{_number(ci[0], shares)}, {_number(ci[1], shares)}]" if ci else "")
        for label, value, ci in rows
    )
    if reference:
        said += f"; {reference[0]} {_number(reference[1], shares)}"
    alt = f"{x_label.capitalize()}, each with its interval: {said}."
    return Picture(name, alt, draw, height=1.1 + 0.34 * len(rows))


@dataclass
class Bar:
    """A part of a difference; interval: of the part. tone: better, worse, or none where no verdict
    calls it. alone: what it is without the other parts."""

    label: str
    value: float
    interval: tuple[float, float] | None
    tone: str = "none"
    alone: float | None = None


TONES = {"better": LIGHT["green"], "worse": LIGHT["orange"], "none": LIGHT["muted"]}


def waterfall(name: str, x_label: str, start: float, bars: Sequence[Bar], end: float) -> Picture:
    """From A (`start`) to B (`end`), below each other: each bar begins where the one above it
    ended, so that they add up; its whisker is the interval of where it ends."""
    begins = [start]
    shown = [start, end]
    for bar in bars:
        begins.append(begins[-1] + bar.value)
        parts = [bar.value, bar.alone, *(bar.interval or ())]
        shown += [begins[-2] + part for part in parts if part is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        last = len(bars) + 1
        for row, value in ((0, start), (last, end)):
            axes.plot([value], [row], "o", color=LIGHT["ink"], markersize=7)
        for row, (bar, begin) in enumerate(zip(bars, begins, strict=False), 1):
            color = TONES[bar.tone]
            axes.barh(row, bar.value, left=begin, height=0.55, color=color, alpha=0.6)
            axes.plot([begin, begin], [row - 1, row], color=LIGHT["grid"], linewidth=0.9, zorder=0)
            if bar.interval:
                ends = [begin + limit for limit in bar.interval]
                axes.plot(ends, [row, row], color=LIGHT["ink"], linewidth=1.4)
            if bar.alone is not None:
                axes.plot([begin + bar.alone], [row], "D", color=LIGHT["blue"], markersize=5)
        axes.plot([end, end], [last - 1, last], color=LIGHT["grid"], linewidth=0.9, zorder=0)
        for tone in dict.fromkeys(bar.tone for bar in bars):
            label = {"none": "undecided or the same"}.get(tone, tone)
            axes.barh([0], [math.nan], color=TONES[tone], alpha=0.6, label=label)
        if any(bar.alone is not None for bar in bars):
            axes.plot([], [], "D", color=LIGHT["blue"], markersize=5, label="added to A alone")
        texts = [f"{_name(bar.label, 26)}  {bar.value:+.4f}" for bar in bars]
        labels = [f"A  {start:.4f}", *texts, f"B  {end:.4f}"]
        low, high = min(shown), max(shown)
        room = 0.05 * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
        axes.set_yticks(range(last + 1), labels)
        axes.set_ylim(last + 0.6, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        _finish(figure, axes, x_label, "", grid=False, legend_from=1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)

    said = "; ".join(
        f"{bar.label} {bar.value:+.4f}"
        + (f" [{bar.interval[0]:+.4f}, {bar.interval[1]:+.4f}]" if bar.interval else "")
        for bar in bars
    )
    alt = f"{x_label.capitalize()} from A {start:.4f} to B {end:.4f}: {said}."
    return Picture(name, alt, draw, height=1.5 + 0.4 * (len(bars) + 2))


def bands(
    name: str, arms: Sequence[tuple[str, Sequence[np.ndarray]]], y_label: str
) -> Picture | None:
    """For each (label, runs (points, 2) of step and y): the mean over runs at the steps that all of
    them have, the runs thin, and the band between the lowest and the highest."""
    arms = [(label, runs) for label, runs in arms if runs]
    if not arms:
        return None
    drawn, said = [], []
    for number, (label, runs) in enumerate(arms):
        steps = sorted(set.intersection(*(set(run[:, 0]) for run in runs)))
        at = np.array([[dict(map(tuple, run))[step] for step in steps] for run in runs])
        drawn.append((number, label, runs, steps, at))
        if steps:
            said.append(f"{label} {_number(at[:, -1].mean())} at step {steps[-1]:.0f}")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, label, runs, steps, at in drawn:
            color = SERIES[number % len(SERIES)]
            dashes = DASHES[number % len(DASHES)]
            if len(runs) > 1:
                for run in runs:
                    axes.plot(run[:, 0], run[:, 1], color=color, alpha=0.35, linewidth=0.7)
                if steps:
                    ends = at.min(axis=0), at.max(axis=0)
                    axes.fill_between(steps, *ends, color=color, alpha=0.15, linewidth=0)
            x, y = (steps, at.mean(axis=0)) if steps else (runs[0][:, 0], runs[0][:, 1])
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(x, y, marker, linestyle=dashes, color=color, markersize=4, label=_name(label))
        axes.yaxis.set_major_locator(few_ticks())
        _finish(figure, axes, "step", y_label)

    alt = f"{y_label.capitalize()} of each arm over its seeds: {'; '.join(said)}."
    return Picture(name, alt, draw)


def _finish(
    figure: Figure,
    axes: Any,
    x_label: str,
    y_label: str,
    shares: bool = False,
    grid: bool = True,
    legend_from: int = 2,
) -> None:
    """Axis labels, ticks, grid, and a legend where it has as many entries as `legend_from`."""
    axes.set_xlabel(_name(x_label))
    axes.set_ylabel(_name(y_label))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(few_ticks(x_label == "step"))
        _plain_ticks(axes.xaxis)
    if grid:
        _plain_ticks(axes.yaxis, shares)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    if len(names) >= legend_from:
        longest = max(map(len, names))
        figure.legend(
            handles,
            names,
            loc="outside upper left",
            borderpad=0.2,
            columnspacing=1.2,
            ncols=3 if longest < 17 else 2 if longest < 27 else 1,
            handlelength=2.4,
        )


def _color_bar(figure: Figure, axes: Any, image: Any, shares: bool = False) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=25)
    bar.solids.set_rasterized(True)  # one picture, not 256 shapes
    bar.outline.set_visible(False)
    _plain_ticks(bar.ax.yaxis, shares)


def _plain_ticks(axis: Any, shares: bool = False) -> None:
    """12,000 and 0.002 and 40 %, not 1.2e4 with an offset in the corner."""
    low, high = axis.get_view_interval()
    if axis.get_scale() == "log":
        many, some = (1, 1.5, 2, 3, 5, 7), (1, 2, 5)
        subs = many if high < 8 * low else some if high < 200 * low else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value, shares)))


def few_ticks(integer: bool = False, most: int = 5) -> MaxNLocator:
    return MaxNLocator(most, integer=integer, steps=[1, 2, 2.5, 5, 10])


def _number(value: float, shares: bool = False) -> str:
    if shares:
        return f"{100 * value:.4g} %"
    if abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    if abs(value) >= 2e-3:
        return f"{value:.4g}"
    digits, power = f"{value:.2e}".split("e")  # 7.5e-5, as one writes a learning rate
    return f"{float(digits):g}e{int(power)}"


def _name(text: str, longest: int = 44) -> str:
    """A label: one line, cut in the middle; a leading _ would hide it from the legend."""
    text = " ".join(str(text).split())
    if len(text) > longest:
        text = f"{text[: 2 * longest // 3]}…{text[1 - longest // 3 :]}"
    return f" {text}" if text.startswith("_") else text


def _said(curve: Curve, x_label: str, shares: bool) -> str:
    values = curve.finite
    first, last, least, most = (
        _number(float(v), shares) for v in (values[0], values[-1], values.min(), values.max())
    )
    return f"{curve.label}: from {first} to {last}, between {least} and {most}"
