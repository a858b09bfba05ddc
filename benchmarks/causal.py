"""Causal language modelling: finetune_gpt2.py beside transformers' Trainer.

python bench.py causal --repeats 3 --steps 5 --threads 1

A small random GPT-2 with GPT-2's vocabulary, windows of 1024 tokens of film reviews, 4 at a time
for both, fp32, dropout 0.1, constant learning rate.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from benchmarks import WARM_UP, rates_of_run, timed_trainer

WHAT, PEER = "causal language model", "transformers' Trainer"
SHAPE = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 1024}
LENGTH, BATCH, LR = 1024, 4, 5e-4


def build(folder: Path, size: str) -> Path:
    """The same random weights for both."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from models import causal

    torch.manual_seed(0)
    shape = SHAPE if size == "small" else {}  # GPT-2's own
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)
    causal.gpt2_tokenizer().save_pretrained(folder)
    return folder


def settings(arguments: argparse.Namespace) -> list[str]:
    folder, steps = arguments.folder, arguments.steps
    model = build(folder / "model", arguments.size)
    return [
        *("--task=reviews_text", f"--model={model}", f"--max_length={LENGTH}"),
        *(f"--batch={BATCH}", f"--micro_batch={BATCH}", f"--lr={LR}", "lr_factors=[1,1,1]"),
        *("--schedule=constant", "--warmup_frac=0", f"--stride={LENGTH}"),
        *(f"--precision={arguments.precision}", f"--device={arguments.device}"),
        # 16 to 17 windows for each 100 reviews of which 96 % are trained on
        *(f"--limit={40 * (steps + WARM_UP)}", "--val_frac=0.02", "--test_frac=0.02"),
        *("--page=false", f"--out={folder / 'run'}", "--attention_texts=0"),
        f"--stop_after={steps + WARM_UP}",
    ]


def ours(arguments: argparse.Namespace) -> dict:
    """finetune_gpt2.py as it is; the rates are its own log's."""
    import finetune_gpt2
    from settings import parse_settings

    words = settings(arguments)
    config, given = parse_settings(finetune_gpt2.Config, words, "bench.py")
    with contextlib.redirect_stdout(sys.stderr):
        finetune_gpt2.main(config, given)
    return rates_of_run(arguments.folder / "run")


def peer(arguments: argparse.Namespace) -> dict:
    """transformers' Trainer on the same windows, its model's own loss."""
    import transformers

    import core
    from data.documents import Streams, load_documents
    from data.rows import subset
    from models import causal

    folder = build(arguments.folder / "model", arguments.size)
    documents, separated, _ = load_documents("reviews_text", None, 0.02, 0.02)
    documents = subset(documents, 40 * (arguments.steps + WARM_UP))
    world = core.single_world("cpu")
    tokenizer = causal.load_tokenizer(str(folder))
    tokens = Streams(documents, separated, tokenizer, world).part("train").tokens
    count = len(tokens) // LENGTH
    rows = [tokens[i * LENGTH : (i + 1) * LENGTH].tolist() for i in range(count)]
    transformers.set_seed(0)
    trained = timed_trainer(
        arguments.folder / "peer",
        arguments.steps,
        {
            "per_device_train_batch_size": BATCH,
            "learning_rate": LR,
            "weight_decay": 0.01,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "bf16": arguments.precision == "bf16",
            "use_cpu": arguments.device == "cpu",
        },
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        data_collator=transformers.default_data_collator,
    )
    num_tokens = arguments.steps * BATCH * LENGTH
    return {"tokens_per_second": num_tokens / trained["seconds"], "loss": trained["loss"]}
