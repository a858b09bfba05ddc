"""Causal language modelling: windows of a stream of documents, figures a document."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import core
from data import documents
from data.documents import Stream, Streams, WindowData
from evaluation.metrics import Metrics, add_interval, interval_facts
from evaluation.outcomes import TokenLoss, require_finite, unigram_loss
from evaluation.stats import Ratio, interval
from experiments.experiment import Result, rows_each
from experiments.phases import Phases
from experiments.training import Targets
from models import causal


def document_sums(stream: Stream, losses: np.ndarray) -> np.ndarray:
    """(documents, 4): loss sum in nats, scored tokens, characters and words of each."""
    sums = np.add.reduceat(losses, stream.offsets[:-1])
    counts = np.diff(stream.offsets).astype(np.float64)
    counts[0] -= 1  # the first token of the stream
    sizes = [(len(d.text), d.num_words) for d in stream.documents]
    return np.column_stack([sums, counts, np.array(sizes, np.float64)])


def language_metrics(sums: np.ndarray, groups: Sequence[str], intervals: bool = True) -> Metrics:
    """Figures of `document_sums`.

    loss (nats a token of the model's own vocabulary), perplexity = exp(loss), and what compares
    between vocabularies: perplexity_per_word, nats_per_char.
    """
    total = sums.sum(axis=0)
    metrics: Metrics = {
        "n": len(sums),
        "num_targets": int(total[1]),
        "num_chars": int(total[2]),
        "num_words": int(total[3]),
    }

    if intervals:
        metrics |= interval_facts("loss", groups, sums[:, 1])
    for name, denominator, curve in (
        ("loss", 1, float),
        ("perplexity", 1, exp),
        ("perplexity_per_word", 3, exp),
        ("nats_per_char", 2, float),
    ):
        if not total[denominator]:
            continue
        if (value := curve(total[0] / total[denominator])) == math.inf:
            continue
        metrics[name] = value
        if intervals:
            found = interval(sums, groups, Ratio(0, denominator))
            ends = {"low": curve(found.low), "high": curve(found.high)}
            add_interval(metrics, name, found._replace(**ends))
    return metrics


def is_exact(tokenizer: Any, stream: Stream) -> bool:
    """Whether decoding gives each document back, letter by letter. Else its loss is that of another
    text: lower-cased, say."""
    separators = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    pieces = zip(stream.offsets, stream.offsets[1:], stream.documents, strict=False)
    for begin, end, document in pieces:
        ids = stream.tokens[begin:end].tolist()
        ids = ids[1:] if ids and ids[0] in separators else ids
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != document.text:
            return False
    return True


def exp(nats: float) -> float:
    """e to the nats; inf beyond what a float holds, NaN of NaN."""
    return math.inf if nats >= 700 else math.exp(nats)


class LanguageModelling(Phases):
    """Causal language modelling around a script's loop."""

    def load_rows(self) -> tuple[list[documents.Document], dict[str, Any]]:
        config = self.config
        rows, self.separated, notes = documents.load_documents(
            config.task, config.data, config.val_frac, config.test_frac, config.detokenize
        )
        rows, facts = self.choose_rows(rows, documents.data_fingerprint(rows))
        for line in notes:
            self.world.say(line)
        return rows, facts

    def load_data(self, rows: list[documents.Document]) -> None:
        config, world = self.config, self.world
        streams = Streams(rows, self.separated, self.tokenizer, world)
        pad, steps = self.tokenizer.pad_token_id, config.length_steps

        def part(split: str, stride: int, once: bool = True) -> WindowData:
            return WindowData(streams.part(split), config.max_length, stride, pad, once, steps)

        self.train = part("train", config.train_stride, once=False)
        self.val, self.test_data = part("val", config.stride), part("test", config.stride)
        sizes = (f"{len(d.stream.tokens):,}" for d in (self.train, self.val, self.test_data))
        world.say("tokens: train {}, validation {}, test {}".format(*sizes))

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats) summed over the tokens that are predicted; their number."""
        if self.needs_targets():
            taught = {} if self.teacher is None else {"teacher": self.teacher_logits(batch)}
            return self.loss_of_targets(model, batch | taught)
        config = self.config
        hidden, teacher_hidden = causal.last_hidden(model, batch), None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_hidden = causal.last_hidden(self.teacher, batch)
        loss = causal.lm_loss_sum(
            model,
            hidden,
            batch["labels"],
            self.teacher,
            teacher_hidden,
            config.temperature,
            config.distill_weight,
            batch["places"],
        )
        return loss, len(batch["places"])

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        hidden = causal.last_hidden(model, batch)
        found = causal.logits_at_targets(model, hidden, batch["labels"], batch["places"])
        return Targets(*found, teacher=batch.get("teacher"))

    @torch.no_grad()
    def teacher_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(targets, classes), of the teacher."""
        hidden = causal.last_hidden(self.teacher, batch)
        labels, places = batch["labels"], batch["places"]
        return causal.logits_at_targets(self.teacher, hidden, labels, places)[0]

    def sums(self, state: core.State, data: WindowData) -> np.ndarray:
        """`document_sums` of a part, on all ranks."""

        def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            hidden = causal.last_hidden(model, batch)
            losses = causal.token_losses(model, hidden, batch["labels"], batch["places"])
            return nn.functional.pad(losses, (0, data.length - losses.shape[1]))

        values = core.evaluate_rows(state, data, outputs, rows_each(data.length))
        return document_sums(data.stream, data.losses_of_tokens(values))

    def evaluate(self, state: core.State) -> dict[str, float]:
        """Loss (nats) and perplexity a token of the validation documents."""
        loss, targets = self.sums(state, self.val).sum(axis=0)[:2]
        perplexity = math.exp(min(loss / targets, 700))
        return {"val_loss": float(loss / targets), "val_perplexity": perplexity}

    def baseline(self, state: core.State) -> Result:
        config, test_documents = self.config, self.test_data.stream.documents
        sums = self.sums(state, self.test_data)
        require_finite(sums, "a test loss")
        metrics = language_metrics(sums, [document.group for document in test_documents])
        metrics |= {
            "unigram_entropy": self.frequencies(self.test_data),
            "num_bytes": sum(len(document.text.encode()) for document in test_documents),
            "tokenizer_exact": is_exact(self.tokenizer, self.test_data.stream),
            "window": config.max_length,
            "stride": config.stride,
            "detokenized": config.detokenize,
            "token": "BPE token of the model's vocabulary",
        }
        rows = [
            {
                "id": document.id,
                "group": document.group,
                "loss_sum": float(loss),
                "num_targets": int(targets),
                "num_chars": int(chars),
                "text": {"text": document.text},
            }
            for document, (loss, targets, chars, _) in zip(test_documents, sums, strict=True)
        ]
        return Result(metrics, rows, TokenLoss(metrics["loss"], metrics["unigram_entropy"]))

    def frequencies(self, data: WindowData) -> float:
        """Nats a token of a part, for an answer by the frequencies of the training part alone."""
        size = len(self.tokenizer)
        seen, asked = (
            np.bincount(tokens, minlength=size)
            for tokens in (self.train.stream.tokens, data.stream.tokens[1:])
        )
        return unigram_loss(seen, asked)

    def test(self, state: core.State) -> Result:
        """As `baseline`, of the trained model."""
        maps = self.attention_maps(state)
        return self.baseline(state)._replace(files=maps)

    def some_texts(self, count: int) -> list[str]:
        return [document.text for document in self.test_data.stream.documents[:count]]
