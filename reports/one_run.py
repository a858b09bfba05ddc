"""The page of one run: verdicts, results, training, answers, texts, settings."""

import csv
import io
import itertools
import json
import shlex
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from claims import place_of
from evaluation import beyond_style, outcomes
from evaluation.metrics import CONSTANTS, doubtful_groups
from evaluation.outcomes import FAILED
from evaluation.stats import proportion_interval
from reports import packed, plots
from reports.blocks import (
    Block,
    Figure,
    Finding,
    Page,
    Row,
    Table,
    Text,
    Tile,
    cut,
    interval_text,
    plain,
    readable,
    section,
    shortened,
    written,
)
from reports.folder import RunFolder, clean, interval_of, number
from reports.next_tokens import next_tokens
from reports.published import sentences as against_published
from reports.samples import samples
from reports.table import command_of
from reports.training import layer_figure, speed, training_figures
from reports.watch import total_steps
from settings import flatten, model_name

# Figures to open with, the first four that a run has.
HEADLINES = (
    "accuracy",
    "log_loss",
    "matthews_correlation",
    "pearson",
    "spearman",
    "perplexity",
    "loss",
    "nats_per_char",
    "bits_per_byte",
    "f1_macro",
    "expected_calibration_error",
)
CALIBRATION_BINS = 15  # as in expected_calibration_error
MOST_CLASSES = 200  # of a confusion matrix
WORST_ROWS = 20
MOST_SPIKES = 30
MOST_MAPS = 24  # of attention


def page_of_run(run: RunFolder) -> Page:
    training, _ = run.lines
    body = [
        *section("Results", results(run)),
        *section("Training", training_figures([run], [""], layer_figure(training))),
        *section("Answers on the test rows", answers_of(run)),
        *section("Next tokens", next_tokens(run)),
        *section("Speed and memory", speed([run], [""])),
        *section("Loss spikes", spikes(run)),
        *section("Answers to the same instructions", samples(run)),
        *section("Attention", attention_figures(run)),
        *section("What it got most wrong", worst_rows(run)),
        *section("Tasks", tasks(run)),
        *section("Settings and environment", provenance(run)),
    ]
    # the last to be made: what could not be read above is said here
    verdicts = section("Verdicts", [*findings(run), *learned(run)])
    path = place_of(run.path) or run.path  # of a sweep's run, which comes there in a moment
    commands = [clean(command_of(run)), f"python report.py page {shlex.quote(clean(str(path)))}"]
    return Page(clean(run.name), subtitle(run), verdicts + body, list(filter(None, commands)))


def subtitle(run: RunFolder) -> str:
    config, record = run.config, run.record
    model = " on ".join(str(name) for name in (model_name(config), config.get("data")) if name)
    seed = "" if run.seed is None else f"seed {run.seed}"
    status = run.status if run.evaluated is None else f"evaluation of {run.evaluated.get('run')}"
    return " · ".join(
        cut(clean(part), 100) for part in (record.get("script"), model, seed, status) if part
    )


def findings(run: RunFolder, label: str = "") -> list[Finding]:
    """Verdicts and what the reader must know before any figure, the worst first."""
    prefix = f"{label}: " if label else ""
    cautions = [verdict for verdict in run.verdicts if outcomes.kind_of(verdict) not in FAILED]
    failures = [verdict for verdict in run.verdicts if verdict not in cautions]
    sentences = [Finding(verdict, "bad") for verdict in failures]
    sentences += [Finding(verdict, "caution") for verdict in cautions]
    sentences += [Finding(note, "note") for note in run.notes]
    if run.status == "finished" and not run.verdicts:
        sentences.append(unsuspected(run))
    training, _ = run.lines
    if run.status != "finished" and training:
        step, total = training[-1]["step"], total_steps(run, training[-1])
        text = f"step {step:,}" + (f" of {total:,}" if total else "")
        text += "; the test rows are read once, at the end" * (not run.metrics)
        sentences.append(Finding(text, "note"))
    return [replace(finding, text=cut(clean(prefix + finding.text), 1000)) for finding in sentences]


def unsuspected(run: RunFolder) -> Finding:
    """What it means that a finished run has no verdict: its rules may have been older ones."""
    rules = number(run.record.get("verdict_rules"))
    if rules is None or rules < outcomes.RULES:
        return Finding("finished; the rules of its time had nothing to say of it", "note")
    checked = ", ".join((*FAILED, *outcomes.CAUTIONS))
    return Finding(f"finished; no rule had anything to say of it ({checked})", "good")


def learned(run: RunFolder) -> list[Finding]:
    """Whether the test figures are better than an answer that needs no model.

    Of a run that a verdict fails nothing is good: a figure that stands out is a note then.
    """
    sentences = []
    for name, (constant_name, more_is_better) in CONSTANTS.items():
        constant = number(run.metrics.get(constant_name))
        interval = interval_of(run.metrics, name)
        if constant is None or interval is None:
            continue
        low, high = interval
        better, worse = (low > constant, high < constant)
        if not more_is_better:
            better, worse = high < constant, low > constant
        tone = ("note" if run.failures else "good") if better else "bad"
        word = "better than" if better else "worse than" if worse else "not separable from"
        sentences.append(
            Finding(
                f"{readable(name).capitalize()} {written(name, run.metrics[name])} "
                f"[{written(name, low)}, {written(name, high)}] is {word} "
                f"a constant answer ({written(name, constant)})",
                tone,
            )
        )
    published = [Finding(cut(clean(line), 1000), "note") for line in against_published([run])]
    return [*sentences, *beyond(run), *published]


BEYOND_TONES = {"more than style": "good", "style only": "bad", "nothing learned": "bad"}


def beyond(run: RunFolder) -> list[Finding]:
    """Of a preference run: whether it says more than style; of one with --blend, what it adds to
    the other run."""
    sentences, found = [], run.metrics.get("beyond_style")
    if isinstance(found, dict) and (sentence := beyond_style.in_words(found)):
        tone = "note" if run.failures else BEYOND_TONES.get(str(found["verdict"]), "note")
        sentences.append(Finding(cut(clean(sentence[:1].upper() + sentence[1:]), 500), tone))
        if turned := probed(found.get("probes")):
            sentences.append(Finding(turned, "note"))
    joined = run.metrics.get("blend")
    if isinstance(joined, dict) and number(joined.get("log_loss_of_run")) is not None:
        gain, interval = number(joined.get("gain")), interval_of(joined, "gain")
        name = PurePath(str(joined.get("run"))).name
        text = f"Blended with {name}, which alone, its temperature fitted on validation as the "
        text += f"weights are, gets {written('log_loss', joined['log_loss_of_run'])} nats"
        if gain is not None and interval is not None:
            text += f": better by {gain:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
        sentences.append(Finding(cut(clean(text), 500), "note"))
    return sentences


def probed(shares: Any) -> str:
    """How many verdicts turn by what should not matter; "" where that is not known."""
    if not isinstance(shares, dict) or number(shares.get("n")) is None:
        return ""
    words = {
        "padded": "turn to the other answer where that is padded with empty words",
        "plain": "turn where both answers lose their Markdown",
        "swapped": "turn where A and B change places",
    }
    there = {name: number(shares.get(name)) for name in words}
    said = [f"{value:.0%} {words[name]}" for name, value in there.items() if value is not None]
    return f"Of {shares['n']:,} verdicts {', '.join(said)}" if said else ""


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
    if groups := doubtful_groups(metrics):
        of += f" ({groups})"
    head = ["figure", "", "95 % interval"] + ["before training"] * bool(before)
    return [*tiles, Table(head, rows, folded=f"All figures{of}")]


def headlines(metrics: dict[str, Any]) -> list[str]:
    names = [name for name in HEADLINES if number(metrics.get(name)) is not None]
    if "log_loss" in names and "loss" in names:
        names.remove("loss")
    others = [name for name in metrics if interval_of(metrics, name) and name not in HEADLINES]
    names = names or others
    first = metrics.get("primary")  # what was trained, and by which weights were chosen
    if first == "loss" and "log_loss" in names:
        first = "log_loss"
    if isinstance(first, str) and number(metrics.get(first)) is not None:
        names = [first, *(name for name in names if name != first)]
    return names[:4]


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
    if not packed.is_file(path):
        return [], []
    try:
        text = packed.read_bytes(path).decode("utf-8", errors="replace")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
        names = list(reader.fieldnames or [])
    except (OSError, csv.Error) as error:
        run.notes.append(f"predictions.csv cannot be read: {error}")
        return [], []
    whole = [row for row in rows if None not in row and None not in row.values()]
    if len(whole) < len(rows):
        run.notes.append(f"{len(rows) - len(whole)} torn rows of predictions.csv are left out")
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
    blocks: list[Block] = []
    if len(names) <= MOST_CLASSES:
        counts = np.zeros((len(names), len(names)), dtype=int)
        np.add.at(counts, ([place[x] for x in labels], [place[x] for x in predictions]), 1)
        shown = [clean(name) for name in names]
        caption = "counts, and shares of the row: what became of the rows of a label"
        picture = plots.confusion("test/confusion_matrix", shown, counts)
        blocks.append(Figure("Confusion matrix", caption, picture))
    if classes:
        confidence = np.max([numbers(rows, f"p_{name}") for name in classes], axis=0)
        hits = np.array(labels) == np.array(predictions)
        groups = [row.get("group") or row.get("id") or str(i) for i, row in enumerate(rows)]
        blocks.append(calibration_figure(confidence, hits, groups))
    return blocks


def calibration_figure(confidence: np.ndarray, hits: np.ndarray, groups: list[str]) -> Figure:
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bins = np.digitize(confidence, inner_edges, right=True)
    members = [np.flatnonzero(bins == b) for b in np.unique(bins)]
    picture = plots.calibration(
        "test/calibration",
        np.array([confidence[rows].mean() for rows in members]),
        np.array([hits[rows].mean() for rows in members]),
        [proportion_interval(hits[rows], [groups[row] for row in rows])[:2] for rows in members],
        np.array([len(rows) for rows in members]),
        np.array([[b, b + 1] for b in np.unique(bins)]) / CALIBRATION_BINS,
    )
    how = "Wilson" if len(set(groups)) == len(groups) else "rows of a group counted together"
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
    blocks: list[Block] = []
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
            blocks.append(Figure(clean(title), caption, picture))
    if count > MOST_MAPS:
        blocks.insert(0, Text(f"The first {MOST_MAPS} of {count} maps; attention.jsonl has all."))
    return blocks


def worst_rows(run: RunFolder) -> list[Block]:
    """The texts of test/analysis/worst_rows.jsonl."""
    rows = json_rows(run, "worst_rows.jsonl")
    more = f", the first {WORST_ROWS} of {len(rows)}" if len(rows) > WORST_ROWS else ""
    first = [Text(f"Test rows by their loss, highest first{more}.")] if rows else []
    return first + [worst_row(row) for row in rows[:WORST_ROWS]]


def json_rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """The objects of a file in test/analysis, a line each; what cannot be read is noted."""
    path = run.path / "test/analysis" / name
    if not packed.is_file(path):
        return []
    try:
        lines = packed.read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except OSError as error:
        run.notes.append(f"{name} cannot be read: {error}")
        return []
    rows, torn = [], 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn += 1
    if torn:
        run.notes.append(f"{torn} lines of {name} cannot be read and are left out")
    return rows


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
    texts = row.get("read") or row.get("text", "")  # what it could not read explains nothing
    texts = texts if isinstance(texts, dict) else {"text": texts}
    return Row(
        cut(clean(" · ".join(parts)), 300),
        {cut(clean(k), 60): shortened(v) for k, v in texts.items()},
    )


def spikes(run: RunFolder) -> list[Block]:
    """The steps whose loss stood out, with what their batch was like: run.json has them."""
    found = run.record.get("spikes")
    there = [spike for spike in found if isinstance(spike, dict)] if isinstance(found, list) else []
    head = ["step", "loss", "steps before", "learning rate", "gradient norm", "longest row"]
    head += ["shorter rows", "mean row", "padding"]
    forms = "{:,.0f}", "{:.3f}", "{:.3f}", "{:.2e}", "{:.3g}", "{:,.0f} tokens"
    forms += ("{:.0%}", "{:.0f} tokens", "{:.0%}")
    names = "step", "loss", "usual", "lr", "grad_norm", "longest_row"
    names += ("longest_percentile", "mean_row", "padding_share")
    rows = [
        [
            "–" if number(spike.get(name)) is None else form.format(spike[name])
            for name, form in zip(names, forms, strict=True)
        ]
        for spike in there[:MOST_SPIKES]
    ]
    if not rows:
        return []
    text = (
        "Steps at least 7 standard deviations above those before them, each with its batch: its "
        "longest row, the share of training rows that are shorter than that one, its mean row, and "
        "the share of what was computed that is padding."
    )
    more = f" The first {MOST_SPIKES} of {len(there)}." if len(there) > MOST_SPIKES else ""
    return [Text(text + more), Table(head, rows)]


def tasks(run: RunFolder) -> list[Block]:
    """The figures of a suite's tasks, which lie below the run."""
    rows = []
    for path in sorted(packed.files_below(run.path)):
        if path.parts[-3:] != ("test", "metrics", "metrics.json") or path.parents[3] != run.path:
            continue
        try:
            metrics = json.loads(packed.read_bytes(path))
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
    left_out = ("schema_version", "status", "verdicts", "sessions", "exit_reason", "published")
    record = {name: value for name, value in run.record.items() if name not in left_out}
    for count, (before, now) in enumerate(itertools.pairwise(run.sessions), 2):
        before, now = flatten(before), flatten(now)
        step = now.pop("from_step", "unknown")
        new = [f"{name} {plain(now[name])}" for name in now if now[name] != before.get(name)]
        record[f"session {count}"] = f"from step {plain(step)}, " + (
            f"with another {', '.join(new)}" if new else "with the same machine and versions"
        )
    if packed.is_file(run.path / "diff.patch"):
        record["code"] = "differed from the commit: see diff.patch in the run folder"
    return [
        Table([what, "value"], rows, numbers=False, folded=f"{title} ({len(rows)})")
        for title, what, values in (
            ("Settings", "setting", run.config),
            ("Environment", "what", record),
        )
        if (rows := [[clean(name), plain(value)] for name, value in flatten(values).items()])
    ]
