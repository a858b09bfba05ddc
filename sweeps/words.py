"""The error in what a script wrote."""

import itertools
import re

ERROR_LINE = re.compile(r"^(\[rank \d+\] )?[\w.]*(error|Error|Exception|\.py):|other settings:$")


def last_words(log: str) -> str:
    """The error in what a run wrote: its last error line and what follows, on one line."""
    lines = [re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", line).strip() for line in log.splitlines()]
    # torchrun reports a failed process at length, after the process has said why it failed
    before = itertools.takewhile(lambda line: "torch/distributed/elastic" not in line, lines)
    lines = [line for line in before if line] or [line for line in lines if line] or ["no output"]
    starts = [number for number, line in enumerate(lines) if ERROR_LINE.search(line)]
    return " ".join(lines[starts[-1] :] if starts else lines[-1:])[:400]
