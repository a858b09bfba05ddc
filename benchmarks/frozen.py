"""A frozen encoder: run_5_models.py --freeze all beside transformers' Trainer, whole processes.

python bench.py frozen --repeats 3

MiniLM, 6,600 pairs of film reviews (5,300 to train on) of at most 64 tokens a side, 3 epochs of 32
pairs at 1e-3, dropout .1 in the head; from the command to the test result: reading, validation
after every epoch, the best weights kept and tested. First: nothing is in the cache. Next: the same
command for another folder on the same cache. The Trainer's encoder needs no gradient and is in
evaluation mode, as ours; it finds the token ids in the cache.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import Line, Measured, preference, script, side_words, timed_process

BATCH, LR, TOLERANCE = 32, 1e-3, 0.02


def words(arguments: argparse.Namespace, folder: Path) -> list[str]:
    data = "reviews" if arguments.data == "hub" else arguments.data
    limit, length, epochs = (200, 16, 1) if arguments.quick else (6600, 64, arguments.epochs)
    return [
        *(f"--model={arguments.model}", f"--data={data}", "--freeze=all", f"--epochs={epochs}"),
        *(f"--limit={limit}", f"--max_length={length}", f"--batch={BATCH}", f"--lr={LR}"),
        *(f"--precision={arguments.precision}", "--device=cpu", "--page=false", f"--out={folder}"),
    ]


def run(arguments: argparse.Namespace) -> Measured:
    """First run, next run and the Trainer in turns, each with a cache of its own."""
    runs = []
    for repeat in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(once(arguments, Path(folder)))
        text = ", ".join(f"{side} {figures['seconds']:.1f} s" for side, figures in runs[-1].items())
        print(f"repeat {repeat + 1}: {text}", flush=True)

    def line(side: str) -> Line:
        def median(name: str, of: str) -> float:
            return statistics.median(run[of][name] for run in runs)

        return Line(
            what=f"frozen encoder, {side} run of {arguments.epochs} epochs",
            peer="Trainer, frozen encoder",
            unit="speed",
            ratios=[run["trainer"]["seconds"] / run[side]["seconds"] for run in runs],
            memory=median("memory", side) / median("memory", "trainer"),
            checks=(median("loss", side), median("loss", "trainer")),
            tolerance=TOLERANCE,
            note=f"{median('seconds', side):.1f} s against {median('seconds', 'trainer'):.1f} s",
        )

    return Measured([line("first"), line("next")], runs)


def once(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds, peak memory (GiB) and test loss of the three."""
    environment = {
        "OMP_NUM_THREADS": str(arguments.threads),
        "ABLATE_CACHE": str(folder / "cache"),
    }
    figures = {}
    for side in ("first", "next"):
        command = script("run_5_models.py", *words(arguments, folder / side))
        seconds, memory, _ = timed_process(command, folder, **environment)
        metrics = json.loads((folder / side / "test/metrics/metrics.json").read_text())
        figures[side] = {"seconds": seconds, "memory": memory, "loss": metrics["log_loss"]}
    command = script("bench.py", *side_words("peer", arguments, str(folder)))
    seconds, memory, said = timed_process(command, folder, **environment)
    loss = json.loads(said.strip().splitlines()[-1])["loss"]
    figures["trainer"] = {"seconds": seconds, "memory": memory, "loss": loss}
    return figures


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    """transformers' Trainer: train, validate, keep the best, test."""
    import numpy as np
    import transformers

    import run_5_models
    from settings import parse_settings

    given = words(arguments, arguments.folder / "peer")
    config, _ = parse_settings(run_5_models.Config, given, "bench.py")
    experiment = preference.load_experiment(config)
    model = preference.build_model(experiment)
    model.encoder.requires_grad_(False).eval()
    model.encoder.train = lambda mode=True: model.encoder  # stays in evaluation mode
    train, val, test = (
        preference.dataset(experiment, data, np.arange(len(data.index)))
        for data in (experiment.train, experiment.val, experiment.test_data)
    )
    settings = transformers.TrainingArguments(
        output_dir=os.path.join(arguments.folder, "trainer"),
        report_to=[],
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=2 * BATCH,
        num_train_epochs=config.epochs,
        learning_rate=LR,
        weight_decay=0.01,
        warmup_steps=config.warmup_frac,
        use_cpu=True,
        disable_tqdm=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        remove_unused_columns=False,
        bf16=config.precision == "bf16",
        label_names=["labels"],
    )
    trainer = transformers.Trainer(
        model=model,
        args=settings,
        train_dataset=train,
        eval_dataset=val,
        data_collator=preference.Collator(experiment.tokenizer),
    )
    trainer.train()
    return {"loss": trainer.predict(test).metrics["test_loss"]}
