"""Options that two commands share; without what makes a start slow."""

import argparse


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
