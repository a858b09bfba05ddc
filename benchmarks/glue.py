"""GLUE, not speed: is eval_bert.py as good as transformers' Trainer on the same rows?

python bench.py glue --data FOLDER --tasks rte,mrpc,cola,stsb --repeats 3

--repeats: seeds of each side, 0 and on. Writes run folders to results/bench/glue (those that are
finished stay) and compares both sides of each task with report.py.
"""

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import Measured

PROJECT = Path(__file__).resolve().parents[1]


def settings(arguments: argparse.Namespace, task: str) -> list[str]:
    """The usual recipe (batches of 32, linear decay, no warm-up) at a rate for small models: at
    2e-5 MiniLM stays at chance on RTE."""
    return [
        *("--model=minilm", f"--suite={task}", f"--data={arguments.data}"),
        *("--lr=1e-4", f"--epochs={arguments.epochs}", "--batch=32", "--max_length=128"),
        *("--schedule=linear", "--warmup_frac=0", "--test_with=final", "--max_grad_norm=1"),
        *(f"--precision={arguments.precision}", f"--seed={arguments.seed}", "--page=false"),
    ]


def run(arguments: argparse.Namespace) -> Measured:
    """Each task by eval_bert.py and by transformers' Trainer, then report.py compare."""
    for task in arguments.tasks.split(","):
        ours, peer = (Path("results/bench/glue", task, side) for side in ("ours", "peer"))
        for number in range(arguments.repeats):
            arguments.seed, seed = number, f"seed_{number}"
            words = [*settings(arguments, task), f"--out={ours / seed}"]
            call(arguments.threads, "eval_bert.py", *words)
            words = [f"--data={arguments.data}", f"--epochs={arguments.epochs}"]
            words += [f"--precision={arguments.precision}", f"--tasks={task}"]
            words += [f"--seed={arguments.seed}", f"--folder={peer / seed}"]
            if not (peer / seed / "run.json").exists():
                call(arguments.threads, "bench.py", "glue", "--side=peer", *words)
        call(arguments.threads, "report.py", "compare", str(peer), str(ours))
    return Measured()  # report.py has said it


def call(threads: int, script: str, *words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, str(PROJECT / script), *words], check=True, env=environment)


def peer(arguments: argparse.Namespace) -> dict:
    """transformers' Trainer on the same rows; writes a run folder that report.py can read."""
    import numpy as np
    import transformers

    import eval_bert
    from data import glue
    from experiments.glue import predictions, score
    from models import pretrained
    from settings import parse_settings

    words = settings(arguments, arguments.tasks)
    config, _ = parse_settings(eval_bert.Config, words, "bench.py")
    (task,) = glue.find_tasks(config.suite)
    rows, _ = glue.load_task(task, config.data, val_frac=config.val_frac)
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
            bf16=config.precision == "bf16",
            seed=config.seed,
        ),
        train_dataset=encoded("train"),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    test_rows = [row for row in rows if row.split == "test"]
    values = np.asarray(trainer.predict(encoded("test")).predictions, np.float32)
    write_peer(arguments.folder, config, rows, score(task, test_rows, values))
    write_predictions(arguments.folder, predictions(task, test_rows, values))
    return {}


def write_predictions(folder: Path, rows: list[dict]) -> None:
    with open(folder / "test/metrics/predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_peer(out: Path, config: Any, rows: list, metrics: dict) -> None:
    """What report.py needs of a run that was none of ours."""
    import yaml

    from data.glue import data_fingerprint
    from data.rows import split_fingerprint

    folder = out / "test/metrics"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (out / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    record = {
        "schema_version": 1,
        "status": "finished",
        "script": "transformers.Trainer",
        "seed": config.seed,
        "device": "cpu",
        "split_fingerprint": split_fingerprint(rows),
        "data_fingerprint": data_fingerprint(rows),
    }
    (out / "run.json").write_text(json.dumps(record))
