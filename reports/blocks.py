"""A page as a list of plain blocks, and what becomes of them in HTML and in Markdown."""

import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from reports import plots
from reports.folder import clean, interval_of, number
from reports.plots import Picture

SHARE = re.compile(r"accuracy|recall|consistency|agreement|exact_match|win_rate|_share$")
SIGNS = {"good": "✓ ", "bad": "✗ ", "caution": "! ", "note": ""}
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
    """A sentence on the run; `tone` is good, bad, caution or note."""

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
    command: str = ""  # that made it, where it is not the page's own
    kind: ClassVar[str] = "figure"


@dataclass
class Row:
    """A row of the data with its texts."""

    title: str
    texts: dict[str, str]
    beside: bool = False  # its texts stand beside each other
    kind: ClassVar[str] = "row"


Block = Heading | Text | Finding | Tile | Table | Figure | Row


@dataclass
class Page:
    """commands: what made the runs and the page, which is where figures come from."""

    title: str
    subtitle: str
    blocks: list[Block] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        return [block for block in self.blocks if isinstance(block, Figure)]

    @property
    def sources(self) -> list[str]:
        """What made the figures: the runs' own commands as one, then those of single figures."""
        own = dict.fromkeys(figure.command for figure in self.figures if figure.command)
        return ["\n".join(self.commands), *own] if self.commands else [*own]

    def source_of(self, figure: Figure) -> int | None:
        """The number of its command, from 1; None where that is not known."""
        wanted = figure.command or "\n".join(self.commands)
        return self.sources.index(wanted) + 1 if wanted in self.sources else None

    def number_of(self, figure: Figure) -> int:
        """From 1."""
        return next(n for n, each in enumerate(self.figures, start=1) if each is figure)


def section(title: str, blocks: Iterable[Block]) -> list[Block]:
    blocks = list(blocks)
    return [Heading(title), *blocks] if blocks else []


def figure(title: str, caption: str, picture: Picture | None) -> Figure | None:
    """None without data, as the picture is."""
    if picture is None:
        return None
    return Figure(title, "; ".join(filter(None, (caption, picture.left_out))), picture)


# ------------------------------------------------------------------- figures and texts as text


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


def shortened(text: Any) -> str:
    """The text without control characters, and its beginning only where it is very long."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return cut(clean(text).strip(), LONGEST_TEXT)


def cut(text: str, longest: int) -> str:
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]}… ({more:,} more characters)"


def plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        text = shlex.join(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    return cut(clean(text), 1000)


# ------------------------------------------------------------------------------- writing


def to_html(page: Page) -> str:
    from markupsafe import Markup

    together = [
        (kind, list(group)) for kind, group in itertools.groupby(page.blocks, lambda b: b.kind)
    ]
    return template("page.html.j2").render(
        page=page, groups=together, colors=plots.COLORS, svg=lambda picture: Markup(picture.svg())
    )


def template(name: str) -> Any:
    """A template of this folder, with escaping."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def to_markdown(page: Page) -> str:
    """CommonMark with pipe tables."""
    write: dict[str, Callable[[Any], str]] = {
        "heading": lambda b: f"## {escaped(b.text)}\n",
        "text": lambda b: f"{escaped(b.text)}\n",
        "finding": lambda b: f"* {SIGNS[b.tone]}{escaped(b.text)}",
        "tile": lambda b: "* " + ", ".join(map(escaped, tile_words(b))),
        "table": lambda b: markdown_table(b.head, b.rows),
        "figure": lambda b: markdown_figure(b, page),
        "row": markdown_row,
    }
    parts = [f"# {escaped(page.title)}\n", f"{escaped(page.subtitle)}\n"]
    for kind, blocks in itertools.groupby(page.blocks, lambda block: block.kind):
        lines = [write[kind](block) for block in blocks]
        parts.append("\n".join(lines) + "\n" * (kind in ("finding", "tile")))
    if page.figures and page.sources:
        parts.append("## What made the figures\n")
        parts += [fenced(f"Command {n}", text) for n, text in enumerate(page.sources, start=1)]
    return "\n".join(parts)


def fenced(title: str, command: str) -> str:
    """A command below its heading; a fence longer than any in it."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", command))])
    return f"### {title}\n\n{fence}bash\n{command}\n{fence}\n"


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


def markdown_figure(b: Figure, page: Page) -> str:
    """Its heading is its label: #figure-3 in whatever makes anchors of headings (MyST, GitHub)."""
    made = page.source_of(b)
    source = "" if made is None else f" [Made by command {made}](#command-{made})."
    return (
        f"### Figure {page.number_of(b)}\n\n"
        f"![{escaped(b.picture.alt)}]({file_name(b)})\n\n"
        f"**{escaped(b.title)}**: {escaped(b.caption)}.{source}\n"
    )


def file_name(b: Figure) -> str:
    return b.picture.name.replace("/", "-") + ".png"


def escaped(text: str) -> str:
    """Text as Markdown that shows exactly it, on one line."""
    text = re.sub(r"([\\`*_{}\[\]<>#|$@~^&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=%:]|[.)](?=\s|$))", r"\1\\\2", text)
