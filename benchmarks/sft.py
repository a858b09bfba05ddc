"""Instruction tuning: alpaca_sft.py beside TRL's SFTTrainer, or LoRA beside peft in it.

python bench.py sft --data rows.json --repeats 5
python bench.py sft --data rows.json --tasks lora --repeats 5

A GPT-2 with 6 blocks of 384 (--size base: GPT-2's own) and its vocabulary, random from one seed;
rows of up to 256 tokens in the same order, batches of 8, AdamW, no dropout. TRL as people run it:
padded to the longest row of a batch, transformers' own loss. The loss is over all tokens on both
sides. --tasks lora: rank 16 on every linear map of the blocks, q, k and v in one, as peft has it.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import WARM_UP, rates_of_run

WHAT, PEER = "instruction tuning", "TRL's SFTTrainer"
BATCH, MAX_LENGTH, LR = 8, 256, 1e-3
SHAPE = {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 1024}
TOLERANCE = 0.05


def base(folder: Path, size: str = "small") -> Path:
    """The model that both start from."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from models import causal

    tokenizer = causal.gpt2_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    end = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = SHAPE if size == "small" else {}
    model = GPT2LMHeadModel(GPT2Config(**shape, **end, **no_dropout))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


def config_of(arguments: argparse.Namespace) -> Any:
    import alpaca_sft
    from settings import parse_settings

    if arguments.data == "hub":
        arguments.data = "tatsu-lab/alpaca"
    model = base(arguments.folder, arguments.size)
    words = [f"--model={model}", f"--data={arguments.data}", f"--batch={BATCH}"]
    words += [f"--micro_batch={BATCH}", f"--max_length={MAX_LENGTH}", f"--lr={LR}", "--seed=0"]
    words += ["--schedule=constant", "--warmup_frac=0", "--max_grad_norm=1", "--weight_decay=0.1"]
    words += [f"--precision={arguments.precision}", f"--device={arguments.device}"]
    words += ["--page=false", "--sample_tokens=0"]
    words += ["--baseline=false", "--eval_every=1000000", "--eval_batches=1"]
    words += [f"--out={arguments.folder / 'run'}", f"--stop_after={arguments.steps + WARM_UP}"]
    words += ["--epochs=100"]  # never reached
    if arguments.tasks == "lora":
        words += ["--lora_r=16", "--lora_alpha=16", "--lora_qkv=fused", "--lora_head=false"]
    return parse_settings(alpaca_sft.Config, words, "bench.py")[0]


def ours(arguments: argparse.Namespace) -> dict:
    """alpaca_sft.py as it is; the rates are its own log's."""
    import alpaca_sft

    config = config_of(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        alpaca_sft.main(config, True)
    return rates_of_run(arguments.folder / "run")


def peer(arguments: argparse.Namespace) -> dict:
    """TRL's SFTTrainer on the same rows in the same order, tokenised as ours are."""
    import numpy as np

    import core
    from experiments import instructions

    config = instructions.with_recipe(config_of(arguments))
    world = core.single_world("cpu")
    with contextlib.redirect_stdout(sys.stderr):
        data = instructions.InstructionTuning(config, world).train
    sampler = core.StepSampler(data, config, world, BATCH)
    steps = arguments.steps + WARM_UP
    order = np.concatenate([np.concatenate(sampler.global_batch(step)[1]) for step in range(steps)])
    rows, tokens = [], []
    for number in order:
        signed = data.ids[data.index[number]][: MAX_LENGTH + 1]  # the last: a label
        rows.append({"input_ids": np.where(signed < 0, ~signed, signed).tolist()})
        tokens.append(int(data.tokens[number]))
    extra: dict[str, Any] = {}
    if arguments.tasks == "lora":
        from peft import LoraConfig

        targets = ["c_attn", "c_proj", "c_fc"]
        extra["peft_config"] = LoraConfig(
            r=16, lora_alpha=16, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM"
        )
    trained = train_peer(arguments, config, rows, extra)
    per_step = np.array(tokens).reshape(steps, BATCH).sum(axis=1)
    # Trainer divides the sum by the labels before they are shifted, one a row too many
    losses = np.array(trained["losses"]) * (per_step + BATCH) / per_step
    rate = per_step[WARM_UP:].sum() / trained["seconds"]
    return {"tokens_per_second": float(rate), "loss": float(losses[-5:].mean())}


def train_peer(arguments: argparse.Namespace, config: Any, rows: list, extra: dict) -> dict:
    import torch
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    ended: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            ended.append(time.perf_counter())

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    settings = {
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "max_length": MAX_LENGTH + 1,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "bf16": arguments.precision == "bf16",
        "activation_checkpointing": False,
        "seed": 0,
        "logging_steps": 1,
        "max_steps": arguments.steps + WARM_UP,
        "output_dir": str(arguments.folder / "peer"),
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": arguments.device == "cpu",
        "disable_tqdm": True,
    }
    trainer = InOrder(
        model=transformers.AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32),
        args=SFTConfig(**settings),
        processing_class=transformers.AutoTokenizer.from_pretrained(config.model),
        train_dataset=Dataset.from_list(rows),
        callbacks=[Clock()],
        **extra,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": ended[-1] - ended[WARM_UP - 1], "losses": losses}
