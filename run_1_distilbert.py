"""Run 1: which answer would a person prefer, judged from the two answers alone?

    torchrun --nproc_per_node=4 run_1_distilbert.py                     # the arena, DistilBERT
    torchrun --nproc_per_node=4 run_1_distilbert.py --config configs/preference/run_1_128.yaml
    python run_1_distilbert.py --model minilm --data reviews            # no hub needed
    python run_1_distilbert.py evaluate RUN --data other.csv
    python run_1_distilbert.py predict --run_folder results/distilbert/… --data test.csv

Answers A and B are encoded apart, the two first-token embeddings are concatenated, and a
small head gives three logits: A, B, tie. The prompt is not read.
"""

from dataclasses import dataclass

import core
import runs
from experiments import preference
from experiments.experiment import or_embedded


@dataclass
class Config(preference.Config):
    """Settings of run_1_distilbert.py."""

    REFUSED = dict.fromkeys(
        ("prompt", "prompt_frac"), "this script reads no prompt: run_2_appendprompt.py"
    )

    prompt: bool = False
    """fixed here; run_5_models.py has both"""

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
