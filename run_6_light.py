"""Run 6: run 2 once more, with PyTorch Lightning in the place of our loop.

    python run_6_light.py --epochs 3 --batch 32 --devices 2 --strategy ddp
    python run_6_light.py --model minilm --data reviews --max_length 64   # no hub needed
    python run_6_light.py --model minilm --data reviews --devices 2 --strategy ddp --out light
    python report.py compare light results/minilm/…             # beside a run_2 on the same rows

Rows, tokens, head and test metrics are those of run_2_appendprompt.py; the loop, the processes,
the checkpoints and the validation metrics are Lightning's, as its users have them. What that
takes away, and what it costs: docs/lightning.md. Needs `bash startup.sh setup --light`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import console
import core
import runs
from data.pairs import PairData
from device import of_workers
from evaluation import outcomes
from evaluation.metrics import softmax
from experiments import preference
from experiments.experiment import Result, or_embedded
from experiments.training import schedule_of
from files import write_folder, write_text
from methods.optimizers import parameter_groups
from models import pairs
from runs.folder import environment_facts, parameter_facts
from runs.results import finite, last_lines, write_result
from settings import read_so_far, require_read, seed_of

try:
    import lightning as L
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.utilities import rank_zero_only
except ModuleNotFoundError as error:
    raise SystemExit(f"run_6_light.py needs {error.name}: bash startup.sh setup --light") from None

PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
ALIASES = {"accelerator": lambda name: {"device": {"gpu": "cuda"}.get(name, name)}}
# What our loop does and Lightning's does not, or not in the same sense.
NOT_HERE = (
    "micro_batch",
    "join_tokens",
    "group_by_length",
    "budget",
    "budget_unit",
    "layer_decay",
    "optimizer",
    "momentum",
    "matrix_lr",
    "sophia",
    "r_drop",
    "average",
    "average_frac",
    "selection",
    "seed_order",
    "seed_masks",
    "reduce_dtype",
    "backend",
    "compile",
    "swap",
    "eval_every",
    "keep_every",
    "trackers",
    "machine_log",
    "page",
    "dry_run",
    "features",
    "form",
    "pooling",
    "blend",
    "teacher",
    "distill_weight",
    "temperature",
)


@dataclass
class Config(preference.Config):
    """Settings of run_6_light.py; of the others' it refuses what Lightning has no equal for."""

    model: str = "distilbert"
    """distilbert, or any encoder: a short name, a local folder, a hub id"""
    devices: int = 1
    """processes; each takes an equal part of --batch"""
    strategy: str = "auto"
    """how Lightning joins them: ddp, or another that it knows"""
    ckpt_path: str | None = None
    """Lightning checkpoint to continue from; null: the run folder's own, if it has one"""
    machine_log: bool = False
    """not here"""
    page: bool = False
    """not here: report.py page FOLDER"""

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field for field in dataclasses.fields(self)}
        for name in NOT_HERE:
            field = defaults[name]
            made = field.default_factory is not dataclasses.MISSING
            if getattr(self, name) != (field.default_factory() if made else field.default):
                raise ValueError(f"--{name} is not in run_6_light.py: run_2_appendprompt.py")
        if self.epochs % 1:
            raise ValueError(f"--epochs {self.epochs:g}: Lightning takes whole epochs")
        if self.devices < 1 or self.batch % self.devices:
            raise ValueError(f"--batch {self.batch} cannot be dealt to --devices {self.devices}")


class PairModule(L.LightningModule):
    """The model, its loss, its metrics and its optimizer."""

    def __init__(self, config: Config, model: core.PairClassifier):
        super().__init__()
        self.config, self.model = config, model

    def loss(self, batch: dict[str, Tensor], smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """(mean cross-entropy, logits (rows, classes))."""
        logits = self.model(batch["input_ids"], batch["attention_mask"]).float()
        return F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing), logits

    def on_train_start(self) -> None:
        """Lightning seeds all processes alike, so that rows of two would have the same dropout."""
        if self.global_rank:
            torch.manual_seed(core.mix_seed(self.config.seed, self.global_rank))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, _ = self.loss(batch, self.config.label_smoothing)
        self.log("train_loss", loss, sync_dist=True)
        counts = {"examples": len(batch["labels"]), "tokens": batch["attention_mask"].sum()}
        counts = {name: torch.as_tensor(n, dtype=torch.float32) for name, n in counts.items()}
        self.log_dict(counts, sync_dist=True, reduce_fx="sum")
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, logits = self.loss(batch)
        accuracy = (logits.argmax(dim=-1) == batch["labels"]).float().mean()
        metrics = {"val_loss": loss, "val_accuracy": accuracy}
        self.log_dict(metrics, sync_dist=True, batch_size=len(batch["labels"]))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return pairs.pair_outputs(self.model, batch)

    def configure_optimizers(self) -> dict[str, Any]:
        config, total = self.config, int(self.trainer.estimated_stepping_batches)
        head_lr = config.lr if config.head_lr is None else config.head_lr
        groups = parameter_groups(
            {"encoder": self.model.encoder.parameters(), "head": self.model.head.parameters()},
            {"encoder": config.lr, "head": head_lr},
            config.weight_decay,
        )
        # Lightning does not clip the gradients of a fused optimizer in fp16
        optimizer = torch.optim.AdamW(
            groups,
            betas=tuple(config.betas or (0.9, 0.999)),
            eps=config.eps,
            fused=self.trainer.precision != PRECISION["fp16"],
        )
        factor = schedule_of(config, total)
        schedule = LambdaLR(optimizer, lambda step: factor(step / total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class MetricsLines(L.Callback):
    """Lightning's numbers as the lines of train/metrics/metrics.jsonl that report.py reads."""

    def __init__(self, run: runs.Run, stop_after: int | None, precision: str):
        self.path, self.stop_after = run.folder / "train/metrics/metrics.jsonl", stop_after
        self.precision = precision
        self.run, self.steps_here, self.skipped = run, 0, 0
        self.sums = {"examples": 0, "tokens": 0, "seconds": 0.0}

    def state_dict(self) -> dict[str, float]:
        return dict(self.sums)

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.sums = dict(state_dict)

    @rank_zero_only
    def write(self, line: Mapping[str, Any]) -> None:
        self.run.course.add(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line)) + "\n")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The lines after the checkpoint are forgotten: they will be written again."""
        self.since = time.perf_counter()
        if not trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines(True) if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
        write_text(self.path, "".join(kept))
        self.run.course = outcomes.Course()
        for line in kept:
            self.run.course.add(json.loads(line))
        self.run.record.withdraw("diverged")
        self.run.record.write_record()

    def on_train_epoch_start(self, *_: Any) -> None:
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]  # at the end it is the next step's

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        now = time.perf_counter()
        took, self.since = now - self.since, now
        counts = {name: int(values[name]) for name in ("examples", "tokens")}
        for name, more in (counts | {"seconds": took}).items():
            self.sums[name] += more
        epoch = trainer.current_epoch + (index + 1) / trainer.num_training_batches
        line = {"step": trainer.global_step, "epoch": epoch, "train_loss": values["train_loss"]}
        per_second = {f"{name}_per_second": count / took for name, count in counts.items()}
        self.write(line | {"lr": self.lr} | self.sums | per_second)
        self.skipped = 0 if math.isfinite(values["train_loss"]) else self.skipped + 1
        outcomes.require_gradients(self.skipped, self.precision, trainer.global_step)
        if spiked := self.run.course.spiked():
            self.run.record.verdict(spiked)
        self.steps_here += 1
        if self.steps_here == 1:
            require_read(module.config, {*read_so_far(module.config), *NOT_HERE})
        if self.steps_here == self.stop_after:
            raise KeyboardInterrupt(f"--stop_after {self.stop_after}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics.items()
        values = {name: value.item() for name, value in metrics if name.startswith("val_")}
        self.write({"step": trainer.global_step, **values})
        what = f"the validation loss of step {trainer.global_step}"
        outcomes.require_finite(values["val_loss"], what)
        self.since = time.perf_counter()  # evaluation is no training time


class Task(preference.Preference):
    """Run 2's rows, tokens and test metrics; Lightning computes the answers."""

    def build_module(self) -> PairModule:
        """The same initial weights as run 2's."""
        encoder = self.load_encoder()
        torch.manual_seed(core.mix_seed(seed_of(self.config, "init"), 4))
        hidden, classes = encoder.config.hidden_size, len(self.classes)
        head = pairs.build_head(self.config.head, hidden, self.config.dropout, classes)
        L.seed_everything(self.config.seed)  # of the order and of dropout
        # from_pretrained leaves evaluation mode on, and Lightning changes no modes
        return PairModule(self.config, core.PairClassifier(encoder, head)).train()

    def train_loader(self) -> DataLoader:
        return build_loader(self.train, self.config, shuffle=True)

    def val_loader(self) -> DataLoader:
        return build_loader(self.val, self.config)

    def probabilities(self, state: Any, data: PairData) -> tuple[np.ndarray, np.ndarray]:
        values = self.trainer.predict(self.module, build_loader(data, self.config))
        values = torch.cat(values).float().cpu().numpy()
        p, swapped = map(softmax, np.split(values, 2, axis=1))
        return p, swapped

    def score_on_one_process(self, module: PairModule, weights: str) -> Result:
        """The test with a checkpoint's weights; on one process, as Lightning advises."""
        saved = torch.load(weights, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["state_dict"])
        self.module, best_step = module, saved["global_step"]
        self.trainer = build_trainer(self.config, self.world, self.precision, devices=1)
        result = self.test(SimpleNamespace(config=self.config, best_step=best_step))
        result.metrics.update({"tested_with": self.config.test_with, "best_step": best_step})
        return result


def collate(data: PairData, rows: list[int]) -> dict[str, Tensor]:
    return data.collate(np.array(rows), None)


def build_loader(data: PairData, config: Config, shuffle: bool = False) -> DataLoader:
    return DataLoader(
        range(len(data.lengths)),
        batch_size=config.batch // config.devices,
        shuffle=shuffle,
        **of_workers(config.workers),
        collate_fn=functools.partial(collate, data),
    )


def build_trainer(config: Config, world: core.World, precision: str, **more: Any) -> L.Trainer:
    return L.Trainer(
        accelerator=world.device.type,
        precision=PRECISION[precision],
        logger=False,
        deterministic=config.deterministic,
        enable_model_summary=False,
        **more,
    )


def main(config: Config, given: bool) -> None:
    world = dataclasses.replace(core.single_world(config.device), rank=rank_zero_only.rank)
    if world.device.type == "xpu":
        raise ValueError("Lightning has no accelerator for xpu: --accelerator cpu")
    config = or_embedded(config, given, world, **preference.EMBEDDED)
    run = runs.Run(config, world)
    with run if world.rank == 0 else contextlib.nullcontext():
        if world.rank == 0:
            os.environ["ABLATE_RUN_FOLDER"] = str(run.folder)  # for the processes that fit starts
        elif folder := config.out or os.environ.get("ABLATE_RUN_FOLDER"):
            run.record.path = Path(folder)
        else:
            raise ValueError("under torchrun all processes must be told the run folder: --out")
        task = Task(config, world, run.folder)
        train(config, task, run)


def train(config: Config, task: Task, run: runs.Run) -> None:
    """Fit, then test on rank 0 and write what report.py reads."""
    weights = run.folder / "train/weights"
    overwrite = {"dirpath": weights, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor="val_loss", save_weights_only=True, **overwrite)
    last = ModelCheckpoint(
        filename="last", every_n_train_steps=config.save_every, save_on_exception=True, **overwrite
    )
    callbacks = [MetricsLines(run, config.stop_after, task.precision), best, last]
    if config.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=config.patience))
    trainer = build_trainer(
        config,
        task.world,
        task.precision,
        devices=config.devices,
        strategy=config.strategy,
        callbacks=callbacks,
        max_epochs=int(config.epochs),
        gradient_clip_val=config.max_grad_norm,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    module = task.build_module()
    own = weights / "last.ckpt"
    saved = config.ckpt_path or (own if own.exists() else None)
    record = run.record
    record.facts |= task.facts | environment_facts(task.world, task.precision, run.folder)
    record.facts |= {"world_size": config.devices, "lightning": L.__version__}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    record.facts |= parameter_facts(module, trained)
    try:
        trainer.fit(module, task.train_loader(), task.val_loader(), ckpt_path=saved)
    except SystemExit:  # how Lightning ends after Ctrl-C and SIGTERM
        run.end("stopped", task.world.signal or "interrupted")
        return task.world.say(f"stopped; the same command continues {run.folder}")
    trainer.save_checkpoint(own)  # --save_every leaves the last steps out
    record.facts |= {
        "steps": trainer.global_step,
        "total_steps": trainer.global_step,
        "seconds": round(callbacks[0].sums["seconds"], 3),
    }
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return
    tested = best.best_model_path if config.test_with == "best" else str(own)
    result = task.score_on_one_process(module, tested)
    as_tested = SimpleNamespace(model=module.model)
    write_folder(weights / config.test_with, lambda beside: task.export(as_tested, beside))
    record.withdraw(*outcomes.FAILED, *outcomes.CAUTIONS)
    for verdict in outcomes.verdicts_of(run.course, result.evidence):
        record.verdict(verdict, say=False)
    write_result(run.folder / "test", result)
    run.end("finished", "all steps done")
    lines = last_lines(result.metrics, record.verdicts)
    console.say("\n".join([f"finished: {run.folder}", *lines]))


if __name__ == "__main__":
    from commands import evaluate, predict

    commands = {
        "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig),
        "predict": (predict.predict, predict.PredictConfig),
    }
    runs.launch(main, Config, commands, ALIASES)
