"""The tables of README and documents are what report.py makes of the committed run folders."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
HEADLINES = (PROJECT / "docs/headlines.md").read_text(encoding="utf-8")
TABLES = [
    found
    for text in (README, HEADLINES)
    for found in re.findall(
        r"`python (report\.py (?:table|steps) [^`]+)`[^\n]*\n((?:\|.*\n)+)", text
    )
]
SENTENCES = re.findall(r"`python (report\.py compare [^`]+)`: (.+)\n", HEADLINES)


def output_of(command: str) -> str:
    words = [sys.executable, *shlex.split(command)]
    return subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("command", "shown"), TABLES)
def test_a_table_is_made_by_the_command_above_it(command, shown):
    lines = output_of(command).splitlines(keepends=True)
    assert "".join(line for line in lines if line.startswith("|")) == shown


@pytest.mark.parametrize(("command", "sentence"), SENTENCES)
def test_a_sentence_is_that_of_compare(command, sentence):
    assert sentence in output_of(command)


def test_every_system_has_its_table():
    systems = {command.split("docs/")[1].split()[0] for command, _ in TABLES}
    for name in ("preference", "bert", "gpt2", "headlines", "alpaca"):
        assert any(name in system for system in systems), name
    assert len(SENTENCES) > 1 and any("report.py steps" in command for command, _ in TABLES)


def test_no_committed_result_knows_the_machine_it_was_made_on():
    for file in (PROJECT / "docs").rglob("*"):
        if file.suffix in (".json", ".yaml", ".csv", ".md"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"[ \"'=](/tmp|/root|/home|/work)/", text), file
