"""How fast is it, beside what people would use instead? One row a comparison, measured in pairs.

    python -m pip install -r requirements-bench.txt
    python bench.py mlm                       # pretraining against transformers' Trainer
    python bench.py mlm --repeats 5 --steps 30 --output bench.json

Ours and the peer run as processes of their own, one after the other, in turns: a machine's speed
drifts, and only the ratio of neighbours says anything. Same model, rows, batch, steps, precision
and threads. The first steps of each are not counted. Where the final losses do not agree, the
row is void.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
WARM_UP = 3  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("row", choices=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5, help="pairs (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="counted steps a run (default 20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--output", type=Path, help="JSON of every run")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        found = ROWS[arguments.row][arguments.side](arguments)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**found, "peak_memory_gib": memory}))
        return
    pairs = []
    for repeat in range(arguments.repeats):
        # who goes first changes, too
        sides = ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours")
        pair = {side: run_side(side, arguments) for side in sides}
        pairs.append(pair)
        print(
            f"pair {repeat + 1}: ours {pair['ours']['tokens_per_second']:,.0f} tokens/s, peer "
            f"{pair['peer']['tokens_per_second']:,.0f}, losses {pair['ours']['loss']:.3f} and "
            f"{pair['peer']['loss']:.3f}",
            flush=True,
        )
    print(summary(arguments.row, pairs))
    if arguments.output:
        arguments.output.write_text(json.dumps({arguments.row: pairs}, indent=1))


def run_side(side: str, arguments: argparse.Namespace) -> dict:
    """One process; returns what its last line says."""
    with tempfile.TemporaryDirectory() as folder:
        words = [arguments.row, "--side", side, "--steps", str(arguments.steps)]
        command = [sys.executable, __file__, *words, "--folder", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(row: str, pairs: list[dict]) -> str:
    """Median and range of the ratio over the pairs."""
    ratios = sorted(p["ours"]["tokens_per_second"] / p["peer"]["tokens_per_second"] for p in pairs)
    memory = statistics.median(
        p["ours"]["peak_memory_gib"] / p["peer"]["peak_memory_gib"] for p in pairs
    )
    losses = {side: statistics.mean(p[side]["loss"] for p in pairs) for side in ("ours", "peer")}
    return (
        f"{row}: {statistics.median(ratios):.2f} times the tokens per second "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(pairs)} pairs), {memory:.2f} times the peak "
        f"memory, losses {losses['ours']:.3f} and {losses['peer']:.3f}"
    )


# --------------------------------------------------------------- masked language modelling

# 6 layers × 384, vocabulary 30,522, rows of 128 tokens, packed for both
MLM = {"model": "hf-bert-mini", "data": "reviews", "vocab_size": 30522, "batch": 32}


def mlm_config(folder: Path, steps: int):
    from settings import parse_settings
    from tasks import pretraining

    words = [f"{name}={value}" for name, value in MLM.items()]
    words += [f"budget={steps + WARM_UP}", "budget_unit=steps", "micro_batch=32", "lr=1e-3"]
    words += ["validation.fraction=0.02", "validation.truncate_to=32", "precision=fp32"]
    words += ["schedule=constant", "warmup_frac=0", f"out={folder}", "page=false"]
    return parse_settings(pretraining.Config, words, "bench.py")[0]


def mlm_ours(arguments: argparse.Namespace) -> dict:
    """pretrain_bert.py as it is; the rates are its own log's."""
    import contextlib

    import pretrain_bert

    config = mlm_config(arguments.folder / "run", arguments.steps)
    with contextlib.redirect_stdout(sys.stderr):
        pretrain_bert.main(config, True)
    log = (arguments.folder / "run/train/metrics/metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, log) if "train_loss" in line]
    seconds = lines[-1]["seconds"] - lines[WARM_UP - 1]["seconds"]
    tokens = lines[-1]["tokens"] - lines[WARM_UP - 1]["tokens"]
    losses = [line["train_loss"] for line in lines[-5:]]
    return {"tokens_per_second": tokens / seconds, "loss": statistics.mean(losses)}


def mlm_peer(arguments: argparse.Namespace) -> dict:
    """transformers' Trainer with its collator, on the same packed rows."""
    import numpy as np
    import transformers

    import core
    from models import bert
    from tasks import pretraining

    config = mlm_config(arguments.folder / "run", arguments.steps)
    corpus, split = pretraining.load_parts(
        config, core.World(core.torch.device("cpu"), core.Machine())
    )
    transformers.set_seed(0)
    model = bert.build_masked_lm(config.model, corpus.vocab_size, config.seed, config.max_length)
    rows = corpus.rows(split.train[: 64 * config.batch].astype(np.int64)).astype(np.int64)
    started: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            started.append(time.perf_counter())

    steps = arguments.steps + WARM_UP
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(arguments.folder / "peer"),
            per_device_train_batch_size=config.batch,
            max_steps=steps,
            learning_rate=config.lr,
            lr_scheduler_type="constant",
            adam_beta2=0.98,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            logging_steps=5,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row.tolist()} for row in rows],
        data_collator=transformers.DataCollatorForLanguageModeling(
            corpus.tokenizer, mlm_probability=0.15
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    tokens = arguments.steps * config.batch * config.max_length
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": tokens / (started[-1] - started[WARM_UP - 1]),
        "loss": losses[-1],
    }


ROWS = {"mlm": {"ours": mlm_ours, "peer": mlm_peer}}

if __name__ == "__main__":
    main()
