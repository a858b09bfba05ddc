"""What bench.py measured, as a Markdown table and as a picture."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import Line

COSTS = "time of a step"  # the unit of lines where less is better


def write(measured: dict[str, Any], arguments: argparse.Namespace) -> None:
    """--markdown and --picture of what --output holds."""
    if arguments.markdown:
        arguments.markdown.write_text(markdown(measured))
    if arguments.picture:
        picture(measured, arguments.picture)


def lines_of(measured: dict[str, Any]) -> Iterator[tuple[str, Line]]:
    """(command, line) of every comparison; `what` also says data, precision and width."""
    for command, comparison in measured.items():
        words = shlex.split(command)
        pairs = list(zip(words, words[1:], strict=False))
        told = [Path(b).stem for a, b in pairs if a in ("--data", "--precision")]
        told += [f"width {b}" for a, b in pairs if a == "--width"]
        told += ["not compiled"] if "--eager" in words else []
        about = f" ({', '.join(told)})" if told else ""
        for line in comparison["lines"]:
            yield command, Line(**line | {"what": line["what"] + about})


def markdown(measured: dict[str, Any]) -> str:
    """A table of all lines, their commands, the tables of what has no peer, and where and when it
    was measured."""
    from tabulate import tabulate

    entries, commands = [], {}  # type: ignore[var-annotated]
    for command, line in lines_of(measured):
        low, high, count = min(line.ratios), max(line.ratios), len(line.ratios)
        pairs = f"{count} pairs" if count > 1 else "1 pair"
        ratio = f"{line.median:.2f} × {line.unit} [{low:.2f}, {high:.2f}], {pairs}"
        losses, note = "", line.note
        if line.checks and line.checked == "losses":
            losses = f"{line.checks[0]:.3f}, {line.checks[1]:.3f}"
        elif line.checks:
            checked = f"{line.checks[0]:,.0f} and {line.checks[1]:,.0f} {line.checked}"
            note = "; ".join(filter(None, [line.note, checked]))
        entries.append(
            {
                "what": line.what,
                "beside": line.peer,
                "ours": f"VOID: the {line.checked} differ" if line.void else ratio,
                "memory": "" if line.memory is None else f"{line.memory:.2f} ×",
                "losses": losses,
                "share of peak": f"{line.share_of_peak:.0%}" if line.share_of_peak else "",
                "note": note,
            }
        )
        commands.setdefault(command, line.what)
    parts = [table(tabulate, entries)] if entries else []
    if commands:
        lines = [f"# {what}\n{command}" for command, what in commands.items()]
        parts.append("\n".join(["```bash", *lines, "```"]))
    for comparison in measured.values():
        for title, points in comparison["tables"].items():
            parts += [f"{title}:", table(tabulate, points)]
    places = {place(comparison): None for comparison in measured.values()}
    return "\n\n".join([*parts, *places]) + "\n"


def table(tabulate: Any, entries: list[dict]) -> str:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    cells = [[entry.get(name, "") for name in names] for entry in entries]
    return tabulate(cells, names, tablefmt="github", floatfmt=",.3g", intfmt=",")


def place(comparison: dict[str, Any]) -> str:
    """Where and when it was measured."""
    machine, versions = comparison["machine"], comparison["versions"]
    changes = " with changes" if comparison["dirty"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; torch "
        f"{versions['torch']}, transformers {versions['transformers']}; commit "
        f"`{comparison['commit'][:7]}`{changes}, {comparison['date'][:10]}"
    )


def picture(measured: dict[str, Any], path: Path) -> None:
    """Ratios with their ranges, those of costs left out; void ones are not drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [line for _, line in lines_of(measured) if line.unit != COSTS and not line.void][::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.4 * len(lines)), layout="constrained")
    medians = [line.median for line in lines]
    below = [m - min(line.ratios) for m, line in zip(medians, lines, strict=True)]
    above = [max(line.ratios) - m for m, line in zip(medians, lines, strict=True)]
    names = [f"{line.what}\nbeside {line.peer}" for line in lines]
    axes.errorbar(medians, range(len(lines)), xerr=[below, above], fmt="o", capsize=3)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("times as fast as the peer: median and range over pairs (log scale)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
