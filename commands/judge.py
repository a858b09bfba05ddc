"""`alpaca_sft.py judge`: how good are the answers of a run? By a model over HTTP or a saved run.

The rows are those of an answers file, or the test rows of a run, which is then asked first. What
comes out is judge.json and judge.csv beside the answers, and for a run `judge` among its test
metrics, where report.py table finds it. --against asks which of two answers is better, in both
orders, and writes judge_pairs.json; --labels corrects either figure by what people said of a
random sample of the rows; --passport measures the judge itself on votes of people (passports.py).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import console
from commands import passports
from commands.answers import (
    answer_of,
    answers_of_run,
    asked_of,
    check_sources,
    matched,
    read_answers,
    read_labels,
    subset_of,
)
from commands.opening import processes
from commands.preference_judge import PreferenceJudge
from data.arena import PairRow
from data.records import strip_control
from evaluation import asking, judge
from evaluation.metrics import Metrics
from evaluation.passport import corrected
from evaluation.questions import PAIR, SCORE
from files import cache_folder, csv_text, write_text
from models.decoding import Decoding
from seal import amend
from settings import refuse


@dataclass
class JudgeConfig(Decoding):
    """Settings of `judge`: scores from 0 to 100 for the answers of a model.

    max_new_tokens, temperature, top_k, top_p, repetition_penalty and seed are of the model that
    answers.
    """

    IN_PARALLEL = True
    ONLY_WITH = {
        "base": "run_folder",
        "against": "passport=null",
        "labels": "passport=null",
        "prompts": "passport",
        "judge_model": "by=gemini|openai",
        "url": "by=gemini|openai",
        "fields": "by=gemini|openai",
        "judge_repeats": "by=gemini|openai",
        "judge_workers": "by=gemini|openai",
        "timeout_seconds": "by=gemini|openai",
        "max_wait_seconds": "by=gemini|openai",
    }
    OF_A_RUN = ("max_new_tokens", "temperature", "repetition_penalty", "weights", "data")
    """how a run answers: --run_folder, or one that --against names"""

    run_folder: str | None = None
    """run folder: its test rows are answered and judged, and the score goes to its metrics"""
    answers: str | None = None
    """instead of a run: answers as `generate --output` writes them"""
    against: str | None = None
    """a second run, or file of answers to the same rows: which answer is better, in both orders"""
    labels: str | None = None
    """file with id and human, 0 to 100 (or, with --against, winner: A, B or tie), of a random
    sample of the rows: the figure is corrected by them"""
    passport: str | None = None
    """instead of answers: pairs that people judged, in any layout of preference rows; how far the
    judge agrees with them is kept, and stands from then on beside its figures"""
    prompts: Literal["both", "score", "pair"] = "both"
    """of --passport: how good is an answer (score), which of two is better (pair), or both"""
    by: str = "gemini"
    """gemini, openai (any server with that interface), or the folder of a saved preference run"""
    judge_model: str | None = None
    """name of the judge's model; null: gemini-2.5-flash or gpt-4o-mini"""
    url: str | None = None
    """address of the server up to /v1beta or /v1; null: the provider's own"""
    fields: dict[str, Any] | None = None
    """of the request, as JSON, where the server wants others than ours; null leaves one out:
    '{"max_completion_tokens": 4096, "temperature": null}'"""
    judge_repeats: int = 1
    """times that each answer is judged; the spread is reported"""
    judge_workers: int = 4
    """questions at a time"""
    timeout_seconds: float = 60.0
    """without a reply, before a question is asked again"""
    max_wait_seconds: float = 600.0
    """that a question waits in total where the server asks to wait (a quota a minute)"""
    limit: int | None = None
    """rows at most (a subset that does not depend on the run); null: all"""
    data: str | None = None
    """where the rows of the run are now; null: where they were"""
    base: str | None = None
    """base model, where the run is an adapter and its base has moved"""
    weights: Literal["best", "final"] | None = None
    """which weights of the run answer; null: those that it was tested with"""
    output: str | None = None
    """folder of judge.json and judge.csv; null: beside the answers"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("judge_repeats", "judge_workers", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: expected 1 or more")
        if not self.timeout_seconds > 0:
            raise ValueError(f"--timeout_seconds {self.timeout_seconds:g}: expected more than 0")
        if not self.max_wait_seconds >= 0:
            raise ValueError(f"--max_wait_seconds {self.max_wait_seconds:g}: expected 0 or more")


def run_judge(config: JudgeConfig) -> None:
    given = [config.run_folder, config.answers, config.passport]
    if given.count(None) != 2:
        raise ValueError("judge: give --run_folder FOLDER, --answers FILE, or --passport ROWS")
    if not config.run_folder and not is_run_folder(config.against):
        refuse(config, config.OF_A_RUN, "no run is to answer (--run_folder, or --against RUN)")
    if config.by not in ("gemini", "openai"):
        refuse(config, ["prompts"], "a preference run compares two answers, and reads no prompt")
    backends: list[Any] = []
    files: list[Path] = []
    with processes(config.device) as world:
        # before any answer is written: a missing key or file shows at once
        world.on_rank_0(lambda: check_sources(config))
        world.on_rank_0(lambda: backends.append(build_backend(config)))
        if config.passport is None:
            own = Path(config.answers) if config.answers else answers_of_run(config, world)
            files.append(own)
        if other := config.against:
            own = is_run_folder(other)
            files.append(answers_of_run(config, world, other) if own else Path(other))
    if backends and config.passport:
        passports.issue(config, *backends, asker(config, *backends))
    elif backends and config.against:
        compare_answers(config, files, *backends)
    elif backends:
        judge_answers(config, *files, *backends)


def is_run_folder(against: str | None) -> bool:
    """Whether --against names a run, and not a file of answers."""
    return against is not None and Path(against).is_dir()


def asker(config: JudgeConfig, backend: Any) -> Callable[..., np.ndarray]:
    """A function of asking.py and what it asks about → its scores, kept in the cache."""
    name = hashlib.sha256(f"{backend!r}".encode()).hexdigest()[:16]

    def ask(function: Callable[..., np.ndarray], what: Sequence) -> np.ndarray:
        console.say(f"note: instructions, references and answers are sent to {backend.site}")
        return function(
            what,
            backend,
            asking.Cache(cache_folder() / "judge" / f"{name}.txt"),
            config.judge_repeats,
            workers=config.judge_workers,
            timeout_seconds=config.timeout_seconds,
            max_wait_seconds=config.max_wait_seconds,
        )

    return ask


def judge_answers(config: JudgeConfig, file: Path, backend: Any) -> None:
    rows = read_answers(file, None if config.run_folder else config.limit)
    labels = read_labels(config, rows)
    if isinstance(backend, PreferenceJudge):
        scores, version = backend.score(rows), backend.version
    else:
        scores = asker(config, backend)(asking.score_answers, [answer_of(row) for row in rows])
        version = SCORE.version
    metrics = asking.judge_metrics(scores, [row["group"] for row in rows])
    metrics |= {"judge_by": repr(backend), "judge_rows": file.name}
    metrics["judge_cut_prompts"] = sum(row["is_cut"] for row in rows)
    decodings = [row["decoding"] for row in rows]
    weights = {row["weights"] for row in rows}
    metrics |= {"judge_weights": weights.pop()} if len(weights) == 1 and None not in weights else {}
    if decodings[0] and all(decoding == decodings[0] for decoding in decodings):
        metrics["judge_decoding"] = decodings[0]
    metrics |= passports.passport_facts(backend, version)
    metrics |= of_labels("judge", scores, rows, labels)
    names = [f"score_{k + 1}" for k in range(scores.shape[1])]
    write(config, file.parent, "judge", rows, scores, names, metrics)
    say_result(metrics, len(rows), output_folder(config, file.parent) / "judge.json")


def compare_answers(config: JudgeConfig, files: Sequence[Path], backend: Any) -> None:
    """Is A (--run_folder, --answers) better than B (--against)?"""
    both = [read_answers(file, None) for file in files]
    runs = bool(config.run_folder), is_run_folder(config.against)
    if config.limit and any(runs):  # a run has answered so many rows; a file has more
        fewest = {row["id"] for row in both[runs.index(True)]}
        both = [[row for row in each if row["id"] in fewest] for each in both]
    rows, others = matched(*both, files)
    if not any(runs):
        keep = {row["id"] for row in subset_of(rows, config.limit)}
        rows, others = ([row for row in each if row["id"] in keep] for each in (rows, others))
    labels = read_labels(config, rows)
    texts = [
        (asked_of(a), a["model_response"], b["model_response"])
        for a, b in zip(rows, others, strict=True)
    ]
    if isinstance(backend, PreferenceJudge):
        ids = [row["id"] for row in rows]
        pairs = [
            PairRow(i, [p], [a], [b], None, i, "") for i, (p, a, b) in zip(ids, texts, strict=True)
        ]
        wins, version = 100 * (backend.orders(pairs) @ [1.0, 0.0, 0.5]).T, backend.version
        settled = [asking.without_asking(asking.Pair("", *text)) for text in texts]
        for row, known in enumerate(settled):
            wins[row] = wins[row] if known is None else known.score
    else:
        pairs = [asking.Pair(row["id"], *text) for row, text in zip(rows, texts, strict=True)]
        wins, version = asker(config, backend)(asking.compare_answers, pairs), PAIR.version
    metrics = asking.pair_metrics(wins, [row["group"] for row in rows])
    metrics |= {"judge_wins_against": config.against, "judge_wins_by": repr(backend)}
    facts = passports.passport_facts(backend, version)
    metrics |= {name.replace("judge_", "judge_wins_", 1): fact for name, fact in facts.items()}
    metrics |= of_labels("judge_wins", wins, rows, labels)
    names = ["a_when_first", "a_when_second"]
    write(config, files[0].parent, "judge_pairs", rows, wins, names, metrics)
    say_result(metrics, len(rows), output_folder(config, files[0].parent) / "judge_pairs.json")


def of_labels(
    name: str, scores: np.ndarray, rows: Sequence[dict], labels: np.ndarray | None
) -> Metrics:
    """The figure corrected by labels; a row that the judge did not score counts for neither."""
    if labels is None:
        return {}
    # a pair counts with both orders, a score with any repeat
    unscored = np.isnan(scores).all(axis=1) if name == "judge" else np.isnan(scores).any(axis=1)
    groups = [row["group"] for row, without in zip(rows, unscored, strict=True) if not without]
    found = corrected(asking.mean_of_repeats(scores[~unscored]), groups, labels[~unscored])
    if found is None:
        return {f"{name}_labels": 0}
    facts = {f"{name}_corrected": found.value, f"{name}_labels": found.labelled}
    facts |= {f"{name}_label_weight": round(found.weight, 3)}
    if found.problem:
        return facts | {f"{name}_corrected_no_interval": found.problem}
    return facts | {f"{name}_corrected_ci95": [found.low, found.high]}


def build_backend(config: JudgeConfig) -> Any:
    where = {"fields": config.fields} | ({} if config.url is None else {"site": config.url})
    if config.by == "gemini":
        return judge.Gemini(config.judge_model or "gemini-2.5-flash", **where)
    if config.by == "openai":
        return judge.OpenAI(config.judge_model or "gpt-4o-mini", **where)
    if not Path(config.by, "run.json").is_file():
        raise ValueError(
            f"--by {config.by}: expected gemini, openai or the folder of a preference run"
        )
    return PreferenceJudge(Path(config.by), config.device, measured=config.passport is not None)


# ------------------------------------------------------------------------------ results


def output_folder(config: JudgeConfig, beside: Path) -> Path:
    return Path(config.output) if config.output else beside


def write(
    config: JudgeConfig,
    beside: Path,
    name: str,
    rows: Sequence[dict],
    scores: np.ndarray,
    columns: Sequence[str],
    metrics: dict,
) -> None:
    """NAME.csv and NAME.json; a run's test metrics get the figures, in place of earlier ones."""
    folder = output_folder(config, beside)
    lines = [
        [row["id"], row["group"], *("" if np.isnan(v) else f"{v:g}" for v in values)]
        for row, values in zip(rows, scores, strict=True)
    ]
    write_text(folder / f"{name}.csv", csv_text(["id", "group", *columns], lines))
    write_text(folder / f"{name}.json", json.dumps(metrics, indent=1))
    run, figures = Path(config.run_folder or ""), "test/metrics/metrics.json"
    if config.run_folder and (run / figures).is_file():
        before = json.loads((run / figures).read_text())

        def is_ours(key: str) -> bool:
            return key.startswith("judge") and key.startswith("judge_wins") == bool(config.against)

        others = {key: value for key, value in before.items() if not is_ours(key)}
        amend(run, figures, json.dumps(others | metrics, indent=1))


def say_result(metrics: dict, rows: int, file: Path) -> None:
    name = "judge_wins" if "judge_wins_n" in metrics else "judge"
    unscored = f", {metrics[f'{name}_unscored']} unscored" if metrics[f"{name}_unscored"] else ""
    if name not in metrics:
        return console.say(f"judge: none of {rows} answers has a score{unscored}: {file.parent}")
    ends, count = metrics.get(f"{name}_ci95"), metrics[f"{name}_n"]
    between = "(no interval)" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
    if name == "judge":
        spread = metrics.get("judge_repeat_std")
        spread = "" if spread is None else f", standard deviation between repeats {spread:.2f}"
        what = f"of 100 on {count} answers{unscored}{spread}"
    else:
        agree = 100 * metrics["judge_wins_order_agreement"]
        against = strip_control(str(metrics["judge_wins_against"]))
        what = (
            f"% of the wins against {against} on {count} pairs (a tie is half of one){unscored}; "
            f"both orders agree on {agree:.1f} %"
        )
    by = strip_control(metrics[f"{name}_by"])
    console.say(f"judge: {metrics[name]:.2f} {between} {what}, by {by}: {file}")
    if f"{name}_corrected" in metrics:
        ends = metrics.get(f"{name}_corrected_ci95")
        why = metrics.get(f"{name}_corrected_no_interval")
        between = f"(no interval: {why})" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
        value, count = metrics[f"{name}_corrected"], metrics[f"{name}_labels"]
        console.say(f"judge: {value:.2f} {between} corrected by what people said of {count} rows")
    known = metrics[f"{name}_passport"]
    console.say(passports.said_of_none() if known == "none" else f"judge: its passport: {known}")
