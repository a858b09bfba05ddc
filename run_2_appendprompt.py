"""Run 2: as run 1, with the prompt in front of each answer.

    torchrun --nproc_per_node=4 run_2_appendprompt.py                     # the arena, DistilBERT
    torchrun --nproc_per_node=4 run_2_appendprompt.py --config configs/preference/run_2_b32.yaml
    python run_2_appendprompt.py --model minilm --data reviews            # no hub needed
    python run_2_appendprompt.py evaluate RUN --data other.csv
    python run_2_appendprompt.py predict --run_folder results/distilbert/… --data test.csv

Each side is [cls] prompt [sep] answer [sep], turn after turn. Where that is longer than
--max_length, prompt and answer share the tokens and keep their heads and tails.
"""

from dataclasses import dataclass

import core
import runs
from experiments import preference
from experiments.experiment import or_embedded


@dataclass
class Config(preference.Config):
    """Settings of run_2_appendprompt.py."""

    REFUSED = {"prompt": "this script reads the prompt: run_5_models.py has --prompt false"}

    model: str = "distilbert"
    """distilbert, or any encoder: a short name, a local folder, a hub id"""


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = or_embedded(config, given, world, **preference.EMBEDDED)
        with runs.Run(config, world) as run:
            experiment = preference.Preference(config, world, run.folder)
            state = experiment.build_state(experiment.load_encoder())
            if config.dry_run:
                world.say(experiment.cost_elsewhere(state))
                return run.dry_run(state, lambda: core.train_step(state, experiment.loss_sum))
            run.resume(state, experiment)
            while not run.done(state):
                stats = core.train_step(state, experiment.loss_sum)
                run.after_step(state, stats)
            run.finish(state, experiment)


if __name__ == "__main__":
    from commands import evaluate, features, predict, reproduce

    commands = {
        "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig),
        "features": (features.features, features.Config),
        "predict": (predict.predict, predict.PredictConfig),
        "reproduce": reproduce.command_of(main, Config),
    }
    runs.launch(main, Config, commands)
