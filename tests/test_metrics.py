"""evaluation/metrics.py against sklearn and plain loops; its intervals: test_statistics.py."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from evaluation import metrics, stats

NAMES = ("A", "B", "tie")


def sample_rows(num_rows: int, seed: int, num_classes: int = 3, scale: float = 1.0):
    """Logits (n, k) and labels drawn from their softmax: a perfectly calibrated model."""
    generator = np.random.default_rng(seed)
    logits = scale * generator.normal(size=(num_rows, num_classes))
    probabilities = metrics.apply_temperature(logits, 1.0)
    uniform = generator.random((num_rows, 1))
    labels = (uniform > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return logits, probabilities, labels


def test_wilson_interval_equals_its_closed_form():
    z, share, n = 1.959963984540054, 47 / 100, 100
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert stats.wilson_interval(47, 100) == pytest.approx((centre - half, centre + half))
    assert stats.wilson_interval(100, 100)[0] < 0.97


def jackknife_error(num_groups: int, statistic) -> float:
    """Standard error by leaving one group out at a time, groups being neighbouring rows."""
    rows = np.arange(num_groups * 2).reshape(num_groups, 2)
    without = [statistic(np.delete(rows, group, 0).ravel()) for group in range(num_groups)]
    return float(np.sqrt((num_groups - 1) / num_groups * ((without - np.mean(without)) ** 2).sum()))


def test_intervals_of_log_loss_and_f1_are_as_wide_as_a_jackknife_over_sklearn():
    _, probabilities, labels = sample_rows(200, seed=2)
    groups = np.arange(200) // 2
    result = metrics.classification_metrics(probabilities, labels, groups, NAMES)

    def f1(rows):
        return sklearn_metrics.f1_score(
            labels[rows], probabilities[rows].argmax(1), average="macro"
        )

    def log_loss(rows):
        return sklearn_metrics.log_loss(labels[rows], probabilities[rows], labels=range(3))

    for name, statistic in (("f1_macro", f1), ("log_loss", log_loss)):
        low, high = result[f"{name}_ci95"]
        assert high - low == pytest.approx(2 * 1.98 * jackknife_error(100, statistic), rel=0.04)


def test_metrics_of_sums_equal_sklearn_also_when_a_class_is_missing():
    generator = np.random.default_rng(7)
    for labels, predictions in (
        (np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])),
        (generator.integers(3, size=90), generator.integers(3, size=90)),
    ):
        columns = metrics.classification_columns(labels, predictions, 3)
        sums = np.concatenate([columns.sum(axis=0), [len(labels)]])
        for statistic, expected in (
            (metrics.accuracy_of, sklearn_metrics.accuracy_score(labels, predictions)),
            (
                metrics.f1_macro_of,
                sklearn_metrics.f1_score(labels, predictions, average="macro"),
            ),
            (metrics.matthews_of, sklearn_metrics.matthews_corrcoef(labels, predictions)),
        ):
            assert statistic(sums) == pytest.approx(expected)


def test_metrics_say_how_their_intervals_were_made_and_why_one_is_missing():
    _, probabilities, labels = sample_rows(60, seed=2)
    one_group = metrics.classification_metrics(probabilities, labels, ["g"] * 60, NAMES)
    assert not any(name.endswith("_ci95") for name in one_group)
    assert one_group["no_interval"]["accuracy"] == "all rows are in one group"
    result = metrics.classification_metrics(probabilities, labels, np.arange(60) // 2, NAMES)
    assert result["primary"] == "log_loss" and result["interval_method"] == stats.METHOD
    assert result["groups"] == 30 and result["effective_groups"] == 30
    assert "no_interval" not in result and json.loads(json.dumps(result)) == result
    without = metrics.classification_metrics(probabilities, labels, range(60), NAMES, False)
    assert not {"primary", "interval_method", "groups"} & without.keys()


def test_classification_metrics_equal_sklearn():
    _, probabilities, labels = sample_rows(400, seed=6, num_classes=4)
    result = metrics.classification_metrics(probabilities, labels, range(400), "abcd")
    predictions = probabilities.argmax(axis=1)
    hits = int((predictions == labels).sum())
    assert result["accuracy"] == sklearn_metrics.accuracy_score(labels, predictions)
    assert tuple(result["accuracy_ci95"]) == stats.wilson_interval(hits, 400)
    assert result["log_loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities))
    assert result["log_loss_ci95"][0] < result["log_loss"] < result["log_loss_ci95"][1]
    recalls = sklearn_metrics.recall_score(labels, predictions, average=None)
    assert [result[f"recall_{name}"] for name in "abcd"] == pytest.approx(recalls)
    matrix = sklearn_metrics.confusion_matrix(labels, predictions)
    assert result["confusion_matrix"] == matrix.tolist()
    assert result["constant_accuracy"] == np.bincount(labels).max() / 400
    assert result["constant_class"] == "abcd"[np.bincount(labels).argmax()]
    constant = np.tile(np.bincount(labels) / 400, (400, 1))
    assert result["prior_entropy"] == pytest.approx(sklearn_metrics.log_loss(labels, constant))
    assert result["uniform_log_loss"] == pytest.approx(math.log(4))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_what_rows_cannot_give_is_absent_and_nothing_warns():
    probabilities = np.float32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    result = metrics.classification_metrics(probabilities, [0, 1], ["x", "x"], NAMES)
    assert "recall_tie" not in result and "log_loss_ci95" not in result
    assert result["accuracy"] == result["f1_macro"] == 1.0
    _, probabilities, labels = sample_rows(500, seed=7)
    halves = probabilities.astype(np.float16).astype(np.float32)  # rows sum to 1 within 1e-3
    result = metrics.classification_metrics(halves, labels, range(500), NAMES, intervals=False)
    assert not [name for name in result if name.endswith("_ci95")]


def test_copies_of_rows_in_one_group_do_not_narrow_an_interval():
    _, probabilities, labels = sample_rows(1000, seed=8)
    copies = np.repeat(np.arange(1000), 4)
    alone = metrics.classification_metrics(probabilities, labels, range(1000), NAMES)
    copied = metrics.classification_metrics(probabilities[copies], labels[copies], copies, NAMES)
    for name in ("accuracy", "recall_A", "log_loss", "f1_macro"):
        widths = [np.diff(result[f"{name}_ci95"])[0] for result in (alone, copied)]
        assert widths[1] == pytest.approx(widths[0], rel=0.06), name


def test_expected_calibration_error_of_a_hand_computed_example():
    # Bin (.6, .667]: .65 twice, both right: |1.3 - 2| = .7. Bin (.867, .933]: .9 right: .1.
    # Bin (.533, .6], closed on the right: .6 wrong: .6. Sum 1.4 over 4 rows.
    top = np.array([0.65, 0.65, 0.9, 0.6])
    probabilities = np.stack([top, 1 - top], axis=1)
    error = metrics.expected_calibration_error(probabilities, np.array([0, 0, 0, 1]))
    assert error == pytest.approx(1.4 / 4)


def test_a_symmetric_model_is_flip_consistent_and_length_bias_counts_by_hand():
    # longer:     A  B  A  B  -   (the last row has responses of one length)
    # prediction: A  B  B  T  A   chooses the longer in 2 of 3 answers that are not ties
    # label:      A  A  B  B  B   prefers the longer in 2 of 4
    predictions, labels = np.array([0, 1, 1, 2, 0]), np.array([0, 0, 1, 1, 1])
    length_a, length_b = np.array([9, 1, 9, 1, 5]), np.array([2, 2, 2, 2, 5])
    probabilities = np.full((5, 3), 0.1) + 0.7 * np.eye(3)[predictions]
    symmetric = probabilities[:, [1, 0, 2]]
    lengths = (length_a, length_b)
    result = metrics.preference_metrics(probabilities, symmetric, labels, range(5), *lengths)
    assert result["flip_consistency"] == 1.0
    assert result["n_unequal_length"] == 4
    assert result["length_bias"] == pytest.approx(2 / 3 - 2 / 4)
    assert result["longer_wins_agreement"] == 0.5
    assert result["longer_wins_accuracy"] == 0.5
    assert result["recall_B"] == pytest.approx(1 / 3)
    json.dumps(result, allow_nan=False)

    always_first = metrics.preference_metrics(
        probabilities, probabilities, labels, range(5), *lengths
    )
    assert always_first["flip_consistency"] == 0.2  # only the tie is the same both ways


def test_length_bias_is_zero_for_a_model_that_answers_as_people_do():
    _, probabilities, labels = sample_rows(300, seed=9)
    answers = np.eye(3)[labels]
    lengths = np.random.default_rng(9).integers(1, 50, size=(2, 300))
    swapped = answers[:, [1, 0, 2]]
    result = metrics.preference_metrics(answers, swapped, labels, range(300), *lengths)
    assert result["length_bias"] == 0.0
    assert result["no_interval"]["length_bias"] == "the 295 groups do not differ"
    assert result["longer_wins_agreement"] == result["longer_wins_accuracy"]


def test_average_swapped_is_symmetric():
    _, probabilities, _ = sample_rows(20, seed=10)
    _, swapped, _ = sample_rows(20, seed=11)
    average = metrics.average_swapped(probabilities, swapped)
    assert average[:, 0] == pytest.approx((probabilities[:, 0] + swapped[:, 1]) / 2)
    other_way = metrics.average_swapped(swapped, probabilities)
    assert other_way[:, [1, 0, 2]] == pytest.approx(average)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered_from_logits_and_from_log_probabilities(temperature):
    logits, _, labels = sample_rows(20000, seed=12, scale=2.0)
    logits = logits * temperature
    fitted = metrics.fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    log_probabilities = np.log(metrics.apply_temperature(logits, 1.0))
    assert metrics.fit_temperature(log_probabilities, labels) == pytest.approx(fitted, rel=1e-3)
    losses = [
        sklearn_metrics.log_loss(labels, metrics.apply_temperature(logits, candidate))
        for candidate in (fitted, 0.97 * fitted, 1.03 * fitted)
    ]
    assert losses[0] == min(losses)


GOOD = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.empty((0, 3)), np.empty(0, int), "n >= 1"),
        (GOOD, [0], "expected"),
        (GOOD, [0, 3], "row 1 has label 3, expected 0..2"),
        (GOOD, [0, -1], "row 1 has label -1"),
        (GOOD * 4 - 1, [0, 1], "not logits"),
        (GOOD * [[1], [np.nan]], [0, 1], "row 1 has NaN"),
    ],
)
def test_bad_rows_are_refused_with_the_row(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification_metrics(probabilities, labels, list(range(len(labels))), NAMES)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="one name a column"):
        metrics.classification_metrics(GOOD, [0, 1], [0, 1], ("A", "B"))
    with pytest.raises(ValueError, match="1 groups"):
        metrics.classification_metrics(GOOD, [0, 1], [0], NAMES)
    with pytest.raises(ValueError, match="lengths are"):
        metrics.preference_metrics(GOOD, GOOD, [0, 1], [0, 1], [1], [2])
    with pytest.raises(ValueError, match="expected two"):
        metrics.average_swapped(GOOD, GOOD[:1])
    with pytest.raises(ValueError, match="Inf"):
        metrics.fit_temperature([[0.0, -np.inf]], [0])
    with pytest.raises(ValueError, match="above 0"):
        metrics.apply_temperature(GOOD, 0.0)
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="of"):
            stats.wilson_interval(successes, n)
    with pytest.raises(ValueError, match="one group per row"):
        stats.interval([], [])
    with pytest.raises(ValueError, match="one group per row"):
        stats.interval([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="row 1 has NaN"):
        stats.interval([1.0, np.inf], [0, 1])


def test_importing_the_metrics_does_not_import_scipy_sklearn_or_torch():
    code = "import sys, evaluation.metrics; print({'scipy', 'sklearn', 'torch'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    output = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert output.strip() == "set()"
