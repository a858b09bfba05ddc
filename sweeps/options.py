"""The command lines of report.py and sweep.py: their parser, and options that two of their commands
share; without what makes a start slow."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's, which says what is wrong in a line, and takes neither an empty argument (a
    variable of the shell that is not set, and a path of it is the folder here) nor two values of
    one option, of which the first would count for nothing."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, allow_abbrev=False, **options)
        for name in (None, "store"):
            self.register("action", name, _Once)
        self.given: dict[str, Any] = {}

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words, self.given = list(sys.argv[1:] if args is None else args), {}
        for word in words:
            if word == "" or re.fullmatch(r"--[\w-]+=", word):
                self.error(f"{word.rstrip('=') or 'an argument'} is empty: is a variable unset?")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        words = {"int": "whole number", "float": "number"}
        message = re.sub(
            r"invalid (int|float) value: (.*)", lambda m: f"{m[2]} is no {words[m[1]]}", message
        )
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            names = re.findall(r"[\w-]+", choice[2])
            near = difflib.get_close_matches(choice[1], names, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(names)}"
            message = f"{message[: choice.start()]}'{choice[1]}': {hint}"
        self.exit(2, f"{self.prog}: {message} (--help says more)\n")


class _Once(argparse._StoreAction):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = parser.given.setdefault(self.dest, values)
        if option_string and before is not values and before != values:
            parser.error(f"{option_string} is given twice, {before} and {values}: which?")
        super().__call__(parser, namespace, values, option_string)


def add_explain_options(parser: argparse.ArgumentParser) -> None:
    """Those of `report.py explain` and `sweep.py explain`, which `explain.ask_of` reads."""
    add = parser.add_argument
    add("runs", nargs=2, metavar="RUN", help="A and B, each a run or a folder of its seeds")
    add("--seeds", help="how many (default 3), or a list such as 3,5,7")
    points = parser.add_mutually_exclusive_group()
    points.add_argument("--full", action="store_true", default=None, help=(
        "all 2^k points between them (default: up to 4 settings)"
    ))  # fmt: skip
    points.add_argument("--ends", action="store_false", dest="full", default=None, help=(
        "A and B, each setting added to A and taken from B"
    ))  # fmt: skip
    add("--together", action="append", default=[], metavar="NAMES", help=(
        "settings to be taken as one, e.g. lr,batch"
    ))  # fmt: skip
    add("--rows", type=str.lower, choices=("a", "b"), help=(
        "whose test rows, where A and B were tested on others"
    ))  # fmt: skip
    add("--under", action="append", default=[], metavar="FOLDER", help=(
        "look for finished runs there, too (default: results, and where A and B lie)"
    ))  # fmt: skip
