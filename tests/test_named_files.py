"""The settings files that docstrings, README and documents name are there."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"\bconfigs/(?:[\w./-]|\{[\w,]+\})+\.yaml")
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
MODULES = sorted([*PROJECT.glob("*.py"), *PROJECT.glob("[a-z]*/*.py")])


def named_in(text: str) -> list[str]:
    """Every name, run_{1,2}.yaml as two."""
    names = []
    for name in NAMED.findall(text):
        before, braces, after = re.fullmatch(r"([^{]*)(?:\{(.*)\})?(.*)", name).groups()
        names += [f"{before}{word}{after}" for word in (braces or "").split(",")]
    return names


def text_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""


def test_names_in_braces_are_several():
    assert named_in("`configs/a/b_1.yaml`, configs/a/run_{1,12}_x.yaml.") == [
        *("configs/a/b_1.yaml", "configs/a/run_1_x.yaml", "configs/a/run_12_x.yaml")
    ]


@pytest.mark.parametrize(
    "path",
    [path for path in (*DOCUMENTS, *MODULES) if named_in(text_of(path))],
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_every_settings_file_that_is_named_exists(path):
    assert [name for name in named_in(text_of(path)) if not (PROJECT / name).is_file()] == []
