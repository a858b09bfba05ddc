"""compare: what differs between runs, and whether the difference in their figures is noise.

Arms are compared with the first one. An arm is one run, or several seeds of the same settings.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation import comparisons, metrics
from evaluation.stats import mean_of_rows, resampled_sums
from reports.folder import RunFolder, find_runs, interval_of, is_run, load_runs, shared_notes
from reports.outcomes import ByRanks, by_ranks, has_test_rows, lost_runs
from reports.outcomes import notes as notes_on_outcomes
from settings import FREE_SETTINGS, flatten

ALPHA = 0.05
MOST_CLASSES = 200  # with an F1 of their own


# ------------------------------------------------------------------------- predictions


Statistic = Callable[[np.ndarray], np.ndarray]
HIGHER_IS_BETTER = {"accuracy", "f1_macro", "matthews_correlation", "pearson"}


@dataclass
class Predictions:
    """test/metrics/predictions.csv: what every row adds to the sums that metrics are made of.

    `columns` (n, c); a statistic takes (…, c + 1), their sums and the number of rows.
    """

    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray | None
    columns: np.ndarray
    statistics: dict[str, Statistic]
    right: np.ndarray | None = None  # (n,) bool, for classification
    reported: dict[str, Any] = field(default_factory=dict)  # metrics.json of the run

    def __len__(self) -> int:
        return len(self.ids)

    def value(self, metric: str) -> float:
        return float(self.statistics[metric](np.append(self.columns.sum(axis=0), len(self))))


def load_predictions(run: RunFolder) -> Predictions | None:
    """The run's test rows, sorted by id; None (and a note in the run) when they cannot be read."""
    import pandas

    path = run.path / "test/metrics/predictions.csv"
    text = dict.fromkeys(("id", "group", "label", "prediction"), str)
    try:
        frame = pandas.read_csv(path, dtype=text, keep_default_na=False, na_values={})
        if "group" not in frame:
            frame["group"] = frame["id"]
        frame["group"] = frame["group"].where(frame["group"] != "", frame["id"])  # of its own
        frame = frame.sort_values("id", kind="stable", ignore_index=True)
        if not len(frame):
            raise ValueError("it has no rows")
        if frame["id"].duplicated().any():
            raise ValueError(f"row id {frame['id'][frame['id'].duplicated()].iloc[0]} occurs twice")
        kind = next(
            kind
            for kind, columns in _KINDS.items()
            if columns <= set(frame) and (kind is not _regression or _is_regression(frame, run))
        )
        return kind(frame)
    except FileNotFoundError:
        run.notes.append("no test/metrics/predictions.csv: nothing to compare row by row")
    except (OSError, ValueError, KeyError, StopIteration) as error:
        why = str(error).splitlines()[0] if str(error) else "unknown columns"
        run.notes.append(f"predictions.csv cannot be used: {why}")
    return None


def _is_regression(frame: Any, run: RunFolder) -> bool:
    """Numbers, not all of them whole, without class probabilities or an accuracy."""
    if any(name.startswith("p_") for name in frame) or "accuracy" in run.metrics:
        return False
    try:
        numbers = frame[["label", "prediction"]].astype(float)
    except ValueError:
        return False
    fractions = bool((numbers != numbers.round()).any(axis=None))
    return fractions or bool({"pearson", "mse"} & run.metrics.keys())


def _classification(frame: Any) -> Predictions:
    names = [name.removeprefix("p_") for name in frame if name.startswith("p_")]
    classes = names or sorted(set(frame["label"]) | set(frame["prediction"]))
    position = {name: place for place, name in enumerate(classes)}
    for column in ("label", "prediction"):
        unknown = set(frame[column]) - set(position)
        if unknown:
            raise ValueError(f"{column} {sorted(unknown)[0]!r} has no column p_{min(unknown)}")
    labels = frame["label"].map(position).to_numpy(int)
    predictions = frame["prediction"].map(position).to_numpy(int)
    probabilities = None
    if names:
        probabilities = frame[[f"p_{name}" for name in names]].to_numpy(float)
        if not np.isfinite(probabilities).all():
            raise ValueError("a probability is NaN or infinite")
        if (probabilities < 0).any() or np.abs(probabilities.sum(axis=1) - 1).max() > 0.02:
            raise ValueError("the columns p_… of a row are no probabilities (logits?)")
    elif len(classes) > MOST_CLASSES:  # answers in words: no F1 of each
        right = predictions == labels
        return _predictions(frame, right[:, None].astype(float), {"accuracy": mean_of_rows}, right)
    columns = metrics.classification_columns(labels, predictions, len(classes), probabilities)
    statistics = {
        "accuracy": metrics.accuracy_of,
        "log_loss": metrics.log_loss_of,
        "f1_macro": metrics.f1_macro_of,
        "matthews_correlation": metrics.matthews_of,
    }
    if probabilities is None:
        del statistics["log_loss"]
    return _predictions(frame, columns, statistics, predictions == labels)


def _regression(frame: Any) -> Predictions:
    frame["label"], prediction = frame["label"].astype(float), frame["prediction"].to_numpy(float)
    label = frame["label"].to_numpy()
    if not (np.isfinite(label) & np.isfinite(prediction)).all():
        raise ValueError("a label or prediction is NaN or infinite")
    error = (label - prediction) ** 2
    # as far from 0 as they spread, or sums of squares would lose their digits
    label, prediction = (
        x - x.mean() if np.ptp(x) else np.zeros_like(x) for x in (label, prediction)
    )
    columns = np.column_stack(
        [error, label, prediction, label**2, prediction**2, label * prediction]
    )

    def pearson(sums: np.ndarray) -> np.ndarray:
        mean = sums[..., :-1] / sums[..., -1:]
        covariance = mean[..., 5] - mean[..., 1] * mean[..., 2]
        spread = (mean[..., 3] - mean[..., 1] ** 2) * (mean[..., 4] - mean[..., 2] ** 2)
        correlation = covariance / np.sqrt(np.maximum(spread, np.finfo(float).tiny))
        return np.clip(correlation, -1, 1)

    return _predictions(
        frame, columns, {"pearson": pearson, "mse": lambda sums: sums[..., 0] / sums[..., -1]}
    )


def _language_model(frame: Any) -> Predictions:
    names = ["loss_sum", "num_targets", *(["num_chars"] if "num_chars" in frame else [])]
    columns = frame[names].to_numpy(float)
    if not np.isfinite(columns).all():
        raise ValueError("a loss or count is NaN or infinite")
    statistics: dict[str, Statistic] = {"loss": lambda sums: sums[..., 0] / sums[..., 1]}
    if len(names) == 3:
        statistics["nats_per_char"] = lambda sums: sums[..., 0] / sums[..., 2]
    return _predictions(frame, columns, statistics)


_KINDS = {
    _language_model: {"id", "loss_sum", "num_targets"},
    _regression: {"id", "label", "prediction"},
    _classification: {"id", "label", "prediction"},
}


def _predictions(
    frame: Any,
    columns: np.ndarray,
    statistics: dict[str, Statistic],
    right: np.ndarray | None = None,
) -> Predictions:
    labels = frame["label"].to_numpy() if "label" in frame else None
    ids, groups = frame["id"].to_numpy(), frame["group"].to_numpy()
    return Predictions(ids, groups, labels, columns, statistics, right)


# -------------------------------------------------------------------------------- arms


@dataclass
class Arm:
    """Runs that count as one: the seeds of one setting."""

    label: str
    runs: list[RunFolder]

    @cached_property
    def predictions(self) -> list[Predictions]:
        aligned = []
        lost = {run.path for run in lost_runs(self.runs)}  # counted, and no rows to read
        for run in self.runs:
            if run.path not in lost and (rows := load_predictions(run)) is not None:
                rows.reported = run.metrics
                aligned.append(rows)
        return aligned


_spellings: dict[str, Any] = {}  # fingerprint of rows → how the first run that was read names them
_names: dict[tuple[str, str], str] = {}  # (setting, digest of what it names) → one name for it


def _one_name(setting: str, digest: str, spelling: str) -> str:
    """How the first run that was read spells it: ./tiny and a copy elsewhere are one setting, and
    another model under the same name is another."""
    if (setting, digest) not in _names:
        is_taken = any(spelling == name for (which, _), name in _names.items() if which == setting)
        _names[setting, digest] = f"{spelling} ({digest[:6]})" if is_taken else spelling
    return _names[setting, digest]


def settings_of(run: RunFolder) -> dict[str, Any]:
    """What defines the run's computation, but for its seed."""
    settings = {k: v for k, v in flatten(run.config).items() if k not in FREE_SETTINGS}
    settings.pop("seed", None)
    contents = run.record.get("contents")
    contents = dict(contents) if isinstance(contents, dict) else {}
    contents.pop("data", None)  # rows have a fingerprint
    for name, digest in contents.items():
        if settings.get(name):
            settings[name] = _one_name(name, str(digest), str(settings[name]))
    if (rows := run.record.get("data_fingerprint")) and settings.get("data"):
        settings["data"] = _spellings.setdefault(str(rows), settings["data"])
    command = run.record.get("command")
    first = command[0] if isinstance(command, list) and command else None
    return {"script": run.record.get("script") or first, **settings}


def group_runs(runs: Sequence[RunFolder], by: Sequence[str] | None = None) -> list[list[RunFolder]]:
    """Runs that are seeds of one setting together.

    They are when they lie in one folder as seed_0, seed_1, … (a sweep's layout), or else when
    all settings but the seed are the same; with `by`, when the settings named there are.
    """
    groups: dict[Any, list[RunFolder]] = {}
    for run in runs:
        settings = settings_of(run)
        if by is not None:
            missing = [name for name in by if name not in settings]
            if missing:
                raise ValueError(f"--group-by {missing[0]}: {run.path} has no such setting")
            key = repr([settings[name] for name in by])
        elif re.fullmatch(r"seed_\d+", run.path.name):
            key = run.path.absolute().parent
        else:
            key = repr(sorted(settings.items()))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def build_arms(paths: Sequence[str], by: Sequence[str] | None = None) -> list[Arm]:
    """Each argument is an arm: a run, or a folder of runs (its seeds).

    The runs of a single folder, and runs given one by one, are put into arms by group_runs;
    where that leaves one arm only, each run is an arm of its own.
    """
    if by is None and len(paths) > 1 and not all(is_run(Path(path)) for path in paths):
        arms = [Arm("", find_runs(path)) for path in paths]
        labels = shortest_tails([Path(path).absolute().parts for path in paths])
    else:
        runs = load_runs(paths)
        groups = group_runs(runs, by)
        if len(groups) == 1 and by is None:
            groups = [[run] for run in runs]
        arms = [Arm("", group) for group in groups]
        labels = labels_of(groups)
    if len(arms) < 2:
        raise ValueError("nothing to compare: give two runs, or two folders of runs, at least")
    for label, arm in zip(labels, arms, strict=True):
        arm.label = label
    paths = [run.path.resolve() for arm in arms for run in arm.runs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"{twice[0]} would be in two arms")
    for arm in arms:
        arm.runs = without_repeats(arm.runs)
    return arms


def without_repeats(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs of the same settings and seed are one draw: the first finished one stands for them."""
    kept: dict[Any, RunFolder] = {}
    for run in sorted(runs, key=lambda run: run.status != "finished"):
        key = repr((run.seed, sorted(settings_of(run).items())))
        first = kept.setdefault(key if run.seed is not None else id(run), run)
        if first is not run:
            first.notes.append(f"{run.path} has the same settings and seed: left out")
    return list(kept.values())


def labels_of(groups: Sequence[Sequence[RunFolder]]) -> list[str]:
    """The folder that holds all runs of a group, as little of it as tells the groups apart.

    Groups in one folder are told apart by the settings that differ between them.
    """
    folders = [
        Path(os.path.commonpath([run.path.absolute() for run in group])).parts for group in groups
    ]
    if len(set(folders)) < len(folders):
        settings = [settings_of(group[0]) for group in groups]
        names = dict.fromkeys(name for each in settings for name in each)
        differing = [name for name in names if len({show(s.get(name)) for s in settings}) > 1]
        if len(differing) > 2:  # too many to name: the first run of each must do
            return [
                group[0].path.name + (f" and {len(group) - 1} more" if len(group) > 1 else "")
                for group in groups
            ]
        return [", ".join(f"{n}={show(each.get(n))}" for n in differing) for each in settings]
    # of one run the arm's folder, too, where sweep.py put it into one
    arms = [parts[:-1] if re.fullmatch(r"seed_\d+", parts[-1]) else parts for parts in folders]
    return shortest_tails(arms if len(set(arms)) == len(arms) else folders)


def shortest_tails(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Of each path as many of its last parts as tell them all apart."""
    length = 1
    while len({parts[-length:] for parts in paths}) < len(set(paths)):
        length += 1
    return [str(Path(*parts[-length:])) for parts in paths]


# ------------------------------------------------------------------------- differences

ENVIRONMENT = (
    "device",
    "device_name",
    "world_size",
    "threads",
    "backend",
    "precision",
    "commit",
    "dirty",
)
DATA = ("data_fingerprint", "split_fingerprint", "repairs")


def differences(arms: Sequence[Arm]) -> dict[str, list[list[str]]]:
    """{"settings" | "data and split" | "environment": [[name, value in each arm …], …]}.

    Only what differs between the arms, or (but for the seed) within one.
    """

    def settings(run: RunFolder) -> dict[str, Any]:
        return settings_of(run) | {"seed": run.seed}

    def data(run: RunFolder) -> dict[str, Any]:
        facts = {name: run.record.get(name) for name in DATA}
        return facts if lost_runs([run]) else facts | {"test rows": run.metrics.get("n")}

    def environment(run: RunFolder) -> dict[str, Any]:
        """Of all sessions: a run may have been continued on another machine."""
        sessions = []
        for session in run.sessions:
            facts = {name: session.get(name) for name in ENVIRONMENT}
            facts["commit"] = str(facts["commit"] or "")[:10]
            sessions.append(facts | flatten({"versions": session.get("versions")}))
        names = dict.fromkeys(name for facts in sessions for name in facts)
        facts = {
            name: " then ".join(dict.fromkeys(show(facts.get(name)) for facts in sessions))
            for name in names
        }
        patch = run.path / "diff.patch"
        if patch.is_file():
            facts["diff.patch"] = hashlib.sha256(patch.read_bytes()).hexdigest()[:10]
        return facts

    tables = {}
    sections = {"settings": settings, "data and split": data, "environment": environment}
    for section, facts_of in sections.items():
        facts = [[facts_of(run) for run in arm.runs] for arm in arms]
        rows = []
        for name in dict.fromkeys(name for arm in facts for run in arm for name in run):
            there = [[run for run in arm if name != "test rows" or name in run] for arm in facts]
            values = [list(dict.fromkeys(show(run.get(name)) for run in arm)) for arm in there]
            between = len({frozenset(arm) for arm in values if arm}) > 1
            within = name != "seed" and any(len(arm) > 1 for arm in values)
            if between or within:
                rows.append([name, *(", ".join(arm) for arm in values)])
        if rows:
            tables[section] = rows
    return tables


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None or value == "" else str(value)


def refusal(arms: Sequence[Arm]) -> str | None:
    """Why the runs cannot be compared row by row, or None."""
    runs = [run for arm in arms for run in arm.runs]
    for name in ("split_fingerprint", "data_fingerprint"):
        known = {str(run.record[name]): run for run in runs if run.record.get(name)}
        if len(known) > 1:
            first, second = list(known.values())[:2]
            what = "splits" if name.startswith("split") else "data"
            return (
                f"{first.name} and {second.name} have different {what} ({name} "
                f"{first.record[name]} and {second.record[name]})"
            )
    rows = [predictions for arm in arms for predictions in arm.predictions]
    for other in rows[1:]:
        if set(rows[0].statistics).isdisjoint(other.statistics):
            return "the runs do different tasks"
        if len(rows[0]) != len(other) or (rows[0].ids != other.ids).any():
            shared = len(np.intersect1d(rows[0].ids, other.ids))
            return (
                f"the test rows are not the same: {len(rows[0])} and {len(other)}, {shared} shared"
            )
        if rows[0].labels is not None and (rows[0].labels != other.labels).any():
            return "the same test rows have other labels (shuffled in one of the runs?)"
        if (rows[0].groups != other.groups).any():
            return "the same test rows are grouped otherwise"
    return None


# ------------------------------------------------------------------------ comparisons


@dataclass
class Comparison:
    """One metric of one arm against another, which is the first or the one before."""

    metric: str
    higher_is_better: bool
    arm: Arm
    baseline: Arm
    difference: comparisons.Difference
    paired: bool
    num_groups: int
    p_holm: float = math.nan

    @property
    def over_seeds(self) -> bool:
        return min(len(self.arm.predictions), len(self.baseline.predictions)) >= (
            comparisons.MIN_SEEDS
        )

    @property
    def separable(self) -> bool:
        return self.p_holm < ALPHA

    @property
    def verdict(self) -> str:
        """better, worse or not separable over seeds; of two models only that they differ."""
        rows = "on these rows" if self.paired else "on their own rows (unpaired)"
        if not self.over_seeds:
            state = "differ" if self.separable else "are not separable"
            single = len(self.arm.predictions) == len(self.baseline.predictions) == 1
            who = "these two models" if single else "these models (means of those of an arm)"
            return f"{who} {state} {rows}"
        if not self.separable:
            return "not separable"
        return "better" if (self.difference.value > 0) == self.higher_is_better else "worse"

    @property
    def sentence(self) -> str:
        d, verdict = self.difference, self.verdict
        if verdict in ("better", "worse"):
            verdict = f"{self.arm.label} is {verdict}"
        arms = f"{self.arm.label} against {self.baseline.label}"
        text = f"{self.metric}, {arms}: {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}], "
        return f"{text}p {show_p(self.p_holm)}: {verdict}. {self.needed}"

    @property
    def needed(self) -> str:
        """Rows or seeds that would show a difference of this size in 4 of 5 experiments."""
        d, groups = self.difference, f"{self.num_groups:,}"
        alone = self.num_groups == len(self.baseline.predictions[0])
        unit = "test rows" if alone else "groups of test rows"
        if d.value == 0:
            return "There is no difference to look for."
        row_std = math.sqrt(d.row_variance * self.num_groups)
        lead = "A difference of this size is seen in 4 of 5 experiments with"
        if self.over_seeds:
            seed_std = math.sqrt((d.seed_variance or 0.0) / 2)
            seeds = comparisons.seeds_needed(d.value, self.num_groups, row_std, seed_std)
            if seeds is not None:
                seeds = max(seeds, comparisons.MIN_SEEDS)
                return f"{lead} {seeds} seeds an arm on these rows."
            rows = comparisons.rows_needed(d.value, row_std, 100, seed_std)
            many = f"about {rows:,} {unit}" if rows else "seeds differ too much"
            return (
                f"No number of seeds shows a difference of this size on {groups} {unit}; "
                f"with 100 seeds: {many}."
            )
        rows = comparisons.rows_needed(d.value, row_std)
        many = f"about {rows:,}" if rows else "more than 100 million"
        return f"{lead} {many} {unit} (here {groups})."


def show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(
    arms: Sequence[Arm],
    names: Sequence[str] | None = None,
    paired: bool = True,
    previous: bool = False,
) -> list[Comparison | ByRanks]:
    """Every metric of every arm against the first, or against the one before it (`previous`);
    by ranks where a seed diverged.

    p-values are Holm-corrected over all of them.
    """
    for arm in arms:
        if not arm.predictions and lost_runs(arm.runs):
            continue
        if not arm.predictions:
            notes = [f"{run.path}: {note}" for run in arm.runs for note in run.notes]
            raise ValueError("; ".join([f"{arm.label} has no test rows", *notes]))
        if len(np.unique(arm.predictions[0].groups)) < 2:
            raise ValueError(
                f"{arm.label}: all test rows are in one group: how groups differ cannot be known"
            )
    resampled = _resample(arms, paired)
    results: list[Comparison | ByRanks] = []
    for name in metrics_in_common(arms, names):
        for number in range(1, len(arms)):
            first = number - 1 if previous else 0
            results.append(
                by_ranks(name, name in HIGHER_IS_BETTER, arms[first], arms[number])
                or _compare_metric(name, arms, (first, number), resampled, paired)
            )
    corrected = comparisons.holm([comparison.difference.p for comparison in results])
    for comparison, p in zip(results, corrected, strict=True):
        comparison.p_holm = p
    return results


def _resample(arms: Sequence[Arm], paired: bool) -> list[list[np.ndarray]]:
    """For each run of each arm: sums of its columns over the resampled rows (repeats, c + 1).

    Paired: the same resamples for all. Unpaired: the same within an arm.
    """
    groups_of_arms = [list(arms)] if paired else [[arm] for arm in arms]
    arms_rows = []
    for seed, together in enumerate(groups_of_arms):
        runs = [rows for arm in together for rows in arm.predictions]
        if not runs:
            arms_rows += [[] for _ in together]
            continue
        if all(
            np.array_equal(rows.ids, runs[0].ids) and np.array_equal(rows.groups, runs[0].groups)
            for rows in runs
        ):
            stacked = np.column_stack([rows.columns for rows in runs])
            sums = resampled_sums(stacked, runs[0].groups, comparisons.REPEATS, seed)
            edges = np.cumsum([rows.columns.shape[1] for rows in runs])
            parts = np.split(sums[:, :-1], edges[:-1], axis=1)
            each = [np.column_stack([part, sums[:, -1]]) for part in parts]
        else:
            each = [
                resampled_sums(rows.columns, rows.groups, comparisons.REPEATS, seed)
                for rows in runs
            ]
        for arm in together:
            arms_rows.append([each.pop(0) for _ in arm.predictions])
    return arms_rows


def metrics_in_common(arms: Sequence[Arm], names: Sequence[str] | None = None) -> list[str]:
    """Those to compare the arms by, or `names`. ValueError for one that not all runs have."""
    rows = [predictions for arm in arms for predictions in arm.predictions]
    if not rows:
        raise ValueError("all of these runs diverged: there is no figure to compare")
    known = [name for name in rows[0].statistics if all(name in r.statistics for r in rows)]
    if not known:
        raise ValueError("these runs have no metric in common")
    if names:
        for name in names:
            if name not in known:
                raise ValueError(
                    f"no metric {name} in all of these runs, which have {', '.join(known)}"
                )
        return list(names)
    reported = [run.metrics for arm in arms for run in arm.runs if has_test_rows(run)]
    if not all(
        "matthews_correlation" in metrics for metrics in reported
    ):  # asked for by some tasks
        known = [name for name in known if name != "matthews_correlation"]
    if "loss" in known and len({r.columns[:, 1].sum() for r in rows}) > 1:
        known.remove("loss")  # nats a token say nothing across tokenizers
        if not known:
            raise ValueError(
                "the runs count other tokens (num_targets differ), and predictions.csv has no "
                "num_chars to compare by"
            )
    return known


def _compare_metric(
    name: str,
    arms: Sequence[Arm],
    pair: tuple[int, int],
    resampled: list[list[np.ndarray]],
    paired: bool,
) -> Comparison:
    first, second = pair
    a, b = arms[first].predictions, arms[second].predictions
    num_groups = len(np.unique(a[0].groups))
    values_a, values_b = (np.array([rows.value(name) for rows in arm]) for arm in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates_a, replicates_b = (
            np.stack(
                [rows.statistics[name](sums) for rows, sums in zip(arm, drawn, strict=True)], 1
            )
            for arm, drawn in ((a, resampled[first]), (b, resampled[second]))
        )
    if min(len(a), len(b)) >= comparisons.MIN_SEEDS:
        difference = comparisons.two_arms(
            values_a, values_b, replicates_a, replicates_b, num_groups
        )
    else:  # of several seeds, their mean
        of_both = (
            *(float(values_a.mean()), float(values_b.mean())),
            *(replicates_a.mean(axis=1), replicates_b.mean(axis=1)),
        )
        if paired:
            difference = comparisons.two_models(*of_both, num_groups)
        else:
            difference = comparisons.unpaired(*of_both)
        if paired and name == "accuracy" and len(a) == len(b) == 1:
            difference.p = comparisons.mcnemar(a[0].right, b[0].right, a[0].groups)
    higher = name in HIGHER_IS_BETTER
    return Comparison(name, higher, arms[second], arms[first], difference, paired, num_groups)


# ------------------------------------------------------------------------------ output


def report(
    paths: Sequence[str],
    by: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    anyway: bool = False,
    style: str = "simple",
) -> str:
    """The whole comparison as text; `style` is tabulate's name of a table format.

    ValueError when the runs cannot be compared row by row and `anyway` is not set.
    """
    arms = build_arms(paths, by)
    why = refusal(arms)  # reads the test rows, and notes what is wrong with them
    lines = [f"{arm.label}: {len(arm.runs)} run(s)" for arm in arms]
    lines[0] += ", the baseline"
    runs = [run for arm in arms for run in arm.runs]
    lines += notes_on_outcomes(runs)
    lines += shared_notes(runs)
    lines += [
        f"note: the runs of {arm.label} differ in more than the seed, which adds to their spread"
        for arm in arms
        if len({repr(sorted(settings_of(run).items())) for run in arm.runs}) > 1
    ]
    lines += ["", *_differences_as_text(arms, style)]
    if why and not anyway:
        raise ValueError(
            "\n".join([*lines, "", f"not compared: {why}. --anyway compares them unpaired"])
        )
    results = compare(arms, names, paired=why is None)
    if why:
        lines += [f"Compared unpaired, although {why}: each figure on its own rows.", ""]
    lines += [*_figures_as_text(arms, results, style), "", *(c.sentence for c in results), ""]
    return "\n".join([*lines, *caveats(results)])


def caveats(results: Sequence[Comparison]) -> list[str]:
    """What has to be said below these comparisons."""
    lines = []
    if len(results) > 1:
        lines.append(f"p-values are Holm-corrected over these {len(results)} comparisons.")
    if not all(comparison.over_seeds for comparison in results):
        lines.append(
            "Two runs are two models. What a change of method does is judged over seeds: "
            f"{comparisons.MIN_SEEDS} or more an arm."
        )
    return lines


def _differences_as_text(arms: Sequence[Arm], style: str) -> list[str]:
    tables = differences(arms)
    if not tables:
        return ["No setting, data or environment differs.", ""]
    lines = []
    for section, rows in tables.items():
        lines += [tabulate(rows, [section, *(arm.label for arm in arms)], tablefmt=style), ""]
    changed = [row[0] for row in tables.get("settings", []) if row[0] != "seed"]
    if len(changed) > 1:
        lines += [
            f"{len(changed)} settings differ ({', '.join(changed)}): what follows cannot say which "
            "of them did it.",
            "",
        ]
    if "environment" in tables:
        names = ", ".join(row[0] for row in tables["environment"])
        lines += [f"The environment differs too ({names}), which may change figures.", ""]
    return lines


def _figures_as_text(arms: Sequence[Arm], results: list[Comparison], style: str) -> list[str]:
    """One line a metric: each arm's mean with its interval."""
    rows = []
    for name in dict.fromkeys(comparison.metric for comparison in results):
        rows.append([name, *(_figure(arm, name) for arm in arms)])
        if name == "loss":
            perplexities = [
                f"{np.exp(np.mean([rows.value(name) for rows in arm.predictions])):.2f}"
                if arm.predictions
                else ""
                for arm in arms
            ]
            rows.append(["perplexity", *perplexities])
    return [tabulate(rows, ["", *(arm.label for arm in arms)], tablefmt=style)]


def _figure(arm: Arm, name: str) -> str:
    value, low, high = figure_of(arm, name)
    text = f"{value:.4f}" if math.isnan(low) else f"{value:.4f} [{low:.4f}, {high:.4f}]"
    seeds, lost = len(arm.predictions), len(lost_runs(arm.runs))
    if lost:
        return f"{text} ({seeds} of {seeds + lost} seeds)" if seeds else f"{lost} diverged"
    return text if seeds == 1 else f"{text} ({seeds} seeds)"


def figure_of(arm: Arm, name: str) -> tuple[float, float, float]:
    """A metric with its interval: the mean over seeds, or a run's own (NaN where it gave none)."""
    values = [rows.value(name) for rows in arm.predictions]
    if lost_runs(arm.runs):  # the mean of those that are left: of what, an interval cannot say
        return (float(np.mean(values)) if values else math.nan, math.nan, math.nan)
    if len(values) > 1:
        return mean_interval(values)
    interval = interval_of(arm.predictions[0].reported, name) or (math.nan, math.nan)
    return (values[0], *interval)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % interval (Student's t over the seeds, on these rows)."""
    from scipy.special import stdtrit

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    width = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, mean - float(width), mean + float(width)
