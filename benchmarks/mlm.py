"""Masked language modelling: pretrain_bert.py beside transformers' Trainer.

python bench.py mlm --repeats 5

6 layers × 384, vocabulary 30,522, rows of 128 tokens, packed for both.
"""

import argparse
import contextlib
import sys
from typing import Any

from benchmarks import WARM_UP, rates_of_run, timed_trainer

WHAT, PEER = "masked-language-model pretraining", "transformers' Trainer"
MLM = {"model": "hf-bert-mini", "data": "reviews", "vocab_size": 30522, "batch": 32}
SIZES: dict[str, dict[str, Any]] = {"small": {}, "base": {"model": "hf-bert"}}


def settings(arguments: argparse.Namespace) -> Any:
    """A Config of pretrain_bert.py."""
    folder, steps = arguments.folder / "run", arguments.steps
    from experiments.pretraining import Config
    from settings import parse_settings

    words = [f"{name}={value}" for name, value in (MLM | SIZES[arguments.size]).items()]
    words += [f"budget={steps + WARM_UP}", "budget_unit=steps", "micro_batch=32", "lr=1e-3"]
    words += ["validation.fraction=0.02", "validation.truncate_to=32"]
    words += [f"precision={arguments.precision}", f"device={arguments.device}"]
    words += ["schedule=constant", "warmup_frac=0", f"out={folder}", "page=false"]
    return parse_settings(Config, words, "bench.py")[0]


def ours(arguments: argparse.Namespace) -> dict:
    """pretrain_bert.py as it is; the rates are its own log's."""
    import pretrain_bert

    config = settings(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        pretrain_bert.main(config, True)
    return rates_of_run(arguments.folder / "run")


def peer(arguments: argparse.Namespace) -> dict:
    """transformers' Trainer with its collator, on the same packed rows."""
    import numpy as np
    import transformers

    import core
    from experiments.pretraining import load_parts
    from models import bert

    config = settings(arguments)
    corpus, split = load_parts(config, core.single_world("cpu"))
    transformers.set_seed(0)
    model = bert.build_masked_lm(config.model, corpus.vocab_size, config.seed, config.max_length)
    rows = corpus.rows(split.train[: 64 * config.batch].astype(np.int64)).astype(np.int64)
    trained = timed_trainer(
        arguments.folder / "peer",
        arguments.steps,
        {
            "per_device_train_batch_size": config.batch,
            "learning_rate": config.lr,
            "lr_scheduler_type": "constant",
            "adam_beta2": 0.98,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "bf16": arguments.precision == "bf16",
            "use_cpu": arguments.device == "cpu",
        },
        model=model,
        train_dataset=[{"input_ids": row.tolist()} for row in rows],
        data_collator=transformers.DataCollatorForLanguageModeling(
            corpus.tokenizer, mlm_probability=0.15
        ),
    )
    tokens = arguments.steps * config.batch * config.max_length
    return {"tokens_per_second": tokens / trained["seconds"], "loss": trained["loss"]}
