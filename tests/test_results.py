"""README and pages: their outputs and figures are those of the committed runs; they can be read."""

import importlib
import json
import re
import shlex
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest

import report
import sweep
from benchmarks import documents
from files import PROJECT
from reports.folder import interval_of
from settings import parse_settings
from sweeps.plan import parse_arguments

PAGES = documents.pages()
BLOCKS = [block for page in PAGES for block in documents.blocks_of(page)]
INTERVAL = re.compile(
    r"(?P<value>[+−-]?\d*\.?\d+)(?P<unit> points?| %|)(?P<words> nats?| a \w+)*\*{0,2} "
    r"\[(?P<low>[+−-]?\d*\.?\d+), (?P<high>[+−-]?\d*\.?\d+)\]"
)
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
# Figures whose run folders were not kept: the sections say so.
NOT_KEPT = {
    "results.md": {
        *("Is it noise?", "Beside the strongest simple opponent", "The control"),
        *("Does it help where labels are few?", "AG News"),
        *("Must the encoder learn?", "Pretraining for minutes", "Instructions"),
    },
    "explain.md": {"Tried"},
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.page.name}-{b.command[:60]}")
def test_what_a_page_shows_is_what_the_command_prints(block):
    assert block.made() == block.shown


def test_every_system_has_its_table():
    tables = [block for block in BLOCKS if "--markdown" in block.command]
    for name in ("preference", "bert", "gpt2", "headlines", "alpaca"):
        assert any(f"docs/results/{name}" in block.command for block in tables), name
    assert any("report.py steps" in block.command for block in tables)
    assert any(block.page.name == "speed.md" for block in BLOCKS)
    assert [b.command for b in BLOCKS if b.page.name == "README.md"][0].startswith(
        "python report.py compare"
    )


def number(text: str) -> float:
    return float(text.replace("−", "-"))


@cache
def held_intervals() -> list[tuple[float, float, float]]:
    """(figure, low, high) of all runs of docs/results, of their means and of what pages compare."""
    triples = []
    for file in sorted((PROJECT / "docs/results").glob("*.zip")):
        with zipfile.ZipFile(file) as packed:
            for name in packed.namelist():
                if name.endswith("test/metrics/metrics.json"):
                    figures = json.loads(packed.read(name))
                    for metric in figures:
                        if interval := interval_of(figures, metric):
                            triples.append((figures[metric], *interval))
    tables = [b.command for b in BLOCKS if re.search(r"report\.py (table|steps)", b.command)]
    for command in tables:
        made = json.loads(documents.output_of(as_json(command)))
        cells = [cell for line in made.get("lines", []) for cell in line.values()]
        triples += [tuple(cell) for cell in cells if isinstance(cell, list)]
    compared = {b.command for b in BLOCKS if re.search(r"report\.py (compare|steps)", b.command)}
    for command in compared:
        made = json.loads(documents.output_of(as_json(command)))
        for each in made.get("comparisons", made.get("steps")):
            if each["low"] is not None:
                triples.append((each["difference"], each["low"], each["high"]))
    return triples


def as_json(command: str) -> str:
    command = re.sub(r"\s*\\\n\s*", " ", command)
    return re.sub(r" (--markdown|\| .*)$", "", command) + " --json"


def is_held(match: re.Match) -> bool:
    """Whether a triple of the runs rounds to these figures (a share: to percents, too)."""
    shown = [number(match[name]) for name in ("value", "low", "high")]
    digits = [len(match[name].partition(".")[2]) for name in ("value", "low", "high")]
    scales = (100,) if match["unit"] else (1, 100)
    return any(
        all(
            abs(sign * scale * value - figure) <= 0.51 * 10**-places
            for value, figure, places in zip(ordered, shown, digits, strict=True)
        )
        for triple in held_intervals()
        for scale in scales
        for sign, ordered in ((1, triple), (-1, (triple[0], triple[2], triple[1])))
    )


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "statistics.md"])
def test_a_figure_with_an_interval_is_that_of_a_run_or_said_to_be_of_none(page):
    section = ""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for part in re.split(r"^(?=#+ )", text, flags=re.M):
        section = part.partition("\n")[0].lstrip("# ")
        prose = "\n".join(line for line in part.splitlines() if not line.startswith("| "))
        for match in INTERVAL.finditer(" ".join(prose.split())):
            kept = section not in NOT_KEPT.get(page.name, ())
            assert is_held(match) or not kept, f"{page.name}, {section}: {match[0]}"


def test_sections_of_runs_that_were_not_kept_say_so():
    for page, sections in NOT_KEPT.items():
        text = FENCE.sub("", (PROJECT / "docs" / page).read_text(encoding="utf-8"))
        for section in sections:
            part = re.search(rf"^#+ {re.escape(section)}\n(.*?)(?=^#|\Z)", text, re.M | re.S)[1]
            assert re.search(r"not\s+kept|baseline/", part), section


def test_readme_can_be_read_in_minutes():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 10_000
    assert max(map(len, text.splitlines())) <= 100
    for word in ("pairs.csv", "label", "book.txt", "titles.txt", "instruction, input, output"):
        assert word in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_has_to_be_put_together_by_its_reader(page):
    text = page.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("|"):
            commands = re.findall(r"`((?:python|torchrun|bash) [^`]*)`", line)
            assert not any(len(command) > 60 for command in commands), line
    starts = r"(?:\$ )?(?:python|torchrun|bash|tmux|git) "
    for block in FENCE.findall(text):
        for command in re.findall(rf"^{starts}(?:.*\\\n)*.*$", block, re.M):
            for line in command.splitlines():  # a list of columns cannot be broken
                assert len(line) <= 110 or max(map(len, line.split())) > 80, line


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    names = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            there = (page.parent / path) if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_the_index_names_every_page():
    index = (PROJECT / "docs/README.md").read_text(encoding="utf-8")
    for page in (PROJECT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_the_version_stands_in_one_place_and_its_changes_are_told():
    with open(PROJECT / "pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    newest = re.search(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest == version
    assert "\nversion:" not in (PROJECT / "CITATION.cff").read_text()


def texts_of_results():
    for file in (PROJECT / "docs").rglob("*"):
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as packed:
                for name in packed.namelist():
                    yield f"{file.name}: {name}", packed.read(name).decode("utf-8")
        elif file.suffix in (".json", ".yaml", ".csv", ".md"):
            yield str(file), file.read_text(encoding="utf-8")


def test_no_committed_result_knows_the_machine_it_was_made_on():
    for name, text in texts_of_results():
        assert not re.search(r"[ \"'=](/tmp|/root|/home|/work)/", text), name


def test_results_are_packed_and_small():
    files = [file for file in (PROJECT / "docs/results").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".zip"}
    assert sum(file.stat().st_size for file in files) <= 4_000_000


def test_settings_that_readme_shows_are_there():
    """Of its commands that train; … stands for what its reader has."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(?:python|torchrun .*?) (\w+\.py (?!\w+ ).*)", text, re.M)
    trained = [line for line in shown if not re.match("report|sweep", line)]
    assert len(trained) == 6
    for line in trained:
        script, *words = shlex.split(line, comments=True)
        module = importlib.import_module(script.removesuffix(".py"))
        parse_settings(module.Config, words, script)


def shown_commands():
    """(where, script, words) of each command of report.py and sweep.py on a page or in the text
    that opens one of the two; of `sweep.py WORD` those that run a plan."""
    texts = {page.name: "\n".join(FENCE.findall(page.read_text("utf-8"))) for page in PAGES}
    texts |= {"report.py": report.__doc__, "sweep.py": sweep.__doc__}
    for where, text in texts.items():
        text = re.sub(r"\s*\\\n\s*", " ", text)
        for line in re.findall(r"^ *(?:\$ )?python ((?:report|sweep)\.py .*)", text, re.M):
            script, *words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
            if script == "report.py" or not {"…", "explain", "status", "push", "pull"} & set(words):
                yield where, script, words


def test_commands_of_reports_and_sweeps_are_read_as_shown():
    parsers = {"report.py": report.build_parser().parse_args, "sweep.py": parse_arguments}
    shown = [*shown_commands()]
    assert {script for _, script, _ in shown} == set(parsers) and len(shown) > 60
    for where, script, words in shown:
        try:
            asked = parsers[script](words)
        except SystemExit:
            pytest.fail(f"{where}: {script} {shlex.join(words)}")
        if script == "sweep.py" and asked.config and asked.config.startswith("configs/"):
            assert (PROJECT / asked.config).is_file(), where
