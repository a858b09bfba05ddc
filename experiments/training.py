"""What every experiment does alike around a step, so that each method is open to each script.

An experiment says what its model answers at each target (target_logits). From that follow label
smoothing, R-Drop, the curvature of Sophia-G and the losses that batch selection ranks; budgets,
layer-wise learning rates, optimizers, schedules and averaged weights need no more than the
settings. build_state puts together what the settings name.
"""

import abc
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import core
from device import pins, to_device
from experiments.experiment import Data
from methods import clock as clocks
from methods.averaging import WeightAverage, WindowAverage
from methods.batch_selection import SelectingLoader, SelectiveBackprop
from methods.curvature import Curvature, SeekingLoader
from methods.distillation import distillation_loss_sum
from methods.losses import are_scores, loss_sum, target_losses
from methods.muon import split_for_muon
from methods.optimizers import (
    build_optimizer,
    decay_by_depth,
    sampled_label_loss_sum,
    sampled_score_loss_sum,
)
from methods.schedules import build_schedule, require_learning
from models.pretrained import layer_of
from settings import Settings, replace, seed_of

A40_FLOPS = 149.7e12  # dense bf16 products a second, of NVIDIA's data sheet
A40_SHARE = 0.3  # of them, that encoders of base size reach
A40_DOLLARS = 0.40  # an hour, where they are rented


class Targets(NamedTuple):
    """What a model answers where something is asked."""

    logits: Tensor  # (targets, classes), or (targets, 1) of a score
    labels: Tensor  # (targets,) whole numbers or scores, or (targets, classes) probabilities
    rows: Tensor | None = None  # (targets,) the row of the batch of each; None: one target a row
    teacher: Tensor | None = None  # (targets, classes) logits of a teacher, where there is one


class Training(abc.ABC):
    """The part of an experiment that a step works with; a subclass has data, model and figures."""

    config: Settings
    world: core.World
    precision: str
    train: Data

    SCORING_ROWS = 128  # a forward pass, whatever the micro-batch: it changes no score
    curvature: Curvature | None = None
    has_classes = True  # or tokens; not a score

    @abc.abstractmethod
    def target_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Targets:
        """The answers to a micro-batch."""

    # -- losses

    @property
    def passes(self) -> int:
        """Forward passes of a training step over each row."""
        return 2 if self.config.r_drop else 1

    def loss_of_targets(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Tensor, int | Tensor]:
        """(training loss in nats summed over the targets, their number), with --label_smoothing,
        --r_drop and, where there is a teacher, --distill_weight."""
        config = self.config
        answers = [self.target_logits(model, batch) for _ in range(self.passes)]
        passes, (_, labels, _, teacher) = [each.logits for each in answers], answers[0]
        loss = loss_sum(passes, labels, config.label_smoothing, config.r_drop)
        if teacher is not None:
            each = [distillation_loss_sum(p, teacher, config.temperature) for p in passes]
            weight = config.distill_weight
            loss = (1 - weight) * loss + weight * sum(each) / len(each)
        return loss, len(labels)

    def needs_targets(self) -> bool:
        """Whether the loss is another than the plain cross-entropy, which may have a faster way."""
        return self.passes > 1 or self.config.label_smoothing > 0

    def sampled_loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """As the loss, against labels drawn from the model's own answers: for Sophia."""
        answers = self.target_logits(model, batch)
        scores = are_scores(answers.labels)
        sampled = sampled_score_loss_sum if scores else sampled_label_loss_sum
        return sampled(answers.logits), len(answers.labels)

    def row_losses(self, model: nn.Module, batch: dict[str, Tensor], rows: int) -> Tensor:
        """(rows,) the mean loss of each row's targets; 0 where it has none."""
        answers = self.target_logits(model, batch)
        losses = target_losses(answers.logits, answers.labels)
        if answers.rows is None:
            return losses
        zeros = losses.new_zeros(rows)
        sums = zeros.index_add(0, answers.rows, losses)
        counts = zeros.index_add(0, answers.rows, torch.ones_like(losses))
        return sums / counts.clamp(min=1)

    # The losses leave the device once for each SCORING_ROWS rows, and once more all ranks agree.
    @torch.no_grad()
    def score(self, state: core.State, candidates: np.ndarray) -> np.ndarray | None:
        """The loss of each (row, epoch), (n,), the same on every rank; None after a signal."""
        started = time.perf_counter()
        world, model = self.world, state.model

        def compute(rows_each: int) -> list[tuple[int, np.ndarray]]:
            starts = range(0, len(candidates), rows_each)
            parts = [candidates[start : start + rows_each] for start in starts]
            mine = []
            hand = core.deal([len(part) for part in parts], world.size)[world.rank]
            batches = state.loader.made.of([tuple(parts[index].T) for index in hand])
            for index, batch in zip(hand, batches, strict=True):
                if world.stop_requested():
                    break
                batch = to_device(batch, world.device)
                with state.autocast():
                    losses = self.row_losses(model, batch, len(parts[index]))
                mine.append((index, losses.float().cpu().numpy()))
            return mine

        model.eval()
        try:
            mine = core.with_rows_that_fit(state, compute, self.SCORING_ROWS)
        except core.Stopped:
            return None
        finally:
            model.train()
        scored = [losses for _, losses in sorted(world.gather_rows(mine), key=lambda part: part[0])]
        self.spend("forward", time.perf_counter() - started)
        return np.concatenate(scored)

    # -- what happens around a step

    depth = 0  # layers that there are at this time, where they change

    @property
    def learning(self) -> int:
        """Another number where parameters begin to learn, which then need a curvature."""
        return self.depth

    def before_update(self, state: core.State) -> bool:
        """Estimate the curvature where that is due; False after a signal."""
        self.start_timing()
        return self.estimate_curvature(state)

    def estimate_curvature(self, state: core.State) -> bool:
        if self.curvature is None or not self.curvature.due(state.step, self.learning):
            return True
        started = time.perf_counter()
        if self.curvature.estimate(state, self.learning, self.sampled_loss_sum) is None:
            return False
        self.spend("curvature", time.perf_counter() - started)
        return True

    def start_timing(self) -> None:
        """A step begins here: what passes from now on is charged to it."""
        self.step_started, self.apart = time.perf_counter(), 0.0

    def spend(self, kind: str, seconds: float) -> None:
        """Wall-clock time, where that is the budget: rank 0's, on all ranks."""
        if getattr(self.clock, "unit", None) == "hours":
            self.apart += seconds
            self.clock.measure(kind, self.world.from_rank_0(seconds))

    def charge(self, state: core.State, work: core.Work) -> None:
        """What the update took, of all ranks, told alike to the clock of each."""
        if not isinstance(self.clock, clocks.BudgetClock):
            return
        self.charge_rows(state, work)
        self.spend("train", time.perf_counter() - self.step_started - self.apart)
        self.clock.settle()

    def charge_rows(self, state: core.State, work: core.Work) -> None:
        self.clock.charge("train", self.depth, self.passes * sum(work.sizes))
        self.charge_scores(state)

    def charge_scores(self, state: core.State) -> None:
        """What chose the rows, and what Sophia's curvature took."""
        if isinstance(state.loader, SelectingLoader):
            self.clock.charge("forward", self.depth, state.loader.scored)
        if self.curvature and self.curvature.step == state.step - 1:
            self.clock.charge("curvature", self.depth, self.curvature.loader.config.batch)

    def cost_elsewhere(self, state: core.State) -> str:
        """What a whole run takes on the machine that such runs are rented on, from the arithmetic
        alone: no evaluation, no waiting for data; "" where the budget does not tell the steps."""
        steps = getattr(state.clock, "total_steps", None)
        if steps is None:
            return ""
        tokens = float(np.mean(self.train.tokens))
        pairs = float(np.mean(np.multiply(self.train.tokens, self.train.lengths)))
        each = clocks.costs_of_rows(state.model, layer_of, tokens, pairs).of("train", 0)
        flops = each * self.passes * steps * self.config.batch
        hours = flops / (4 * A40_FLOPS * A40_SHARE) / 3600
        return (
            f"{flops:.2g} FLOPs: on 4 × A40 in bf16 about {hours:.2g} hours and "
            f"${4 * hours * A40_DOLLARS:.2g}, at {A40_SHARE:.0%} of their {A40_FLOPS / 1e12:.0f} "
            f"TFLOP/s and ${A40_DOLLARS:.2f} an hour each (assumed), without evaluation"
        )

    # -- putting it together

    def curvature_data(self, seed: int) -> Data:
        """The rows for estimates of the curvature; what is drawn in them may come from seed."""
        return self.train

    def build_selector(self) -> Any:
        config = self.config
        if config.selection.name == "rho_loss":
            raise ValueError(
                "selection.name=rho_loss: irreducible losses are extracted for pretrain_bert.py's "
                "corpora alone; use selective_backprop"
            )
        chunk = min(128, config.batch)  # with a larger one a batch would wait for its turn
        chosen = config.selection
        return SelectiveBackprop(
            config.batch, seed_of(config, "order"), chosen.beta, chosen.history, chunk
        )

    def build_clock(self, model: nn.Module, total_steps: int) -> Any:
        """Steps of --epochs, or the clock of --budget."""
        config = self.config
        if config.budget is None:
            return core.StepClock(total_steps)
        costs = None
        if config.budget_unit == "flops":
            tokens = float(np.mean(self.train.tokens))
            pairs = float(np.mean(np.multiply(self.train.tokens, self.train.lengths)))
            costs = clocks.costs_of_rows(model, layer_of, tokens, pairs)
        return clocks.BudgetClock(config.budget, config.budget_unit, costs, free_work(config))


RATE_OF_PRETRAINED = 1e-4  # and below: what fine-tuning takes


def build_state(
    experiment: Training,
    model: nn.Module,
    groups: list[dict],
    *,
    loader: core.TrainLoader | None = None,
    schedule: Callable[[float], float] | None = None,
    extras: dict[str, Any] | None = None,
    kind: type[core.State] | Callable[..., core.State] = core.State,
    **more: Any,
) -> core.State:
    """Optimizer, loader, clock and schedule of the settings around a model that is placed.

    groups: of methods.optimizers.parameter_groups, or others of its form. loader, schedule: in
    place of those of --epochs and --schedule. more: fields of the state.
    ValueError where the settings name a method that the experiment cannot have.
    """
    config, world = experiment.config, experiment.world
    check_methods(experiment)
    extras = dict(extras or {})
    layers = {id(p): layer_of(name) for name, p in model.named_parameters()}
    groups = decay_by_depth(groups, layers, config.layer_decay)
    if config.optimizer == "muon":
        groups = split_for_muon(groups, layers, (config.matrix_lr or config.lr) / config.lr)
    if config.optimizer == "sophiag":
        # rows of their own: the order of the training data stays the baseline's
        seed = core.mix_seed(seed_of(config, "order"), 9) & 0xFFFFFFFF
        own = replace(config, batch=config.sophia.rows, seed=seed, seed_order=None)
        estimates = SeekingLoader(experiment.curvature_data(seed), own, world)
        experiment.curvature = extras["curvature"] = Curvature(estimates, config.sophia.every)
    loader = loader or core.TrainLoader(experiment.train, config, world)
    experiment.clock = experiment.build_clock(model, loader.total_steps)
    total_steps = experiment.clock.total_steps  # None: not known before the run
    if config.selection.name != "uniform":
        selector = experiment.build_selector()
        score = lambda candidates: experiment.score(state, candidates)  # noqa: E731
        loader = SelectingLoader(experiment.train, loader.config, world, selector, score)
        extras["selection"] = loader
    experiment.start_timing()
    schedule = schedule or schedule_of(config)
    require_learning(schedule, total_steps)
    if getattr(config, "init", None) == "random" and config.lr <= RATE_OF_PRETRAINED:
        world.say(
            f"note: a learning rate of {config.lr:g} is one for pretrained weights; random ones "
            "learn little with it (--lr 1e-3 is usual for a small model)"
        )
    state = kind(
        config=config,
        world=world,
        model=model,
        optimizer=build_optimizer(
            config.optimizer,
            groups,
            config.lr,
            betas=config.betas or config.BETAS.get(config.optimizer),
            eps=config.eps,
            rho=config.sophia.rho,
            momentum=config.momentum,
        ),
        loader=loader,
        clock=experiment.clock,
        schedule=schedule,
        precision=experiment.precision,
        layer_of=layer_of,
        extras=extras,
        average=build_average(config, model, total_steps),
        before_update=experiment.before_update,
        charge=experiment.charge,
        **more,
    )
    if experiment.passes > 1 and not draws(experiment, state):
        raise ValueError(
            "--r_drop compares two passes of different dropout, and what is trained here has none: "
            "it needs --dropout above 0"
        )
    state.loader.join_tokens = joined_tokens(experiment, state)
    return state


JOIN_TOKENS = 16_384  # of a forward pass, with which a GPU is busy


def joined_tokens(experiment: Training, state: core.State) -> int:
    """Tokens of neighbouring micro-batches that are computed together; 0: each by itself. Says so.

    ValueError where --join_tokens asks for it and more than rounding would change.
    """
    config, world, asked = state.config, state.world, state.config.join_tokens
    # one that somebody has sized may be all that fits
    unasked = JOIN_TOKENS if pins(world.device) and config.micro_batch is None else 0
    tokens = unasked if asked is None else asked
    if not tokens:
        return 0
    why = ""
    if world.sharded:
        why = "with --shard all ranks have to compute as often"
    elif isinstance(state.loader, SelectingLoader):
        why = "batch selection cuts its own batches"
    elif hasattr(config, "layer_drop") and config.layer_drop.enabled:
        why = "layers are dropped for each micro-batch"
    elif draws(experiment, state):
        why = "dropout is drawn for each micro-batch"
    if asked and why:
        raise ValueError(f"--join_tokens: {why}")
    if not why:
        world.say(f"micro-batches are computed together up to {tokens:,} tokens (--join_tokens)")
    return 0 if why else tokens


@torch.no_grad()
def draws(experiment: Training, state: core.State) -> bool:
    """Whether a forward pass in training draws a number, seen at the generators' states: what a
    model says of its dropout does not tell which of it is in a frozen part, or never called."""
    device, rows = state.world.device, np.arange(min(2, len(experiment.train.lengths)))
    generators = [torch.default_generator]
    if pins(device):
        generators.append(getattr(torch, device.type).default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    core.train_but_frozen(state.model)
    if hasattr(experiment, "choose_layers"):
        experiment.choose_layers(0, 0)
    with contextlib.ExitStack() as inside:
        inside.enter_context(state.autocast())
        if state.config.compile:  # not for two rows
            inside.enter_context(torch.compiler.set_stance("force_eager"))
        experiment.loss_sum(state.model, to_device(experiment.train.collate(rows, 0), device))
    after = [generator.get_state() for generator in generators]
    for generator, its in zip(generators, before, strict=True):
        generator.set_state(its)
    return any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def free_work(config: Settings) -> set[str]:
    """The kinds of work that the budget does not count."""
    free = {"forward"} if not config.selection.charge_forward else set()
    return free | ({"curvature"} if not config.sophia.charge else set())


def build_average(config: Settings, model: nn.Module, total_steps: int | None) -> Any:
    """The average of the weights that --average_frac asks for, or None."""
    if not config.average_frac:
        return None
    if config.average == "window":
        return WindowAverage(model, 1 - config.average_frac)
    if total_steps is None:
        raise ValueError(
            "--average exponential looks back over a number of steps, which a budget of "
            f"{config.budget_unit} does not tell before the run: use --average window"
        )
    return WeightAverage(model, max(1, config.average_frac * total_steps))


def schedule_of(config: Settings, total_steps: int | None = None) -> Callable[[float], float]:
    """The schedule that the settings name; total_steps: to refuse one that is 0 in all of them.

    ValueError for a --min_lr above --lr, to which the rate would rise: a script may have one of its
    own, below which a sweep over rates can come.
    """
    if config.min_lr > config.lr and config.schedule != "constant":
        raise ValueError(
            f"--min_lr {config.min_lr:g} is above --lr {config.lr:g}, and the rate would rise to "
            "it: give a lower one, as --min_lr 0"
        )
    return build_schedule(
        config.schedule,
        config.warmup_frac,
        config.min_lr / config.lr,
        config.decay_frac,
        total_steps,
    )


def check_methods(experiment: Training) -> None:
    """ValueError for a method that would do something else here than its name says."""
    config, world = experiment.config, experiment.world
    if config.optimizer == "sophiag" and experiment.precision == "fp16":  # asked for, or by auto
        raise ValueError(
            "sophiag's curvature underflows in fp16, which this device computes in unless another "
            "precision is asked for: use --precision fp32"
        )
    if not experiment.has_classes:
        for name in ("label_smoothing", "r_drop"):
            if getattr(config, name):
                raise ValueError(f"--{name} is a method for classes: this task predicts a score")
    if world.sharded:
        for name, there in (
            ("--optimizer muon", config.optimizer == "muon"),
            ("--optimizer sophiag", config.optimizer == "sophiag"),
            ("--average_frac", config.average_frac > 0),
            ("--label_smoothing or --r_drop", experiment.needs_targets()),
            ("--selection.name", config.selection.name != "uniform"),
        ):
            if there:
                raise ValueError(f"{name} needs whole matrices, of which --shard has parts")
