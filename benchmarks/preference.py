"""Preference fine-tuning: run_2_appendprompt.py beside what people would train it with.

python bench.py preference --repeats 5 --steps 10
python bench.py preference --data pandalm.csv --repeats 3 --steps 10      # people's own prompts
python bench.py preference --peer trainer_grouped --repeats 5 --steps 20
python bench.py preference --peer trainer_compiled --repeats 2 --steps 10
python bench.py preference --peer lightning --repeats 5 --steps 10 --precision bf16

MiniLM on 32 pairs of film reviews a step, prompt in front, at most 160 tokens a side, the model's
own dropout of .1, whole steps. The peer's model is the same encoder with the same head in plain
PyTorch from the same weights, its rows are padded to the longest of a batch. Same rows in the same
(random) order; trainer_grouped orders them by its own sampler. Ours is the default in all of them,
neither grouped nor compiled.
"""

import argparse
import contextlib
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import WARM_UP, _items, rates_of_run, timed_trainer

PEERS = {
    "trainer": "transformers' Trainer",
    "trainer_grouped": "Trainer, group_by_length",
    "trainer_compiled": "Trainer, torch_compile",
    "lightning": "Lightning's Trainer",
}
BATCH, LR = 32, 5e-5
BASE = {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12}
BASE |= {"intermediate_size": 3072, "max_position_embeddings": 512}  # DistilBERT's size


def words(arguments: argparse.Namespace) -> list[str]:
    """Settings of run_2_appendprompt.py for the warm-up and the steps to count."""
    steps, model = arguments.steps + WARM_UP, arguments.model
    if arguments.size == "base":
        model = arguments.folder / "encoder"
        if not model.exists():
            _items.build_encoder(model, **BASE)
    data = "reviews" if arguments.data == "hub" else arguments.data
    return [
        *(f"--model={model}", f"--data={data}", f"--batch={BATCH}", f"--lr={LR}"),
        *(f"--max_length={32 if arguments.quick else 160}", "--epochs=100"),
        *("--schedule=constant", "--warmup_frac=0", f"--precision={arguments.precision}"),
        f"--device={arguments.device}",
        # a small validation set, for it is read before the first step
        *(f"--limit={math.ceil(1.1 * BATCH * steps) + 100}", "--val_frac=0.03", "--test_frac=0.03"),
        *("--eval_every=1000000", "--page=false", f"--stop_after={steps}"),
        *(["--skip_bad_rows=true"] if data != "reviews" else []),
        f"--out={arguments.folder / 'run'}",
    ]


def ours(arguments: argparse.Namespace) -> dict:
    """run_2_appendprompt.py as it is; the rates are its own log's."""
    import run_2_appendprompt
    from settings import parse_settings

    config, given = parse_settings(run_2_appendprompt.Config, words(arguments), "bench.py")
    with contextlib.redirect_stdout(sys.stderr):
        run_2_appendprompt.main(config, given)
    return rates_of_run(arguments.folder / "run")


def load_experiment(config: Any) -> Any:
    """The rows and tokens of ours."""
    import core
    from experiments.preference import Preference

    with contextlib.redirect_stdout(sys.stderr):
        return Preference(config, core.single_world("cpu"), None)


def build_model(experiment: Any) -> Any:
    """Encoder and head as ours has them, from the same weights."""
    import torch
    from torch import nn

    import core
    from models import pretrained

    class PairModel(nn.Module):
        def __init__(self, encoder: nn.Module, hidden: int):
            super().__init__()
            self.encoder = encoder
            self.dense, self.out = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 3)
            self.dropout = nn.Dropout(0.1)

        def forward(self, input_ids, attention_mask, labels=None):
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
            a, b = hidden.last_hidden_state[:, 0].chunk(2)
            joined = torch.tanh(self.dense(torch.cat([a, b], dim=-1)))
            logits = self.out(self.dropout(joined))
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    config = experiment.config
    encoder = pretrained.load_encoder(config.model, "pretrained", "sdpa", config.seed)
    torch.manual_seed(core.mix_seed(config.seed, 4))
    model = PairModel(encoder, encoder.config.hidden_size)
    torch.manual_seed(config.seed)
    return model


def dataset(experiment: Any, data: Any, order: Any) -> Any:
    """Rows `order` of a PairData as people keep them."""
    from datasets import Dataset

    rows = []
    for place in order:
        number = int(data.index[place])
        a, b = (experiment.ids[n].tolist() for n in (2 * number, 2 * number + 1))
        row = {"input_ids": a, "input_ids_b": b, "label": int(data.labels[number])}
        rows.append(row | {"length": max(len(a), len(b))})
    return Dataset.from_list(rows)


class Collator:
    """Both sides of all rows, padded to the longest one; keeps the tokens of every batch."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.tokens = tokenizer, []

    def __call__(self, rows: list[dict]) -> dict:
        import torch

        sides = [row[name] for name in ("input_ids", "input_ids_b") for row in rows]
        self.tokens.append(sum(map(len, sides)))
        padded = self.tokenizer.pad({"input_ids": sides}, return_tensors="pt")
        return {
            **{name: padded[name] for name in ("input_ids", "attention_mask")},
            "labels": torch.tensor([row["label"] for row in rows]),
        }


def peer(arguments: argparse.Namespace) -> dict:
    """The same steps by --peer."""
    import numpy as np

    import core
    import run_2_appendprompt
    from settings import parse_settings

    config, _ = parse_settings(run_2_appendprompt.Config, words(arguments), "bench.py")
    experiment = load_experiment(config)
    steps = arguments.steps + WARM_UP
    sampler = core.StepSampler(experiment.train, config, experiment.world, BATCH)
    order = np.concatenate([np.concatenate(sampler.global_batch(step)[1]) for step in range(steps)])
    collator = Collator(experiment.tokenizer)
    train = train_lightning if arguments.peer == "lightning" else train_trainer
    rows = dataset(experiment, experiment.train, order)
    trained = train(arguments, build_model(experiment), rows, collator)
    counted = sum(collator.tokens[WARM_UP:steps])
    return {"tokens_per_second": counted / trained["seconds"], "loss": trained["loss"]}


def train_trainer(arguments: argparse.Namespace, model: Any, rows: Any, collator: Any) -> dict:
    strategy = "group_by_length" if arguments.peer == "trainer_grouped" else "sequential"
    settings = {
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": strategy,
        "remove_unused_columns": False,
        "bf16": arguments.precision == "bf16",
        "use_cpu": arguments.device == "cpu",
        "torch_compile": arguments.peer == "trainer_compiled",
    }
    return timed_trainer(
        arguments.folder / "peer",
        arguments.steps,
        settings,
        model=model,
        train_dataset=rows,
        data_collator=collator,
    )


def train_lightning(arguments: argparse.Namespace, model: Any, rows: Any, collator: Any) -> dict:
    import lightning
    import torch

    losses, ended = [], []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def on_train_batch_end(self, outputs, batch, index):
            losses.append(outputs["loss"].item())
            ended.append(time.perf_counter())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=0.01)

    model.train()  # from_pretrained leaves it in evaluation mode, and Lightning changes no modes
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=arguments.steps + WARM_UP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        gradient_clip_val=1.0,
        default_root_dir=Path(arguments.folder),
        precision="bf16-mixed" if arguments.precision == "bf16" else "32-true",
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, collate_fn=collator)
    trainer.fit(Module(), loader)
    return {"seconds": ended[-1] - ended[WARM_UP - 1], "loss": statistics.mean(losses[-5:])}
