"""site: many runs as one page to sort, search and draw, which opens from a file.

    write_site(["results"], Path("site"))      # site/index.html, and the runs' own pages beside it

Figures and their digits are those of `table`, arms those of `arms`, verdicts those of `compare`,
rankings those of `ranking`. What runs hold is text that somebody else may have written: it reaches
the page through the template's escaping or as JSON that the script puts into text nodes, and the
page's policy lets no other script run, in the runs' own pages none at all.
"""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from files import require_writable
from reports import packed, plots
from reports.arms import (
    Arm,
    environment_notes,
    group_runs,
    labels_of,
    refusal,
    without_repeats,
)
from reports.blocks import cut, readable, template
from reports.compare import caveats, compare, difference_text, metrics_of, show_p
from reports.folder import RunFolder, clean, load_runs, number, shared_notes
from reports.outcomes import lost_runs
from reports.outcomes import notes as notes_on_outcomes
from reports.page import write_whole
from reports.plan import plan_above, plan_of
from reports.predictions import direction
from reports.ranking import Ranking, rankings
from reports.several import distinct_names
from reports.table import Cell, build_table, cell_texts, figures_first

POINTS = 120_000  # of all curves together: about 2 MB
FEWEST, MOST = 20, 300  # points of one curve
MOST_FIGURES = 6  # of validation
LONGEST_CELL = 200  # characters
MARK = '<meta name="generator" content="ablate report.py site">'
NO_SCRIPT = (
    '<!DOCTYPE html>\n<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content='
    "\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
)


@dataclass
class Verdict:
    """A line of a comparison; `tone` is good, bad or note."""

    label: str
    words: str
    tone: str
    difference: str
    p: str
    seeds: str
    sentence: str


@dataclass
class Comparison:
    """The arms of a sweep, or of runs on the same test rows, against the first of them."""

    title: str
    baseline: str
    metric: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_site(paths: Sequence[str], output: Path) -> str:
    """Write output/index.html, and output/pages with the pages that runs have; says what it wrote.

    ValueError where a path holds no run, or the folder another index.html.
    """
    runs = load_runs(paths)
    index = output / "index.html"
    require_writable(output, folder=True)
    if index.exists() and MARK not in index.read_text("utf-8", "replace")[:4000]:
        raise ValueError(f"{index} is no page of this command: --output takes another folder")
    names, labels, arms = distinct_names(runs), *arms_of(runs)
    links, copied = copy_pages(runs, names, output)
    place = {id(run): i for i, arm in enumerate(arms) for run in arm}
    data = {
        "runs": table_data(runs, fold=False, names=names),
        "arms": table_data(runs, fold=True, names=labels),
        "arm": [place[id(run)] for run in runs],
        "pages": links,
        "curves": curves_of(runs),
    }
    compared = [Arm(label, without_repeats(arm)) for label, arm in zip(labels, arms, strict=True)]
    ranked, left_out = rankings(compared)
    text = render(
        data=data,
        title=title_of(paths),
        subtitle=f"{count(len(runs), 'run')} of {count(len(arms), 'setting')}",
        comparisons=comparisons_of(compared),
        rankings=ranked,
        arm_of={arm.label: i for i, arm in enumerate(compared)},
        notes=[clean(line) for line in [*left_out, *notes_on_outcomes(runs), *shared_notes(runs)]],
    )
    write_whole(index, text.encode())
    said = f"site: {index} ({len(text.encode()) / 1e6:.2f} MB, {count(len(runs), 'run')})"
    if copied:
        said += (
            f"; {count(len(list(filter(None, links))), 'page')} beside it ({copied / 1e6:.1f} MB)"
        )
    return said


def count(many: int, what: str) -> str:
    return f"{many:,} {what}" if many == 1 else f"{many:,} {what}s"


def title_of(paths: Sequence[str]) -> str:
    names = [clean(Path(path).absolute().name) for path in paths]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def arms_of(runs: Sequence[RunFolder]) -> tuple[list[str], list[list[RunFolder]]]:
    """(names of arms, no two the same; their runs)"""
    arms = group_runs(runs)
    labels, seen = [], Counter()
    for label in map(clean, labels_of(arms)):
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return labels, arms


# ------------------------------------------------------------------------------------ tables


def table_data(runs: Sequence[RunFolder], fold: bool, names: Sequence[str]) -> dict[str, Any]:
    """A table by columns: {"names", "columns": [{"name", "down": higher is better, "texts",
    "numbers": by which to sort}]}; texts that repeat as {"values", "at"}."""
    columns, lines = build_table(runs, fold=fold)
    columns = [name for name in figures_first(columns, runs) if name != "run"]
    texts = cell_texts(columns, lines)
    return {
        "names": list(names),
        "columns": [
            column_data(name, texts[name], [line[name] for line in lines]) for name in columns
        ],
    }


def column_data(name: str, texts: list[str], cells: Sequence[Cell]) -> dict[str, Any]:
    texts = [cut(clean(text), LONGEST_CELL) for text in texts]
    values = [cell.number for cell in cells]
    column: dict[str, Any] = {"name": cut(clean(name), 60), "down": direction(name) > 0}
    if any(map(math.isfinite, values)):
        # a seed or a count is looked for by all of its digits
        column["numbers"] = [rounded(v, 15 if v.is_integer() else 8) for v in values]
        column["figure"] = any(isinstance(cell.value, float) for cell in cells)
    different = list(dict.fromkeys(texts))
    if 2 * len(different) < len(texts):
        at = {text: i for i, text in enumerate(different)}
        return column | {"texts": {"values": different, "at": [at[text] for text in texts]}}
    return column | {"texts": texts}


def rounded(value: Any, digits: int = 5) -> float | int | None:
    """A number as JSON has it, as short as that many digits are; None where there is none."""
    if (value := number(value)) is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# ------------------------------------------------------------------------------------ curves


def curves_of(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """{"names": of figures, "labels", "runs": [{"x": {step, tokens, seconds} of training, "train":
    losses there, "at": steps of validation, figure: its values there}]}.

    Training losses are means of neighbouring steps, validation is thinned; as few points a curve
    as the number of curves asks for.
    """
    known: Counter[str] = Counter()
    for run in runs:
        _, evaluations = run.ends
        of_run = (
            n for line in evaluations for n, value in line.items() if number(value) is not None
        )
        known.update(sorted({name for name in of_run if name.startswith("val_")}))
    figures = [name for name, _ in known.most_common() if name != "val_loss"][:MOST_FIGURES]
    figures = ["val_loss"] * ("val_loss" in known) + figures
    num_curves = sum(bool(run.ends[0]) for run in runs) + sum(known[name] for name in figures)
    points = min(MOST, max(FEWEST, POINTS // max(1, num_curves)))
    return {
        "names": ["train_loss", *figures],
        "labels": ["training loss", *map(readable, figures)],
        "runs": [curves_of_run(run, figures, points) for run in runs],
    }


def curves_of_run(run: RunFolder, figures: Sequence[str], points: int) -> dict[str, Any]:
    training, evaluations = (sorted(lines, key=lambda line: line["step"]) for lines in run.lines)
    del run.lines  # read again where they are asked for: all runs' logs together may be large
    found: dict[str, Any] = {}
    if training:
        step, loss = (column(training, name) for name in ("step", "train_loss"))
        means = plots.binned(step, loss, points)
        found["train"] = list(map(rounded, means[1].tolist()))
        found["x"] = {"step": list(map(rounded, means[0].tolist()))}
        for name in ("tokens", "seconds"):
            values = column(training, name)
            if np.isfinite(values).all():
                binned = plots.binned(step, values, points)[1]
                found["x"][name] = list(map(rounded, binned.tolist()))
    at_step: dict[int, dict[str, Any]] = {}
    for line in evaluations:
        known = {name: value for name, value in line.items() if number(value) is not None}
        at_step.setdefault(line["step"], {}).update(known)
    if at_step:
        steps = list(at_step)
        places = np.linspace(0, len(steps) - 1, min(points, len(steps))).round().astype(int)
        kept = [at_step[steps[place]] for place in places]
        found["at"] = [steps[place] for place in places]
        for name in figures:
            values = [rounded(line.get(name)) for line in kept]
            if any(value is not None for value in values):
                found[name] = values
    return found


def column(lines: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    values = [number(line.get(name)) for line in lines]
    return np.array([math.nan if value is None else value for value in values], float)


# ------------------------------------------------------------------------------- comparisons


def comparisons_of(arms: Sequence[Arm]) -> list[Comparison]:
    """Of each sweep's arms as its plan has them; of all others, of arms on one split."""
    sweeps: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        plan = plan_above(arm.runs[0].path)
        split = str(arm.runs[0].record.get("split_fingerprint") or "")
        kind = ("sweep", str(plan.parent)) if plan else ("split", split)
        sweeps.setdefault(kind, []).append(arm)
    return [compared(kind, name, those) for (kind, name), those in sweeps.items() if len(those) > 1]


def compared(kind: str, name: str, arms: list[Arm]) -> Comparison:
    plan = plan_of([run for arm in arms for run in arm.runs])
    title = f"sweep {Path(name).name}" if kind == "sweep" else f"test rows {name}, runs of no sweep"
    order = plan.labels
    arms = sorted(arms, key=lambda arm: plan.place(arm.runs[0]))
    there = [arm for arm in arms if arm.predictions or lost_runs(arm.runs)]
    if not there or (order and plan.place(there[0].runs[0])):
        why = f"its baseline {order[0]} has no test rows" if order else "none of them has test rows"
        return Comparison(clean(title), "", notes=[clean(f"not compared: {why}")])
    found = Comparison(clean(title), clean(there[0].label))
    if not order:
        found.notes.append("No sweep file names a baseline: it is the first of them.")
    if plan.content.get("explain"):
        found.notes.append("Which setting did it, and what they do together: report.py effects.")
    if left := [arm.label for arm in arms if arm not in there]:
        found.notes.append(clean(f"Without test rows: {', '.join(left)}."))
    kept = there[:1]
    for arm in there[1:]:
        if why := refusal([there[0], arm]):
            found.notes.append(clean(f"{arm.label} is not compared: {why}."))
        else:
            kept.append(arm)
    if len(kept) < 2:
        return found
    try:
        if why := refusal(kept):
            raise ValueError(why)
        [found.metric], _ = metrics_of(kept)
        results = compare(kept, [found.metric], margin=plan.margin, plan=plan)
    except ValueError as error:
        found.notes.append(clean(f"not compared: {error}"))
        return found
    for result in results:
        word = result.decision.partition(",")[0]
        found.verdicts.append(
            Verdict(
                clean(result.arm.label),
                result.decision if result.over_seeds else f"{result.decision} on these rows",
                {"better": "good", "worse": "bad"}.get(word, "note"),
                difference_text(result),
                show_p(result.p),
                str(result.num_seeds) if result.over_seeds else "models",
                clean(result.sentence),
            )
        )
    found.notes += map(clean, [*plan.notes, *environment_notes(kept), *caveats(results)])
    return found


# ----------------------------------------------------------------------------------- writing


def copy_pages(
    runs: Sequence[RunFolder], names: Sequence[str], output: Path
) -> tuple[list[str], int]:
    """(the address of each run's page in the site, "" where it has none; bytes that were copied).

    A page is copied behind a policy that runs no script of it and loads nothing: it is a file of
    the run's folder, and who wrote that is not known. A link is not followed.
    """
    links, copied = [], 0
    for run, name in zip(runs, names, strict=True):
        page = run.path / "report.html"
        links.append("")
        if page.is_symlink() or not packed.is_file(page):
            continue
        try:
            content = packed.read_bytes(page)
        except OSError:
            continue
        digest = hashlib.sha256(str(run.path.absolute()).encode("utf-8", "replace")).hexdigest()
        file = re.sub("[^A-Za-z0-9_-]+", "_", name)[-60:] + f"-{digest[:8]}.html"
        write_whole(output / "pages" / file, NO_SCRIPT.encode() + content)
        links[-1], copied = f"pages/{file}", copied + len(content)
    return links, copied


def render(data: dict[str, Any], **parts: Any) -> str:
    script = (Path(__file__).parent / "site.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("site.html.j2").render(
        **parts,
        data=json_block(data),
        script=script,
        policy=(
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
            "img-src data:"
        ),
        mark=MARK,
        colors=plots.COLORS,
        clean=clean,
        letters_of=letters_of,
        cells_of=cells_of,
        sentence=lambda text: clean(f"{str(text)[:1].upper()}{str(text)[1:]}."),
    )


def json_block(data: Any) -> str:
    """JSON for a <script> element: nothing in it can end that."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c")


def letters_of(ranking: Ranking, groups: Sequence[str]) -> list[str]:
    """Each letter at a place of its own, so that groups are read down the page as bars."""
    return [name if name in groups else "" for name in ranking.letters]


def cells_of(ranking: Ranking) -> list[str]:
    return cell_texts([ranking.metric], [{ranking.metric: p.cell} for p in ranking.places])[
        ranking.metric
    ]
