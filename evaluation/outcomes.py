"""Verdicts: what became of a run that its figures alone do not say. One rule each, for all runs.

    course = Course(); course.add(line)          # every line of train/metrics/metrics.jsonl
    verdicts_of(course, evidence)                # as a finished run keeps them in run.json

A verdict is a line that begins with its kind. Those of FAILED say that the run's model is no
answer to the question that the run was made for; a seed of which one is said stays a seed, and is
counted wherever seeds are. docs/outcomes.md has the rules, their sources and how often each errs,
as benchmarks/outcomes.py measures it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

RULES = 2  # their version, in run.json; 1: before they were in one place

FAILED = ("diverged", "collapsed", "zero learning rate", "token frequencies")
CAUTIONS = ("overfitted", "loss spike")


class Diverged(ValueError):
    """A loss or an answer is NaN or infinite; the run ends, and its verdict is `diverged`."""


def kind_of(verdict: str) -> str:
    """Which rule said it; "" where none of them did. In a suite its task stands before it."""
    found = re.match(rf"(?:[\w.-]+: )?({'|'.join((*FAILED, *CAUTIONS))}): ", f"{verdict} ")
    return found[1] if found else ""


def failures(verdicts: Iterable[str]) -> list[str]:
    """The kinds among them that are in FAILED, each once."""
    return list(dict.fromkeys(kind for v in verdicts if (kind := kind_of(v)) in FAILED))


# ------------------------------------------------------------------------------ diverged

# Updates in succession that are left out: fp16's loss scale first has to find its place, which
# halving takes 16 steps from 2^16 (Micikevicius et al. 2018, section 3.2).
MOST_SKIPPED = {"fp16": 20}
MOST_SKIPPED_ELSE = 5


def require_gradients(skipped_steps: int, precision: str, step: int) -> None:
    """Diverged where so many updates in succession were left out, as their gradient was not
    finite."""
    if skipped_steps >= MOST_SKIPPED.get(precision, MOST_SKIPPED_ELSE):
        raise Diverged(
            f"the loss or its gradient stayed NaN or infinite for {skipped_steps} steps, up to "
            f"step {step}; try a lower --lr, a longer --warmup_frac, or --precision fp32"
        )


def require_finite(values: Any, what: str) -> None:
    """Diverged where a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise Diverged(f"{what} is NaN or infinite; try a lower --lr, or --precision fp32")


# ------------------------------------------------------- what the log of the training says

SPIKE_WINDOW = 50  # steps that a step is compared with
SPIKE_FEWEST = 20  # below, their spread is hardly known
SPIKE_DEVIATIONS = 7.0
SPIKE_LEAST = 1.0  # nats; a loss of .01 that is .05 once harms nothing

RISE = 0.05  # generalisation loss of one evaluation (Prechelt 1998, GL with alpha = 5)
LASTING_RISE = 0.01  # of two in succession, each above the one before it (UP with s = 2)
LEAST_RISE = 0.01  # nats; a loss of .0001 that becomes .0002 is no news


@dataclass
class Spike:
    """A stretch of steps with a spike; loss: the worst, usual: the mean of the steps before."""

    step: int
    loss: float
    usual: float
    last_step: int


@dataclass
class Course:
    """The log of a training, line by line; each verdict is a function of the lines alone."""

    steps: int = 0
    updates: int = 0  # steps whose gradient was finite
    learned: bool = False  # some learning rate was above 0
    spikes: list[Spike] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # step, val_loss
    last_loss: tuple[int, float] | None = None  # the last finite one
    _window: deque = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))

    def add(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl: of a step, or of an evaluation."""
        step, loss = line["step"], _number(line.get("train_loss"))
        if "train_loss" not in line:
            if (value := _number(line.get("val_loss"))) is not None:
                self.evaluations.append((step, value))
            return
        self.steps += 1
        rates = [line[name] for name in line if name == "lr" or name.startswith("lr_")]
        self.learned |= not rates or any(_number(rate) != 0 for rate in rates)
        norm = line.get("grad_norm", 0.0)  # run_6_light.py knows of none
        if loss is None or _number(norm) is None:
            self._window.append(None)
            return
        self.updates += 1
        self.last_loss = (step, loss)
        self._look_for_spike(step, loss)

    def _look_for_spike(self, step: int, loss: float) -> None:
        """A step at least 7 standard deviations above the mean of those before it: the spike
        score of OLMo 2 (arXiv:2501.00656), with 50 steps for 1,000, as runs here are short.

        Steps of a spike are left out of the mean, so that it does not hide the next one.
        """
        usual = [value for value in self._window if value is not None]
        if len(usual) >= SPIKE_FEWEST:
            mean = float(np.mean(usual))
            if loss > mean + max(SPIKE_LEAST, SPIKE_DEVIATIONS * float(np.std(usual))):
                self._window.append(None)
                last = self.spikes[-1] if self.spikes else None
                if last is None or step > last.last_step + 1:
                    self.spikes.append(Spike(step, loss, mean, step))
                    return
                if loss > last.loss:
                    last.step, last.loss = step, loss
                last.last_step = step
                return
        self._window.append(loss)

    # -- verdicts

    def spiked(self) -> str | None:
        if not self.spikes:
            return None
        worst = max(self.spikes, key=lambda spike: spike.loss)
        count = "once" if len(self.spikes) == 1 else f"{len(self.spikes)} times, at worst"
        return (
            f"loss spike: {count} at step {worst.step}, {worst.loss:.3f} where the steps before "
            f"had {worst.usual:.3f} on average; a lower --lr, a longer --warmup_frac or a lower "
            "--max_grad_norm makes them rarer"
        )

    def overfitted(self) -> str | None:
        """The last validation loss is more than 5 % above the lowest, or the last two rose by more
        than 1 %: classes GL and UP of Prechelt 1998, Neural Networks 11(4), section 2."""
        if len(self.evaluations) < 2:
            return None
        step, best = min(self.evaluations, key=lambda evaluation: evaluation[1])
        values = [value for _, value in self.evaluations]
        rise = values[-1] - best
        if rise <= LEAST_RISE:
            return None
        share = rise / best if best > 0 else math.inf
        rising = len(values) > 2 and best <= values[-3] < values[-2] < values[-1]
        if not (share > RISE or rising and share > LASTING_RISE):
            return None
        return (
            f"overfitted: validation loss rose from {best:.4f} at step {step} to {values[-1]:.4f}; "
            "fewer --epochs, more rows or more dropout"
        )

    def never_moved(self) -> str | None:
        if self.steps and not self.learned:
            return (
                f"zero learning rate: it was 0 in all {self.steps:,} steps, so that nothing was "
                "learned; use --warmup_frac 0, more --epochs or another --schedule"
            )
        if self.steps and not self.updates:
            return (
                f"diverged: no update was made, as the loss or its gradient was NaN or infinite in "
                f"all {self.steps:,} steps; try a lower --lr, or --precision fp32"
            )
        return None

    def diverged(self, why: str) -> str:
        """The verdict on a run that ended with Diverged(why), with the loss that it had."""
        had = []
        if self.last_loss is not None:
            had.append(f"the last finite training loss was {self.last_loss[1]:.4f} (step "
                       f"{self.last_loss[0]})")  # fmt: skip
        if self.evaluations:
            step, value = self.evaluations[-1]
            had.append(f"the last validation loss {value:.4f} (step {step})")
        return f"diverged: {'; '.join([why, ', '.join(had)] if had else [why])}"


# --------------------------------------------------------------------- what a test says


class Answers(NamedTuple):
    """A classifier's on validation rows: probabilities (n, k), labels (n,) in 0..k-1."""

    probabilities: np.ndarray
    labels: np.ndarray
    classes: Sequence[str] | None = None
    groups: Sequence[Hashable] | None = None  # (n,) rows of one group are not independent


class Scores(NamedTuple):
    """Those of a regression on validation rows, both (n,)."""

    predictions: np.ndarray
    labels: np.ndarray
    groups: Sequence[Hashable] | None = None


class TokenLoss(NamedTuple):
    """A language model's loss, and `unigram_loss` on the same tokens; nats a token."""

    loss: float
    frequencies: float
    tokens: str = "training tokens"


Evidence = Answers | Scores | TokenLoss | None

SMALLEST_GAIN = 0.02  # nats a row; what a model should at least be better than a constant by
ERRORS = 2.33  # standard errors of a bound that 1 % exceed
ONE_CLASS = 0.99  # share of the predictions
UNRELATED = 2.0  # standard deviations of the association between answers and labels
SMALLEST_TOKEN_GAIN = 0.1  # nats a token


def collapsed(evidence: Evidence) -> str | None:
    """Whether the answers are no better than one that needs no model: the verdict, or None.

    Diverged where an answer is NaN or infinite.
    """
    if isinstance(evidence, Answers):
        return _collapsed_answers(*evidence)
    if isinstance(evidence, Scores):
        return _collapsed_scores(*evidence)
    if isinstance(evidence, TokenLoss):
        return _frequencies_alone(*evidence)
    return None


def _collapsed_answers(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str] | None,
    groups: Sequence[Hashable] | None,
) -> str | None:
    p, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    require_finite(p, "an answer")
    n, k = p.shape
    p = p / p.sum(axis=1, keepdims=True)
    logs = np.log(np.clip(p, np.finfo(np.float64).eps, None))
    shares = np.bincount(labels, minlength=k) / n
    present = shares > 0
    constant = np.log(np.where(present, shares, 1.0))
    entropy = -float((shares * constant).sum())
    if entropy < 1e-9:  # labels of one class only leave nothing to beat
        return None
    rows = np.arange(n)
    gains = logs[rows, labels] - constant[labels]
    mean_answer = p.mean(axis=0)
    resolution = float(
        (p * logs).sum(axis=1).mean()
        - (mean_answer * np.log(np.clip(mean_answer, np.finfo(np.float64).eps, None))).sum()
    )
    # association: of what each row's answer says for its label with the label, as labels that were
    # dealt at random would have it; bias and overconfidence change nothing in it
    said = logs - logs.mean(axis=0)
    expected = said @ shares
    spread = ((said - expected[:, None]) ** 2 @ shares).sum() * n / max(n - 1, 1)
    scores = said[rows, labels] - expected
    predicted = np.bincount(p.argmax(axis=1), minlength=k) / n
    top = int(predicted.argmax())
    one_class = predicted[top] >= ONE_CLASS > shares[top]
    signs = []
    if one_class:
        signs.append(
            f"{predicted[top]:.1%} of {n:,} predictions are "
            f"'{classes[top] if classes else top}', which {shares[top]:.1%} of the labels are"
        )
    if not _is_constant(
        gains,
        resolution,
        association=_association(scores, spread, groups),
        smallest=min(SMALLEST_GAIN, entropy / 10),
        hindsight=(int(present.sum()) - 1) / (2 * n),
        one_class=bool(one_class),
        groups=groups,
    ):
        return None
    loss = -float(logs[rows, labels].mean())
    signs.append(
        f"log loss {loss:.4f} beside the {entropy:.4f} nats of a constant answer, and answers "
        f"that differ by {max(resolution, 0.0):.4f} nats from row to row"
    )
    return f"collapsed: {'; '.join(signs)}. {FIXES}"


FIXES = "Likely fixes: more steps, a warm-up, a higher rate for a fresh head, another --lr"


def _collapsed_scores(
    predictions: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable] | None
) -> str | None:
    """As of answers, with the nats that a normal variable's explained variance R² stands for:
    −ln(1 − R²)/2, which is R²/2 where R² is small (Cover & Thomas 2006, example 8.5.1)."""
    y, x = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    require_finite(x, "an answer")
    n, variance = len(y), float(np.var(y))
    if variance < 1e-12:
        return None
    errors = (y - x) ** 2
    gains = ((y - y.mean()) ** 2 - errors) / variance / 2
    centred = x - x.mean()
    scores = centred * (y - y.mean())
    if not _is_constant(
        gains,
        resolution=float(np.var(x)) / variance / 2,
        association=_association(scores, n * float(np.var(x)) * variance, groups),
        smallest=SMALLEST_GAIN,
        hindsight=1 / (2 * n),
        one_class=False,
        groups=groups,
    ):
        return None
    return (
        f"collapsed: squared error {errors.mean():.4f} beside the {variance:.4f} of a constant "
        f"answer, and predictions with a standard deviation of {np.std(x):.4f}, where labels have "
        f"{np.std(y):.4f}. {FIXES}"
    )


def _is_constant(
    gains: np.ndarray,
    resolution: float,
    association: float,
    smallest: float,
    hindsight: float,
    one_class: bool,
    groups: Sequence[Hashable] | None,
) -> bool:
    """Whether a model answers as a constant would.

    gains (n,): nats that it is better than the best constant in hindsight, by row; hindsight: what
    that one is better than the best constant for all rows there are, on average. resolution: nats
    that the answers tell rows apart by, 0 for a constant. Not where it is reliably better than a
    constant. Else where the answers hardly depend on the row; or where it is no better, by so much
    that `smallest` nats can be excluded, and answers with one class or with what has nothing to do
    with the labels. Of what varies, few rows cannot tell: then no.
    """
    gain, error = _mean_and_error(gains, groups)
    if gain - ERRORS * error > 0:
        return False
    if resolution < smallest / 4:
        return True
    gain += hindsight
    useless = gain <= 0 and gain + ERRORS * error < smallest
    return useless and (one_class or association < UNRELATED)


def _mean_and_error(values: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[float, float]:
    """Mean and its standard error; rows of one group count as one draw."""
    mean, n = float(values.mean()), len(values)
    sums = _sums_by_group(values - mean, groups)
    if len(sums) < 2:
        return mean, math.inf
    return mean, math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / n


def _association(scores: np.ndarray, spread: float, groups: Sequence[Hashable] | None) -> float:
    """Sum of the scores in standard deviations, that of random labels, or of whole groups where
    it is larger."""
    spread = max(spread, float((_sums_by_group(scores, groups) ** 2).sum()) if groups else 0.0)
    return float(scores.sum()) / math.sqrt(spread) if spread > 0 else 0.0


def _sums_by_group(values: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    if groups is None:
        return values
    numbers: dict[Hashable, int] = {}
    return np.bincount([numbers.setdefault(group, len(numbers)) for group in groups], values)


# -- language models


def unigram_loss(seen: np.ndarray, asked: np.ndarray) -> float:
    """Nats a token of `asked` for an answer by token frequency alone.

    seen, asked (vocabulary,): how often each token is among those trained on, and those that the
    loss is of. Frequencies are discounted for tokens that were never seen, D = n1 / (n1 + 2 n2)
    from each that was (Ney, Essen & Kneser 1994, Computer Speech and Language 8, section 3), and
    what that leaves is shared alike by all: adding one to each would make a vocabulary of 50,000
    nearly uniform on a few thousand tokens.
    """
    seen, asked = np.asarray(seen, np.float64), np.asarray(asked, np.float64)
    total, once, twice = seen.sum(), (seen == 1).sum(), (seen == 2).sum()
    if not total:
        return math.log(len(seen))
    discount = float(np.clip(once / (once + 2 * twice), 0.1, 0.9)) if once else 0.5
    left = discount * (seen > 0).sum() / total
    shares = np.maximum(seen - discount, 0) / total + left / len(seen)
    return float(-(asked * np.log(shares)).sum() / asked.sum())


def _frequencies_alone(loss: float, frequencies: float, tokens: str) -> str | None:
    require_finite(loss, "the loss")
    gain = frequencies - loss
    if gain >= min(SMALLEST_TOKEN_GAIN, frequencies / 20):
        return None
    word = "worse" if gain <= 0 else "hardly better"
    return (
        f"token frequencies: {loss:.4f} nats a token are {word} than the {frequencies:.4f} that "
        f"the frequencies of its {tokens} give, whatever the context; more steps or another --lr"
    )


# ------------------------------------------------------------------------- of a whole run


def verdicts_of(course: Course, evidence: Evidence) -> list[str]:
    """All that is to be said of a run that came to its end."""
    found = (course.never_moved(), collapsed(evidence), course.overfitted(), course.spiked())
    return [verdict for verdict in found if verdict]


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if finite else None


# ------------------------------------------------------------------- seeds that diverged


def worst_rank_test(a: Sequence[float], b: Sequence[float], lost_a: int, lost_b: int) -> float:
    """Two-sided p-value of equal arms by ranks, where seeds without a figure are the worst.

    a, b: the figures of the others, the larger the better. A worst-rank analysis (Lachin 1999,
    Controlled Clinical Trials 20(5)): what diverged is tied below all that did not, and the rank
    sum is compared with that of all ways to deal the seeds to two arms (Wilcoxon 1945), or of
    20,000 random ways where there are more.
    """
    values = np.array([*a, *b, *[-math.inf] * (lost_a + lost_b)])
    order = {value: np.flatnonzero(np.sort(values) == value).mean() for value in set(values)}
    ranks = np.array([order[value] for value in values])
    in_a = np.r_[0 : len(a), len(a) + len(b) : len(a) + len(b) + lost_a]
    size, total = len(in_a), len(values)
    if not 0 < size < total:
        return 1.0
    if math.comb(total, size) <= 20_000:
        deals = np.array(list(itertools.combinations(range(total), size)))
    else:
        generator = np.random.default_rng(0)
        deals = np.array([generator.permutation(total)[:size] for _ in range(20_000)])
    middle = ranks.mean() * size
    distances = np.abs(ranks[deals].sum(axis=1) - middle)
    return float((distances >= abs(ranks[in_a].sum() - middle) - 1e-9).mean())
