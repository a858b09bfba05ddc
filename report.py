"""Is it better, is it noise, or did something else change too? Reads run folders; trains nothing.

    python report.py compare results/minilm/run_a results/minilm/run_b
    python report.py compare results/sweeps/frozen/frozen results/sweeps/frozen/trained
    python report.py steps results/sweeps/headlines_steps    # each step against the one before
    python report.py explain results/run_1 results/run_2     # what differs, what would tell
    python report.py effects results/sweeps/explain_1_2      # which of them did it, in a grid
    python report.py table results --sort -accuracy --markdown
    python report.py page results/demo                       # results/demo/report.html
    python report.py site results --output results/site     # many runs on one page
    python report.py watch results/demo
    python report.py intervals results                       # older runs' by today's method
    python report.py commands results                        # what makes each of them again
    python report.py pack results/sweeps/frozen              # frozen.zip: reports read it as before
    python report.py power --difference 0.02 --accuracy 0.65 --rows 1000
    python report.py gate results/base results/candidate --ledger loop.jsonl --json
    python report.py ledger results                          # who looked at which test rows
    python report.py noise results/sweeps/noise              # starts, orders or masks?
    python report.py audit results/demo                      # do its files belong together?
    python report.py bundle results/demo --output demo.zip   # for others to check and to repeat
    python report.py card results/demo                       # a model card, for the hub

A folder of runs counts as one arm: the seeds of one setting. Fewer than three seeds an arm say
something of these models only; from three on, of the change.
"""

import argparse
import difflib
import json
import os
import shutil
import sys
from pathlib import Path

import claims
import console
from reports import folder, packed
from sweeps.options import add_explain_options


def build_parser() -> argparse.ArgumentParser:
    # heavy imports are where they are used: --help and table answer at once
    parser = argparse.ArgumentParser(
        prog="report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    def margin(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--margin", type=float, metavar="DIFFERENCE", help=(
            "a difference that does not matter: an interval inside ± it is called the same"
        ))  # fmt: skip

    def styled_as_text(parser: argparse.ArgumentParser) -> None:
        style = parser.add_mutually_exclusive_group()
        style.add_argument("--markdown", action="store_const", dest="style", const="github")
        style.add_argument("--json", action="store_true", help="for programs: docs/explain.md")

    compare = command("compare", "what differs between runs, and whether the difference is noise")
    compare.add_argument(
        "runs", nargs="+", help="runs, or folders of runs; the first is the baseline"
    )
    compare.add_argument("--group-by", "--group_by", type=names, metavar="NAMES", help=(
        "settings that make an arm, e.g. lr,freeze; without it: all but the seed"
    ))  # fmt: skip
    compare.add_argument("--metrics", type=names, help="only these, e.g. accuracy,log_loss")
    compare.add_argument("--anyway", action="store_true", help=(
        "compare runs on different rows, unpaired"
    ))  # fmt: skip

    margin(compare)

    table = command("table", "one line a setting, with the columns that differ")
    table.add_argument("runs", nargs="+", help="runs, or folders of runs")
    table.add_argument("--columns", type=names, help="these columns, e.g. model,lr,accuracy")
    table.add_argument("--sort", help="a column; -column: from high to low (as --sort=-column)")
    table.add_argument("--wide", action="store_true", help=(
        "all columns, also those that do not fit the terminal"
    ))  # fmt: skip
    table.add_argument("--each", action="store_true", help="a line a run, seeds not folded")

    steps = command("steps", "a ladder of changes: each step against the one before it")
    steps.add_argument("runs", nargs="+", help=(
        "the steps in order, each a run or a folder of runs; or one folder that has one folder a "
        "step, in the order of their names"
    ))  # fmt: skip
    steps.add_argument("--metric", help="of the differences, e.g. accuracy; else the primary one")
    margin(steps)
    steps.add_argument("--columns", type=names, help="these beside it, e.g. training_flops,minutes")
    explain = command("explain", "two runs several settings apart: what would tell which did it")
    add_explain_options(explain)
    styled_as_text(explain)

    effects = command("effects", "which setting did it: a grid of settings × seeds, from A to B")
    effects.add_argument("runs", nargs="+", help="the folder of a grid, or its runs")
    effects.add_argument("--metric", help="of the contributions; else the primary one")
    margin(effects)
    effects.add_argument("--levels", nargs="+", default=[], metavar="NAME=FROM,TO", help=(
        "from which value to which, e.g. lr=1e-5,5e-5; else as the plan has it"
    ))  # fmt: skip
    effects.add_argument("--picture", type=Path, help=(
        "PNG file of the waterfall (default: effects.png in the folder)"
    ))  # fmt: skip
    styled_as_text(effects)
    for parser_with_styles in (compare, table, steps):
        style = parser_with_styles.add_mutually_exclusive_group()
        style.add_argument("--markdown", action="store_const", dest="style", const="github")
        style.add_argument("--html", action="store_const", dest="style", const="html", help=(
            "a page to redirect into a file" if parser_with_styles is compare else "as HTML"
        ))  # fmt: skip
        style.add_argument("--json", action="store_true", help="for programs: docs/statistics.md")
        if parser_with_styles is not compare:
            style.add_argument("--csv", action="store_const", dest="style", const="csv")

    page = command("page", "one file to open and to show: report.html in the run's folder")
    page.add_argument("runs", nargs="+", help="a run, or several on shared axes")
    page.add_argument("--output", type=Path, help="file (a folder with --markdown)")
    page.add_argument("--markdown", action="store_true", help="Markdown with picture files")

    site = command("site", "many runs as one page to sort, search and draw: DIR/index.html")
    site.add_argument("runs", nargs="+", help="runs, or folders of runs")
    site.add_argument("--output", type=Path, required=True, metavar="DIR")

    watch = command("watch", "a running or interrupted run, or sweep, in the terminal")
    watch.add_argument("run")
    watch.add_argument("--every", type=float, default=2.0, help="seconds between looks (default 2)")
    watch.add_argument("--once", action="store_true", help="print the state and stop")

    intervals = command("intervals", "those of older runs once more, by today's method")
    intervals.add_argument("runs", nargs="+", help="runs, or folders of runs")

    again = command("commands", "what makes each line of the table again, as a script")
    again.add_argument("runs", nargs="+", help="runs, or folders of runs")

    pack = command("pack", "all that reports read, in one compressed file that they read as well")
    pack.add_argument("folder", type=Path, help="a folder of runs: FOLDER.zip is written beside it")
    gate = command("gate", "keep a proposed change? exits 0 keep, 1 discard, 2 undecided, 3 error")
    gate.add_argument("base", help="a folder of runs, the seeds of the settings of today")
    gate.add_argument("candidate", help="a folder of runs with fresh seeds, a change of the base")
    gate.add_argument("--ledger", type=Path, required=True, help="file of the loop, one for all")
    gate.add_argument("--proposals", type=int, help="most that the loop may make (default 500)")
    gate.add_argument("--seeds", type=int, help="with which one can be kept (default 10)")
    gate.add_argument("--metric", help="by which it is judged (default: the primary one)")
    gate.add_argument("--json", action="store_true", help="for programs: docs/gate.md")

    ledger = command(
        "ledger", "how many runs looked at which test rows, and what the best is worth"
    )
    ledger.add_argument("runs", nargs="+", help="runs, or folders of runs")
    ledger.add_argument("--json", action="store_true", help="for programs: docs/statistics.md")

    noise = command("noise", "which source of chance makes the spread: starts, orders or masks?")
    noise.add_argument("folder", help="of a sweep with --noise")
    noise.add_argument("--metric", help="whose spread; else the primary one")
    noise.add_argument("--json", action="store_true", help="for programs: docs/statistics.md")

    audit = command("audit", "do the files of a run belong together? exits 1 where they do not")
    audit.add_argument("runs", nargs="+", help="runs, or folders of runs")
    audit.add_argument("--json", action="store_true", help="for programs: docs/audit.md")

    bundle = command("bundle", "runs in one file, for others to check, to compare and to repeat")
    bundle.add_argument("runs", nargs="+", help="runs, or folders of runs")
    bundle.add_argument("--output", type=Path, required=True, metavar="FILE.zip")
    bundle.add_argument("--weights", choices=("best", "final"), help="put these in as well")
    bundle.add_argument("--anyway", action="store_true", help="also where the audit has problems")

    card = command("card", "a model card for the hub, beside the final weights")
    card.add_argument("run")
    card.add_argument("--against", nargs="+", default=[], metavar="RUN", help=(
        "runs or arms that it is compared with, with the verdicts"
    ))  # fmt: skip
    card.add_argument(
        "--output", type=Path, help="file (default: README.md in train/weights/final)"
    )

    power = command("power", "how many rows and seeds would show a difference, before any run")
    add_power_options(power)
    return parser


def add_power_options(power: argparse.ArgumentParser) -> None:
    power.add_argument("--difference", type=float, help="to be seen, in the metric's unit")
    power.add_argument("--accuracy", type=float, help="expected accuracy, 0 to 1")
    power.add_argument("--disagreement", type=float, help=(
        "share of the rows that only one of the two models has right"
    ))  # fmt: skip
    power.add_argument("--row-std", "--row_std", type=float, help=(
        "for a loss: standard deviation of the difference of two models on one row"
    ))  # fmt: skip
    power.add_argument("--seed-std", "--seed_std", type=float, default=0.0, help=(
        "standard deviation between seeds (default 0: one model against one)"
    ))  # fmt: skip
    power.add_argument("--rows", type=int, help="test rows (groups, where rows belong together)")
    power.add_argument("--like", nargs="+", metavar="RUN", help=(
        "take these figures from earlier runs: two seeds of one setting, or more"
    ))  # fmt: skip
    power.add_argument("--metric", help="of --like (default: the primary one)")
    power.add_argument("--comparisons", type=int, default=1, help=(
        "how many share the 5 %%: arms less one (default 1)"
    ))  # fmt: skip
    power.add_argument("--paired", action="store_true", help=(
        "seeds are paired, as the plan will declare"
    ))  # fmt: skip
    power.add_argument("--correlation", type=float, default=0.0, help=(
        "of the arms over shared seeds, with --paired (default 0)"
    ))  # fmt: skip
    power.add_argument("--json", action="store_true", help="for programs: docs/statistics.md")


def run_command(arguments: argparse.Namespace) -> str:
    style = getattr(arguments, "style", None) or "simple"
    for name in ("runs", "like"):
        if getattr(arguments, name, None):
            setattr(arguments, name, [*map(packed.folder_name, getattr(arguments, name))])
    if arguments.command == "compare":
        from reports import compare

        asked = (arguments.runs, arguments.group_by, arguments.metrics, arguments.anyway)
        if arguments.json:
            return as_json(compare.build_report(*asked, arguments.margin).as_json())
        if style == "html":
            from reports import compare_page

            return compare_page.html(compare.build_report(*asked, arguments.margin))
        return compare.report(*asked, style, arguments.margin)
    if arguments.command == "table":
        from reports import table

        runs = folder.load_runs(arguments.runs)
        columns, lines = table.build_table(runs, arguments.columns, fold=not arguments.each)
        if arguments.sort:
            lines = table.sort_lines(lines, arguments.sort)
        from reports.ledger import table_note

        notes = folder.shared_notes(runs)
        if not arguments.json and style != "csv":
            notes += filter(None, [table_note(runs)])
        for note in notes:
            print(folder.clean(note), file=sys.stderr)
        if arguments.json:
            return as_json(table.as_json(columns, lines))
        if style == "simple":
            if not arguments.columns:
                columns = table.figures_first(columns, runs)
            below = table.baseline_line(runs, columns)
            width = shutil.get_terminal_size((100, 24)).columns
            everything = arguments.wide or arguments.columns
            return table.render_terminal(
                columns, [*lines, below] if below else lines, None if everything else width
            )
        return table.render(columns, lines, style)
    if arguments.command == "steps":
        from reports import steps

        found = steps.report(
            *(arguments.runs, arguments.metric, arguments.columns, style),
            *(arguments.margin, arguments.json),
        )
        return found if isinstance(found, str) else as_json(found)
    if arguments.command == "explain":
        from sweeps import explain

        question = explain.ask_of(arguments)
        return as_json(question.as_json()) if arguments.json else question.as_text(style)
    if arguments.command == "effects":
        from reports import effects

        found = effects.report(
            *(arguments.runs, arguments.metric, arguments.margin),
            *(effects.parse_levels(arguments.levels), arguments.picture, style, arguments.json),
        )
        return found if isinstance(found, str) else as_json(found)
    if arguments.command == "page":
        from reports import page

        written = page.write_page(
            [Path(run) for run in arguments.runs], arguments.output, arguments.markdown
        )
        return f"page: {written}"
    if arguments.command == "site":
        from reports import site

        return site.write_site(arguments.runs, arguments.output)
    if arguments.command == "watch":
        if (Path(arguments.run) / "sweep.yaml").is_file():
            from sweeps import status

            return status.watch(Path(arguments.run), arguments.every, arguments.once)
        from reports import watch

        run = Path(packed.folder_name(arguments.run))
        if not run.exists():  # of a sweep, and not at its end
            run = claims.newest_attempt(run) or run
        watch.watch(run, arguments.every, arguments.once)
        return ""
    if arguments.command == "intervals":
        from reports import recompute

        return recompute.report(arguments.runs)
    if arguments.command == "commands":
        from reports import table

        return table.commands(folder.load_runs(arguments.runs))
    if arguments.command == "pack":
        written = packed.pack(arguments.folder)
        return (
            f"packed: {written} ({written.stat().st_size / 1e6:.2f} MB). "
            f"Reports read {arguments.folder} from it where the folder is gone"
        )
    if arguments.command == "gate":
        from sweeps import gate

        answer = gate.gate(arguments.base, arguments.candidate, arguments.ledger, arguments)
        text = as_json(answer.as_json()) if arguments.json else str(answer)
        console.answer(folder.clean(text))
        raise gate.Answered(answer.exit)
    if arguments.command == "ledger":
        from reports import ledger

        found = ledger.build_ledger(arguments.runs)
        return as_json(found.as_json()) if arguments.json else str(found)
    if arguments.command == "noise":
        from reports import noise

        found = noise.build_noise(packed.folder_name(arguments.folder), arguments.metric)
        return as_json(found.as_json()) if arguments.json else str(found)
    if arguments.command == "audit":
        from reports import audit

        found, good = audit.report(arguments.runs, as_text=not arguments.json)
        console.answer(folder.clean(found if isinstance(found, str) else as_json(found)))
        raise SystemExit(0 if good else 1)
    if arguments.command == "bundle":
        from reports import bundle

        asked = (arguments.runs, arguments.output, arguments.weights, arguments.anyway)
        return bundle.bundle(*asked)
    if arguments.command == "card":
        from reports import card

        return card.write_card(arguments.run, arguments.against, arguments.output)
    from reports import power

    found = power.report(arguments)
    return found if isinstance(found, str) else as_json(found)


def as_json(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False)


def main(words: list[str] | None = None) -> None:
    console.open_streams()
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        known = [
            option
            for choice in parser._subparsers._group_actions[0].choices.values()
            for action in choice._actions
            for option in action.option_strings
        ]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise SystemExit(f"report.py {arguments.command}: unknown {unknown[0]}{hint}")
    try:
        text = run_command(arguments)
        if text:
            console.answer(folder.clean(text))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("ABLATE_DEBUG"):
            raise
        raise SystemExit(folder.clean(f"error: {error}")) from None


def start(words: list[str]) -> None:
    """main, but that an error of `gate` exits with 3: 1 and 2 are answers of it."""
    if words[:1] != ["gate"]:
        main(words)
        return
    from sweeps import gate

    try:
        main(words)
    except gate.Answered as answered:
        raise SystemExit(answered.exit) from None
    except SystemExit as ended:
        if not ended.code:  # --help
            raise
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        raise SystemExit(gate.EXITS["not comparable"]) from None
    except Exception as error:
        print(folder.clean(f"error: {type(error).__name__}: {error}"), file=sys.stderr)
        raise SystemExit(gate.EXITS["not comparable"]) from None


if __name__ == "__main__":
    start(sys.argv[1:])
