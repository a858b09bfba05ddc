"""Rows changed in what should not matter: does the verdict turn?

    padded(row, side=1)      # B says nothing more, at greater length
    plain(row)               # both without Markdown

Verdicts that turn by length and layout alone: Zheng et al. 2023 (arXiv:2306.05685), section 3.3.
"""

import re
from dataclasses import replace

from data.arena import PairRow

FILLER = (
    "I hope that this answers the question. If anything is unclear, or if more details would be of "
    "use, please do not hesitate to ask, and I will gladly go into them."
)
_MARKS = (
    (re.compile(r"^\s*#{1,6} +", re.M), ""),  # headings
    (re.compile(r"^(\s*)(?:[-*+•]|\d+[.)]) +", re.M), r"\1"),  # lists
    (re.compile(r"^\s*```.*$\n?", re.M), ""),  # the fences of code
    (re.compile(r"\*\*([^*\n]+)\*\*|__([^_\n]+)__"), r"\1\2"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"\[([^\]\n]+)\]\([^)\s]+\)"), r"\1"),  # links
)


def padded(row: PairRow, side: int) -> PairRow:
    """The row with FILLER behind the last turn of A (side 0) or B (1), until that side is half as
    long again and longer than the other."""
    answers = [list(row.response_a), list(row.response_b)]
    sizes = [sum(map(len, answer)) for answer in answers]
    lacking = max(sizes[side] * 0.5, sizes[1 - side] - sizes[side], 1)
    times = int(-(-lacking // (len(FILLER) + 1)))
    answers[side][-1] = " ".join([answers[side][-1], *[FILLER] * times])
    return replace(row, response_a=answers[0], response_b=answers[1])


def plain(row: PairRow) -> PairRow:
    """The row without Markdown in its answers."""
    return replace(
        row,
        response_a=[without_marks(turn) for turn in row.response_a],
        response_b=[without_marks(turn) for turn in row.response_b],
    )


def without_marks(text: str) -> str:
    for pattern, kept in _MARKS:
        text = pattern.sub(kept, text)
    return text
