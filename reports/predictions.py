"""test/metrics/predictions.csv as figures: each with what every row adds to it."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from evaluation import glue_metrics, metrics
from evaluation.stats import Influence, Ratio, Statistic, checked, influence
from reports import packed
from reports.folder import RunFolder

MOST_CLASSES = 200  # with an F1 of their own
HIGHER_IS_BETTER = {
    *("accuracy", "f1", "f1_a", "f1_macro", "matthews_correlation", "pearson", "spearman"),
    *("exact_match", "flip_consistency", "judge"),
}
# also as part of a name
LOWER_IS_BETTER = ("loss", "nats", "bits", "mse", "perplexity", "calibration_error")
TEXT_COLUMNS = dict.fromkeys(("id", "group", "label", "prediction"), str)


@dataclass
class Predictions:
    """The test rows of a run, sorted by id; statistics take the sums of `columns` (n, c)."""

    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray | None
    columns: np.ndarray
    statistics: dict[str, Statistic]
    right: np.ndarray | None = None  # (n,) bool, for classification
    reported: dict[str, Any] = field(default_factory=dict)  # metrics.json of the run
    main: tuple[str, ...] = ()  # those that are compared without being asked for
    # the columns themselves: (n,) each, whose means can be asked for by name
    others: dict[str, np.ndarray] = field(default_factory=dict)
    _influences: dict[str, Influence] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    def value(self, metric: str) -> float:
        return self.influence(metric).value

    def influence(self, metric: str) -> Influence:
        """The figure, and what each row adds to its distance from the truth."""
        if metric not in self._influences:
            columns = checked(self.others.get(metric, self.columns), self.groups)
            found = influence(columns, self.statistics[metric])
            if metric == "spearman":
                x, y = columns[:, 2], columns[:, 1]
                found.rows = glue_metrics.spearman_influence(x, y)
            self._influences[metric] = found
        return self._influences[metric]

    def only(self, rows: np.ndarray) -> "Predictions":
        """Those rows alone; rows: (n,) bool."""
        return replace(
            self,
            ids=self.ids[rows],
            groups=self.groups[rows],
            labels=None if self.labels is None else self.labels[rows],
            columns=self.columns[rows],
            right=None if self.right is None else self.right[rows],
            others={name: values[rows] for name, values in self.others.items()},
            _influences={},
        )

    @property
    def primary(self) -> str:
        """The metric that was trained and chosen, as metrics.json declares it; of runs that are
        older than that, by what they were trained on."""
        declared = self.reported.get("primary")
        if declared in self.statistics:
            return str(declared)
        if self.reported.get("trained_on") == "response" and "response_loss" in self.statistics:
            return "response_loss"
        if "nats_per_token" in self.reported and "nats_per_char" in self.statistics:
            return "nats_per_char"  # headlines
        return next(name for name in (*OLD_PRIMARY, *self.statistics) if name in self.statistics)


OLD_PRIMARY = ("log_loss", "loss", "pearson")


def direction(metric: str) -> int:
    """1 where higher is better, −1 where lower is, 0 where neither is known."""
    if metric in HIGHER_IS_BETTER or metric.startswith(("accuracy", "recall")):
        return 1
    return -1 if any(part in metric for part in LOWER_IS_BETTER) else 0


def rows_digest(rows: Predictions) -> str:
    """16 hex digits of which test rows these are, whatever was answered."""
    return ids_digest(rows.ids)


def ids_digest(ids: Iterable[str]) -> str:
    text = "\n".join(sorted(map(str, ids)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(run: RunFolder, part: str = "test") -> Any:
    """predictions.csv of a part (test, baseline) as a pandas frame, sorted by id. OSError and
    ValueError where it cannot be read."""
    import pandas

    rows = io.BytesIO(packed.read_bytes(run.path / part / "metrics/predictions.csv"))
    frame = pandas.read_csv(rows, dtype=TEXT_COLUMNS, keep_default_na=False, na_values={})
    if "group" not in frame:
        frame["group"] = frame["id"]
    frame["group"] = frame["group"].where(frame["group"] != "", frame["id"])  # of its own
    frame = frame.sort_values("id", kind="stable", ignore_index=True)
    if not len(frame):
        raise ValueError("it has no rows")
    if frame["id"].duplicated().any():
        raise ValueError(f"row id {frame['id'][frame['id'].duplicated()].iloc[0]} occurs twice")
    return frame


def load_predictions(run: RunFolder, part: str = "test") -> Predictions | None:
    """The run's test rows; None (and a note in the run) when they cannot be read."""
    try:
        frame = read_rows(run, part)
        kind = next(
            kind
            for kind, columns in _KINDS.items()
            if columns <= set(frame) and (kind is not _regression or _is_regression(frame, run))
        )
        rows = kind(frame)
    except FileNotFoundError:
        run.notes.append("no test/metrics/predictions.csv: nothing to compare row by row")
    except (OSError, ValueError, KeyError, StopIteration) as error:
        why = str(error).splitlines()[0] if str(error) else "unknown columns"
        run.notes.append(f"predictions.csv cannot be used: {why}")
    else:
        rows.reported = run.metrics
        rows.others = {
            name: frame[name].to_numpy(float)
            for name in frame.select_dtypes("number")
            if name not in {*TEXT_COLUMNS, *rows.statistics}
        }
        rows.statistics |= dict.fromkeys(rows.others, Ratio())
        return rows
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
    probabilities, right = None, predictions == labels
    if names:
        probabilities = frame[[f"p_{name}" for name in names]].to_numpy(float)
        if not np.isfinite(probabilities).all():
            raise ValueError("a probability is NaN or infinite")
        if (probabilities < 0).any() or np.abs(probabilities.sum(axis=1) - 1).max() > 0.02:
            raise ValueError("the columns p_… of a row are no probabilities (logits?)")
    elif len(classes) > MOST_CLASSES:  # answers in words: no F1 of each
        share = {"accuracy": Ratio(kind="share")}
        return _predictions(frame, right[:, None].astype(float), share, right)
    columns = metrics.classification_columns(labels, predictions, len(classes), probabilities)
    statistics: dict[str, Statistic] = {"accuracy": metrics.ACCURACY}
    if probabilities is not None:
        statistics["log_loss"] = metrics.LOG_LOSS
    statistics |= {"f1_macro": metrics.F1_MACRO, "matthews_correlation": metrics.MATTHEWS}
    if len(classes) == 2:  # of the second class, as in GLUE
        statistics["f1"] = metrics.F1_SECOND
    rows = _predictions(frame, columns, statistics, right)
    rows.main = ("accuracy", "log_loss", "f1_macro")
    return rows


def _regression(frame: Any) -> Predictions:
    label, prediction = (frame[name].to_numpy(float) for name in ("label", "prediction"))
    frame["label"] = label
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
    columns = np.column_stack([columns, glue_metrics.rank_moments(prediction, label)])

    def correlation(first: int) -> Statistic:
        def formula(sums: np.ndarray) -> np.ndarray:
            mean = sums[..., first : first + 5] / sums[..., -1:]
            covariance = mean[..., 4] - mean[..., 0] * mean[..., 1]
            spread = (mean[..., 2] - mean[..., 0] ** 2) * (mean[..., 3] - mean[..., 1] ** 2)
            found = covariance / np.sqrt(np.maximum(spread, np.finfo(float).tiny))
            return np.clip(found, -1, 1)

        return metrics.Function(formula, "correlation")

    statistics = {"pearson": correlation(1), "mse": Ratio(), "spearman": correlation(6)}
    rows = _predictions(frame, columns, statistics)
    rows.main = ("pearson", "mse")
    return rows


def _language_model(frame: Any) -> Predictions:
    """Each …loss_sum over the targets of the same name, and over characters."""
    names = [name for name in frame if name.endswith(("loss_sum", "num_targets", "num_chars"))]
    columns = frame[names].to_numpy(float)
    if not np.isfinite(columns).all():
        raise ValueError("a loss or count is NaN or infinite")
    place = {name: number for number, name in enumerate(names)}
    statistics: dict[str, Statistic] = {}
    for name in names:
        prefix, is_sum, _ = name.partition("loss_sum")
        if not is_sum:
            continue
        for figure, count in (("loss", "num_targets"), ("nats_per_char", "num_chars")):
            divisor = f"{prefix}{count}"
            if divisor in place and columns[:, place[divisor]].any():
                statistics[f"{prefix}{figure}"] = Ratio(place[name], place[divisor])
    rows = _predictions(frame, columns, statistics)
    rows.main = tuple(name for name in ("loss", "nats_per_char") if name in statistics)
    return rows


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
    return Predictions(ids, groups, labels, columns, dict(statistics), right, main=(*statistics,))
