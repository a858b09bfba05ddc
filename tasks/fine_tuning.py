"""Fine-tuning on one task, and the averages of a suite: what eval_bert.py shows the loop of.

work = FineTuning(config, world, run, task)
state = work.build_state(work.load_model())
"""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import core
import runs
from evaluation.metrics import Metrics
from methods.dropout import use_word_dropout
from methods.schedules import schedule_for
from models import pretrained
from settings import Settings
from tasks import glue
from tasks.arena import split_fingerprint


@dataclass
class Config(Settings):
    """Settings of fine-tuning on one task."""

    model: str = "bert"
    """run folder of pretrain_bert.py, or any encoder: a short name, a local folder, a hub id"""
    weights: Literal["final", "best"] = "final"
    """of a run folder: the weights at its end, or the best on validation"""
    init: Literal["pretrained", "random"] = "pretrained"
    """start from these weights, or from random ones of the same shape"""
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
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """learning rate after the warm-up"""
    warmup_frac: float = 0.1
    """share of each task's own steps over which the learning rate rises from 0"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw (fused, betas .9/.98, eps 1e-6) or plain sgd"""
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


def with_recipe(config: Config, task: glue.Task) -> Config:
    """The settings of one task, nothing left open."""
    recipe = RECIPES[task.suite].items()
    return replace(
        config, **{name: value for name, value in recipe if getattr(config, name) is None}
    )


def weights_folder(model: str, which: str) -> str:
    """The saved weights of a run folder; any other model as it is. ValueError if they are not
    whole."""
    folder = Path(model) / "train/weights"
    if not folder.is_dir():
        return model
    if problem := core.damage(folder / which):
        there = ", ".join(name for name in ("final", "best") if not core.damage(folder / name))
        raise ValueError(
            f"{folder / which} is no whole folder of saved weights ({problem}); "
            + (f"there is --weights {there}" if there else "has the run been finished?")
        )
    return str(folder / which)


class FineTuning:
    """The experiment around the script's loop: the rows, model, evaluation and test of a task."""

    def __init__(self, config: Config, world: core.World, run: runs.Run, task: glue.Task):
        from models import bert  # noqa: F401, registers our architecture; transformers is slow

        self.config, self.world, self.run, self.task = config, world, run, task
        self.source = weights_folder(config.model, config.weights)
        self.model_config = pretrained.load_config(self.source)
        self.precision, self.attention = pretrained.choose_kernels(config, world, self.model_config)
        self.tokenizer = pretrained.load_tokenizer(self.source)
        rows = self.load_rows()
        ids = glue.cached_sequences(task, rows, self.tokenizer, config.max_length, world)

        def part(split: str) -> glue.GlueData:
            ladder = 8 if config.compile else None
            pad = self.tokenizer.pad_token_id
            separator = glue.segment_separator(self.tokenizer, self.model_config)
            return glue.GlueData(ids, rows, split, pad, config.max_length, ladder, separator)

        self.train, self.val, self.test_data = part("train"), part("val"), part("test")
        self.latest: tuple[int, np.ndarray | None] = (-1, None)  # of the last evaluation

    def load_rows(self) -> list[glue.Row]:
        """The rows to use; which ones they are goes to the record."""
        task, config, world = self.task, self.config, self.world
        rows, notes = glue.load_task(
            task, config.data, val_frac=config.val_frac, skip_bad_rows=config.skip_bad_rows
        )
        self.run.record(data_fingerprint=glue.data_fingerprint(rows))
        rows = glue.subset(rows, config.limit)
        # before training rows are taken away, which moves none: such runs stay comparable
        self.run.record(split_fingerprint=split_fingerprint(rows))
        rows = glue.subset(rows, None, config.train_frac, config.train_rows)
        count = Counter(row.split for row in rows)
        parts = list(dict.fromkeys(["train", "val", *task.parts]))
        for split in parts:
            if not count[split]:
                raise ValueError(f"{task.name}: no {split} rows among {len(rows)}: use more rows")
        sizes = ", ".join(f"{split} {count[split]:,}" for split in parts)
        for line in (f"data: {task.name} from {config.data}: {sizes} rows", *notes):
            world.say(line)
        return rows

    def load_model(self) -> nn.Module:
        """A classifier whose encoder has the saved weights, or random ones; its head is new."""
        from transformers import AutoModelForSequenceClassification

        task, config = self.task, copy.deepcopy(self.model_config)  # building changes it
        names = task.classes if task.num_outputs == len(task.classes) else ("score",)
        config.id2label = dict(enumerate(names))  # and so config.num_labels
        config.label2id = {name: number for number, name in enumerate(names)}
        torch.manual_seed(core.mix_seed(self.config.seed, 4))
        model, _ = pretrained.load_with_head(
            AutoModelForSequenceClassification,
            self.source,
            config,
            self.config.init,
            self.attention,
        )
        model.resize_token_embeddings(
            max(len(self.tokenizer), model.get_input_embeddings().num_embeddings)
        )
        return model

    def build_state(self, model: nn.Module) -> core.State:
        """Optimizer, loader and a schedule over this task's own steps, on the device."""
        config, world = self.config, self.world
        model.to(world.device)
        if world.device.type == "cpu":
            use_word_dropout(model)
        if config.compile:
            core.compile_model(model)
        groups = core.parameter_groups({"model": model}, {"model": config.lr}, config.weight_decay)
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=config.lr)
        else:
            betas = (0.9, 0.98)
            optimizer = torch.optim.AdamW(groups, config.lr, betas, eps=1e-6, fused=True)
        loader = core.TrainLoader(self.train, config, world)
        self.state = core.State(
            config=config,
            world=world,
            model=model,
            optimizer=optimizer,
            loader=loader,
            clock=core.StepClock(loader.total_steps),
            schedule=schedule_for(config, loader.total_steps),
            export=self.export,
            restore=self.restore,
            precision=self.precision,
        )
        return self.state

    def export(self, folder: Path) -> None:
        self.state.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        self.state.model.load_state_dict(pretrained.read_weights(folder), strict=True)

    def values(self, data: glue.GlueData) -> np.ndarray:
        """`outputs` of every row of `data`, (rows, classes)."""
        tokens = self.config.max_length * data.numbers.shape[1]  # of a row at most
        return core.evaluate_rows(self.state, data, glue.outputs, max(1, 8192 // tokens))

    def evaluate(self) -> dict[str, float]:
        """Metrics of the selection set; warns of a collapse from the end of the first epoch on."""
        values = self.values(self.val)
        self.latest = (self.state.step, values)
        found = glue.score(self.task, self.val.rows, values, intervals=False)
        if self.state.step >= self.state.loader.steps_per_epoch:
            if verdict := glue.collapsed(self.task, self.val.rows, values):
                self.world.say(f"warning: {verdict}")
        own = {f"val_{name}": found[name] for name in self.task.metrics if name in found}
        return {"val_loss": found["loss"], **own}

    def test(self) -> tuple[Metrics, list[dict]]:
        """Metrics and rows of the development set; the collapse verdict is the selection set's."""
        step, values = self.latest
        if step != self.state.best_step or self.config.test_with == "final":
            values = self.values(self.val)
        if verdict := glue.collapsed(self.task, self.val.rows, values):
            self.run.verdict(verdict)
        rows, values = self.test_data.rows, self.values(self.test_data)
        lines = glue.predictions(self.task, rows, values)
        with_text = [line | {"text": row.fields} for line, row in zip(lines, rows, strict=True)]
        return glue.score(self.task, rows, values), with_text


def suite_metrics(results: dict[str, Metrics]) -> Metrics:
    """The averages of whole suites and the metrics of each task, named mrpc_f1 and so on.

    results: metrics by task name. `missing` lists what an average lacks.
    """
    counts = [result["n"] + result.get("n_mismatched", 0) for result in results.values()]
    found: Metrics = {"n": sum(counts), "missing": []}
    for suite, members in glue.SUITES.items():
        if results.keys() >= set(members):
            averages = glue.suite_averages(suite, results)
            found["missing"] += averages.pop("missing")
            found |= averages
    for name, result in results.items():
        for metric in dict.fromkeys((*glue.TASKS[name].headline, *glue.TASKS[name].metrics)):
            for key in (metric, f"{metric}_ci95"):
                if key in result:
                    found[f"{name}_{key}"] = result[key]
    return found


def begin_suite(suite: runs.Run, tasks: Sequence[glue.Task]) -> None:
    """Write that the suite is running, so that the same command finds it. With --fresh, what an
    earlier one left in the folders of its tasks is deleted."""
    if suite.world.rank != 0 or suite.config.dry_run:
        return
    if suite.config.fresh and not runs.restarted_by_torchrun():
        for task in tasks:
            if (suite.folder / task.name / "config.yaml").exists():
                shutil.rmtree(suite.folder / task.name)
    suite.write_record()


def drop_checkpoints(run: runs.Run) -> None:
    """A finished task is not continued, and eight times two checkpoints of BERT-base are 21 GB.
    Its best and final weights stay."""
    if run.world.rank == 0 and run.status == "finished":
        for folder in (run.folder / "train/weights").glob("step_*"):
            shutil.rmtree(folder)


def finish_suite(suite: runs.Run, tasks: Sequence[glue.Task]) -> None:
    """Write and say the averages when every task below the suite's folder is finished."""
    if suite.world.rank == 0:
        results, verdicts, seconds = {}, [], 0.0
        for task in tasks:
            folder = suite.folder / task.name
            results[task.name] = json.loads((folder / "test/metrics/metrics.json").read_text())
            record = json.loads((folder / "run.json").read_text())
            verdicts += [f"{task.name}: {verdict}" for verdict in record["verdicts"]]
            seconds += record["seconds"]
        metrics = suite_metrics(results)
        suite.verdicts = verdicts
        suite.record(seconds=round(seconds, 3))
        core.write_text(suite.folder / "test/metrics/metrics.json", json.dumps(metrics, indent=1))
        lines = [f"finished: {suite.folder} ({seconds:.0f} s of training)"]
        if metrics["missing"]:
            lines.append(f"  no average, it lacks {', '.join(metrics['missing'])}")
        suite.world.say("\n".join([*lines, *runs.summary_lines(metrics)]))
    suite.status, suite.exit_reason = "finished", "all tasks done"


# What a script without any settings does where there is no hub: configs/bert/sentiment.yaml.
EMBEDDED = {
    **{"model": "minilm", "suite": "sentiment", "train_rows": 1000, "micro_batch": 8},
    **{"test_with": "final", "max_length": 64},
}


def or_embedded(config: Config, given: bool, world: core.World) -> Config:
    """The embedded default when nothing was set and the hub cannot be reached; it says so."""
    if not pretrained.use_embedded(given, world, "MiniLM on --suite sentiment"):
        return config
    return replace(config, **EMBEDDED)
