"""Verdicts: one rule each, both error rates of `collapsed`, and that all scripts keep them."""

import json
import math

import numpy as np
import pytest

from benchmarks import outcomes as simulated
from evaluation import metrics, outcomes
from evaluation.outcomes import Answers, Course, Scores, TokenLoss


def course_of(losses, evaluations=(), rates=None) -> Course:
    """The log of a run with these training losses, and validation losses behind them."""
    course = Course()
    for step, loss in enumerate(losses, 1):
        course.add(
            {"step": step, "train_loss": loss, "lr": 1e-3 if rates is None else rates[step - 1]}
        )
    for number, loss in enumerate(evaluations, 1):
        course.add({"step": 10 * number, "val_loss": loss})
    return course


def noisy(n: int, level: float = 1.0, sd: float = 0.1, seed: int = 0) -> list[float]:
    return (level + sd * np.random.default_rng(seed).normal(size=n)).tolist()


# ------------------------------------------------------------------------------ collapsed


@pytest.mark.parametrize("shares", ["two classes", "three, skewed", "ten classes"])
def test_a_calibrated_model_is_not_called_collapsed_and_a_constant_one_is(shares):
    of = np.array(simulated.SHARES[shares])
    called = {
        name: simulated.rate(build(of), of, 300, 300)
        for name, (_, build) in simulated.MODELS.items()
        if not name.startswith(("noise", "as that"))
    }
    for name, rate in called.items():
        if name.startswith("constant"):
            assert rate >= 0.95, name
        else:
            assert rate <= 0.02, name


def test_a_regression_alike():
    assert simulated.score_rate(0.0392, True, 300, 400) <= 0.02
    assert simulated.score_rate(0.0, False, 300, 100) == 1.0


def test_constant_answers_are_named_with_their_class():
    labels = np.arange(1000) % 3
    constant = np.tile([0.36, 0.33, 0.31], (1000, 1))
    verdict = outcomes.collapsed(Answers(constant, labels, ("A", "B", "tie")))
    assert "100.0% of 1,000 predictions are 'A', which 33.4% of the labels are" in verdict
    assert outcomes.kind_of(verdict) == "collapsed" and "\n" not in verdict


def test_a_rare_class_half_found_is_no_collapse():
    labels = (np.arange(1000) < 4).astype(int)
    found = np.arange(1000) < 2
    p = np.stack([np.where(found, 0.05, 0.997), np.where(found, 0.95, 0.003)], axis=1)
    assert outcomes.collapsed(Answers(p, labels)) is None
    assert outcomes.collapsed(Answers(np.tile([0.9, 0.1], (50, 1)), np.zeros(50, int))) is None


def test_overconfidence_is_no_collapse_where_the_answers_follow_the_labels():
    of = np.array([0.5, 0.5])
    p, labels = simulated.calibrated(0.05, 6.0)(of)(np.random.default_rng(0), of, 1000)
    loss = metrics.classification_metrics(p, labels, range(1000), ("A", "B"), intervals=False)
    assert loss["log_loss"] > loss["prior_entropy"] and loss["accuracy"] > 0.55
    assert outcomes.collapsed(Answers(p, labels)) is None
    dealt = np.random.default_rng(1).permutation(labels)  # the same answers, of other rows
    assert "log loss" in outcomes.collapsed(Answers(p, dealt))


def test_rows_of_one_group_count_as_one():
    """Twenty draws, each 50 times over: 1,000 rows know no more than twenty do."""
    draw, of = np.random.default_rng(3), np.array([0.5, 0.5])
    called = 0
    for _ in range(200):
        p, labels = simulated.unrelated(0.02)(of)(draw, of, 20)
        p, labels, groups = np.repeat(p, 50, 0), np.repeat(labels, 50), np.repeat(range(20), 50)
        called += outcomes.collapsed(Answers(p, labels, None, groups.tolist())) is not None
    assert called <= 30  # as rows they would be called in most draws


def test_a_regression_that_is_far_off_but_follows_the_labels_is_no_collapse():
    labels = np.linspace(0, 5, 300)
    assert outcomes.collapsed(Scores(labels - 9, labels)) is None
    assert outcomes.collapsed(Scores(np.full(300, 9.0), labels)).startswith("collapsed: squared")
    assert outcomes.collapsed(Scores(np.ones(5), np.ones(5))) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers_have_diverged(value):
    with pytest.raises(outcomes.Diverged):
        outcomes.collapsed(Answers(np.array([[0.5, 0.5], [value, 0.5]]), np.array([0, 1])))
    with pytest.raises(outcomes.Diverged):
        outcomes.collapsed(Scores(np.array([1.0, value]), np.array([0.0, 1.0])))
    with pytest.raises(outcomes.Diverged):
        outcomes.collapsed(TokenLoss(value, 4.0))
    with pytest.raises(outcomes.Diverged):
        metrics.classification_metrics([[value, 0.5]], [0], [0], ("A", "B"))


# ----------------------------------------------------------------------- token frequencies


def test_the_answer_by_frequency_alone():
    """Of five tokens the first is seen twice, the second once: D = 1 / (1 + 2), by hand."""
    left = (1 / 3) * 2 / 3 / 5
    shares = [(2 - 1 / 3) / 3 + left, (1 - 1 / 3) / 3 + left, left, left, left]
    assert sum(shares) == pytest.approx(1)
    found = outcomes.unigram_loss([2, 1, 0, 0, 0], [1, 0, 0, 0, 1])
    assert found == pytest.approx(-(math.log(shares[0]) + math.log(shares[4])) / 2)
    assert outcomes.unigram_loss(np.zeros(5), np.ones(5)) == pytest.approx(math.log(5))


def test_a_large_vocabulary_does_not_hide_what_frequencies_know():
    draw = np.random.default_rng(0)
    counts = [np.bincount(draw.zipf(1.5, 5000).clip(max=50_000), minlength=50_257) for _ in "ab"]
    own = counts[1][counts[1] > 0] / 5000
    found = outcomes.unigram_loss(*counts)
    assert -(own * np.log(own)).sum() < found < 4.5  # adding one to each count gives 8.2


@pytest.mark.parametrize(
    ("loss", "word"), [(6.04, "worse"), (4.15, "worse"), (4.1, "hardly better"), (3.9, None)]
)
def test_a_language_model_beside_token_frequencies(loss, word):
    verdict = outcomes.collapsed(TokenLoss(loss, 4.15))
    assert (verdict is None) == (word is None)
    if word:
        assert outcomes.kind_of(verdict) == "token frequencies" and f"are {word}" in verdict


# --------------------------------------------------------------------------------- spikes


def test_a_spike_is_found_and_usual_noise_is_none():
    losses = noisy(60) + [9.0] + noisy(60, seed=1)
    verdict = course_of(losses).spiked()
    assert outcomes.kind_of(verdict) == "loss spike" and "once at step 61, 9.000" in verdict
    assert course_of(noisy(3000)).spiked() is None
    assert course_of(noisy(60, level=4.0) + [5.5] + noisy(9, level=4.0)).spiked()
    assert course_of(noisy(60, level=0.02, sd=0.01) + [0.5]).spiked() is None  # harms nothing
    falling = [10 * math.exp(-step / 30) for step in range(200)]
    assert course_of(falling).spiked() is None


def test_spikes_do_not_hide_each_other_and_one_that_lasts_is_one():
    losses = noisy(60) + [9.0] + noisy(5) + [8.0, 7.0] + noisy(60)
    assert "2 times, at worst at step 61" in course_of(losses).spiked()
    steps = course_of(noisy(60) + noisy(300, level=9.0)).spikes
    assert len(steps) == 1 and steps[0].last_step - 60 <= 50


def test_steps_that_are_not_finite_are_no_spike():
    losses = [*noisy(60), math.nan, math.inf, *noisy(60)]
    course = course_of(losses)
    assert course.spiked() is None and course.updates == 120 and course.steps == 122


def test_a_log_read_again_says_the_same():
    losses = noisy(70) + [9.0] + noisy(30)
    lines = [json.dumps({"step": n, "train_loss": v, "lr": 1e-3}) for n, v in enumerate(losses, 1)]
    again = Course()
    for line in lines:
        again.add(json.loads(line))
    assert again.spiked() == course_of(losses).spiked()


# ----------------------------------------------------------------- overfitted, and the rest


@pytest.mark.parametrize(
    ("losses", "overfitted"),
    [
        ([1.0, 0.9, 0.8], False),
        ([1.0, 0.8, 0.85], True),  # 6 % above the lowest
        ([1.0, 0.8, 0.812], False),  # 1.5 %, once
        ([1.0, 0.8, 0.805, 0.812], True),  # and twice in succession
        ([1.0, 0.8, 0.9, 0.81], False),  # back again
        ([1e-3, 1e-4, 3e-4], False),  # of no weight
        ([0.8], False),
        ([], False),
    ],
)
def test_overfitted_by_one_rule(losses, overfitted):
    verdict = course_of([], losses).overfitted()
    assert (verdict is not None) == overfitted
    if verdict:
        assert outcomes.kind_of(verdict) == "overfitted" and "0.8000 at step 20" in verdict


def test_a_rate_of_zero_in_all_steps_is_said():
    verdict = course_of([1.0] * 3, rates=[0.0] * 3).never_moved()
    assert outcomes.kind_of(verdict) == "zero learning rate" and "all 3 steps" in verdict
    assert course_of([1.0] * 3, rates=[0.0, 1e-9, 0.0]).never_moved() is None
    course = Course()
    course.add({"step": 1, "train_loss": 1.0, "lr": 0.0, "lr_head": 1e-3})
    assert course.never_moved() is None
    assert Course().never_moved() is None


def test_a_run_without_an_update_has_diverged():
    assert outcomes.kind_of(course_of([math.nan] * 3).never_moved()) == "diverged"
    outcomes.require_gradients(4, "fp32", 4)
    outcomes.require_gradients(19, "fp16", 19)
    for skipped, precision in ((5, "fp32"), (5, "bf16"), (20, "fp16")):
        with pytest.raises(outcomes.Diverged, match="step 30"):
            outcomes.require_gradients(skipped, precision, 30)


def test_what_diverged_says_the_loss_that_it_had():
    verdict = course_of([2.0, 1.5, math.nan], [1.7]).diverged("the loss is NaN")
    assert "training loss was 1.5000 (step 2)" in verdict and "1.7000 (step 10)" in verdict
    assert outcomes.kind_of(verdict) == "diverged"


def test_kinds_are_read_back():
    assert outcomes.kind_of("cola: collapsed: all A") == "collapsed"
    assert outcomes.kind_of("loss spike: once") == "loss spike"
    for other in ("", "collapsed all", "tested with the final weights: best cannot be used (x)"):
        assert outcomes.kind_of(other) == ""
    said = ["a: collapsed: x", "overfitted: y", "b: collapsed: z"]
    assert outcomes.failures(said) == ["collapsed"]


# ------------------------------------------------------------------- seeds that diverged


def test_ranks_with_what_diverged_as_the_worst():
    from scipy.stats import mannwhitneyu

    a, b = [0.81, 0.82, 0.83, 0.80], [0.71, 0.72, 0.85, 0.70]
    exact = mannwhitneyu(a, b, method="exact").pvalue
    assert outcomes.worst_rank_test(a, b, 0, 0) == pytest.approx(exact)
    # what diverged ranks as a figure below all others does
    assert outcomes.worst_rank_test(a, b[:3], 0, 1) == pytest.approx(
        outcomes.worst_rank_test(a, [*b[:3], 0.0], 0, 0)
    )
    assert outcomes.worst_rank_test([1, 2, 3], [], 0, 3) == pytest.approx(0.1)
    assert outcomes.worst_rank_test(a, [], 0, 0) == 1.0
    assert outcomes.worst_rank_test([], [], 3, 3) == 1.0
    many = outcomes.worst_rank_test(list(range(12)), list(range(12, 22)), 0, 2)
    assert 0 < many < 0.2
