"""Fine-tuning on one task of GLUE and the averages of a suite; eval_bert.py shows the loop.

experiment = FineTuning(config, world, task)
state = experiment.build_state(experiment.load_model())
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import core
from data import glue
from data.glue import SUITES, TASKS, Row, Task
from data.rows import choose_rows, contrary_labels, count_splits, normalised_text
from data.tokens import segment_separator
from device import compile_model
from evaluation.glue_metrics import added_metrics, exact_match, regression_metrics
from evaluation.metrics import Metrics, classification_metrics, softmax
from evaluation.outcomes import Answers, Scores
from experiments.experiment import LastEvaluation, Result, place, rows_each
from experiments.training import Targets, Training, build_state
from methods.optimizers import parameter_groups
from models import pretrained
from settings import Optimizer, Schedule, Settings, replace, seed_of


@dataclass
class FineTuningConfig(Settings):
    """Settings of fine-tuning on one task."""

    BETAS = {"adamw": (0.9, 0.98), "muon": (0.9, 0.98)}

    model: str = "bert"
    """run folder of pretrain_bert.py, or any encoder: a short name, a local folder, a hub id"""
    weights: Literal["final", "best"] = "final"
    """of a run folder: the weights at its end, or the best on validation"""
    init: Literal["pretrained", "random", "by_name"] = "pretrained"
    """start from these weights, or from random ones of the same shape (by_name: each parameter
    from the seed and its own name)"""
    data: str | None = None
    """hub, or a folder of the usual TSV and JSONL files; null: the hub (sentiment: reviews)"""
    lr: float | None = None
    """peak learning rate; null: the recipe of the task's suite (4e-5; SuperGLUE 5e-5)"""
    epochs: float | None = None
    """passes over the training rows; null: the recipe of the task's suite (5; SuperGLUE 10)"""
    batch: int = 16
    """rows an update over all processes (the global batch)"""
    max_length: int = 128
    """tokens a sequence at most"""
    schedule: Schedule = "cosine"
    """learning rate after the warm-up: cosine, linear, constant, wsd; or one-cycle, triangle2"""
    warmup_frac: float = 0.1
    """share of each task's own steps over which the learning rate rises from 0"""
    optimizer: Optimizer = "adamw"
    """adamw (fused, betas .9/.98), lion, sophiag, muon (its adamw .9/.98) or sgd"""
    eps: float = 1e-6
    """adamw's epsilon"""
    weight_decay: float = 0.0
    """weight decay (decoupled in adamw), none on biases and norms"""
    max_grad_norm: float | None = None
    """clip the global gradient norm to this; null: no clipping"""
    val_frac: float = 0.1
    """share of the training rows that choose the weights; the development set is the test"""
    train_rows: int | None = None
    """rows to train on at most, those of --val_frac not counted (nested); null: all"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be used"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("val_frac", lambda value: 0 < value < 1, "a share above 0, below 1")
        self._require("train_rows", lambda value: value >= 1, "1 or more, or null")


# What is null in the settings. GLUE's and SuperGLUE's are those of No Train No Gain.
RECIPES: dict[str, dict[str, Any]] = {
    "glue": {"lr": 4e-5, "epochs": 5.0, "data": "hub"},
    "superglue": {"lr": 5e-5, "epochs": 10.0, "data": "hub"},
    "sentiment": {"lr": 4e-5, "epochs": 5.0, "data": "reviews"},
}


def with_recipe(config: FineTuningConfig, task: Task) -> FineTuningConfig:
    """The settings of one task, nothing left open."""
    pretrained.check_model(config.model)
    recipe = RECIPES[task.suite].items()
    return replace(
        config, **{name: value for name, value in recipe if getattr(config, name) is None}
    )


# What a script without any settings does where there is no hub: configs/bert/sentiment.yaml.
EMBEDDED: dict[str, Any] = {
    "what": "MiniLM on --suite sentiment",
    "model": "minilm",
    "suite": "sentiment",
    "train_rows": 1000,
    "micro_batch": 8,
    "test_with": "final",
    "max_length": 64,
}


class FineTuning(Training):
    """The experiment around the script's loop: the rows, model, evaluation and test of a task."""

    def __init__(self, config: FineTuningConfig, world: core.World, task: Task):
        self.config, self.world, self.task = config, world, task
        self.has_classes = bool(task.classes)
        rows, self.facts = self.load_rows()  # before what is slow to import
        from models import bert  # noqa: F401, registers our architecture

        self.source = pretrained.weights_folder(config.model, config.weights)
        self.model_config = pretrained.load_config(self.source)
        self.precision, self.attention = pretrained.choose_kernels(config, world, self.model_config)
        self.tokenizer = pretrained.load_tokenizer(self.source, self.model_config, say=world.say)
        ids = glue.cached_sequences(task, rows, self.tokenizer, config.max_length, world)

        def part(split: str) -> glue.GlueData:
            pad, steps = self.tokenizer.pad_token_id, config.length_steps
            separator = segment_separator(self.tokenizer, self.model_config)
            return glue.GlueData(ids, rows, split, pad, config.max_length, steps, separator)

        self.train, self.val, self.test_data = part("train"), part("val"), part("test")
        self.latest = LastEvaluation()

    def load_rows(self) -> tuple[list[Row], dict[str, Any]]:
        """The rows to use, and facts about them for the record."""
        task, config = self.task, self.config
        rows, notes = glue.load_task(
            task, config.data, val_frac=config.val_frac, skip_bad_rows=config.skip_bad_rows
        )
        rows, facts = choose_rows(
            rows,
            glue.data_fingerprint(rows),
            config.limit,
            config.train_frac,
            config.train_rows,
        )
        sizes = count_splits(rows, task.name, list(dict.fromkeys(["train", "val", *task.parts])))
        if task.classes:  # not the scores of STS-B
            fields = (normalised_text(list(row.fields.values())) for row in rows)
            notes += contrary_labels(zip(fields, (row.label for row in rows), strict=True))
        for line in (f"data: {task.name} from {config.data}: {sizes} rows", *notes):
            self.world.say(line)
        return rows, facts

    def load_model(self) -> nn.Module:
        """A classifier whose encoder has the saved weights, or random ones; its head is new."""
        from transformers import AutoModelForSequenceClassification

        task, config = self.task, copy.deepcopy(self.model_config)  # building changes it
        names = task.classes if task.num_outputs == len(task.classes) else ("score",)
        config.id2label = dict(enumerate(names))  # and so config.num_labels
        config.label2id = {name: number for number, name in enumerate(names)}
        seed = core.mix_seed(seed_of(self.config, "init"), 4)
        torch.manual_seed(seed)
        model, _ = pretrained.load_with_head(
            AutoModelForSequenceClassification,
            self.source,
            config,
            self.config.init,
            self.attention,
            self.tokenizer,
            self.world.say,
            seed,
        )
        pretrained.check_padding(model, self.tokenizer.pad_token_id, self.world.say)
        return model

    def build_state(self, model: nn.Module) -> core.State:
        """Optimizer, loader and a schedule over this task's own steps, on the device."""
        config = self.config
        place(model, self.world)
        if config.compile:
            compile_model(model)
        groups = parameter_groups(
            {"model": model.parameters()}, {"model": config.lr}, config.weight_decay
        )
        return build_state(self, model, groups)

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats), or the squared error of a score, summed over rows; their number."""
        return self.loss_of_targets(model, batch)

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        return Targets(outputs(model, batch), batch["labels"])

    # -- figures

    def values(self, state: core.State, data: glue.GlueData) -> np.ndarray:
        """`outputs` of every row of `data`, (rows, classes)."""
        tokens = self.config.max_length * data.numbers.shape[1]  # of a row at most
        return core.evaluate_rows(state, data, outputs, rows_each(tokens))

    def evaluate(self, state: core.State) -> dict[str, float]:
        """Metrics of the selection set."""
        values = self.latest.keep(state, self.values(state, self.val))
        figures = score(self.task, self.val.rows, values, intervals=False)
        self.evidence = answers(self.task, self.val.rows, values)
        own = {f"val_{name}": figures[name] for name in self.task.metrics if name in figures}
        return {"val_loss": figures["loss"], **own}

    def test(self, state: core.State) -> Result:
        """Metrics and rows of the development set; the run is judged by the selection set."""
        chosen = self.latest.of_tested_weights(state, lambda: self.values(state, self.val))
        rows, values = self.test_data.rows, self.values(state, self.test_data)
        lines = predictions(self.task, rows, values)
        with_text = [line | {"text": row.fields} for line, row in zip(lines, rows, strict=True)]
        figures = score(self.task, rows, values)
        evidence = answers(self.task, self.val.rows, chosen)
        return Result(figures, with_text, evidence, read=self.read)

    def read(self, row: int) -> dict[str, str]:
        """The tokens of a test row, as text; one text an answer to choose from."""
        numbers = self.test_data.numbers[row]
        names = [f"{n}, as read" for n in range(1, len(numbers) + 1)]
        names = names if len(numbers) > 1 else ["text, as read"]
        texts = [self.tokenizer.decode(self.test_data.ids[number]) for number in numbers]
        return dict(zip(names, texts, strict=True))

    # -- weights

    def export(self, state: core.State, folder: Path) -> None:
        """A folder for AutoModelForSequenceClassification."""
        pretrained.save_weights(state.model, folder, self.tokenizer)

    def restore(self, state: core.State, folder: Path) -> None:
        pretrained.restore_weights(state.model, folder)


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(rows, classes), or (rows, 1) for a score, from a model whose answer has `.logits`.

    COPA's model outputs one number a sequence; the two of a row stand side by side.
    """
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    return logits.reshape(len(batch["labels"]), -1)


def score(task: Task, rows: Sequence[Row], values: np.ndarray, intervals: bool = True) -> Metrics:
    """Metrics of `values` (n, k), the model's `outputs` for the rows.

    Those of evaluation.metrics.classification_metrics, or of glue_metrics.regression_metrics, and
    the task's own. MNLI's mismatched rows have their own, named <metric>_mismatched.
    `intervals=False` leaves out every `<name>_ci95`.
    """
    main = np.array([row.split != "test_mismatched" for row in rows])
    result: Metrics = {}
    for suffix, chosen in (("", np.flatnonzero(main)), ("_mismatched", np.flatnonzero(~main))):
        if len(chosen):
            part = _score_part(task, [rows[i] for i in chosen], values[chosen], intervals)
            for name, value in part.items():
                if name == "no_interval":
                    problems = {f"{figure}{suffix}": why for figure, why in value.items()}
                    result[name] = result.get(name, {}) | problems
                elif not (suffix and name in ("primary", "interval_method")):
                    base, interval, _ = name.partition("_ci95")
                    result[base + suffix + interval] = value
    return result


def _score_part(task: Task, rows: list[Row], values: np.ndarray, intervals: bool) -> Metrics:
    labels = np.array([row.label for row in rows])
    groups = [row.group for row in rows]
    if not task.classes:
        return regression_metrics(values[:, 0], labels, groups, intervals)
    primary = task.metrics[0]  # what the suite is scored by
    metrics = classification_metrics(
        softmax(values), labels, groups, task.classes, intervals, primary
    )
    predicted = values.argmax(axis=1)
    own = [name for name in task.metrics if name not in metrics and name != "exact_match"]
    metrics |= added_metrics(own, predicted, labels, groups, intervals)
    if "exact_match" in task.metrics:
        questions = [row.id.rpartition("-")[0] for row in rows]
        metrics |= exact_match(predicted == labels, questions, groups, intervals)
    return metrics


def predictions(task: Task, rows: Sequence[Row], values: np.ndarray) -> list[dict]:
    """Lines of predictions.csv: id, group, label, prediction and, for classes, p_<class>."""
    lines = []
    for row, value in zip(rows, values, strict=True):
        line: dict[str, Any] = {"id": row.id, "group": row.group}
        if task.classes:
            p = softmax(value)
            line["label"] = task.classes[int(row.label)]
            line["prediction"] = task.classes[int(value.argmax())]
            line |= {f"p_{name}": float(p[k]) for k, name in enumerate(task.classes)}
        else:
            line |= {"label": row.label, "prediction": float(value[0])}
        lines.append(line)
    return lines


def answers(task: Task, rows: Sequence[Row], values: np.ndarray) -> Answers | Scores:
    """`outputs` of the rows, (n, k), as what evaluation/outcomes.py judges."""
    labels, groups = np.array([row.label for row in rows]), [row.group for row in rows]
    if task.classes:
        return Answers(softmax(values), labels, task.classes, groups)
    return Scores(values[:, 0], labels, groups)


def suite_averages(suite: str, results: dict[str, Metrics]) -> dict[str, Any]:
    """The suite's averages of headline metrics, each of equal weight, from metrics by task name.

    glue: nine numbers of eight tasks (MNLI has two). superglue: seven, and
    superglue_without_multirc: six, as publications differ. In the tasks' own units (accuracies
    and F1 in 0..1, correlations in -1..1). Where one number is missing there is no average, and
    `missing` lists it. The interval is for these models on other rows, not for other seeds:
    half-widths of independent numbers add up as squares (MOVER: Zou & Donner 2008, Statistics in
    Medicine 27(10), section 2).
    """
    members = [(name, metric) for name in SUITES[suite] for metric in TASKS[name].headline]
    metrics: dict[str, Any] = {
        "missing": [f"{name} {key}" for name, key in members if key not in results.get(name, {})]
    }
    averages = {suite: members}
    if suite == "superglue":
        averages["superglue_without_multirc"] = [m for m in members if m[0] != "multirc"]
    for title, chosen in averages.items():
        if any(f"{name} {key}" in metrics["missing"] for name, key in chosen):
            continue
        values = np.array([results[name][key] for name, key in chosen])
        metrics[title] = float(values.mean())
        ends = [results[name].get(f"{key}_ci95") for name, key in chosen]
        if all(ends):
            below, above = np.sqrt(((np.array(ends) - values[:, None]) ** 2).sum(axis=0))
            mean, n = values.mean(), len(values)
            metrics[f"{title}_ci95"] = [float(mean - below / n), float(mean + above / n)]
    return metrics


def suite_metrics(results: dict[str, Metrics]) -> Metrics:
    """The averages of whole suites and the metrics of each task, named mrpc_f1 and so on.

    results: metrics by task name, {} of a task that diverged. `missing` lists what an average
    lacks.
    """
    counts = [result.get("n", 0) + result.get("n_mismatched", 0) for result in results.values()]
    metrics: Metrics = {"n": sum(counts), "missing": []}
    for suite, members in SUITES.items():
        if results.keys() >= set(members):
            averages = suite_averages(suite, results)
            metrics["missing"] += averages.pop("missing")
            metrics |= averages
    for name, result in results.items():
        for metric in dict.fromkeys((*TASKS[name].headline, *TASKS[name].metrics)):
            for key in (metric, f"{metric}_ci95"):
                if key in result:
                    metrics[f"{name}_{key}"] = result[key]
    return metrics
