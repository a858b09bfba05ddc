"""`alpaca_sft.py judge`: how good are the answers of a run? By a model over HTTP or a saved run.

The rows are those of an answers file, or the test rows of a run, which is then asked first. What
comes out is judge.json and judge.csv beside the answers, and for a run `judge` among its test
metrics, where report.py table finds it.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import console
import core
from commands.generate import Answerer
from commands.opening import OpenConfig, processes, weights_files
from commands.predict import PredictConfig, Predictor, with_ties
from data import instructions, reviews
from data.arena import PairRow
from data.records import BadRow, read_records, strip_control
from data.rows import stable_hash, subset
from evaluation import judge
from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
from evaluation.metrics import apply_temperature
from evaluation.stats import interval
from files import cache_folder, csv_text, read_json, read_yaml, write_text
from models.decoding import Decoding
from seal import amend

FIELDS = ("instruction", "output", "model_response")  # of a line of an answers file


@dataclass
class JudgeConfig(Decoding):
    """Settings of `judge`: scores from 0 to 100 for the answers of a model.

    max_new_tokens, temperature, top_k, top_p, repetition_penalty and seed are of the model that
    answers.
    """

    ONLY_WITH = {
        "max_new_tokens": "run_folder",
        "temperature": "run_folder",
        "repetition_penalty": "run_folder",
        "weights": "run_folder",
        "base": "run_folder",
        "data": "run_folder",
        "judge_model": "by=gemini|openai",
        "url": "by=gemini|openai",
        "fields": "by=gemini|openai",
        "judge_repeats": "by=gemini|openai",
        "judge_workers": "by=gemini|openai",
        "timeout_seconds": "by=gemini|openai",
        "max_wait_seconds": "by=gemini|openai",
    }

    run_folder: str | None = None
    """run folder: its test rows are answered and judged, and the score goes to its metrics"""
    answers: str | None = None
    """instead of a run: answers as `generate --output` writes them"""
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
    weights: Literal["best", "final"] = "best"
    """which weights of the run answer"""
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
    if (config.run_folder is None) == (config.answers is None):
        raise ValueError("judge: give --run_folder FOLDER, or --answers FILE")
    backends: list[Any] = []
    with processes(config.device) as world:
        # before any answer is written: a missing key shows at once
        world.on_rank_0(lambda: backends.append(build_backend(config)))
        file = Path(config.answers) if config.answers else answers_of_run(config, world)
    if backends:
        judge_answers(config, file, backends[0])


def judge_answers(config: JudgeConfig, file: Path, backend: Any) -> None:
    rows = read_answers(file, None if config.run_folder else config.limit)
    if isinstance(backend, PreferenceJudge):
        scores = backend.score(rows)
    else:
        console.say(f"note: instructions, references and answers are sent to {backend.site}")
        name = hashlib.sha256(f"{backend!r}".encode()).hexdigest()[:16]
        cache = judge.Cache(cache_folder() / "judge" / f"{name}.txt")
        scores = judge.score_answers(
            [answer_of(row) for row in rows],
            backend,
            cache,
            config.judge_repeats,
            config.judge_workers,
            timeout_seconds=config.timeout_seconds,
            max_wait_seconds=config.max_wait_seconds,
        )
    metrics = judge.judge_metrics(scores, [row["group"] for row in rows])
    metrics |= {"judge_by": repr(backend), "judge_rows": file.name}
    metrics["judge_cut_prompts"] = sum(row["is_cut"] for row in rows)
    decodings = [row["decoding"] for row in rows]
    if decodings[0] and all(decoding == decodings[0] for decoding in decodings):
        metrics["judge_decoding"] = decodings[0]
    write(config, file, rows, scores, metrics)


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
    return PreferenceJudge(Path(config.by), config.device)


# ------------------------------------------------------------------------------ answers


def answers_of_run(config: JudgeConfig, world: core.World) -> Path:
    """The run's answers to its test rows, written once. ValueError for other rows by now."""
    run = Path(config.run_folder)
    try:
        settings = read_yaml(run / "config.yaml")
        data, fractions = settings["data"], (settings["val_frac"], settings["test_frac"])
        template, limit = settings["template"], settings["limit"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{run}: no run of alpaca_sft.py ({error})") from None
    try:
        rows, _ = instructions.load_rows(config.data or data, *fractions)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Where the rows are now: --data") from None
    was = read_json(run / "run.json").get("data_fingerprint")
    if was not in (None, now := instructions.data_fingerprint(rows)):
        raise ValueError(
            f"{config.data or data} has other rows than those of the run (fingerprint {now}, not "
            f"{was}): --data names the file that the run was made with"
        )
    rows = [row for row in subset(rows, limit) if row.split == "test"]
    rows = subset(rows, config.limit)
    if not rows:
        raise ValueError(f"{run}: it has no test rows to answer")
    opening = OpenConfig(config.run_folder, config.weights, config.base, config.device)
    facts = {
        "decoding": config.record(),
        "rows": [row.id for row in rows],
        "template": template,
        "weights": weights_files(opening),
    }
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    file = run / f"test/analysis/answers_{name}.jsonl"
    if not world.from_rank_0(file.exists()):
        Answerer(opening, config, template, world).write(rows, file)
    return file


def read_answers(file: Path, limit: int | None) -> list[dict[str, Any]]:
    """Lines of an answers file with id, group and prompt; ValueError (file, line, field).

    Where a line has no prompt, as in older files, it is made of the instruction and the input.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; alpaca_sft.py generate --data writes one")
    rows = []
    for number, (place, row) in enumerate(read_records(file, Counter()), start=1):
        if isinstance(row, BadRow):
            raise ValueError(f"{place}: {row}")
        for name in FIELDS:
            if not isinstance(row.get(name), str):
                raise ValueError(f"{place}, field {name}: expected text")
        texts = (row["instruction"], row.get("input", ""))
        own = stable_hash("instruction", *texts)
        prompt = row.get("prompt", instructions.format_prompt(*texts))
        if not isinstance(prompt, str):
            raise ValueError(f"{place}, field prompt: expected text")
        rows.append(
            {"id": str(row.get("id", number)), "group": str(row.get("group", own)), "input": ""}
            | {k: v for k, v in row.items() if k in (*FIELDS, "input")}
            | {"prompt": prompt, "decoding": row.get("decoding"), "is_cut": "cut_tokens" in row}
        )
    if not rows:
        raise ValueError(f"{file}: it holds no answers")
    order = sorted(range(len(rows)), key=lambda i: stable_hash("subset", rows[i]["group"]))
    return [rows[i] for i in sorted(order[:limit])]


def answer_of(row: dict[str, str]) -> judge.Answer:
    return judge.Answer(row["id"], row["prompt"], row["output"], row["model_response"])


def asked_of(row: dict[str, str]) -> str:
    """What a preference run reads: one instruction as people ask it, without the template that it
    has never seen; a conversation as the answering model read it."""
    texts = (row["instruction"], row["input"])
    if row["prompt"] in (instructions.format_prompt(*texts, t) for t in instructions.TEMPLATES):
        return "\n\n".join(text for text in texts if text)
    return row["prompt"]


def write(
    config: JudgeConfig, file: Path, rows: Sequence[dict], scores: np.ndarray, metrics: dict
) -> None:
    folder = Path(config.output) if config.output else file.parent
    header = ["id", "group", *(f"score_{k + 1}" for k in range(scores.shape[1]))]
    lines = [
        [row["id"], row["group"], *("" if np.isnan(v) else f"{v:g}" for v in values)]
        for row, values in zip(rows, scores, strict=True)
    ]
    write_text(folder / "judge.csv", csv_text(header, lines))
    write_text(folder / "judge.json", json.dumps(metrics, indent=1))
    if config.run_folder:
        run, name = Path(config.run_folder), "test/metrics/metrics.json"
        if (run / name).is_file():
            before = json.loads((run / name).read_text())
            others = {key: value for key, value in before.items() if not key.startswith("judge")}
            amend(run, name, json.dumps(others | metrics, indent=1))
    unscored = f", {metrics['judge_unscored']} unscored" if metrics["judge_unscored"] else ""
    if "judge" not in metrics:
        return console.say(f"judge: none of {len(rows)} answers has a score{unscored}: {folder}")
    ends = metrics.get("judge_ci95")
    between = "(no interval)" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]"
    spread = metrics.get("judge_repeat_std")
    spread = "" if spread is None else f", standard deviation between repeats {spread:.2f}"
    by, count = strip_control(metrics["judge_by"]), metrics["judge_n"]
    console.say(
        f"judge: {metrics['judge']:.2f} {between} of 100 on {count} answers"
        f"{unscored}{spread}, by {by}: {folder / 'judge.json'}"
    )


# ----------------------------------------------------------------------- preference run


class PreferenceJudge:
    """A saved preference run of this project: 100 · p(answer beats the reference), ties half.

    Both orders are asked and averaged, so 50 is as good as the reference.
    """

    def __init__(self, run: Path, device: str):
        self.run = run
        check_preference_run(run)
        weights = json.loads((run / "test/metrics/metrics.json").read_text())["tested_with"]
        self.predictor = Predictor(  # the weights that were tested and calibrated
            PredictConfig(run_folder=str(run), weights=weights, device=device, calibrated=True)
        )

    def __repr__(self) -> str:
        return f"preference({self.run.name!r})"

    def score(self, rows: Sequence[dict[str, str]]) -> np.ndarray:
        """(rows, 1), 0 for an empty response."""
        pairs = []
        for order in (0, 1):
            for number, row in enumerate(rows):
                sides = ([row["model_response"]], [row["output"]])[:: -1 if order else 1]
                name = f"{number}-{order}"
                pairs.append(PairRow(name, [asked_of(row)], *sides, None, row["group"], ""))
        first, second = np.split(with_ties(self.predictor(pairs)), 2)
        wins = (first[:, 0] + second[:, 1] + first[:, 2] / 2 + second[:, 2] / 2) / 2
        empty = np.array([not row["model_response"].strip() for row in rows])
        return np.where(empty, 0.0, 100 * wins)[:, None]


def check_preference_run(run: Path) -> None:
    """ValueError unless the run knew more than the shares of the classes about its test rows,
    which must be answers to prompts (and not pairs of film reviews)."""
    try:
        settings = read_yaml(run / "config.yaml")
        with open(run / "test/metrics/predictions.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        names = [name for name in CLASSES if name != "tie" or "p_tie" in lines[0]]
        p = np.array([[float(line[f"p_{name}"]) for name in names] for line in lines])
        labels = np.array([names.index(line["label"]) for line in lines])
        facts = json.loads((run / "train/weights/best/preference.json").read_text())
        temperature = json.loads((run / "test/metrics/metrics.json").read_text())["temperature"]
    except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{run} is no finished preference run ({error})") from None
    if settings.get("data") in ("reviews", "reviews_control"):
        raise ValueError(
            f"{run} cannot judge: it learned about film reviews, not about answers to instructions"
            f" ({reviews.NOTICE})"
        )
    if not facts["with_prompt"]:
        raise ValueError(f"{run} cannot judge: it does not read the prompt (use run_2 or run_5)")
    # by the temperature that the run fitted on validation, as the judge's answers are
    p = apply_temperature(np.log(np.maximum(p, 1e-300)), temperature)
    shares = np.bincount(labels, minlength=len(names)) / len(labels)
    rows = np.arange(len(labels))
    # against the best constant answer, which these rows themselves give: no easy opponent
    gain = np.log(np.maximum(p[rows, labels], 1e-12)) - np.log(shares[labels])
    low, high, *_ = interval(gain, [line["group"] for line in lines])
    if not low > 0:
        raise ValueError(
            f"{run} cannot judge: on its {len(lines)} test rows it is not better than the constant "
            f"answer (gain {gain.mean():.4f} nats a row, 95 % interval {low:.4f} to {high:.4f}); "
            "train it on more rows, or use --by gemini or openai"
        )
