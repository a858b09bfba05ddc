"""Classification of texts: a head on GPT-2 or an encoder, first alone, then with all of it."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import core
from data import texts
from data.rows import contrary_labels, normalised_text
from data.texts import TextData, TextRow
from device import to_device
from evaluation import metrics
from evaluation.outcomes import Answers
from experiments.experiment import LastEvaluation, Result, answers_key, rows_each
from experiments.phases import Phases
from experiments.training import Targets
from methods.distillation import distillation_loss_sum
from methods.feature_cache import cached_features
from methods.losses import loss_sum
from models import causal
from settings import seed_of


class Classification(Phases):
    """Classification of texts around a script's loop."""

    def load_rows(self) -> tuple[list[texts.TextRow], dict[str, Any]]:
        config = self.config
        rows, self.classes, notes = texts.load_rows(
            config.task, config.data, config.val_frac, config.test_frac
        )
        rows, facts = self.choose_rows(rows, texts.data_fingerprint(rows))
        shares = Counter(row.label for row in rows)
        named = (f"{name} {shares[k] / len(rows):.1%}" for k, name in enumerate(self.classes[:8]))
        notes += contrary_labels((normalised_text([row.text]), row.label) for row in rows)
        for line in (f"classes: {', '.join(named)}", *notes):
            self.world.say(line)
        return rows, facts

    def load_data(self, rows: list[texts.TextRow]) -> None:
        config, world = self.config, self.world
        ids = texts.cached_sequences(rows, self.tokenizer, world)

        def part(split: str, crop_seed: int | None = None) -> TextData:
            length, steps = config.max_length, config.length_steps
            return TextData(ids, rows, split, self.tokenizer, length, steps, crop_seed)

        self.train = part("train", seed_of(config, "masks") if config.crop else None)
        self.train.feature_epochs = config.head_epochs
        self.val, self.test_data = part("val"), part("test")
        self.latest = LastEvaluation()

    # -- phase 1

    def begin_phase_1(self, state: core.State) -> None:
        """With the blocks frozen and without dropout what the head reads never changes: compute
        it once. Raises core.Stopped on all ranks after a signal."""
        if not self.config.cache_features or self.train.features is not None:
            return
        model = state.model
        if self.config.compile and causal.is_encoder(model.config):
            return  # compiled as a whole, its head cannot be run alone
        rows = np.arange(min(4, len(self.train.rows)))
        batch = to_device(self.train.collate(rows, None), self.world.device)
        if not causal.features_suffice(model, batch):
            self.world.say("note: this head reads more than one token: blocks run in each step")
            return
        each = rows_each(self.config.max_length)
        key = {
            "kind": "text features, version 3",
            "tokens": self.train.fingerprint(),
            **answers_key(self, model.base_model),
        }
        self.train.features, was_there = cached_features(
            key, lambda: core.evaluate_rows(state, self.train, causal.features, each), self.world
        )
        how = "from the cache" if was_there else "computed once"
        self.world.say(f"phase 1: features of {len(self.train.rows):,} rows, {how}")

    def curvature_data(self, seed: int) -> TextData:
        """Tokens in both phases: its epochs are its own, and say nothing of the phase."""
        data = copy.copy(self.train)
        data.feature_epochs = 0
        return data

    # -- what a step does

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats, smoothed) summed over the rows of a micro-batch; their number."""
        if self.teacher is None or self.phase == 1:
            return self.loss_of_targets(model, batch)
        config, labels = self.config, batch["labels"]
        logits = causal.class_logits(model, batch, self.head_dropout).float()
        with torch.no_grad():
            teacher_logits = causal.class_logits(self.teacher, batch)
        taught = distillation_loss_sum(logits, teacher_logits, config.temperature)
        labelled = loss_sum([logits], labels, config.label_smoothing)
        return (1 - config.distill_weight) * labelled + config.distill_weight * taught, len(labels)

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        logits = causal.class_logits(model, batch, self.head_dropout)
        return Targets(logits, batch["labels"])

    # -- figures

    def probabilities(self, state: core.State, data: TextData) -> np.ndarray:
        each = rows_each(self.config.max_length)
        return metrics.softmax(core.evaluate_rows(state, data, causal.class_logits, each))

    def evaluate(self, state: core.State) -> dict[str, float]:
        """Validation metrics."""
        p = self.latest.keep(state, self.probabilities(state, self.val))
        labels = self.val.labels
        figures = metrics.classification_metrics(
            p, labels, range(len(labels)), self.classes, intervals=False
        )
        early = self.phase == 1 or state.step < self.phase_2_step + self.steps_per_epoch
        self.evidence = None if early else self.answers(p)
        return {
            "val_loss": figures["log_loss"],
            "val_accuracy": figures["accuracy"],
            "val_f1_macro": figures["f1_macro"],
        }

    def baseline(self, state: core.State) -> Result:
        rows, p = self.test_data.rows, self.probabilities(state, self.test_data)
        groups = [row.group for row in rows]
        figures = metrics.classification_metrics(p, self.test_data.labels, groups, self.classes)
        return Result(figures, prediction_lines(rows, p, self.classes), read=self.read)

    def read(self, row: int) -> dict[str, str]:
        """The tokens of a test row, as text."""
        ids = self.test_data.sequence(row, None).astype(int)  # of floats where nothing is added
        return {"text, as read": self.tokenizer.decode(ids)}

    def test(self, state: core.State) -> Result:
        """As `baseline`, of the trained model; it is judged by its answers on validation."""
        p = self.latest.of_tested_weights(state, lambda: self.probabilities(state, self.val))
        maps = self.attention_maps(state)
        return self.baseline(state)._replace(evidence=self.answers(p), files=maps)

    def answers(self, p: np.ndarray) -> Answers:
        """Those on the validation rows, p (rows, classes)."""
        groups = [row.group for row in self.val.rows]
        return Answers(p, self.val.labels, self.classes, groups)

    def some_texts(self, count: int) -> list[str]:
        return [row.text for row in self.test_data.rows[:count]]


def prediction_lines(
    rows: Sequence[TextRow], p: np.ndarray, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A line of predictions.csv for each row of p (rows, classes), with its text."""
    return [
        {
            "id": row.id,
            "group": row.group,
            "label": classes[row.label],
            "prediction": classes[int(values.argmax())],
            **{f"p_{name}": float(values[k]) for k, name in enumerate(classes)},
            "text": {"text": row.text},
        }
        for row, values in zip(rows, p, strict=True)
    ]
