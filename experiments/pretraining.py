"""BERT pretraining on a budget: what is charged, which rows, which layers, which optimizer.

What pretrain_bert.py shows the loop of. Data order, selection of rows, depth and optimizer
compose freely: each is told of the clock's fraction alone, and each keeps its state in the
checkpoint.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import core
from data import corpora
from device import choose_precision, compile_model
from evaluation.metrics import Metrics, add_interval, interval_facts
from evaluation.outcomes import TokenLoss, require_finite, unigram_loss
from evaluation.stats import Ratio, interval
from experiments.experiment import Result, place
from experiments.training import Targets, Training, build_state, free_work
from methods import clock as clocks
from methods.batch_selection import IrreducibleLosses, RhoLoss
from methods.layer_drop import drop_probability, gate_generator, sample_active_layers
from methods.optimizers import parameter_groups
from methods.stacking import Stacking
from models import pretrained
from settings import (
    Aliases,
    Optimizer,
    Schedule,
    Section,
    Settings,
    SophiaSettings,
    precision_words,
    seed_of,
)

Architecture = Literal["bert-c5", "bert-small", "bert-mini", "bert-tiny", "hf-bert", "hf-bert-mini"]


@dataclass
class StackingSettings(Section):
    """Progressive stacking: a shallow model is copied on top of itself."""

    enabled: bool = False
    """grow the model while it trains"""
    initial_layers: int = 4
    """layers that run at the beginning"""
    fractions: list[float] = field(default_factory=lambda: [0.125, 0.3])
    """shares of the budget at which the depth doubles"""


@dataclass
class LayerDropSettings(Section):
    """Progressive layer dropping: layers are left out at random."""

    enabled: bool = False
    """drop layers while training"""
    theta: float = 0.5
    """keep probability of the top layer that is approached"""
    gamma: float = 100.0
    """how soon: 99 % of the way at 4.6 / gamma of the budget"""


@dataclass
class ValidationSettings(Section):
    """The rows that are held out."""

    fraction: float = 0.005
    """share of the corpus that is held out (batch selection: .2, to train its IL model on)"""
    seed: int = 0
    """of the split"""
    truncate_to: int = 10_000
    """rows to validate on at most; the rest of the holdout is for the IL model"""
    il_model: bool = False
    """train on the holdout: the model of the irreducible losses"""


@dataclass
class Config(Settings):
    """Settings of pretrain_bert.py."""

    ONLY_WITH = {
        "stacking.*": "stacking.enabled",
        "layer_drop.*": "layer_drop.enabled",
        "budget_table": "budget_unit=rst_hours",
        "validate_every": "budget",
        "eval_every": "validate_every=null",
        "vocab_size": "tokenizer=null",
    }
    BETAS = {"adamw": (0.9, 0.98), "muon": (0.9, 0.98)}
    LEAST = {"max_length": 2}  # <cls> and a token

    model: Architecture = "bert-c5"
    """bert-c5 (16 layers of 768), and smaller ones of its shape; hf-bert (BERT-base) and one of
    MiniLM's size"""
    data: str = "c4-subset"
    """c4-subset, minipile, bookcorpus-wikitext, reviews, or text, JSONL or parquet files"""
    budget: float | None = 24.0
    """what the run may spend, in --budget_unit; null: --epochs passes over the rows"""
    budget_unit: Literal["rst_hours", "hours", "steps", "flops"] = "rst_hours"
    """rst_hours: hours of an RTX 3090 by its published table; hours: of this machine's clock"""
    budget_table: str | None = None
    """prices of rst_hours for another model or machine, by pretrain_bert.py calibrate"""
    validate_every: float | None = None
    """in --budget_unit, between evaluations; null: --eval_every"""
    vocab_size: int = 32768
    """of the WordPiece tokenizer that is trained on the corpus"""
    tokenizer: str | None = None
    """folder of a tokenizer to use instead"""
    epochs: float = 1.0
    """passes over the rows, where --budget is null"""
    batch: int = 1536
    """rows an update over all processes (the global batch)"""
    micro_batch: int | None = 128
    """rows a forward pass; null: a quarter of --batch, rounded up. Part of the experiment"""
    max_length: int = 128
    """tokens a row; rows are packed, so all have as many"""
    init: Literal["in_order", "by_name"] = "in_order"
    """parameters drawn one after the other, or by_name, each from the seed and its own name: then
    arms of other architecture share a start, and pairing by seed pays (docs/statistics.md)"""
    mask_frac: float = 0.15
    """share of a training row's tokens that are masked; of a validation row's it is always .15"""
    lr: float = 1e-3
    """peak learning rate"""
    schedule: Schedule = "one-cycle"
    """learning rate over the budget: one-cycle, up to the middle and down; triangle2, up for 75 %;
    or after a warm-up linear, cosine, constant, wsd (stable, then a straight line)"""
    optimizer: Optimizer = "adamw"
    """adamw (betas .9/.98), lion (.9/.99), sophiag (.965/.99), muon (its adamw .9/.98) or sgd"""
    eps: float = 1e-12
    """adamw's epsilon"""
    attention: Literal["auto", "sdpa"] = "auto"
    """attention kernel: SDPA"""
    max_grad_norm: float | None = 0.5
    """clip the global gradient norm to this; null: no clipping"""
    save_every: int | None = 500
    """steps between checkpoints; null: with every evaluation"""
    test_with: Literal["best", "final"] = "final"
    """weights for the last figures; the validation rows then choose nothing"""
    stacking: StackingSettings = field(default_factory=StackingSettings)
    """progressive stacking"""
    layer_drop: LayerDropSettings = field(default_factory=LayerDropSettings)
    """progressive layer dropping"""
    sophia: SophiaSettings = field(default_factory=lambda: SophiaSettings(rho=0.01, rows=768))
    """curvature of sophiag"""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    """the split"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("validate_every", lambda value: value > 0, "more than 0, or null")
        self._require("mask_frac", lambda value: 0 < value < 1, "a share above 0, below 1")
        if self.stacking.enabled and self.layer_drop.enabled:
            raise ValueError(
                "stacking and layer drop both choose the layers that run: enable one of them"
            )
        if self.stacking.enabled and self.average_frac:
            raise ValueError("--average_frac: a mean of models of different depths is none of them")


# What a script without any settings does where there is no hub.
EMBEDDED: dict[str, Any] = {
    "what": "bert-tiny on --data reviews",
    "fast": True,
    "model": "bert-tiny",
    "data": "reviews",
    "vocab_size": 8192,
    "max_length": 64,
    "batch": 32,
    "micro_batch": 16,
    "budget": None,
    "epochs": 1.0,
    "lr": 4e-3,
    "mask_frac": 0.4,
    "schedule": "linear",
    "warmup_frac": 0.05,
    "validation": ValidationSettings(fraction=0.05, truncate_to=2000),
}


def build_clock(config: Config, model: nn.Module, total_steps: int) -> clocks.BudgetClock:
    """The clock of this budget; total_steps: of --epochs, where --budget is null.

    ValueError where the published times do not fit the model.
    """
    free = free_work(config)
    if config.budget is None:
        return clocks.BudgetClock(total_steps, "steps", free=free)
    costs = None
    if config.budget_unit == "rst_hours":
        costs = clocks.RTX_3090
        if config.budget_table is not None:
            costs = clocks.Costs.load(Path(config.budget_table))
        costs.require(config.model, config.max_length)
    elif config.budget_unit == "flops":
        from models import bert

        shape = model.config
        costs = clocks.flops_costs(
            config.model,
            shape.num_hidden_layers,
            shape.hidden_size,
            shape.intermediate_size,
            shape.vocab_size,
            config.max_length,
            config.mask_frac,
            gated=config.model in bert.ARCHITECTURES,
        )
    return clocks.BudgetClock(config.budget, config.budget_unit, costs, free)


def load_irreducible(folder: Path, split: corpora.Split) -> IrreducibleLosses:
    """Our own table, or a published one that was downloaded, whose ids are places in train."""
    if not (folder / "ids.npy").exists():
        return IrreducibleLosses.load(folder, split.fingerprint)
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    losses = np.load(folder / "losses.npy", allow_pickle=False)
    if len(ids) != len(split.train):
        raise ValueError(
            f"{folder} has losses of {len(ids):,} sequences, but {len(split.train):,} are trained "
            "on: it was made for another corpus, or another validation.fraction"
        )
    return IrreducibleLosses(split.train[ids], losses, split.fingerprint)


def frequencies_alone(
    corpus: corpora.Corpus, train_ids: np.ndarray, data: corpora.MlmData, most: int = 100_000
) -> float:
    """Nats a masked token of `data` for an answer by token frequency alone.

    Masks fall on every token that is not special with the same probability, so what counts is how
    frequent each of them is in training, of `most` sequences (ids are in a random order); a model
    that sees no context can know no more, but for the tenth of the masked tokens that are left
    as they were.
    """
    seen, asked = np.zeros((2, corpus.vocab_size), np.int64)
    for start in range(0, min(len(train_ids), most), 4096):
        tokens = corpus.rows(train_ids[:most][start : start + 4096].astype(np.int64))
        seen += np.bincount(tokens.reshape(-1), minlength=corpus.vocab_size)
    seen[corpus.is_special] = 0
    for start in range(0, len(data), 1024):
        rows = np.arange(start, min(start + 1024, len(data)))
        labels = data.collate(rows, None)["labels"].numpy()
        asked += np.bincount(labels[labels != core.IGNORE_INDEX], minlength=corpus.vocab_size)
    kept = ~corpus.is_special
    return unigram_loss(seen[kept], asked[kept])


# ------------------------------------------------------------------------ the experiment


def load_parts(
    config: Config, world: core.World, build: bool = True
) -> tuple[corpora.Corpus, corpora.Split]:
    """The packed corpus, made where it is not there yet (build), and its split."""
    corpus = corpora.load_corpus(
        config.data,
        world,
        tokenizer=config.tokenizer,
        vocab_size=config.vocab_size,
        seq_length=config.max_length,
        build=build,
    )
    held_out = config.validation
    split = corpora.split_corpus(corpus, held_out.fraction, held_out.seed, held_out.truncate_to)
    # all parts are in a random order: their beginnings are nested samples
    share = min(1.0, (config.limit or len(corpus)) / len(corpus))
    return corpus, dataclasses.replace(
        split,
        train=first_share(split.train, share * config.train_frac),
        validation=first_share(split.validation, share),
        il_train=first_share(split.il_train, share * config.train_frac),
    )


def first_share(ids: np.ndarray, share: float) -> np.ndarray:
    """The first ids, at least one of some."""
    return ids[: max(1, round(share * len(ids)))]


class Pretraining(Training):
    """The experiment around the script's loop."""

    def __init__(self, config: Config, world: core.World):
        self.config, self.world = config, world
        pretrained.quiet_transformers()
        self.precision = choose_precision(config.precision, world.device.type, world.machine)
        core.say_device(world, self.precision, "sdpa")
        self.corpus, self.split = load_parts(config, world)
        self.facts = {
            "data_fingerprint": self.corpus.fingerprint,
            "split_fingerprint": self.split.fingerprint,
        }
        if config.limit is not None or config.train_frac < 1:
            sizes = len(self.split.train), len(self.split.validation), len(self.split.il_train)
            self.facts["split_fingerprint"] += "-" + "-".join(map(str, sizes))
        train_ids = self.split.il_train if config.validation.il_model else self.split.train
        if not len(train_ids) or not len(self.split.validation):
            raise ValueError(
                f"{config.data}: {len(train_ids):,} rows to train on, "
                f"{len(self.split.validation):,} to validate on: a larger corpus, or another "
                "validation.fraction or validation.truncate_to"
            )
        masking = corpora.Masking(config.mask_frac)
        self.train = corpora.MlmData(self.corpus, train_ids, seed_of(config, "masks"), masking)
        self.val = corpora.MlmData(self.corpus, self.split.validation)
        self.frequencies = frequencies_alone(self.corpus, train_ids, self.val)
        world.say(
            f"data: {len(train_ids):,} rows of {config.max_length} tokens of {config.data}, "
            f"validation {len(self.val):,}; a model that knows how frequent each token is, and "
            f"no more, has a validation loss of {self.frequencies:.4f} nats"
        )

    def load_model(self) -> nn.Module:
        """A new model of the architecture that --model names."""
        config = self.config
        from models import bert

        return bert.build_masked_lm(
            config.model,
            self.corpus.vocab_size,
            seed_of(config, "init"),
            config.max_length,
            config.init == "by_name",
        )

    def build_state(self, model: nn.Module) -> core.State:
        """Clock, optimizer, loader, and what each method needs, on the device."""
        config, world = self.config, self.world
        place(model, world)  # only hf-bert drops; all attend faster in bf16
        self.num_layers = model.config.num_hidden_layers
        groups = parameter_groups(
            {"bert": model.parameters()}, {"bert": config.lr}, config.weight_decay
        )
        extras: dict[str, Any] = {}
        self.stacking = None
        if config.stacking.enabled:
            layers = pretrained.find_layers(model)
            self.stacking = Stacking(
                layers, config.stacking.initial_layers, config.stacking.fractions
            )
            extras["stacking"] = self.stacking
        state = build_state(self, model, groups, extras=extras)
        if config.validate_every is not None:
            state.evaluation_due = functools.partial(
                self.clock.passed_multiple_of, config.validate_every
            )
        if self.stacking:
            state.in_use = functools.partial(self.running_parameters, model)
        if config.compile:
            compile_model(model)
        return state

    def curvature_data(self, seed: int) -> corpora.MlmData:
        """Masks of their own, too."""
        return corpora.MlmData(self.corpus, self.train.ids, seed, self.train.masking)

    def build_clock(self, model: nn.Module, total_steps: int) -> clocks.BudgetClock:
        return build_clock(self.config, model, total_steps)

    def build_selector(self) -> Any:
        config = self.config
        if config.selection.name != "rho_loss":
            return super().build_selector()
        losses = load_irreducible(Path(config.selection.il_losses), self.split)
        losses.require(self.train.ids)
        # the table knows ids of the corpus, a selector rows of the training part
        by_row = IrreducibleLosses(
            np.arange(len(self.train)), losses.of(self.train.ids), self.split.fingerprint
        )
        return RhoLoss(config.batch, config.selection.mega_batch, by_row)

    # -- depth

    @property
    def depth(self) -> int:
        """Layers that there are at this time."""
        return self.stacking.depth if self.stacking else self.num_layers

    def running_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """All but those of the layers that stacking has not reached."""
        waiting = {id(p) for p in self.stacking.layers[self.depth :].parameters()}
        return [p for p in model.parameters() if id(p) not in waiting]

    def active_layers(self, position: int, index: int) -> Sequence[int]:
        """The layers of a micro-batch; any rank can say so for any."""
        drop = self.config.layer_drop
        if not drop.enabled:
            return range(self.depth)
        # the clock stands still until the step is charged
        p = drop_probability(self.clock.fraction, drop.theta, drop.gamma)
        return sample_active_layers(
            p, self.num_layers, gate_generator(seed_of(self.config, "masks"), position, index)
        )

    # -- what a step does

    def choose_layers(self, position: int, index: int) -> None:
        """Which layers the micro-batch that comes next is run through."""
        self.layers = self.active_layers(position, index)

    def losses(self, model: nn.Module, batch: dict, layers: Sequence[int]) -> Any:
        """Of all layers nothing need be said: compiled code and hooks then stay unchanged."""
        chosen = None if len(layers) == self.num_layers else list(layers)
        rows = {name: batch[name] for name in ("input_ids", "labels", "places")}
        from models import bert

        return bert.masked_lm_losses(model, rows, chosen)

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int | Tensor]:
        """Cross-entropy summed over the masked tokens of a micro-batch, and their number."""
        if self.needs_targets():
            return self.loss_of_targets(model, batch)
        outputs = self.losses(model, batch, self.layers)
        return outputs.loss_sum, outputs.num_targets

    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        labels, places = batch["labels"], batch["places"]
        logits = self.losses(model, batch, self.layers).logits
        return Targets(logits, labels.flatten()[places], places // labels.shape[1])

    def sampled_loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Of all layers."""
        self.layers = range(self.depth)
        return super().sampled_loss_sum(model, batch)

    def row_losses(self, model: nn.Module, batch: dict[str, Tensor], rows: int) -> Tensor:
        """Of all layers."""
        outputs = self.losses(model, batch, range(self.depth))
        return outputs.sequence_loss_sums / outputs.sequence_num_targets

    def before_update(self, state: core.State) -> bool:
        """Grow the model and estimate the curvature where that is due; False after a signal."""
        self.start_timing()
        if self.stacking and self.stacking.update(self.clock.fraction, state.optimizer):
            self.world.say(f"step {state.step + 1}: {self.depth} layers from here on")
        return self.estimate_curvature(state)

    def charge_rows(self, state: core.State, work: core.Work) -> None:
        # all depths first: a charge moves the clock, on which they depend
        depths = [len(self.active_layers(work.position, i)) for i in range(len(work.sizes))]
        for layers, rows in zip(depths, work.sizes, strict=True):
            self.clock.charge("train", layers, self.passes * rows)
        self.charge_scores(state)

    # -- figures

    def sequence_losses(self, state: core.State, data: corpora.MlmData) -> np.ndarray:
        """(rows, 2): loss sum and number of masked tokens of each row."""

        def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            losses = self.losses(model, batch, range(self.depth))
            return torch.stack([losses.sequence_loss_sums, losses.sequence_num_targets], dim=1)

        return core.evaluate_rows(state, data, outputs, self.SCORING_ROWS).astype(np.float64)

    def evaluate(self, state: core.State) -> dict[str, float]:
        """The loss of the validation rows, whose masks never change, in nats per masked token."""
        loss_sum, targets = self.sequence_losses(state, self.val).sum(axis=0)
        return {
            "val_loss": float(loss_sum / targets),
            "budget_fraction": self.clock.fraction,
            "depth": self.depth,
        }

    def test(self, state: core.State) -> Result:
        """The last figures, on the validation rows: nothing was chosen by them."""
        if self.stacking:  # rank 0 has read it with the weights
            self.stacking.depth = self.world.from_rank_0(self.depth)
        result = self.measure(state)
        result.metrics.update(
            evaluated_on="validation",
            budget_fraction=self.clock.fraction,
            updates=self.clock.steps,
            work=self.clock.counts,
        )
        return result

    def measure(self, state: core.State) -> Result:
        """Figures and rows of the validation rows."""
        values = self.sequence_losses(state, self.val)
        groups = self.corpus.group_of(self.val.ids)
        loss_sum, targets = values.sum(axis=0)
        loss = float(loss_sum / targets)
        require_finite(loss, "the validation loss")
        metrics: Metrics = {
            "n": len(values),
            **interval_facts("loss", groups, values[:, 1]),
            "num_targets": int(targets),
            "loss": loss,
            "val_loss": loss,
        }
        found = interval(values, groups, Ratio(0, 1))
        for name in ("loss", "val_loss"):
            add_interval(metrics, name, found)
        metrics |= {
            "perplexity": math.exp(min(loss, 700)),
            "unigram_entropy": self.frequencies,
        }
        rows = [
            {
                "id": int(row_id),
                "group": int(group),
                "loss_sum": float(row_loss),
                "num_targets": int(count),
                "num_chars": int(chars),
            }
            for row_id, group, (row_loss, count), chars in zip(
                self.val.ids, groups, values, self.masked_characters(), strict=True
            )
        ]
        return Result(metrics, rows, TokenLoss(loss, self.frequencies))

    def masked_characters(self) -> np.ndarray:
        """(rows,) characters of the masked tokens, without the marks of word pieces."""
        pieces = self.corpus.tokenizer.convert_ids_to_tokens(range(self.corpus.vocab_size))
        lengths = np.array([len(piece.removeprefix("##")) for piece in pieces])
        counts = []
        for start in range(0, len(self.val), 1024):
            rows = np.arange(start, min(start + 1024, len(self.val)))
            labels = self.val.collate(rows, None)["labels"].numpy()
            hidden = labels != core.IGNORE_INDEX
            counts.append(np.where(hidden, lengths[np.where(hidden, labels, 0)], 0).sum(axis=1))
        return np.concatenate(counts)

    # -- weights

    def export(self, state: core.State, folder: Path) -> None:
        """A folder for AutoModelForMaskedLM (with models.bert imported), of the present layers."""
        from models import bert

        bert.save_model(state.model, folder, self.depth)
        self.corpus.tokenizer.save_pretrained(folder)

    def restore(self, state: core.State, folder: Path) -> None:
        from models import bert

        depth = bert.load_weights(state.model, folder)
        if self.stacking:
            self.stacking.depth = depth


# ------------------------------------------------------------------------ published words


def _inverted(name: str) -> Callable[[str], dict[str, str]]:
    def meaning(value: str) -> dict[str, str]:
        return {name: "false" if value.strip().lower() in ("true", "1", "yes") else "true"}

    return meaning


# The words of the published experiments (No Train No Gain), where ours are others.
ALIASES: Aliases = {
    "name": lambda value: {"out": f"results/bert/{value}"},
    "arch": "model",
    "optim": "optimizer",
    "optim.name": "optimizer",
    "optim.charge_curvature": "sophia.charge",
    "train/optim": "optimizer",
    "train.optim": "optimizer",
    "train.optim.lr": "lr",
    "train.optim.weight_decay": "weight_decay",
    "train.optim.rho": "sophia.rho",
    "train.batch_size": "batch",
    "train.gradient_clipping": "max_grad_norm",
    "train.stacking.enabled": "stacking.enabled",
    "train.stacking.num_initial_layers": "stacking.initial_layers",
    "train.stacking.step_fractions": "stacking.fractions",
    "arch.layer_drop.enabled": "layer_drop.enabled",
    "arch.layer_drop.max_theta": "layer_drop.theta",
    "arch.layer_drop.gamma_factor": "layer_drop.gamma",
    "train.sb.scale": lambda value: {
        "selection.name": "selective_backprop",
        "selection.beta": value,
    },
    "train.rho_loss.il_losses_path": lambda value: {
        "selection.name": "rho_loss",
        "selection.il_losses": value,
    },
    "train.rho_loss.mega_batch_size": "selection.mega_batch",
    "train.track_forward_pass_only": "selection.charge_forward",
    "train.sophia.free_updates": _inverted("sophia.charge"),
    "train.sophia.hess_update_frequency": "sophia.every",
    "train.sophia.batch_size_hess_update": "sophia.rows",
    "train.validation_set.fraction": "validation.fraction",
    "train.validation_set.seed": "validation.seed",
    "train.validation_set.truncate_to": "validation.truncate_to",
    "train.validation_set.il_model": "validation.il_model",
    "impl.mixed_precision_target_dtype": precision_words,
    "impl.validate_every_hours": "validate_every",
    "impl.microbatch_size": "micro_batch",
}
