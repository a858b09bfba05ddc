"""The outputs and tables of README and pages: made by the commands above them.

    python -m benchmarks.documents             # names what is out of date
    python -m benchmarks.documents --write     # makes it anew

Three forms: a block ```console of `$ python report.py …` (or `… | grep -F 'words'`) and what it
prints; a block ```bash of one report.py command that ends in --markdown, and below it the table;
docs/speed.md from its first table to its last line of where and when, of docs/speed/bench.json.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import report
from benchmarks import _tables, votes
from files import PROJECT
from reports import arms

WIDTH = 96  # of a terminal that the outputs are written for
CONSOLE = re.compile(r"^```console\n\$ (?P<command>.*?[^\\])\n(?P<shown>.*?)^```$", re.M | re.S)
TABLE = re.compile(
    r"^```bash\n(?P<command>python report\.py [^`]*?--markdown)\n```\n+(?P<shown>(?:\|.*\n)+)", re.M
)
SPEED = re.compile(r"^\| what .*^[^\n]* cores, [^\n]* GiB; [^\n]*\n", re.M | re.S)


@dataclass
class Block:
    """What a page shows of a command, and where: text[start:end]."""

    page: Path
    command: str
    shown: str
    start: int
    end: int

    def made(self) -> str:
        """What the command prints today; of a table its lines alone."""
        if self.command.startswith("python bench.py"):
            measured = json.loads((PROJECT / "docs/speed/bench.json").read_text())
            return _tables.markdown(measured)
        command, *pattern = self.command.replace("\\\n", " ").split("| grep -F ")
        lines = output_of(command).rstrip().splitlines()
        if pattern:
            [wanted] = shlex.split(pattern[0])
            lines = [line for line in lines if wanted in line]
        if command.rstrip().endswith("--markdown"):
            lines = [line for line in lines if line.startswith("|")]
        else:  # as a terminal would break them
            lines = [part for line in lines for part in broken(line.rstrip())]
        return "".join(line.rstrip() + "\n" for line in lines)


def broken(line: str) -> list[str]:
    if len(line) <= WIDTH or "   " in line.strip():  # a table's
        return [line]
    whole = {"break_on_hyphens": False, "break_long_words": False}
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", **whole)


def output_of(command: str) -> str:
    """What `python report.py …` or `-m benchmarks.votes …` prints in the project's folder."""
    _, *words = shlex.split(command)
    is_report = words[0] == "report.py"
    assert is_report or words[:2] == ["-m", "benchmarks.votes"], command
    main, words = (report.main, words[1:]) if is_report else (votes.main, words[2:])
    arms._spellings.clear()  # what a process of its own would not know
    arms._names.clear()
    printed, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.chdir(PROJECT), contextlib.redirect_stdout(printed):
            with contextlib.redirect_stderr(io.StringIO()):
                main(words)
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if before is None else {"COLUMNS": before}
    return printed.getvalue()


def pages() -> list[Path]:
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for form in (CONSOLE, TABLE):
        for found in form.finditer(text):
            yield Block(page, found["command"], found["shown"], *found.span("shown"))
    if page.name == "speed.md":
        for found in SPEED.finditer(text):
            yield Block(page, "python bench.py table", found[0], *found.span())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make anew what is out of date")
    write = parser.parse_args().write
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for block in sorted(blocks_of(page), key=lambda block: -block.start):
            if (made := block.made()) != block.shown:
                print(f"{page.relative_to(PROJECT)}: {block.command.replace(os.linesep, ' ')}")
                text = text[: block.start] + made + text[block.end :]
        if write:
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
