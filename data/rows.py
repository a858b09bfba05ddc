"""Rows of any source: hashes, splits, subsets and fingerprints.

Nothing here depends on a seed: splits and subsets are functions of hashes, so rows that are added
later move no earlier row. A row has an `id`, a `group` (rows that intervals resample together) and
a `split`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeVar


class Row(Protocol):
    """What all sources' rows have in common."""

    id: str
    group: str
    split: str  # train | val | test


R = TypeVar("R", bound=Row)


def stable_hash(*parts: str) -> str:
    """16 hex digits, the same on every machine and in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\xff")  # no UTF-8 text holds 0xff
    return digest.hexdigest()


def normalised_text(turns: Sequence[str]) -> str:
    """Text by which rows are compared: case and white space folded, blank last turns dropped."""
    return "\n".join(" ".join(turn.split()).casefold() for turn in turns).rstrip("\n")


def split_of(key: str, val_frac: float, test_frac: float) -> str:
    """Return train, val or test: a pure function of the key and the two shares.

    Test takes the lowest hashes, validation the next: another val_frac moves no test row.
    """
    if not (val_frac >= 0 and test_frac >= 0 and val_frac + test_frac < 1):
        raise ValueError(
            f"val_frac {val_frac} and test_frac {test_frac}: expected shares with a sum below 1."
        )
    position = int(stable_hash("split", key), 16) / 2**64  # uniform in [0, 1)
    if position < test_frac:
        return "test"
    return "val" if position < test_frac + val_frac else "train"


def by_group(row: Row) -> str:
    """Key of `subset` that keeps groups, such as passages, whole."""
    return stable_hash("subset", row.split, row.group)


def subset(
    rows: Iterable[R],
    limit: int | None = None,
    train_frac: float = 1.0,
    train_rows: int | None = None,
    key: Callable[[R], str] = by_group,
) -> list[R]:
    """Keep fewer rows, in their order; a smaller subset is part of every larger one.

    limit: rows in total, over all splits. train_frac, train_rows: then this share, and so many, of
    the training rows. None: all. Those with the lowest `key` stay; by default it is a hash of the
    group, so that passages stay whole. ValueError for a limit below 1, or no share.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: expected 1 or more, or null")
    if not 0 < train_frac <= 1:
        raise ValueError(f"--train_frac {train_frac}: expected a share above 0, up to 1")
    rows = list(rows)
    order = {row.id: (key(row), row.id) for row in rows}
    if limit is not None:
        kept = {row.id for row in sorted(rows, key=lambda row: order[row.id])[:limit]}
        rows = [row for row in rows if row.id in kept]
    train = sorted((row for row in rows if row.split == "train"), key=lambda row: order[row.id])
    count = min(max(1, round(train_frac * len(train))), train_rows or len(train))
    dropped = {row.id for row in train[count:]}
    return [row for row in rows if row.id not in dropped]


def count_splits(
    rows: Sequence[Row], source: str, splits: Sequence[str] = ("train", "val", "test")
) -> str:
    """ "train 80, val 10, test 10"; ValueError where a split has no row."""
    if not rows:
        raise ValueError(f"{source}: it holds no rows")
    count = Counter(row.split for row in rows)
    for split in splits:
        if not count[split]:
            raise ValueError(f"{source}: no {split} rows among {len(rows)}: use more rows")
    return ", ".join(f"{split} {count[split]:,}" for split in splits)


def contrary_labels(labelled: Iterable[tuple[Hashable, Hashable]]) -> list[str]:
    """A line where the same content (a hashable key) has several labels, none otherwise.

    Whatever a model says of such copies, it is wrong on all but those with their commonest label,
    if it says the same of all: a bound on accuracy that no training lifts. The callers fold case
    and white space, and of pairs the order, which a model may tell apart.
    """
    labels: dict[int, Counter] = {}
    for content, label in labelled:  # by hashes: long texts are not to be there twice
        labels.setdefault(hash(content), Counter())[label] += 1
    apart = [count for count in labels.values() if len(count) > 1]
    if not apart:
        return []
    several = sum(count.total() > 1 for count in labels.values())
    wrong = sum(count.total() - max(count.values()) for count in apart)
    return [
        f"note: {several:,} examples occur more than once, {len(apart):,} of them with contrary "
        f"labels: a model that answers copies alike is wrong on {wrong:,} of the rows at least"
    ]


def choose_rows(
    rows: Sequence[R],
    data_fingerprint: str,
    limit: int | None = None,
    train_frac: float = 1.0,
    train_rows: int | None = None,
    key: Callable[[R], str] = by_group,
) -> tuple[list[R], dict[str, str]]:
    """The rows of a run (see `subset`), and what its record says of them.

    The fingerprint of the split is taken before training rows are left out, which moves none: runs
    on fewer of them stay comparable.
    """
    rows = subset(rows, limit, key=key)
    facts = {
        "data_fingerprint": data_fingerprint,
        "split_fingerprint": split_fingerprint(rows),
    }
    return subset(rows, None, train_frac, train_rows, key), facts


def fingerprint(rows: Iterable[Any]) -> str:
    """16 hex digits of SHA-256 over rows of JSON's types, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def split_fingerprint(rows: Iterable[Row]) -> str:
    """16 hex digits of SHA-256 over which id is in which split, in whatever order rows come."""
    pairs = sorted((row.id, row.split) for row in rows)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
