"""Many questions to a judge, several at a time: what it said is kept, and is not asked again.

    scores = score_answers(answers, backend, Cache(path))           # (answers, repeats), 0 to 100
    judge_metrics(scores, groups)                # {"judge": 41.2, "judge_ci95": [..], …}
    wins = compare_answers(pairs, backend, Cache(path))             # (pairs, 2 orders), 0 to 100

A reply that is no answer to the question is unscored: counted and left out, never 0; the first such
reply is shown. An empty response is 0, and loses, without a call. Scores are kept in a file, so
that asking again costs nothing and an interrupted evaluation continues.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.judge import Backend, Pause, Refused, Reply, Stopped, Unreachable, ask
from evaluation.metrics import Metrics, add_interval
from evaluation.passport import both_orders
from evaluation.questions import Answer, Question, pair_question, parse_score, score_question
from evaluation.stats import (
    Ratio,
    checked,
    group_index,
    influence,
    interval,
    interval_of,
    proportion_interval,
)

MOST_FAILURES = 3  # questions one after the other without any reply: the server is gone


class Cache:
    """Scores by the hash of question, model and seed, a line each in a file that only grows."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.scores = path, {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n"):
            key, _, score = line.partition(" ")
            if re.fullmatch(r"[0-9a-f]{64}", key) and (parsed := parse_score(score)) is not None:
                self.scores[key] = parsed  # a line that was cut off is asked for again

    @staticmethod
    def key(backend: Backend, question: Question, seed: int) -> str:
        facts = [backend.kind, backend.site, backend.model, question.text, seed]
        facts += [backend.fields] if backend.fields else []
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def add(self, key: str, score: int) -> None:
        self.scores[key] = score
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"\n{key} {score}\n")  # after a line that was cut off, too


class Waiting(NamedTuple):
    """A question that is still to be asked, and the places of the table that its reply fills: the
    same one twice is asked once."""

    question: Question
    seed: int
    name: str
    places: list[tuple[int, int]]


class Known(NamedTuple):
    """A score that needs no question."""

    score: float


def ask_all(
    questions: Sequence[tuple[str, Question | Known]],
    backend: Backend,
    cache: Cache,
    repeats: int = 1,
    workers: int = 4,
    say: Callable[[str], None] = print,
    **of_ask: Any,
) -> np.ndarray:
    """(questions, repeats) float, NaN where unscored: no score in the reply, or no reply at all.

    questions: each with the name under which a reply without a score is shown. Raises Refused, and
    Unreachable when several questions in a row get no reply.
    """
    scores = np.full((len(questions), repeats), np.nan)
    waiting: dict[str, Waiting] = {}
    for row, (name, question) in enumerate(questions):
        for repeat in range(repeats):
            if isinstance(question, Known):
                scores[row, repeat] = question.score
            elif (key := cache.key(backend, question, repeat)) in cache.scores:
                scores[row, repeat] = cache.scores[key]
            else:
                entry = waiting.setdefault(key, Waiting(question, repeat, name, []))
                entry.places.append((row, repeat))

    def keep(key: str, reply: Reply) -> None:
        if reply.score is not None:
            cache.add(key, reply.score)
            for place in waiting[key].places:
                scores[place] = reply.score

    if waiting:
        known = scores.size - sum(len(entry.places) for entry in waiting.values())
        say(f"judge: {len(waiting):,} questions to {backend.site}, {known:,} scores are known")
        _Attempts(backend, waiting, keep, say, of_ask).run(workers)
    return scores


class _Attempts:
    """The questions that wait, asked by several threads at a time.

    keep(key, reply): what came is kept at once, also when an error ends the rest.
    """

    def __init__(
        self,
        backend: Backend,
        waiting: Mapping[str, Waiting],
        keep: Callable[[str, Reply], None],
        say: Callable[[str], None],
        of_ask: Mapping[str, Any],
    ):
        self.backend, self.waiting, self.keep, self.say = backend, waiting, keep, say
        self.of_ask, self.pause, self.lock = of_ask, Pause(say), threading.Lock()
        self.failures, self.most = 0, min(MOST_FAILURES, len(waiting))
        self.problem: Exception | None = None
        self.unscored = self.unanswered = 0

    def run(self, workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(self.ask, key): key for key in self.waiting}
            left = dict(futures)
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    self.take(left.pop(future), future)
                    if done % 100 == 0:
                        self.say(f"judge: {done:,} of {len(futures):,}")
            except BaseException:
                self.pause.stopped.set()
                pool.shutdown(cancel_futures=True)
                for future, key in left.items():  # what came meanwhile is paid for
                    if future.done() and not future.cancelled() and future.exception() is None:
                        self.keep(key, future.result())
                raise
        if self.pause.stopped.is_set():
            raise self.problem
        if self.unanswered:
            self.say(f"judge: {self.unanswered:,} questions got no reply, the last: {self.problem}")

    def ask(self, key: str) -> Reply:
        """In a thread of its own."""
        entry = self.waiting[key]
        try:
            reply = ask(self.backend, entry.question, entry.seed, pause=self.pause, **self.of_ask)
        except Unreachable:
            with self.lock:
                self.failures += 1  # one after the other, as their answers come
                if self.failures >= self.most:
                    self.pause.stopped.set()
            raise
        except Refused:
            self.pause.stopped.set()
            raise
        with self.lock:
            self.failures = 0
        return reply

    def take(self, key: str, future: Future) -> None:
        """What a thread brought."""
        error = future.exception()
        if isinstance(error, (Unreachable, Refused)):
            self.problem = self.problem if isinstance(self.problem, Refused) else error
            self.unanswered += 1
        elif error is not None and not isinstance(error, Stopped):
            raise error
        if error is not None:
            return
        reply = future.result()
        self.keep(key, reply)
        if reply.score is None:
            self.unscored += 1
            if self.unscored == 1:
                name = self.backend.hide(self.waiting[key].name)
                self.say(f"judge: a reply that is no score, to answer {name}: {reply.text}")


# ------------------------------------------------------------------------- what is asked


def score_answers(
    answers: Sequence[Answer], backend: Backend, cache: Cache, repeats: int = 1, **of_asking: Any
) -> np.ndarray:
    """(answers, repeats) as `ask_all`; an empty response is 0."""
    questions = [
        (answer.id, score_question(answer) if answer.response.strip() else Known(0.0))
        for answer in answers
    ]
    return ask_all(questions, backend, cache, repeats, **of_asking)


class Pair(NamedTuple):
    """Two responses to one prompt."""

    id: str
    prompt: str
    a: str
    b: str


def compare_answers(
    pairs: Sequence[Pair], backend: Backend, cache: Cache, repeats: int = 1, **of_asking: Any
) -> np.ndarray:
    """(pairs, 2) from 0, B is better, to 100, A is; 50 is a tie: A asked about first, then B.

    The mean of the repeats; NaN as in `ask_all`. An empty response loses to one that is not, and
    two of them are a tie.
    """
    questions = [
        (f"{pair.id}, {name} first", known or pair_question(pair.prompt, *sides))
        for pair in pairs
        for known in [without_asking(pair)]
        for name, sides in (("A", (pair.a, pair.b)), ("B", (pair.b, pair.a)))
    ]
    scores = ask_all(questions, backend, cache, repeats, **of_asking)
    first = mean_of_repeats(scores).reshape(-1, 2)  # of whoever stood first
    empty = [without_asking(pair) is not None for pair in pairs]  # a fact about A already
    return np.column_stack([first[:, 0], np.where(empty, first[:, 1], 100 - first[:, 1])])


def mean_of_repeats(scores: np.ndarray) -> np.ndarray:
    """(rows,) of (rows, repeats); NaN where no repeat has a score."""
    there = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(there, scores, 0).sum(axis=1) / there.sum(axis=1)


def without_asking(pair: Pair) -> Known | None:
    """What an empty response settles."""
    a, b = bool(pair.a.strip()), bool(pair.b.strip())
    return None if a and b else Known(50.0 + 50.0 * (a - b))


def judge_metrics(scores: np.ndarray, groups: Sequence[Hashable]) -> dict[str, Any]:
    """Mean score of the rows (each the mean of its repeats) with a 95 % interval over groups.

    scores (rows, repeats), NaN = unscored. judge_of_repeats: the mean of each repeat, and
    judge_repeat_std how far apart those are.
    """
    scores = np.asarray(scores, np.float64)
    there = ~np.isnan(scores)
    rows = np.flatnonzero(there.any(axis=1))
    metrics: dict[str, Any] = {
        "judge_n": len(rows),
        "judge_unscored": int((~there).sum()),
        "judge_repeats": scores.shape[1],
    }
    if not len(rows):
        return metrics
    means = np.nanmean(scores[rows], axis=1)
    metrics["judge"] = float(means.mean())
    chosen = [groups[row] for row in rows]
    found = interval(means, chosen)
    metrics["judge_groups"] = len({str(group) for group in chosen})
    if found.problem:
        metrics["judge_no_interval"] = found.problem
    else:
        metrics["judge_ci95"] = [found.low, found.high]
    if scores.shape[1] > 1:
        each = [float(np.nanmean(column)) for column in scores[rows].T if (~np.isnan(column)).any()]
        metrics["judge_of_repeats"] = each
        metrics["judge_repeat_std"] = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
    return metrics


def pair_metrics(wins: np.ndarray, groups: Sequence[str]) -> Metrics:
    """Of wins (n, 2) from 0 to 100, A first and B first: their mean, ties half; how often both
    orders agree; both with intervals. A pair counts with a verdict in both orders."""
    there = ~np.isnan(wins).any(axis=1)
    result: Metrics = {"judge_wins_n": int(there.sum()), "judge_wins_unscored": int((~there).sum())}
    if not there.any():
        return result
    wins, groups = wins[there], [g for g, scored in zip(groups, there, strict=True) if scored]
    share = influence(checked(wins.mean(axis=1) / 100, groups), Ratio(kind="share"))
    result["judge_wins"] = 100 * share.value
    found = interval_of(share, group_index(groups), "share")
    add_interval(result, "judge_wins", found._replace(low=100 * found.low, high=100 * found.high))
    orders, verdicts = both_orders(wins / 100)
    same = orders[:, 0] == orders[:, 1]
    result["judge_wins_order_agreement"] = float(same.mean())
    add_interval(result, "judge_wins_order_agreement", proportion_interval(same, groups))
    counts = np.bincount(verdicts, minlength=3)
    return result | {
        "judge_wins_counts": dict(zip(("A", "B", "tie"), counts.tolist(), strict=True))
    }
