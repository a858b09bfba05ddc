"""The page of several runs on shared axes."""

import shlex

from evaluation.metrics import CONSTANTS
from reports import plots
from reports.arms import group_runs, labels_of
from reports.blocks import (
    SHARE,
    Block,
    Figure,
    Finding,
    Page,
    Table,
    Text,
    cut,
    interval_text,
    readable,
    section,
    written,
)
from reports.folder import RunFolder, clean, interval_of, number
from reports.one_run import findings, headlines
from reports.published import sentences as against_published
from reports.samples import side_by_side
from reports.table import command_of
from reports.training import SAME_CURVE, speed, training_figures


def page_of_runs(runs: list[RunFolder]) -> Page:
    labels = distinct_names(runs)
    body = [
        *section("Results", results_of_runs(runs, labels)),
        *section("Answers side by side", side_by_side(runs, labels)),
        *section("Training", training_figures(runs, labels)),
        *section("Speed and memory", speed(runs, labels)),
        *section("What differs", difference_tables(runs, labels)),
    ]
    pairs = zip(runs, labels, strict=True)
    sentences = [finding for run, label in pairs for finding in findings(run, label)]
    groups = group_runs(runs)
    names = labels if len(groups) == len(runs) else labels_of(groups)
    for group, name in zip(groups, names, strict=True):
        lines = against_published(group, name)
        sentences += [Finding(cut(clean(line), 1000), "note") for line in lines]
    verdicts = section("Verdicts", [*sentences, *comparable(runs)])
    again = dict.fromkeys(filter(None, (clean(command_of(run)) for run in runs)))
    paths = shlex.join(clean(str(run.path)) for run in runs)
    commands = [*again, f"python report.py page {paths}"]
    if len(runs) == 2:
        title, about = " and ".join(labels), "two runs on shared axes"
    else:
        title, about = f"{len(runs)} runs", ", ".join(labels)
    return Page(title, about, verdicts + body, commands)


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
    sentences = []
    for name, what in (("data_fingerprint", "data"), ("split_fingerprint", "test rows")):
        if len({str(run.record[name]) for run in runs if run.record.get(name)}) > 1:
            text = f"the runs did not have the same {what} ({name} differs): figures side by side "
            sentences.append(Finding(text + "are not a comparison", "bad"))
    text = (
        "each interval is that of one run alone. Whether a change is better, over seeds and on the "
        "same rows, is what report.py compare answers"
    )
    return [*sentences, Finding(text, "note")]


def results_of_runs(runs: list[RunFolder], labels: list[str]) -> list[Block]:
    names = list(dict.fromkeys(name for run in runs for name in headlines(run.metrics)))
    blocks: list[Block] = []
    for place, name in enumerate(names):
        if any(in_other_unit(runs, name, before) for before in names[:place]):
            continue  # stands in the table
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


def in_other_unit(runs: list[RunFolder], name: str, other: str) -> bool:
    """Whether all figures and intervals of one name are those of the other, times a constant."""
    ratios = []
    for run in runs:
        some, others = (
            [run.metrics.get(n), *(interval_of(run.metrics, n) or ())] for n in (name, other)
        )
        if len(some) != len(others):
            return False
        pairs = [(number(a), number(b)) for a, b in zip(some, others, strict=True)]
        if any((a is None) != (b is None) for a, b in pairs):
            return False
        ratios += [a / b for a, b in pairs if a is not None and b]
    return len(ratios) > 2 and max(ratios) - min(ratios) < SAME_CURVE * abs(max(ratios))


def difference_tables(runs: list[RunFolder], labels: list[str]) -> list[Block]:
    """Settings, data and environment in which the runs differ."""
    from reports.arms import Arm, differences

    tables = differences([Arm(label, [run]) for run, label in zip(runs, labels, strict=True)])
    return [
        Table([what, *labels], [[clean(cell) for cell in row] for row in rows], numbers=False)
        for what, rows in tables.items()
    ] or [Text("Nothing: no setting, version or fingerprint.")]
