"""docs/published.md, of the configs alone: what was published, and what those figures can carry.

python -m benchmarks.published             # says whether the page is out of date
python -m benchmarks.published --write     # makes it anew
"""

import argparse
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.comparisons import ALPHA
from evaluation.published import SHARES, Figure, Pair, pairs, published_figures, shown
from files import PROJECT, read_yaml

LOWER_IS_BETTER = re.compile("loss|perplexity|nats")
WIDTH = 100  # of a line of text
PAGE = PROJECT / "docs/published.md"
TITLES = {
    "preference": "Preference classifiers",
    "bert": "BERT on a budget (No Train No Gain)",
    "gpt2": "GPT-2 and DistilGPT2, fine-tuned",
    "headlines": "A small GPT on headlines",
    "alpaca": "Instruction tuning of GPT-2",
}
HEAD = """# What was published, and what it can carry
Made from the configs that repeat published runs by `python -m benchmarks.published --write`. A
share of rows that were right has Wilson's 95 % interval, whatever else is not known of it. A mean
(a loss, a judge's score) has none unless it was published how its rows spread, and none of these
was. Two lines of a table are told apart by the test of two proportions, with Holm's correction
for all pairs of the table, as if each had been tested on rows of its own: on shared rows two
models agree more often than that, so a pair that is called is called all the more, and one that
is not may be separable to whoever has the predictions. Each line is one seed: how seeds spread is
in no published figure, so a pair that is called says that these two models differ, and not yet
that what was changed did it.
"""


@dataclass
class Line:
    """A figure of a published table, and the config that repeats its run."""

    config: Path
    figure: Figure
    reference: dict[str, Any]

    @property
    def table(self) -> tuple[str, str]:
        """What its figure can be compared with: lines of the same table and metric."""
        return self.reference["table"], self.figure.metric

    @property
    def name(self) -> str:
        note = self.figure.note
        return self.config.stem + (f" ({note})" if note else "")


def read_tables() -> dict[str, list[Line]]:
    """The lines of each section, in the order of TITLES; a table is `section, its data`."""
    tables: dict[str, list[Line]] = {name: [] for name in TITLES}
    for path in sorted((PROJECT / "configs").rglob("*.yaml")):
        reference = read_yaml(path).get("published")
        for figure in published_figures(reference):
            tables[reference["table"].partition(",")[0]].append(Line(path, figure, reference))
    return tables


def page() -> str:
    """All of it, as Markdown."""
    parts = [HEAD]
    for table, lines in read_tables().items():
        parts.append(f"## {TITLES[table]}\n[{table}.md]({table}.md) has the commands.\n")
        for key in dict.fromkeys(line.table for line in lines):
            metric, those = key[1], [line for line in lines if line.table == key]
            sign = 1 if LOWER_IS_BETTER.search(metric) else -1
            those.sort(key=lambda line: (sign * line.figure.value, line.name))
            parts += [figures_table(metric, those), "\n".join(conclusions(metric, those)) + "\n"]
        parts.append("\n".join(about(lines)) + "\n")
    return "\n".join(parts)


def figures_table(metric: str, lines: Sequence[Line]) -> str:
    rows = [f"| {metric} | 95 % interval | rows | of | config |", "|---:|---|---:|---|---|"]
    for line in lines:
        figure, path = line.figure, line.config.relative_to(PROJECT)
        share = metric in SHARES
        value = shown(figure.value, share)
        value += f" to {shown(figure.high, share)}" if figure.high else ""
        interval = "–"
        if not figure.why_none:
            interval = "[{}, {}]".format(*(f"{100 * bound:.1f}" for bound in figure.interval))
        rows.append(
            f"| {value}{' %' * share} | {interval} | {rows_of(figure)} | {line.reference['name']}"
            f"{f' ({figure.note})' if figure.note else ''} | [{path.stem}](../{path}) |"
        )
    return "\n".join(rows) + "\n"


def rows_of(figure: Figure) -> str:
    """The number of rows, ~ where it is approximate."""
    return f"{'~' * figure.approximate}{figure.rows:,}" if figure.rows else "not known"


def conclusions(metric: str, lines: Sequence[Line]) -> Iterator[str]:
    """Which of these lines can be told apart, in words and as a table."""
    figures = [line.figure for line in lines]
    if collapsed := [line for line in lines if line.figure.collapsed]:
        values = " and ".join(sorted({f"{shown(line.figure.value, True)} %" for line in collapsed}))
        names = " · ".join(line.name for line in collapsed)
        yield wrapped(
            f"**Collapsed**: {values} ({names}): no better than always the same answer "
            f"({shown(collapsed[0].figure.constant, True)} %). That is no weak model but none.\n"
        )
    if found := pairs(figures):
        called = sum(pair.corrected < ALPHA for pair in found)
        yield f"Of {len(found)} pairs {called} can be told apart.\n"
        yield "| line | above | would be above, were it the only question | not separable from |"
        yield "|---|---|---|---|"
        for number, line in enumerate(lines):
            below = [pair for pair in found if pair.higher == number]
            if below:
                yield f"| {shown(line.figure.value, True)} {line.name} | {row_of(below, lines)} |"
        return
    if len(lines) == 1:
        yield f"One line, and no interval: {figures[0].why_none}."
        return
    why = " and ".join(dict.fromkeys(figure.why_none for figure in figures))
    why = why.replace("its ", "their ")
    yield f"No two of these lines can be told apart by these numbers alone: {why}."
    rows = sorted({figure.rows for figure in figures if figure.rows})
    if len(rows) > 1:
        yield f"They were measured on different rows, too: {' or '.join(f'{n:,}' for n in rows)}."
    for line in lines:
        if line.figure.again:
            yield from measured_twice(line, lines)


def row_of(below: Sequence[Pair], lines: Sequence[Line]) -> str:
    """The cells of what a line is above, would be alone, and is not separable from."""
    cells: list[list[str]] = [[], [], []]
    for pair in below:
        place = 0 if pair.corrected < ALPHA else 1 if pair.p < ALPHA else 2
        lower = lines[pair.lower]
        p = f", p {pair.p:.3f}" if place == 1 else ""
        cells[place].append(f"{shown(lower.figure.value, True)} {lower.name}{p}")
    return " | ".join(" · ".join(cell) or "–" for cell in cells)


def measured_twice(line: Line, lines: Sequence[Line]) -> Iterator[str]:
    """What one run that was measured twice says of all differences in its table."""
    first = next(other for other in lines if other.config == line.config and not other.figure.again)
    apart = abs(line.figure.value - first.figure.value)
    others = [each.figure.value for each in lines if not each.figure.again]
    near = [abs(a - b) <= apart for a, b in itertools.combinations(others, 2)]
    yield (
        f"{line.config.stem} was measured twice, {shown(first.figure.value, False)} and "
        f"{shown(line.figure.value, False)}: {sum(near)} of the {len(near)} pairs lie no further "
        f"apart than these {apart:.2f}."
    )


def about(lines: Sequence[Line]) -> Iterator[str]:
    """What differs from the configs, and what is not known, each with the lines that it is of."""
    stems = list(dict.fromkeys(line.config.stem for line in lines))
    differs: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    for line in lines:
        stem, reference = line.config.stem, line.reference
        for name, how in (reference.get("differs") or {}).items():
            differs.setdefault(f"{name}: {how}", []).append(stem)
        for what in reference.get("unknown") or ():
            unknown.setdefault(what, []).append(stem)
    for title, found in (("Differs from the config", differs), ("Not known", unknown)):
        said = []
        for text, of in found.items():
            of = list(dict.fromkeys(of))
            others = [stem for stem in stems if stem not in of]
            whose = ", ".join(of) if len(of) <= len(others) else f"all but {', '.join(others)}"
            said.append(f"{text} ({whose})" if others else text)
        if said:
            yield wrapped(f"* {title}: {'; '.join(said)}.")


def wrapped(text: str) -> str:
    """As the other pages are."""
    end = "\n" * text.endswith("\n")
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False) + end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make the page anew")
    write, made = parser.parse_args().write, page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
        print(f"{PAGE.relative_to(PROJECT)} {'is made anew' if write else 'is out of date'}")
    if write:
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
