"""A small GPT on titles: its model, optimizer and figures, as train_headlines.py shows the loop."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import core
from core import IGNORE_INDEX
from data import titles
from data.documents import WindowData
from data.rows import normalised_text, stable_hash
from data.titles import EOS, OFFICIAL_BATCH, OFFICIAL_BLOCK, Title, TitleData
from data.tokens import Ragged, encode_texts, rows_of_tokens
from device import choose_attention, choose_precision, compile_model
from evaluation.metrics import Metrics, add_interval, interval_facts
from evaluation.outcomes import TokenLoss, require_finite, unigram_loss
from evaluation.stats import Ratio, interval
from experiments import next_tokens
from experiments.experiment import Result, place, rows_each
from experiments.training import Targets, Training, build_state
from methods.muon import muon_flops
from methods.optimizers import parameter_groups
from methods.r_drop import r_drop
from models import gpt, pretrained
from settings import refuse, seed_of

A100_FLOPS = 312e12  # a second in bf16, by its data sheet
A100_SHARE = 0.3  # of that, which so small a model may reach: an assumption
PUBLISHED_THETA = 10_000.0  # which published commands name beside learned positions, too
SHAPE = (  # settings that gpt.build_gpt takes by the same names
    "n_layer",
    "n_head",
    "n_embd",
    "positions",
    "rope_theta",
    "norm",
    "mlp",
    "bias",
    "qk_norm",
    "attention_gate",
    "layer_scale",
    "within_titles",
    "scale_residual_init",
    "dropout",
)

# ------------------------------------------------------------------------------- figures

COLUMNS = ("loss", "official_loss", "official_tokens", "tokens", "characters", "bytes")


def title_sizes(titles: Sequence[Title]) -> np.ndarray:
    """(titles, 2): characters and bytes of each with its <eos>."""
    sizes = [(len(t.text) + len(EOS), len(t.text.encode()) + len(EOS)) for t in titles]
    return np.array(sizes, np.float64)


def title_group(title: Title) -> str:
    """Equal for titles that differ in case and white space alone."""
    return stable_hash("title", normalised_text([title.text]))


def headline_metrics(
    sums: np.ndarray, groups: Sequence[str], exact: bool, intervals: bool = True
) -> Metrics:
    """The figures of `sums` (titles, COLUMNS), titles in groups.

    nats_per_char · bits_per_byte · nats_per_token · official_nats_per_char, which is absent where
    the text has no whole window · share_scored, of the tokens, by the official one ·
    tokenizer_exact.
    """
    total = sums.sum(axis=0)
    metrics: Metrics = {
        "n": len(sums),
        "num_targets": int(total[3]),
        "num_chars": int(total[4]),
        "num_bytes": int(total[5]),
    }

    if intervals:
        metrics |= interval_facts("nats_per_char", groups, sums[:, 4])
    for name, numerator, denominator, unit in (
        ("official_nats_per_char", 1, 4, 1.0),
        ("nats_per_char", 0, 4, 1.0),
        ("bits_per_byte", 0, 5, math.log(2)),
        ("nats_per_token", 0, 3, 1.0),
    ):
        metrics[name] = float(total[numerator] / total[denominator] / unit)
        if intervals:
            found = interval(sums, groups, Ratio(numerator, denominator))
            low, high = found.low / unit, found.high / unit
            add_interval(metrics, name, found._replace(low=low, high=high))
    metrics |= {"share_scored": float(total[2] / total[3]), "tokenizer_exact": exact}
    if not total[2]:
        metrics = {k: v for k, v in metrics.items() if not k.startswith("official_")}
    return metrics


# ------------------------------------------------------------------------ the experiment


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Nats of each label (rows, seq), 0 where nothing is predicted."""
    labels = batch["labels"]
    losses = model(batch["input_ids"], shift_labels=labels).losses
    values = torch.zeros(labels.shape, dtype=losses.dtype, device=labels.device)
    return values.masked_scatter(labels != IGNORE_INDEX, losses)


def title_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Nats of each title (rows,) of a batch of TitleData."""
    lengths = batch["title_lengths"]
    losses = model(batch["input_ids"], shift_labels=batch["labels"]).losses
    title = rows_of_tokens(lengths, losses.device)
    return torch.zeros(len(lengths), device=losses.device).index_add_(0, title, losses)


class WithSegments:
    """A data set whose batches say where titles begin, found on the host: a device would be waited
    for."""

    def __init__(self, data: Any, eos: int):
        self.data, self.eos = data, eos
        self.lengths, self.tokens = data.lengths, data.tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """The batch, and segment_… of gpt.Segments."""
        batch = self.data.collate(rows, epoch)
        found = vars(gpt.find_titles(batch["input_ids"], self.eos))
        return batch | {f"segment_{name}": tensor for name, tensor in found.items()}


def segments_of(batch: dict[str, Tensor]) -> gpt.Segments | None:
    """What WithSegments found, if it did."""
    if "segment_rows" not in batch:
        return None
    names = (field.name for field in dataclasses.fields(gpt.Segments))
    return gpt.Segments(**{name: batch[f"segment_{name}"] for name in names})


class Headlines(Training):
    """The experiment around the script's loop."""

    def __init__(self, config: Any, world: core.World, folder: Path | None):
        """folder: of the run, which keeps its tokenizer."""
        self.config, self.world = config, world
        if config.positions == "learned" and config.rope_theta != PUBLISHED_THETA:
            refuse(config, ["rope_theta"], "learned positions do not turn")
        self.losses_of = gpt.cross_entropies
        if self.passes == 2:
            self.losses_of = functools.partial(r_drop, alpha=config.r_drop)
        self.differentiate = gpt.losses_and_gradient
        pretrained.quiet_transformers()
        device, machine = world.device.type, world.machine
        kernels = pretrained.KERNELS["small-gpt"]
        self.precision = choose_precision(config.precision, device, machine, kernels)
        attention = choose_attention(config.attention, device, self.precision, machine, kernels)
        core.say_device(world, self.precision, attention)
        self.facts = self.load_data(folder)

    # -- data

    def load_data(self, folder: Path | None) -> dict[str, Any]:
        config, world = self.config, self.world
        every, notes = titles.load_titles(config.data, config.limit, config.data_seed)
        for line in notes:
            world.say(line)
        train, held_out = titles.split_titles(every, config.val_frac)
        facts = {
            "data_fingerprint": titles.titles_fingerprint(every),
            "split_fingerprint": titles.titles_fingerprint(held_out),
        }
        train = train[: max(1, round(len(train) * config.train_frac))]
        saved = None
        if world.rank == 0:
            settings = (config.tokenizer, config.vocab_size, config.prefix_space)
            saved = titles.load_or_train_tokenizer(*settings, train, folder)
        self.tokenizer = titles.build_tokenizer(world.from_rank_0(saved))
        self.eos = self.tokenizer.eos_token_id
        rows = self.encode(train, "tokenising")
        self.train_stream = titles.build_stream(rows, self.eos)
        self.hold_out(held_out)
        if config.sequences == "titles":
            self.train: Any = TitleData(rows, self.eos)
        else:
            length = config.max_length
            self.train = WindowData(self.train_stream, length, length, self.eos, once=False)
        if config.within_titles:
            self.train = WithSegments(self.train, self.eos)
        texts = {t.text for t in train}
        again = sum(t.text in texts for t in self.titles)
        a_token = self.sizes[:, 0].sum() / len(self.official.stream)
        world.say(
            f"data: {len(train):,} titles of {config.data}, validation {len(self.titles):,} "
            f"({again} of them are in training, too) · {len(self.tokenizer):,} tokens of "
            f"{config.tokenizer}, which gives the validation titles back "
            f"{'exactly' if self.exact else 'WITH CHANGES: nothing can be claimed'} · "
            f"{a_token:.2f} characters a token"
        )
        return facts

    def hold_out(self, held_out: list[Title]) -> None:
        """The titles that are scored, as tokens."""
        self.titles, self.val_rows = held_out, self.encode(held_out, "tokenising")
        self.exact = titles.is_exact(self.tokenizer, self.titles, self.val_rows)
        self.groups = [title_group(title) for title in self.titles]
        self.sizes = title_sizes(self.titles)
        self.val_stream = titles.build_stream(self.val_rows, self.eos)
        self.official = titles.OfficialWindows(self.val_stream.tokens[1:])

    def encode(self, titles: Sequence[Title], what: str) -> Ragged:
        texts = (title.text for title in titles)
        return Ragged.from_rows(encode_texts(self.tokenizer, texts, len(titles), what, quiet=True))

    @property
    def passes(self) -> int:
        """Two with R-Drop; without dropout they would be one twice."""
        return 2 if self.config.r_drop and self.config.dropout else 1

    # -- model

    def load_model(self) -> gpt.SmallGPTForCausalLM:
        config = self.config
        longest = int(self.train.lengths.max())
        if config.within_titles:  # a validation title is read as a whole, with its <eos>
            longest = max(longest, int(self.val_rows.lengths.max()) + 1)
        return gpt.build_gpt(
            core.mix_seed(seed_of(config, "init"), 4),
            config.init == "by_name",
            vocab_size=len(self.tokenizer),
            n_positions=max(config.max_length, longest),
            eos_token_id=self.eos,
            bos_token_id=self.eos,
            **{name: getattr(config, name) for name in SHAPE},
        )

    def build_state(self, model: nn.Module) -> core.State:
        """Optimizer, loader and the average of the weights, on the device."""
        config = self.config
        place(model, self.world)
        if config.compile:
            if config.within_titles:  # no two micro-batches of titles have one shape
                for layer in model.model.layers:
                    compile_model(layer, dynamic=True)
            else:
                compile_model(model.model)
            self.differentiate = torch.compile(gpt.losses_and_gradient, dynamic=True)
        groups = parameter_groups(
            {"gpt": model.parameters()}, {"gpt": config.lr}, config.weight_decay
        )
        state = build_state(self, model, groups)
        self.facts |= {
            "parameters": gpt.parameter_count(model.config),
            "training_flops": self.training_flops(state),
        }
        return state

    # -- cost

    def training_flops(self, state: core.State) -> int:
        """Of all products of the run: forward and backward, R-Drop's second pass, Muon's."""
        config, model = self.config, state.model
        lengths = self.train.lengths
        if config.sequences == "windows":
            lengths = titles.stretches(
                self.train_stream.tokens, self.eos, self.train, config.within_titles
            )
        tokens = int(self.train.lengths.sum())
        forward = gpt.forward_flops(
            model.config, tokens, gpt.causal_pairs(map(int, lengths)), tokens
        )
        loader = state.loader
        each_step = 0
        for group in state.optimizer.param_groups:
            if group.get("method") == "muon":
                each_step += muon_flops(tuple(p.shape) for p in group["params"])
        epochs = loader.total_steps / loader.steps_per_epoch
        return round(3 * self.passes * forward * epochs) + each_step * loader.total_steps

    def say_cost(self, state: core.State) -> None:
        flops = self.training_flops(state)
        self.world.say(
            f"{flops:.3g} FLOPs of matrix products in {self.config.epochs:g} epochs; estimate for "
            f"one A100 at {A100_SHARE:.0%} of its 312 bf16 TFLOP/s, not measured: "
            f"{flops / A100_FLOPS / A100_SHARE:.0f} s"
        )

    # -- training

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats) summed over the labels, or R-Drop's loss; their number."""
        if self.config.label_smoothing:
            return self.loss_of_targets(model, batch)
        # with R-Drop once more, with another mask of dropout
        ids, segments = batch["input_ids"].repeat(self.passes, 1), segments_of(batch)
        if segments is not None and self.passes > 1:
            segments = segments.repeat(self.passes)
        hidden = model.model(ids, segments=segments).last_hidden_state
        copies = [
            gpt.at_targets(part, batch["labels"], batch["places"])
            for part in hidden.chunk(self.passes)
        ]
        states, targets = torch.stack([states for states, _ in copies]), copies[0][1]
        loss, _ = gpt.head_losses(
            states.squeeze(0),  # one copy is none
            model.lm_head.weight,
            targets,
            self.losses_of,
            differentiate=self.differentiate,
        )
        return loss, len(targets)

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        labels, places = batch["labels"], batch["places"]
        hidden = model.model(batch["input_ids"], segments=segments_of(batch)).last_hidden_state
        states, targets = gpt.at_targets(hidden, labels, places)
        rows = places // labels.shape[1]
        if (lengths := batch.get("title_lengths")) is not None:
            rows = rows_of_tokens(lengths, labels.device)
        return Targets(model.lm_head(states), targets, rows)

    # -- figures

    def sums(self, state: core.State) -> np.ndarray:
        """(titles, COLUMNS) of the validation titles, on all ranks."""
        offsets, length = self.val_stream.offsets[:-1], self.config.max_length
        if self.config.within_titles:
            data = TitleData(self.val_rows, self.eos)
            losses = core.evaluate_rows(state, data, title_losses, 4 * rows_each(length))
            losses = losses.astype(np.float64)
        else:
            data = titles.validation_windows(self.val_stream, length, self.eos)

            def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
                losses = token_losses(model, batch)
                return nn.functional.pad(losses, (0, data.length - losses.shape[1]))

            values = core.evaluate_rows(state, data, outputs, rows_each(length))
            losses = np.add.reduceat(data.losses_of_tokens(values)[1:], offsets)
        values = np.zeros((0, OFFICIAL_BLOCK))
        if len(self.official.starts):
            values = core.evaluate_rows(state, self.official, token_losses, OFFICIAL_BATCH)
        official, scored = (
            np.add.reduceat(each, offsets) for each in self.official.losses_of_tokens(values)
        )
        tokens = np.asarray(self.val_rows.lengths, np.float64) + 1
        return np.column_stack([losses, official, scored, tokens, self.sizes])

    def evaluate(self, state: core.State) -> dict[str, float]:
        """All figures, without intervals; val_loss is nats a token, as the training loss is (to
        which R-Drop adds how far its two passes are apart)."""
        sums = self.sums(state)
        metrics = headline_metrics(sums, self.groups, self.exact, intervals=False)
        figures = {f"val_{k}": float(v) for k, v in metrics.items() if not isinstance(v, int)}
        return {
            "val_loss": figures.pop("val_nats_per_token"),
            **figures,
            "val_tokenizer_exact": float(self.exact),
        }

    def test(self, state: core.State) -> Result:
        """The last figures, on the validation titles, of weights that were saved.

        What was saved is the average already. With --test_with final nothing was chosen by them.
        """
        result = self.measure(state)
        result.metrics.update(
            evaluated_on="validation",
            training_flops=self.training_flops(state),
            parameters=gpt.parameter_count(state.model.config),
        )
        return result._replace(files=self.expectations(state))

    def expectations(self, state: core.State) -> dict[str, str]:
        """What it expects at the place that `inspect` shows where none is asked for, and of each
        token on the whole, as a file for the page."""
        device = self.world.device
        opened = SimpleNamespace(
            config=self.config, model=state.model.eval(), tokenizer=self.tokenizer, device=device
        )
        found = {"frequencies": next_tokens.token_frequencies(opened, self.val_rows)}
        with contextlib.suppress(ValueError):  # fewer titles than reach there
            found["place"] = next_tokens.look_at_place(opened, self.val_rows, 0, 0, 10)
        return {"analysis/inspect.json": json.dumps(found, ensure_ascii=False)}

    def measure(self, state: core.State) -> Result:
        """Figures and rows of the titles that are held out."""
        sums = self.sums(state)
        require_finite(sums, "a loss")
        metrics = headline_metrics(sums, self.groups, self.exact)
        metrics["unigram_entropy"] = self.frequencies()
        rows = [
            {
                "id": title.id,
                "group": group,
                "loss_sum": float(row[0]),
                "num_targets": int(row[3]),
                "num_chars": int(row[4]),
                "text": {"title": title.text},
            }
            for title, group, row in zip(self.titles, self.groups, sums, strict=True)
        ]
        evidence = TokenLoss(metrics["nats_per_token"], metrics["unigram_entropy"])
        return Result(metrics, rows, evidence)

    def frequencies(self) -> float:
        """Nats a token, for an answer by the frequencies of the training tokens alone."""
        seen, asked = (
            np.bincount(stream.tokens[1:], minlength=len(self.tokenizer))
            for stream in (self.train_stream, self.val_stream)
        )
        return unigram_loss(seen, asked)

    # -- weights

    def export(self, state: core.State, folder: Path) -> None:
        """A folder for AutoModelForCausalLM (with models.gpt imported)."""
        pretrained.save_weights(state.model, folder, self.tokenizer)

    def restore(self, state: core.State, folder: Path) -> None:
        pretrained.restore_weights(state.model, folder)
