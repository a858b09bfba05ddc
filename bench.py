"""How fast is it, beside what people would use instead? One row a comparison, measured in pairs.

    python -m pip install -r requirements-bench.txt
    python bench.py mlm                       # pretraining against transformers' Trainer
    python bench.py mlm --repeats 5 --steps 30 --output bench.json
    python bench.py glue --data FOLDER --tasks rte,mrpc,cola,stsb     # not speed: is it as good?

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
from typing import Any

PROJECT = Path(__file__).resolve().parent
WARM_UP = 3  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("row", choices=[*ROWS, "glue"])
    parser.add_argument("--data", default="hub", help="of glue: the hub or a folder")
    parser.add_argument("--tasks", default="rte,mrpc,cola,stsb", help="of glue")
    parser.add_argument("--epochs", default="3", help="of glue (default 3)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="counted steps a run (default 20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--output", type=Path, help="JSON of every run")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row == "glue":
        return glue_peer(arguments) if arguments.side else glue(arguments)
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
    agree = abs(losses["ours"] - losses["peer"]) < 0.1
    return (
        f"{'' if agree else 'VOID, the losses do not agree: '}"
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
            logging_steps=1,
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
        "loss": statistics.mean(losses[-5:]),
    }


# ---------------------------------------------------------------- GLUE: is it as good?


def glue_settings(arguments: argparse.Namespace, task: str) -> list[str]:
    """The usual recipe (batches of 32, linear decay, no warm-up) at a rate for small models: at
    2e-5 MiniLM stays at chance on RTE."""
    return [
        *("--model=minilm", f"--suite={task}", f"--data={arguments.data}"),
        *("--lr=1e-4", f"--epochs={arguments.epochs}", "--batch=32", "--max_length=128"),
        *("--schedule=linear", "--warmup_frac=0", "--test_with=final", "--max_grad_norm=1"),
        *("--precision=fp32", "--seed=0", "--page=false"),
    ]


def glue(arguments: argparse.Namespace) -> None:
    """Each task by eval_bert.py and by transformers' Trainer, then report.py compare."""
    for task in arguments.tasks.split(","):
        ours, peer = (Path("results/bench/glue", task, side) for side in ("ours", "peer"))
        settings = glue_settings(arguments, task)
        commands = [[sys.executable, str(PROJECT / "eval_bert.py"), *settings, f"--out={ours}"]]
        words = ["glue", "--side=peer", f"--data={arguments.data}", f"--epochs={arguments.epochs}"]
        if not (peer / "run.json").exists():
            words += [f"--tasks={task}", f"--folder={peer}"]
            commands.append([sys.executable, __file__, *words])
        commands.append(
            [sys.executable, str(PROJECT / "report.py"), "compare", str(peer), str(ours)]
        )
        for command in commands:
            subprocess.run(command, check=True)


def glue_peer(arguments: argparse.Namespace) -> None:
    """transformers' Trainer on the same rows; writes a run folder that report.py can read."""
    import numpy as np
    import transformers

    import eval_bert
    from models import pretrained
    from settings import parse_settings
    from tasks import glue as tasks

    words = glue_settings(arguments, arguments.tasks)
    config, _ = parse_settings(eval_bert.Config, words, "bench.py")
    (task,) = tasks.find_tasks(config.suite)
    rows, _ = tasks.load_task(task, config.data, val_frac=config.val_frac)
    tokenizer = pretrained.load_tokenizer(config.model)
    transformers.set_seed(config.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        pretrained.find_model(config.model),
        num_labels=task.num_outputs,
        problem_type="regression" if task.num_outputs == 1 else "single_label_classification",
    )

    def encoded(part: str) -> list[dict]:
        chosen = [row for row in rows if row.split == part]
        texts = [list(row.fields.values()) for row in chosen]
        return [
            {
                **tokenizer(*text, truncation=True, max_length=config.max_length),
                "label": float(row.label) if task.num_outputs == 1 else int(row.label),
            }
            for text, row in zip(texts, chosen, strict=True)
        ]

    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(arguments.folder / "trainer"),
            per_device_train_batch_size=config.batch,
            per_device_eval_batch_size=64,
            num_train_epochs=config.epochs,
            learning_rate=config.lr,
            weight_decay=config.weight_decay,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            seed=config.seed,
        ),
        train_dataset=encoded("train"),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    test_rows = [row for row in rows if row.split == "test"]
    values = np.asarray(trainer.predict(encoded("test")).predictions, np.float32)
    write_peer(arguments.folder, config, rows, tasks.score(task, test_rows, values))
    write_predictions(arguments.folder, tasks.predictions(task, test_rows, values))


def write_predictions(folder: Path, predictions: list[dict]) -> None:
    import csv

    with open(folder / "test/metrics/predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(predictions[0]))
        writer.writeheader()
        writer.writerows(predictions)


def write_peer(out: Path, config: Any, rows: list, metrics: dict) -> None:
    """What report.py needs of a run that was none of ours."""
    import dataclasses

    import yaml

    from tasks import glue as tasks
    from tasks.arena import split_fingerprint

    folder = out / "test/metrics"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (out / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    record = {
        **{"schema_version": 1, "status": "finished", "script": "transformers.Trainer"},
        **{"seed": config.seed, "device": "cpu", "split_fingerprint": split_fingerprint(rows)},
        "data_fingerprint": tasks.data_fingerprint(rows),
    }
    (out / "run.json").write_text(json.dumps(record))


ROWS = {"mlm": {"ours": mlm_ours, "peer": mlm_peer}}

if __name__ == "__main__":
    main()
