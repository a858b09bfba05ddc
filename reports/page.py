"""The page of a run, or of several on shared axes: one HTML file, or Markdown with picture files.

    write_page([Path("results/minilm/2026-11-22_02-15-00")])      # its report.html and pictures

A page is a list of plain blocks (blocks.py); one_run.py and several.py say which.
"""

import os
from pathlib import Path

from files import require_writable
from reports import packed, plots
from reports.blocks import file_name, to_html, to_markdown
from reports.folder import load_runs
from reports.one_run import page_of_run
from reports.several import page_of_runs


def write_page(
    paths: list[Path], output: Path | None = None, markdown: bool = False, processes: int = 1
) -> Path:
    """Write the page of the runs at or below `paths`; returns its path.

    One run: RUN/report.html, and its pictures into train/analysis and test/analysis; several, or
    one in a packed folder: ./report.html. `markdown`: page.md with picture files in the folder
    `output`, by default report in the same place. More `processes` are forked, by a program without
    threads, and draw the pictures. ValueError when a path holds no run.
    """
    runs = load_runs(paths)
    if not runs:
        raise ValueError("a page needs a run folder")
    if output is not None and markdown:
        require_writable(output, folder=True)
    elif output is not None:
        packed.require_kind(output, ".html", ".htm")
    one = runs[0] if len(runs) == 1 else None
    page = page_of_run(one) if one else page_of_runs(runs)
    home = one.path if one and not packed.is_packed(one.path) else Path()
    files_too = bool(one) and output is None and home == one.path
    formats = ["png"] if markdown else ["png", "svg"] if files_too else ["svg"]
    plots.draw_ahead([figure.picture for figure in page.figures], formats, processes)
    if markdown:
        folder = output or home / "report"
        for figure in page.figures:
            write_whole(folder / file_name(figure), figure.picture.png())
        return write_whole(folder / "page.md", to_markdown(page).encode())
    if files_too:
        for figure in page.figures:
            part, name = figure.picture.name.split("/")
            write_whole(one.path / part / "analysis" / f"{name}.png", figure.picture.png())
    return write_whole(output or home / "report.html", to_html(page).encode())


def write_whole(path: Path, content: bytes) -> Path:
    """All of it or nothing: somebody may be looking at the page of before."""
    packed.refuse_inside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(content)
    os.replace(beside, path)
    return path
