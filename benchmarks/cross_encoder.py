"""Pairs of sentences as one sequence: eval_bert.py beside sentence-transformers' CrossEncoder.

python bench.py cross_encoder --data FOLDER --repeats 5 --steps 20

MiniLM with its pooler and a new output for two classes on MRPC (FOLDER/MRPC/train.tsv, or the
hub), [cls] A [sep] B [sep], 32 rows a step, dropout .1. CrossEncoder tokenises while it trains,
its rows come in an order of its own. A CrossEncoder cannot be the model of the preference scripts,
which encode both sides apart: so this job, which both can do.
"""

import argparse
import contextlib
import sys
from typing import Any

from benchmarks import WARM_UP, rates_of_run, timed_trainer

WHAT, PEER = "sentence pairs (MRPC)", "CrossEncoder"
RATE = "examples_per_second"
BATCH, LR = 32, 5e-5


def settings(arguments: argparse.Namespace) -> Any:
    """A Config of eval_bert.py."""
    import eval_bert
    from settings import parse_settings

    steps = arguments.steps + WARM_UP
    words = [f"--model={arguments.model}", "--suite=mrpc", f"--data={arguments.data}"]
    words += [f"--batch={BATCH}", f"--lr={LR}", "--max_length=128", "--epochs=100", "--seed=0"]
    words += ["--schedule=constant", "--warmup_frac=0", "--max_grad_norm=1", "--val_frac=0.02"]
    words += [f"--precision={arguments.precision}", "--device=cpu", "--page=false"]
    words += ["--eval_every=1000000", f"--stop_after={steps}", f"--out={arguments.folder / 'run'}"]
    return parse_settings(eval_bert.Config, words, "bench.py")[0]


def ours(arguments: argparse.Namespace) -> dict:
    """eval_bert.py as it is; the rates are its own log's."""
    import eval_bert

    with contextlib.redirect_stdout(sys.stderr):
        eval_bert.main(settings(arguments), True)
    return rates_of_run(arguments.folder / "run")


def peer(arguments: argparse.Namespace) -> dict:
    """sentence-transformers' trainer on the same training rows."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, losses, trainer, training_args

    from data import glue
    from models import pretrained

    config = settings(arguments)
    (task,) = glue.find_tasks("mrpc")
    rows, _ = glue.load_task(task, config.data, val_frac=config.val_frac)
    rows = [row for row in rows if row.split == "train"]
    model = CrossEncoder(
        pretrained.find_model(config.model), num_labels=2, max_length=config.max_length
    )
    texts = [list(row.fields.values()) for row in rows]
    columns = {"sentence1": [a for a, _ in texts], "sentence2": [b for _, b in texts]}
    trained = timed_trainer(
        arguments.folder / "peer",
        arguments.steps,
        {
            "per_device_train_batch_size": BATCH,
            "learning_rate": LR,
            "weight_decay": 0.01,
            "lr_scheduler_type": "constant",
            "bf16": config.precision == "bf16",
        },
        (trainer.CrossEncoderTrainer, training_args.CrossEncoderTrainingArguments),
        model=model,
        train_dataset=Dataset.from_dict(columns | {"label": [int(row.label) for row in rows]}),
        loss=losses.CrossEntropyLoss(model),
    )
    rate = arguments.steps * BATCH / trained["seconds"]
    return {"examples_per_second": rate, "loss": trained["loss"]}
