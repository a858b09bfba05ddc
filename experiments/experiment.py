"""The contract of an experiment: what data and experiments provide, and the state that they share.

    experiment = SomeExperiment(config, world)             # data and tokens; no run, no state
    state = experiment.build_state(experiment.load_model())
    run.resume(state, experiment)
    while not run.done(state):
        run.after_step(state, core.train_step(state, experiment.loss_sum))
    run.finish(state, experiment)

Arrows go one way: a run knows the experiment and the state, an experiment is handed the state that
it measures or saves, a state knows neither.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import core
import files
from device import device_name
from evaluation.metrics import Metrics
from evaluation.outcomes import Evidence
from methods import feature_cache
from methods.dropout import use_word_dropout
from models import masks, pretrained
from settings import Settings, in_published_words, replace


class Data(Protocol):
    """The rows of one part, as core's loaders and evaluations take them."""

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens of each row's longest sequence: batches are cut by it."""

    @property
    def tokens(self) -> np.ndarray:
        """(rows,) tokens of each row in total, for the log."""

    def collate(self, rows: np.ndarray, epoch: int | np.ndarray | None) -> dict[str, Tensor]:
        """The batch of these rows; epoch None: of an evaluation. One a row, (rows,), where batch
        selection joins rows of two epochs.

        What is drawn at random comes from (seed, row, epoch) alone.
        """


class Result(NamedTuple):
    """What a test or a baseline says."""

    metrics: Metrics  # for metrics.json
    rows: list[dict]  # a line of predictions.csv each; "text" is kept for those that went wrong
    evidence: Evidence = None  # what evaluation/outcomes.py judges the run by
    files: dict[str, str] = {}  # further files of the part's folder, by path below it
    # what the model read of rows[i], by name, where it reads less than their text: its tokens
    read: Callable[[int], dict[str, str]] | None = None


class Experiment(Protocol):
    """What a run asks of an experiment; scripts build its model and state themselves."""

    config: Settings
    world: core.World
    precision: str
    train: Data
    facts: dict[str, Any]  # for run.json, fingerprints among them
    evidence: Evidence  # of the last evaluation, to judge by; it need not be there

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int | Tensor]:
        """(sum of the losses of the micro-batch's targets, their number)."""

    def evaluate(self, state: core.State) -> dict[str, float]:
        """Validation metrics, on all ranks; `val_loss` chooses the best weights."""

    def test(self, state: core.State) -> Result:
        """The last figures, with the weights that the state holds, on all ranks."""

    def export(self, state: core.State, folder: Path) -> None:
        """Write weights that others can open. Rank 0 only."""

    def restore(self, state: core.State, folder: Path) -> None:
        """Read them back. Rank 0 only."""


def place(model: nn.Module, world: core.World) -> nn.Module:
    """The model on its device, with the faster dropout and attention where that is a CPU, and
    attention that waits for nobody where it is none. What is to be sharded stays on the host, from
    where it is dealt out layer by layer: one device may not have room for all of it."""
    if not world.sharded:
        model.to(world.device)
    if world.device.type == "cpu":
        use_word_dropout(model)
    else:
        masks.answer_for(model)
    core.loaded()
    return model


def answers_key(experiment: Any, model: nn.Module, frozen: bool = False) -> dict[str, Any]:
    """What the outputs of a model of transformers, or of its frozen part alone, depend on beside
    what it reads: for methods.feature_cache. The last ones change the rounding alone."""
    return {
        "weights": feature_cache.fingerprint(model, frozen),
        "config": pretrained.architecture_of(model.config),
        "precision": experiment.precision,
        "attention": experiment.attention,
        "device": device_name(experiment.world.device),
        "compile": experiment.config.compile,
        "torch": torch.__version__,
    }


def rows_each(max_length: int) -> int:
    """Rows of a forward pass without gradients."""
    return max(1, 8192 // max_length)


class LastEvaluation:
    """What the last evaluation computed: the test need not do it again if it was the best one."""

    def __init__(self) -> None:
        self.step, self.values = -1, None

    def keep(self, state: core.State, values: Any) -> Any:
        self.step, self.values = state.step, values
        return values

    def of_tested_weights(self, state: core.State, compute: Callable[[], Any]) -> Any:
        """The values of the weights that are tested, kept or computed."""
        best = state.config.test_with == "best" and self.step == state.best_step
        return self.values if best else compute()


C = TypeVar("C", bound=Settings)


def or_embedded(
    config: C, given: bool, world: core.World, what: str, fast: bool = False, **settings: Any
) -> C:
    """The embedded default when nothing was set and the hub cannot be reached; it says so.

    what: of the default, in words. fast: in bf16 on a CPU that has instructions for it, unless
    another precision was asked for.
    """
    if given or not world.from_rank_0(world.rank == 0 and not files.hub_answers()):
        return config
    world.say(
        f"no settings were given and the hub cannot be reached: the embedded default it is, {what}"
    )
    if fast:
        settings["precision"] = embedded_precision(config.precision, world)
    return replace(config, **settings)


def as_published(config: C, world: core.World) -> C:
    """fp16 on a GPU where the words are those of the published BERT experiments and none of them
    says bfloat16: that is what they meant, and auto is bf16 on most GPUs of today. It says so.

    A CPU, on which nothing was published, keeps to auto.
    """
    gpu = world.device.type in ("cuda", "xpu")
    if not (gpu and in_published_words(config)):
        return config
    world.say(
        "precision: fp16, as in the published runs whose words these are "
        "(impl.mixed_precision_target_dtype=bfloat16, or precision=bf16, is the other)"
    )
    try:
        return replace(config, precision="fp16")
    except ValueError as error:  # Sophia
        raise ValueError(f"{error} (without a word on it a published command means fp16)") from None


def embedded_precision(asked: str, world: core.World) -> str:
    """bf16 on a CPU that has instructions for it, for embedded defaults are to take minutes; else
    what was asked for."""
    able = world.device.type == "cpu" and world.machine.cpu_bf16
    return "bf16" if able and asked == "auto" else asked
