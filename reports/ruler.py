"""Whether runs that model text were measured with one ruler: the same text, counted alike.

Nats a character compare models only where the characters are those of one text, all of it is
scored, and the tokenizer gives it back: text that is lower-cased or cut is easier, and bytes
counted as characters make it look so. What differs is said, with the figure by the right count.
"""

from collections.abc import Sequence

import numpy as np

from reports.folder import RunFolder
from reports.predictions import Predictions

GEOMETRY = {"stride": "its windows", "detokenized": "its text"}  # of metrics.json
# settings by which a tokenizer is chosen or trained
TOKENIZER = ("model", "size", "tokenizer", "vocab_size", "prefix_space", "data", "data_seed",
             "limit", "train_frac", "val_frac")  # fmt: skip

Measured = tuple[RunFolder, Predictions]


def other_ruler(runs: Sequence[Measured]) -> str | None:
    """Why the figures of these runs, which have the same rows, cannot be compared; or None."""
    runs = [run for run in runs if "loss_sum" in run[1].others]
    for run, rows in runs:
        if problem := own_problem(run, rows):
            return problem
    for other in runs[1:]:
        if problem := between(runs[0], other):
            return problem
    return None


def own_problem(run: RunFolder, rows: Predictions) -> str | None:
    """What one run says of itself that makes its figures no figures of the text."""
    if run.metrics.get("tokenizer_exact") is False:
        return (
            f"{run.name}: its tokenizer does not give the text back (tokenizer_exact is false): "
            "its nats are those of another text"
        )
    for name in ("num_chars", "num_targets"):
        reported, counts = run.metrics.get(name), rows.others.get(name)
        if isinstance(reported, int) and counts is not None and counts.sum() != reported:
            losses = rows.others["loss_sum"].sum()
            return (
                f"{run.name}: metrics.json counts {reported:,} {name}, predictions.csv "
                f"{counts.sum():,.0f} (by these {losses / counts.sum():.4f} nats each)"
            )
    return None


def between(first: Measured, other: Measured) -> str | None:
    (a, rows_a), (b, rows_b) = first, other
    for name, of_what in GEOMETRY.items():
        x, y = a.metrics.get(name), b.metrics.get(name)
        if x is not None and y is not None and x != y:
            return (
                f"{name} of {a.name} is {x}, of {b.name} {y}: {of_what} are read otherwise; "
                f"measure one of them again with {name} as the other's"
            )
    characters = [rows.others.get("num_chars") for rows in (rows_a, rows_b)]
    losses = [rows.others["loss_sum"] for rows in (rows_a, rows_b)]
    if characters[0] is not None and characters[1] is not None:
        apart = np.flatnonzero(characters[0] != characters[1])
        if len(apart):
            k, total = apart[0], characters[0].sum()
            return (
                f"{len(apart):,} of {len(rows_a):,} rows have other characters, such as row "
                f"{rows_a.ids[k]} with {characters[0][k]:,.0f} in {a.name} and "
                f"{characters[1][k]:,.0f} in {b.name}: other text, or bytes for characters. By the "
                f"characters of {a.name} the figure of {b.name} is {losses[1].sum() / total:.4f}, "
                f"not {losses[1].sum() / characters[1].sum():.4f}, if it scored all of them"
            )
    return other_targets(first, other)


def other_targets(first: Measured, other: Measured) -> str | None:
    """Two tokenizers count otherwise, by no rule. One tokenizer whose counts differ, or counts that
    differ by the same number in all rows, have not scored the same tokens."""
    (a, rows_a), (b, rows_b) = first, other
    counts = [rows.others["num_targets"] for rows in (rows_a, rows_b)]
    change = counts[1] - counts[0]
    if not change.any() or len(change) < 3:
        return None
    everywhere = change.min() == change.max()
    if not everywhere and any(a.config.get(name) != b.config.get(name) for name in TOKENIZER):
        return None
    k = int(np.flatnonzero(change)[0])
    what = (
        f"each row has {change[0]:+,.0f} targets in {b.name}: one counted twice, or left out"
        if everywhere
        else f"{int((change != 0).sum()):,} rows have other targets in {b.name}, such as "
        f"{rows_a.ids[k]} with {counts[1][k]:,.0f} for {counts[0][k]:,.0f}: cut, or not scored"
    )
    share = rows_b.others["loss_sum"] / np.maximum(counts[1], 1) * counts[0]
    by_count = share.sum() / counts[0].sum()
    return (
        f"{what}. By the targets of {a.name}, at the mean loss of each row, {b.name} would have "
        f"{by_count:.4f} nats a target, not {rows_b.others['loss_sum'].sum() / counts[1].sum():.4f}"
    )
