"""Is it better, is it noise, or did something else change too? Reads run folders; trains nothing.

    python report.py compare results/minilm/run_a results/minilm/run_b
    python report.py compare results/sweeps/frozen/frozen results/sweeps/frozen/trained
    python report.py steps results/sweeps/headlines_steps    # each step against the one before
    python report.py explain results/run_1 results/run_2     # what differs, what would tell
    python report.py effects results/sweeps/explain_1_2      # which of them did it, in a grid
    python report.py table results --sort=-accuracy --markdown
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
import os
import sys

import console
from reports import folder, packed
from reports.commands import COMMANDS
from sweeps.options import Parser


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (options, answer) in COMMANDS.items():
        text = answer.__doc__
        options(commands.add_parser(name, help=text, description=text))
    return parser


def run_command(arguments: argparse.Namespace) -> str:
    arguments.style = getattr(arguments, "style", None) or "simple"
    for name in ("runs", "like"):
        if getattr(arguments, name, None):
            setattr(arguments, name, [*map(packed.folder_name, getattr(arguments, name))])
    _, answer = COMMANDS[arguments.command]
    return answer(arguments)


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
