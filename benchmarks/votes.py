"""What the preference methods get on human votes, by folds over prompts, beside each other.

python -m benchmarks.votes pandalm.csv                             # a constant, style, features
python -m benchmarks.votes pandalm.csv --run "minilm: --model=minilm --max_length=128 --epochs=3"
python -m benchmarks.votes --losses docs/statistics/votes.csv         # the table again

Each fold's rows are answered by what was trained on the others; a run of run_5_models.py cuts its
validation rows from those. Log loss in nats with its interval over prompts, and the difference to
features on the same rows. --blend: each run is joined with features of its own training rows, by
weights fitted on its validation rows, and all three are shown: alone, joined, and those features,
which had fewer rows than those above. Ten folds of an encoder are ten runs. --seeds 3: all are
fitted three times; figures are means over seeds, intervals are over seeds and prompts
(docs/statistics.md). --losses keeps the nats of each row: arms that it has are not trained again,
and without a file of votes it is only shown.
"""

import argparse
import csv
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

import core
from data import arena
from data.arena import PairRow
from data.rows import stable_hash
from evaluation.comparisons import Difference, contrast
from evaluation.stats import Influence, Ratio, checked, group_index, influence, interval
from experiments.saved_pairs import open_run
from files import csv_text, write_text
from models import features

# (rows of training, of test, seed) → probabilities of those, by what is added to the arm's name
Train = Callable[[list[PairRow], list[PairRow], int], dict[str, np.ndarray]]
ALONE, FEATURES, SEED = " alone", ": counted", " #"


def constant(train: list[PairRow], test: list[PairRow], seed: int) -> dict[str, np.ndarray]:
    """The shares of the training rows."""
    shares = np.bincount([row.label for row in train], minlength=3) + 1
    return {"": np.tile(shares / shares.sum(), (len(test), 1))}


def counted(words: bool) -> Train:
    def answer(train: list[PairRow], test: list[PairRow], seed: int) -> dict[str, np.ndarray]:
        return {"": features.fit(train, seed, words).probabilities(test)}

    return answer


def three(p: np.ndarray) -> np.ndarray:
    """p (rows, 3): of a run that knows no ties they have 0."""
    return np.pad(p, ((0, 0), (0, 3 - p.shape[1])))


def trained(words: Sequence[str], blend: bool) -> Train:
    """A run of run_5_models.py, whose own test is a tenth of the training prompts, unused."""
    import run_5_models
    from commands.features import Config
    from commands.features import features as fit_features
    from settings import parse_settings

    def answer(train: list[PairRow], test: list[PairRow], seed: int) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(train, folder / "train.csv")
            data = [f"--data={folder}/train.csv", "--val_frac=0.15", "--test_frac=0.1"]
            own = []
            if blend:
                asked = [*data, f"--seed={seed}", f"--out={folder}/features"]
                fit_features(parse_settings(Config, asked, "features")[0])
                own = [f"--blend={folder}/features"]
            asked = [*words, *data, *own, f"--seed={seed}", f"--out={folder}/run", "--page=false"]
            run_5_models.main(*parse_settings(run_5_models.Config, asked, "run_5_models.py"))
            answer = open_run(folder / "run", core.single_world("auto"))
            found = {"": answer(test)}
            if blend:
                found |= {ALONE: answer.own(test), FEATURES: answer.other(test)}
            return {what: three(p) for what, p in found.items()}

    return answer


def write_rows(rows: Sequence[PairRow], path: Path) -> None:
    """As load_arena reads them."""
    lines = [
        (
            row.id,
            *(json.dumps(turns) for turns in (row.prompt, row.response_a, row.response_b)),
            *(int(row.label == k) for k in range(3)),
        )
        for row in rows
    ]
    write_text(
        path, csv_text(("id", "prompt", "response_a", "response_b", *arena.WINNER_COLUMNS), lines)
    )


def losses_by_folds(
    rows: list[PairRow], folds: int, train: Train, seed: int = 0
) -> dict[str, np.ndarray]:
    """(rows,) nats of each row's label, answered by what the other folds have trained; the keys are
    those of `train`."""
    fold = np.array([int(stable_hash("outer", row.group), 16) % folds for row in rows])
    losses: dict[str, np.ndarray] = {}
    for number in range(folds):
        test = [replace(row, split="test") for row in np.array(rows, object)[fold == number]]
        rest = [replace(row, split="train") for row in np.array(rows, object)[fold != number]]
        for what, p in (train(rest, test, seed) if test else {}).items():
            right = p[np.arange(len(test)), [row.label for row in test]]
            nats = losses.setdefault(what, np.zeros(len(rows)))
            nats[fold == number] = -np.log(np.maximum(right, 1e-12))
        said = (f"{what or 'answers'} {x[fold == number].mean():.4f}" for what, x in losses.items())
        print(f"fold {number + 1} of {folds}: {', '.join(said)}", file=sys.stderr)
    return losses


def seeds_of(losses: dict[str, np.ndarray], arm: str) -> list[Influence]:
    """The mean nats of an arm's runs, one a seed."""
    runs = [nats for name, nats in losses.items() if name.partition(SEED)[0] == arm]
    return [influence(checked(nats, nats), Ratio()) for nats in runs]


def apart(
    losses: dict[str, np.ndarray], arm: str, other: str, index: np.ndarray
) -> Difference | None:
    """Of the seeds that both have; None where one of them is not there."""
    both = list(zip(seeds_of(losses, other), seeds_of(losses, arm), strict=False))
    if not both or arm == other:
        return None
    return contrast(list(zip(*both, strict=True)), [-1.0, 1.0], index)


def table(groups: Sequence[str], losses: dict[str, np.ndarray]) -> str:
    """A line an arm; last, beside the features of its own that it was joined with."""
    index, lines = group_index(groups), []
    for name in dict.fromkeys(column.partition(SEED)[0] for column in losses):
        runs = seeds_of(losses, name)
        if len(runs) > 1:
            found = contrast([runs], [1.0], index)
            value, (low, high) = found.b, found.interval()
        else:
            value, (low, high, *_) = runs[0].value, interval(losses[name], groups)
        named = f"{name}, {len(runs)} seeds" if len(runs) > 1 else name
        line = [named, f"{value:.3f} [{low:.3f}, {high:.3f}]"]
        for other in ("features", name.removesuffix(ALONE) + FEATURES):
            between = apart(losses, name, other, index)
            if between is None:
                line.append("")
            else:
                low, high = between.interval()
                line.append(f"{between.value:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(line)
    head = ["", "log loss", "− features", "− its counted"]
    if not any(line[-1] for line in lines):
        head, lines = head[:-1], [line[:-1] for line in lines]
    return tabulate(lines, head, disable_numparse=True)


def read_losses(path: Path) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """(ids, groups, arm → nats of each row)"""
    with open(path, newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    ids, groups, *columns = zip(*lines, strict=True)
    losses = {n: np.array(c, float) for n, c in zip(head[2:], columns, strict=True)}
    return list(ids), list(groups), losses


def write_losses(
    path: Path, ids: Sequence[str], groups: Sequence[str], losses: dict[str, np.ndarray]
) -> None:
    columns = [[f"{nats:.6f}" for nats in each] for each in losses.values()]
    lines = zip(ids, groups, *columns, strict=True)
    write_text(path, csv_text(("id", "group", *losses), lines))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--run", action="append", default=[], help="name: words of run_5_models.py")
    parser.add_argument("--blend", action="store_true", help="runs are also joined with features")
    parser.add_argument("--losses", type=Path, help="CSV of each row's nats, which is added to")
    arguments = parser.parse_args(words)
    path, known = arguments.losses, {}
    if path is not None and (path.exists() or arguments.data is None):
        ids, groups, known = read_losses(path)
    if arguments.data is None:
        if path is None:
            parser.error("name a file of votes, or --losses FILE")
        return print(table(groups, known))
    rows, _ = arena.load_arena(arguments.data)
    if known and ids != [row.id for row in rows]:
        raise SystemExit(f"{path} is of other rows than {arguments.data}")
    ids, groups = [row.id for row in rows], [row.group[:12] for row in rows]
    arms: dict[str, Train] = {"constant": constant, "style": counted(False)}
    arms["features"] = counted(True)
    for each in arguments.run:
        name, _, words = each.partition(":")
        arms[name] = trained(words.split(), arguments.blend)
    for (name, train), seed in itertools.product(arms.items(), range(arguments.seeds)):
        numbered = f"{SEED}{seed}" if seed else ""
        if name + numbered in known or (seed and train is constant):
            continue
        found = losses_by_folds(rows, arguments.folds, train, seed)
        known |= {name + what + numbered: nats for what, nats in found.items()}
        if path is not None:
            write_losses(path, ids, groups, known)
    print(f"{len(rows):,} rows of {arguments.data}, {arguments.folds} folds over prompts")
    print(table(groups, known))


if __name__ == "__main__":
    main()
