"""Fine-tune an encoder on GLUE and SuperGLUE, task by task, and average as published.

    python eval_bert.py                                     # without a hub: MiniLM on sentiment
    python eval_bert.py name=baseline eval=GLUE_sane        # results/bert/baseline, the hub's GLUE
    torchrun --nproc_per_node=2 eval_bert.py --model bert --suite superglue --data downloads
    python eval_bert.py --model minilm --suite rte,mrpc,cola,stsb --data downloads --seed 1
    python eval_bert.py --config configs/bert/sentiment.yaml name=tiny
    python eval_bert.py --config configs/bert/sentiment.yaml name=tiny --init random
    python eval_bert.py evaluate RUN/rte --data other.tsv
    python eval_bert.py name=baseline --suite mlm           # validation loss of a pretraining run

A task is a run; those of a suite lie below the suite's run folder, and the same command continues
with what is not finished. The development sets are the test, read once; weights are chosen on
rows cut from the training set. --data: the hub, or a folder with CoLA/train.tsv, BoolQ/val.jsonl …
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import core
import runs
from data import glue
from evaluation.outcomes import Diverged
from experiments.experiment import as_published, or_embedded
from experiments.glue import EMBEDDED, FineTuning, FineTuningConfig, suite_metrics, with_recipe
from runs.suite import begin_suite, drop_checkpoints, finish_suite, stop_suite
from settings import Aliases, precision_words, replace, require_read


@dataclass
class Config(FineTuningConfig):
    """Settings of eval_bert.py."""

    suite: str = "glue"
    """glue, superglue, sentiment, mlm, or tasks with commas between: cola,mnli,…,boolq,cb,…"""


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = or_embedded(config, given, world, **EMBEDDED)
        config = as_published(config, world)
        if config.suite == "mlm":
            from commands.validate import validate

            require_read(config, ("suite", "model", "weights"))  # all else is the run's own
            metrics = validate(config.model, world, config.weights)
            return world.say("\n".join(f"{name} {value}" for name, value in metrics.items()))
        tasks = glue.find_tasks(config.suite)
        for task in tasks:  # of all tasks before the first one trains
            glue.check_source(task, with_recipe(config, task).data)
        if len(tasks) == 1:
            fine_tune(tasks[0], config, world)
        else:
            fine_tune_all(tasks, config, world)


def fine_tune(task: glue.Task, config: Config, world: core.World) -> runs.Run:
    """One task, in a run folder of its own."""
    config = replace(with_recipe(config, task), suite=task.name)
    with runs.Run(config, world) as run:
        experiment = FineTuning(config, world, task)
        state = experiment.build_state(experiment.load_model())
        if config.dry_run:
            run.dry_run(state, lambda: core.train_step(state, experiment.loss_sum))
            return run
        run.resume(state, experiment)
        while not run.done(state):
            stats = core.train_step(state, experiment.loss_sum)
            run.after_step(state, stats)
        run.finish(state, experiment)
    return run


def fine_tune_all(tasks: Sequence[glue.Task], config: Config, world: core.World) -> None:
    """Task after task, in folders below that of the suite, which gets the averages."""
    names = [task.name for task in tasks]
    with runs.Run(config, world) as suite:
        begin_suite(suite, names)
        for task in tasks:
            world.say(f"---- {task.name}")
            folder = (suite.folder or Path("dry_run")) / task.name
            own = replace(config, out=str(folder), fresh=False)
            if not task.classes and (config.label_smoothing or config.r_drop):
                world.say("note: a score has no classes: without --label_smoothing and --r_drop")
                own = replace(own, label_smoothing=0.0, r_drop=0.0)
            try:
                run = fine_tune(task, own, world)
            except SystemExit as end:
                if end.code:  # else the task was finished before
                    raise
                continue
            except Diverged as error:
                world.say(f"{task.name} diverged: {error}")
                continue
            if run.status == "stopped":
                return stop_suite(suite, task.name, run)
            drop_checkpoints(run)
        if not config.dry_run:
            finish_suite(suite, names, suite_metrics)


# ------------------------------------------------------------------------ published words


def _suite(value: str) -> dict[str, str]:
    return {"suite": {"glue_sane": "glue"}.get(value.lower(), value.lower())}


def _checkpoint(value: str) -> dict[str, str]:
    known = {"latest": {"weights": "final"}, "smallest": {"weights": "best"}}
    return known.get(value, {"model": value.removeprefix("hf://")})


def _shuffle(value: str) -> dict[str, str]:
    if value.strip().lower() not in ("true", "1", "yes"):
        raise ValueError("impl.shuffle_in_dataloader: training rows are always shuffled")
    return {}


ALIASES: Aliases = {
    "name": lambda value: {"model": f"results/bert/{value}"},
    "eval": _suite,
    "eval.checkpoint": _checkpoint,
    "impl.microbatch_size": "micro_batch",
    "impl.shuffle_in_dataloader": _shuffle,
    "impl.mixed_precision_target_dtype": precision_words,
}

if __name__ == "__main__":
    from commands import evaluate

    commands = {"evaluate": (evaluate.evaluate, evaluate.EvaluateConfig)}
    runs.launch(main, Config, commands, ALIASES)
