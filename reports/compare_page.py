"""compare --html: the verdict first, the differences as a forest plot, the arms as bands."""

from collections.abc import Sequence

import numpy as np

from reports import plots
from reports.arms import Arm
from reports.blocks import Block, Figure, Finding, Page, Table, Text, readable, section, to_html
from reports.compare import (
    Comparison,
    Report,
    caveats,
    contrast_notes,
    difference_text,
    margin_notes,
    show_p,
)
from reports.folder import clean, number

TONES = {"better": "good", "worse": "bad", "higher": "note", "lower": "note"}


def html(found: Report) -> str:
    return to_html(page_of_comparison(found))


def page_of_comparison(found: Report) -> Page:
    labels = [clean(arm.label) for arm in found.arms]
    judged = found.judged
    verdicts = [
        Finding(clean(each.sentence), TONES.get(each.decision.partition(",")[0], "note"))
        for each in judged
    ]
    if found.unpaired:
        verdicts.insert(0, Finding(f"compared unpaired, although {clean(found.unpaired)}", "bad"))
    said = [*found.notes, *contrast_notes(found.arms, found.by), *caveats(found.results)]
    said += [*margin_notes(found.results, found.plan), *found.published]
    notes: list[Block] = [Text(clean(line)) for line in said if line]
    body = [
        *section("Verdict", verdicts),
        *section("Differences", [*forests(found.results), figures_table(found.results)]),
        *section("Arms", bands(found.arms)),
        *section("What else differs", differing(found, labels)),
        *section("Notes", notes),
    ]
    runs = sum(len(arm.runs) for arm in found.arms)
    return Page(f"{labels[0]} and others" if len(labels) > 2 else " and ".join(labels),
                f"{len(labels)} arms, {runs} runs; {labels[0]} is the baseline", body)  # fmt: skip


def forests(results: Sequence[Comparison]) -> list[Figure]:
    """A picture a metric: each difference with its interval, around no difference."""
    pictures = []
    for metric in dict.fromkeys(each.metric for each in results):
        those = [each for each in results if each.metric == metric]
        rows = [
            (
                clean(each.arm.label),
                each.difference.value,
                None if np.isnan(each.interval[0]) else each.interval,
            )
            for each in those
        ]
        judged = those[0].judged
        level = "corrected for all comparisons" if judged and those[0].family > 1 else "95 %"
        caption = f"against {clean(those[0].baseline.label)}, intervals {level}"
        if not judged:
            caption += "; without a verdict"
        title = readable(metric)
        picture = plots.intervals(
            f"compare/{metric}", f"difference in {title}", rows, ("no difference", 0.0)
        )
        pictures.append(Figure(title.capitalize(), caption, picture))
    return pictures


def figures_table(results: Sequence[Comparison]) -> Table:
    rows = [
        [
            each.metric,
            f"{clean(each.arm.label)} against {clean(each.baseline.label)}",
            difference_text(each),
            show_p(each.p) if each.judged else "",
            each.decision if each.judged else "beside it",
            str(each.num_seeds) if each.over_seeds else "models",
        ]
        for each in results
    ]
    return Table(["metric", "", "difference", "p", "verdict", "seeds"], rows)


def bands(arms: Sequence[Arm]) -> list[Block]:
    """Validation loss of each arm: its mean, its runs, and the band between them."""
    drawn = []
    for arm in arms:
        runs = []
        for run in arm.runs:
            _, evaluations = run.ends
            points = [
                (line["step"], line["val_loss"])
                for line in evaluations
                if number(line.get("val_loss")) is not None
            ]
            if points:
                runs.append(np.array(points, float))
        if runs:
            drawn.append((clean(arm.label), runs))
    picture = plots.bands("compare/val_loss", drawn, "validation loss")
    if picture is None:
        return []
    caption = "line: mean over seeds; thin: its runs; band: from the lowest to the highest run"
    return [Figure("Validation loss", caption, picture)]


def differing(found: Report, labels: list[str]) -> list[Block]:
    tables: list[Block] = [
        Table([section, *labels], [[clean(cell) for cell in row] for row in rows], numbers=False)
        for section, rows in found.tables.items()
    ]
    return tables or [Text("Nothing: no setting, data or environment.")]
