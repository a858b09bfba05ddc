"""From the command to the end of the first step, in seconds.

python bench.py startup --repeats 5

run_2_appendprompt.py on 400 pairs of film reviews of at most 64 tokens, 32 a step, beside a minimal
script with transformers' Trainer. Both read the reviews by the same function and find the token ids
in the cache; ours evaluates the untrained model before its first step. The note says when the first
batch reached the model, of that evaluation or of the step.
"""

import argparse
import contextlib
import sys
import time
from typing import Any

from benchmarks import lines_of_run, preference

WHAT, PEER = "command to first step", "Trainer in a minimal script"
RATE, TOLERANCE = "seconds", 0.05
COUNTED = False


def words(arguments: argparse.Namespace) -> list[str]:
    given = [w for w in preference.words(arguments) if not w.startswith(("--limit", "--stop"))]
    return [*given, "--limit=400", "--max_length=64", "--stop_after=1"]


def since_start(moment: float) -> float:
    """Seconds from the start of this process to a moment in Unix time."""
    import psutil

    return moment - psutil.Process().create_time()


def first_forward() -> list[float]:
    """Where the moment will stand at which the first batch reaches a model."""
    from torch.nn.modules import module

    moments: list[float] = []

    def note(*_: Any) -> None:
        moments.append(time.time())
        hook.remove()

    hook = module.register_module_forward_pre_hook(note)
    return moments


def ours(arguments: argparse.Namespace) -> dict:
    import run_2_appendprompt
    from settings import parse_settings

    began = first_forward()
    config, given = parse_settings(run_2_appendprompt.Config, words(arguments), "bench.py")
    with contextlib.redirect_stdout(sys.stderr):
        run_2_appendprompt.main(config, given)
    folder = arguments.folder / "run"
    # the log has one line, written at the end of the first step
    ended = (folder / "train/metrics/metrics.jsonl").stat().st_mtime
    loss = lines_of_run(folder)[0]["train_loss"]
    return {"seconds": since_start(ended), "begun": since_start(began[0]), "loss": loss}


def peer(arguments: argparse.Namespace) -> dict:
    import transformers

    import run_2_appendprompt
    from settings import parse_settings

    ended: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            ended.append(time.time())

    config, _ = parse_settings(run_2_appendprompt.Config, words(arguments), "bench.py")
    experiment = preference.load_experiment(config)
    train = experiment.train
    rows = preference.dataset(experiment, train, range(len(train.index)))
    settings = transformers.TrainingArguments(
        output_dir=str(arguments.folder / "peer"),
        max_steps=1,
        logging_steps=1,
        per_device_train_batch_size=preference.BATCH,
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=preference.build_model(experiment),
        args=settings,
        callbacks=[Clock()],
        train_dataset=rows,
        data_collator=preference.Collator(experiment.tokenizer),
    )
    began = first_forward()
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    return {"seconds": since_start(ended[0]), "begun": since_start(began[0]), "loss": loss}
