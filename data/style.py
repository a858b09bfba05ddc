"""What counting says of two answers: length, layout, signs and words, without understanding either.

    features = style_features(rows)            # (rows, len(NAMES)): of A, of B, A − B, of the pair
    features = exchanged(features)             # of the same rows with A and B exchanged

SIDE and PAIR are the tables: a name, and how it is counted. Counts enter as log(1 + count), so that
a difference is a ratio. Control for style: Dubois et al. 2024 (arXiv:2404.04475); that counting
comes close to small encoders on the arena's votes is why there is such an opponent.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from data.arena import PairRow

WORD = re.compile(r"\w+")
SENTENCE = re.compile(r"[.!?。！？]+(?:\s|$)")
BULLET = re.compile(r"^[ \t]*[-*•+][ \t]", re.M)
NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]", re.M)
HEADING = re.compile(r"^#{1,6} ", re.M)
BOLD = re.compile(r"\*\*[^*\n]+\*\*")
LINK = re.compile(r"https?://|www\.")
TABLE = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.M)
INLINE_CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:'t|not| not)|won't|apologi[sz]e)"
    r"|as an? (?:ai|artificial|(?:large )?language model)|cannot (?:assist|help|provide|fulfill?))"
)
FIRST_PERSON = re.compile(r"\b(?:i|i'm|i'd|my|me)\b")
HEDGE = re.compile(r"\b(?:may|might|perhaps|possibly|maybe|probably|generally|usually|however)\b")
F = TypeVar("F")
TURNS = "\n\n"  # between the turns of a conversation


class Answer:
    """One side of a row, with what several features count in."""

    def __init__(self, prompt: "Answer | None", text: str):
        self.prompt, self.text = prompt, text
        self.lower = text.lower().replace("’", "'")
        self.words = WORD.findall(self.lower)
        self.vocabulary = frozenset(self.words)

    @cached_property
    def characters(self) -> Counter[str]:
        return Counter(self.text)

    def share(self, kind: Callable[[str], bool]) -> float:
        """Of its characters, those of a kind."""
        found = sum(count for sign, count in self.characters.items() if kind(sign))
        return found / max(len(self.text), 1)

    def repeated(self, size: int) -> float:
        """Share of the runs of so many words that came before already."""
        runs = list(zip(*(self.words[start:] for start in range(size)), strict=False))
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _is_sign(character: str) -> bool:
    return not (character.isalnum() or character.isspace())


def _foreign(character: str) -> bool:
    return character > "\u024f" and character.isalpha()  # the last of the Latin letters


def _compressed(text: str) -> int:
    return len(zlib.compress(text.encode("utf-8", "replace"), 1))


def _count(pattern: re.Pattern) -> Callable[[Answer], float]:
    return lambda answer: math.log1p(len(pattern.findall(answer.text)))


def _count_lower(pattern: re.Pattern) -> Callable[[Answer], float]:
    return lambda answer: math.log1p(len(pattern.findall(answer.lower)))


def _signs(signs: str) -> Callable[[Answer], float]:
    return lambda answer: math.log1p(sum(answer.text.count(sign) for sign in signs))


def _covered(words: frozenset[str], by: frozenset[str]) -> float:
    """Share of the words that are among others."""
    return len(words & by) / max(len(words), 1)


SIDE: dict[str, Callable[[Answer], float]] = {
    # length
    "characters": lambda a: math.log1p(len(a.text)),
    "words": lambda a: math.log1p(len(a.words)),
    "sentences": _count(SENTENCE),
    "lines": _signs("\n"),
    "paragraphs": lambda a: math.log1p(a.text.count("\n\n")),
    "blank": lambda a: float(not a.text.strip()),
    "one_word": lambda a: float(len(a.words) <= 1),
    "word_length": lambda a: sum(map(len, a.words)) / max(len(a.words), 1),
    "sentence_length": lambda a: math.log1p(len(a.words) / max(len(SENTENCE.findall(a.text)), 1)),
    # layout
    "bullets": _count(BULLET),
    "numbered": _count(NUMBERED),
    "headings": _count(HEADING),
    "bold": _count(BOLD),
    "tables": _count(TABLE),
    "code_blocks": lambda a: math.log1p(a.text.count("```")),
    "inline_code": _count(INLINE_CODE),
    "links": _count(LINK),
    # signs
    "digits": lambda a: a.share(str.isdigit),
    "capitals": lambda a: a.share(str.isupper),
    "punctuation": lambda a: a.share(_is_sign),
    "commas": _signs(",，、"),
    "colons": _signs(":："),
    "questions": _signs("?？"),
    "exclamations": _signs("!！"),
    "quotes": _signs("\"'“”"),
    "brackets": _signs("()[]{}"),
    "finished": lambda a: float(a.text.rstrip().endswith((*".!?。！？\"')`", "```"))),
    "capital_first": lambda a: float(a.text.lstrip()[:1].isupper()),
    # manner
    "refusals": _count_lower(REFUSAL),
    "first_person": _count_lower(FIRST_PERSON),
    "hedges": _count_lower(HEDGE),
    # language: how much is not in Latin letters, and how far that is from the prompt's share
    "foreign": lambda a: a.share(_foreign),
    "other_language": lambda a: abs(a.share(_foreign) - a.prompt.share(_foreign)),
    # repetition
    "distinct_words": lambda a: len(a.vocabulary) / max(len(a.words), 1),
    "repeated_pairs": lambda a: a.repeated(2),
    "repeated_fours": lambda a: a.repeated(4),
    "compression": lambda a: _compressed(a.text) / max(len(a.text.encode("utf-8", "replace")), 32),
    # the prompt in it
    "from_prompt": lambda a: _covered(a.vocabulary, a.prompt.vocabulary),
    "of_prompt": lambda a: _covered(a.prompt.vocabulary, a.vocabulary),
    "in_prompt": lambda a: float(a.lower.strip() in a.prompt.lower),
    "length_to_prompt": lambda a: math.log1p(len(a.text)) - math.log1p(len(a.prompt.text)),
}
"""Of each answer: it enters three times, of A, of B and as A − B."""

PAIR: dict[str, Callable[[Answer, Answer, PairRow], float]] = {
    "turns": lambda a, b, row: math.log1p(len(row.prompt)),
    "prompt_characters": lambda a, b, row: math.log1p(len(a.prompt.text)),
    "prompt_words": lambda a, b, row: math.log1p(len(a.prompt.words)),
    "prompt_lines": lambda a, b, row: math.log1p(a.prompt.text.count("\n")),
    "prompt_questions": lambda a, b, row: math.log1p(a.prompt.text.count("?")),
    "prompt_code": lambda a, b, row: math.log1p(a.prompt.text.count("```")),
    "prompt_digits": lambda a, b, row: a.prompt.share(str.isdigit),
    "prompt_foreign": lambda a, b, row: a.prompt.share(_foreign),
    # how alike the answers are
    "equal": lambda a, b, row: float(a.words == b.words),
    "common_words": lambda a, b, row: (
        len(a.vocabulary & b.vocabulary) / max(len(a.vocabulary | b.vocabulary), 1)
    ),
    "length_apart": lambda a, b, row: abs(math.log1p(len(a.text)) - math.log1p(len(b.text))),
    "both_refuse": lambda a, b, row: float(
        bool(REFUSAL.search(a.lower)) and bool(REFUSAL.search(b.lower))
    ),
}
"""Of the pair: the same whichever answer stands first."""

NAMES = (
    *(f"{name}_{side}" for side in ("a", "b", "difference") for name in SIDE),
    *PAIR,
)
"""The columns of style_features."""


def style_features(rows: Sequence[PairRow]) -> np.ndarray:
    """(rows, len(NAMES)) float32, in the order of NAMES."""
    features = np.empty((len(rows), len(NAMES)), np.float32)
    for number, row in enumerate(rows):
        prompt = Answer(None, TURNS.join(row.prompt))
        a, b = (Answer(prompt, TURNS.join(side)) for side in (row.response_a, row.response_b))
        of_a, of_b = (np.array([count(x) for count in SIDE.values()], np.float32) for x in (a, b))
        pair = [count(a, b, row) for count in PAIR.values()]
        features[number] = np.concatenate([of_a, of_b, of_a - of_b, np.float32(pair)])
    return features


_COUNT = len(SIDE)


def exchanged(features: F) -> F:
    """The features (rows, len(NAMES)), of numpy or torch, of the same rows with A and B exchanged,
    to the last bit."""
    n = _COUNT
    of_a, of_b = features[:, :n], features[:, n : 2 * n]
    apart, rest = features[:, 2 * n : 3 * n], features[:, 3 * n :]
    parts = [of_b, of_a, -apart, rest]
    if isinstance(features, np.ndarray):
        return np.concatenate(parts, axis=1)
    import torch

    return torch.cat(parts, dim=1)  # columns by number would be sent to a device each time
