"""The commands of report.py: what each takes, and what it answers.

A command is a function of its arguments that returns the text to print, and one that adds its
options; COMMANDS has them by name. Heavy imports are where they are used: --help and table answer
at once.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import claims
import console
from reports import folder, packed
from sweeps.options import add_explain_options

STATISTICS = "docs/statistics.md"


def as_json(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False)


def text_of(found: Any) -> str:
    """A report that is text already, or fields for programs."""
    return as_json(found) if isinstance(found, dict) else str(found)


# ------------------------------------------------------------------ options that many share


def runs(parser: argparse.ArgumentParser, text: str = "runs, or folders of runs") -> None:
    parser.add_argument("runs", nargs="+", help=text)


def margin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--margin", type=float, metavar="DIFFERENCE", help=(
        "a difference that does not matter: an interval inside ± it is called the same"
    ))  # fmt: skip


def for_programs(parser: Any, page: str = STATISTICS) -> None:
    parser.add_argument("--json", action="store_true", help=f"for programs: {page}")


def styles(parser: argparse.ArgumentParser, *more: str, page: str = STATISTICS) -> None:
    """--markdown and --json, of `more` --html and --csv."""
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--markdown", action="store_const", dest="style", const="github")
    if "html" in more:
        page_of_it = "a page to redirect into a file" if "csv" not in more else "as HTML"
        style.add_argument("--html", action="store_const", dest="style", const="html",
                           help=page_of_it)  # fmt: skip
    for_programs(style, page)
    if "csv" in more:
        style.add_argument("--csv", action="store_const", dest="style", const="csv")


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


# -------------------------------------------------------------------------------- commands


def compare_options(parser: argparse.ArgumentParser) -> None:
    runs(parser, "runs, or folders of runs; the first is the baseline")
    parser.add_argument("--group-by", "--group_by", type=names, metavar="NAMES", help=(
        "settings that make an arm, e.g. lr,freeze; without it: all but the seed"
    ))  # fmt: skip
    parser.add_argument("--metrics", type=names, help="only these, e.g. accuracy,log_loss")
    parser.add_argument("--anyway", action="store_true", help=(
        "compare runs on different rows, unpaired"
    ))  # fmt: skip
    margin(parser)
    styles(parser, "html")


def compare(asked: argparse.Namespace) -> str:
    """what differs between runs, and whether the difference is noise"""
    from reports import compare, compare_page

    which = (asked.runs, asked.group_by, asked.metrics, asked.anyway)
    if asked.json:
        return as_json(compare.build_report(*which, asked.margin).as_json())
    if asked.style == "html":
        return compare_page.html(compare.build_report(*which, asked.margin))
    return compare.report(*which, asked.style, asked.margin)


def table_options(parser: argparse.ArgumentParser) -> None:
    runs(parser)
    parser.add_argument("--columns", type=names, help="these columns, e.g. model,lr,accuracy")
    parser.add_argument("--sort", help="a column; -column: from high to low (as --sort=-column)")
    parser.add_argument("--wide", action="store_true", help=(
        "all columns, also those that do not fit the terminal"
    ))  # fmt: skip
    parser.add_argument("--each", action="store_true", help="a line a run, seeds not folded")
    styles(parser, "html", "csv")


def table(asked: argparse.Namespace) -> str:
    """one line a setting, with the columns that differ"""
    from reports import table
    from reports.ledger import table_note

    found = folder.load_runs(asked.runs)
    columns, lines = table.build_table(found, asked.columns, fold=not asked.each)
    if asked.sort:
        lines = table.sort_lines(lines, asked.sort)
    notes = folder.shared_notes(found)
    if not asked.json and asked.style != "csv":
        notes += filter(None, [table_note(found)])
    for note in notes:
        print(folder.clean(note), file=sys.stderr)
    if asked.json:
        return as_json(table.as_json(columns, lines))
    if asked.style != "simple":
        return table.render(columns, lines, asked.style)
    if not asked.columns:
        columns = table.figures_first(columns, found)
    below = table.baseline_line(found, columns)
    width = shutil.get_terminal_size((100, 24)).columns
    everything = asked.wide or asked.columns
    return table.render_terminal(
        columns, [*lines, below] if below else lines, None if everything else width
    )


def steps_options(parser: argparse.ArgumentParser) -> None:
    runs(parser, (
        "the steps in order, each a run or a folder of runs; or one folder that has one folder a "
        "step, in the order of their names"
    ))  # fmt: skip
    parser.add_argument("--metric", help="of the differences, e.g. accuracy; else the primary one")
    margin(parser)
    parser.add_argument(
        "--columns", type=names, help="these beside it, e.g. training_flops,minutes"
    )
    styles(parser, "html", "csv")


def steps(asked: argparse.Namespace) -> str:
    """a ladder of changes: each step against the one before it"""
    from reports import steps

    shown = (asked.columns, asked.style, asked.margin, asked.json)
    return text_of(steps.report(asked.runs, asked.metric, *shown))


def explain_options(parser: argparse.ArgumentParser) -> None:
    add_explain_options(parser)
    styles(parser, page="docs/explain.md")


def explain(asked: argparse.Namespace) -> str:
    """two runs several settings apart: what would tell which did it"""
    from sweeps import explain

    question = explain.ask_of(asked)
    return as_json(question.as_json()) if asked.json else question.as_text(asked.style)


def effects_options(parser: argparse.ArgumentParser) -> None:
    runs(parser, "the folder of a grid, or its runs")
    parser.add_argument("--metric", help="of the contributions; else the primary one")
    margin(parser)
    parser.add_argument("--levels", nargs="+", default=[], metavar="NAME=FROM,TO", help=(
        "from which value to which, e.g. lr=1e-5,5e-5; else as the plan has it"
    ))  # fmt: skip
    parser.add_argument("--picture", type=Path, help=(
        "PNG file of the waterfall (default: effects.png in the folder)"
    ))  # fmt: skip
    styles(parser, page="docs/explain.md")


def effects(asked: argparse.Namespace) -> str:
    """which setting did it: a grid of settings × seeds, from A to B"""
    from reports import effects

    levels = effects.parse_levels(asked.levels)
    shown = (asked.picture, asked.style, asked.json)
    return text_of(effects.report(asked.runs, asked.metric, asked.margin, levels, *shown))


def page_options(parser: argparse.ArgumentParser) -> None:
    runs(parser, "a run, or several on shared axes")
    parser.add_argument("--output", type=Path, help="file (a folder with --markdown)")
    parser.add_argument("--markdown", action="store_true", help="Markdown with picture files")
    # for a run whose test is still running: begin at a line of standard input, end without one
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)


def page(asked: argparse.Namespace) -> str:
    """one file to open and to show: report.html in the run's folder"""
    from reports import page

    if asked.wait and not sys.stdin.readline():
        sys.exit("no test, no page")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    runs = [*map(Path, asked.runs)]
    return f"page: {page.write_page(runs, asked.output, asked.markdown, cores)}"


def site_options(parser: argparse.ArgumentParser) -> None:
    runs(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")


def site(asked: argparse.Namespace) -> str:
    """many runs as one page to sort, search and draw: DIR/index.html"""
    from reports import site

    return site.write_site(asked.runs, asked.output)


def watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run")
    parser.add_argument(
        "--every", type=float, default=2.0, help="seconds between looks (default 2)"
    )
    parser.add_argument("--once", action="store_true", help="print the state and stop")


def watch(asked: argparse.Namespace) -> str:
    """a running or interrupted run, or sweep, in the terminal"""
    if not asked.every > 0:
        raise ValueError(f"--every {asked.every:g}: expected more than 0 seconds")
    if (Path(asked.run) / "sweep.yaml").is_file():
        from sweeps import status

        return status.watch(Path(asked.run), asked.every, asked.once)
    from reports import watch

    run = Path(packed.folder_name(asked.run))
    if not run.exists():  # of a sweep, and not at its end
        run = claims.newest_attempt(run) or run
    watch.watch(run, asked.every, asked.once)
    return ""


def intervals(asked: argparse.Namespace) -> str:
    """those of older runs once more, by today's method"""
    from reports import recompute

    return recompute.report(asked.runs)


def again(asked: argparse.Namespace) -> str:
    """what makes each line of the table again, as a script"""
    from reports import table

    return table.commands(folder.load_runs(asked.runs))


def pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="a folder of runs: FOLDER.zip is written beside it"
    )


def pack(asked: argparse.Namespace) -> str:
    """all that reports read, in one compressed file that they read as well"""
    written = packed.pack(asked.folder)
    return (
        f"packed: {written} ({written.stat().st_size / 1e6:.2f} MB). "
        f"Reports read {asked.folder} from it where the folder is gone"
    )


def gate_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("base", help="a folder of runs, the seeds of the settings of today")
    add("candidate", help="a folder of runs with fresh seeds, a change of the base")
    add("--ledger", type=Path, required=True, help="file of the loop, one for all")
    add("--proposals", type=int, help="most that the loop may make (default 500)")
    add("--seeds", type=int, help="with which one can be kept (default 10)")
    add("--metric", help="by which it is judged (default: the primary one)")
    for_programs(parser, "docs/gate.md")


def gate(asked: argparse.Namespace) -> str:
    """keep a proposed change? exits 0 keep, 1 discard, 2 undecided, 3 error"""
    from sweeps import gate

    answer = gate.gate(asked.base, asked.candidate, asked.ledger, asked)
    text = as_json(answer.as_json()) if asked.json else str(answer)
    console.answer(folder.clean(text))
    raise gate.Answered(answer.exit)


def ledger_options(parser: argparse.ArgumentParser) -> None:
    runs(parser)
    for_programs(parser)


def ledger(asked: argparse.Namespace) -> str:
    """how many runs looked at which test rows, and what the best is worth"""
    from reports import ledger

    found = ledger.build_ledger(asked.runs)
    return as_json(found.as_json()) if asked.json else str(found)


def noise_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="of a sweep with --noise")
    parser.add_argument("--metric", help="whose spread; else the primary one")
    for_programs(parser)


def noise(asked: argparse.Namespace) -> str:
    """which source of chance makes the spread: starts, orders or masks?"""
    from reports import noise

    found = noise.build_noise(packed.folder_name(asked.folder), asked.metric)
    return as_json(found.as_json()) if asked.json else str(found)


def audit_options(parser: argparse.ArgumentParser) -> None:
    runs(parser)
    for_programs(parser, "docs/audit.md")


def audit(asked: argparse.Namespace) -> str:
    """do the files of a run belong together? exits 1 where they do not"""
    from reports import audit

    found, good = audit.report(asked.runs, as_text=not asked.json)
    console.answer(folder.clean(text_of(found)))
    raise SystemExit(0 if good else 1)


def bundle_options(parser: argparse.ArgumentParser) -> None:
    runs(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.zip")
    parser.add_argument("--weights", choices=("best", "final"), help="put these in as well")
    parser.add_argument("--anyway", action="store_true", help="also where the audit has problems")


def bundle(asked: argparse.Namespace) -> str:
    """runs in one file, for others to check, to compare and to repeat"""
    from reports import bundle

    return bundle.bundle(asked.runs, asked.output, asked.weights, asked.anyway)


def card_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run")
    parser.add_argument("--against", nargs="+", default=[], metavar="RUN", help=(
        "runs or arms that it is compared with, with the verdicts"
    ))  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="file (default: README.md in train/weights/final)"
    )


def card(asked: argparse.Namespace) -> str:
    """a model card for the hub, beside the final weights"""
    from reports import card

    return card.write_card(asked.run, asked.against, asked.output)


def power_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--difference", type=float, help="to be seen, in the metric's unit")
    parser.add_argument("--accuracy", type=float, help="expected accuracy, 0 to 1")
    parser.add_argument("--disagreement", type=float, help=(
        "share of the rows that only one of the two models has right"
    ))  # fmt: skip
    parser.add_argument("--row-std", "--row_std", type=float, help=(
        "for a loss: standard deviation of the difference of two models on one row"
    ))  # fmt: skip
    parser.add_argument("--seed-std", "--seed_std", type=float, default=0.0, help=(
        "standard deviation between seeds (default 0: one model against one)"
    ))  # fmt: skip
    parser.add_argument("--rows", type=int, help="test rows (groups, where rows belong together)")
    parser.add_argument("--like", nargs="+", metavar="RUN", help=(
        "take these figures from earlier runs: two seeds of one setting, or more"
    ))  # fmt: skip
    parser.add_argument("--metric", help="of --like (default: the primary one)")
    parser.add_argument("--comparisons", type=int, default=1, help=(
        "how many share the 5 %%: arms less one (default 1)"
    ))  # fmt: skip
    parser.add_argument("--paired", action="store_true", help=(
        "seeds are paired, as the plan will declare"
    ))  # fmt: skip
    parser.add_argument("--correlation", type=float, default=0.0, help=(
        "of the arms over shared seeds, with --paired (default 0)"
    ))  # fmt: skip
    for_programs(parser)


def power(asked: argparse.Namespace) -> str:
    """how many rows and seeds would show a difference, before any run"""
    from reports import power

    return text_of(power.report(asked))


Options = Callable[[argparse.ArgumentParser], None]
Answer = Callable[[argparse.Namespace], str]
# Name → what it takes, and what answers; the docstring of that is its line in --help.
COMMANDS: dict[str, tuple[Options, Answer]] = {
    "compare": (compare_options, compare),
    "table": (table_options, table),
    "steps": (steps_options, steps),
    "explain": (explain_options, explain),
    "effects": (effects_options, effects),
    "page": (page_options, page),
    "site": (site_options, site),
    "watch": (watch_options, watch),
    "intervals": (runs, intervals),
    "commands": (runs, again),
    "pack": (pack_options, pack),
    "gate": (gate_options, gate),
    "ledger": (ledger_options, ledger),
    "noise": (noise_options, noise),
    "audit": (audit_options, audit),
    "bundle": (bundle_options, bundle),
    "card": (card_options, card),
    "power": (power_options, power),
}
