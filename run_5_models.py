"""Run 5: other encoders, initialisations and frozen parts in the experiment of runs 1 and 2.

    torchrun --nproc_per_node=4 run_5_models.py --model electra
    torchrun --nproc_per_node=4 run_5_models.py --model deberta-v3 --head symmetric --swap both
    python run_5_models.py --model minilm --data reviews --prompt false        # run 1's experiment
    python run_5_models.py --model minilm --data reviews --freeze bottom:3 --max_length 96
    python run_5_models.py evaluate RUN --data other.csv
    python run_5_models.py predict --run_folder RUN --prompt P --response_a A --response_b B

--model: distilbert bert bert-large roberta electra deberta deberta-v3 (-xsmall -small -large)
albert modernbert minilm, any local folder or hub id.
"""

from dataclasses import dataclass
from typing import Literal

import core
import runs
from experiments import preference
from experiments.experiment import or_embedded
from models import pretrained


@dataclass
class Config(preference.Config):
    """Settings of run_5_models.py."""

    ONLY_WITH = {"cache_features": "freeze!=none"}

    init: Literal["pretrained", "random", "by_name"] = "pretrained"
    """start from the published weights, or from random ones of the same shape; by_name: random,
    each parameter from the seed and its own name, so that architectures share a start"""
    freeze: str = "none"
    """none, all (the head alone learns), bottom (embeddings and the lower half) or bottom:k"""
    cache_features: bool | None = None
    """compute the outputs of frozen parts once, for later runs too; false: in each step; null: a
    GPU times frozen lower layers, else once"""


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = or_embedded(config, given, world, **preference.EMBEDDED)
        with runs.Run(config, world) as run:
            experiment = preference.Preference(config, world, run.folder)
            encoder = experiment.load_encoder(config.init)
            pretrained.freeze(encoder, config.freeze)
            state = experiment.build_state(encoder)
            keeps = config.cache_features is not False and config.freeze != "none"
            if config.dry_run:
                world.say(experiment.cost_elsewhere(state))
                if keeps:
                    world.say("note: timed with the frozen part in each step; a run may keep it")
                return run.dry_run(state, lambda: core.train_step(state, experiment.loss_sum))
            if keeps:
                before = run.recorded("frozen_part", older="kept")
                experiment.keep_frozen(state, config.cache_features, before)
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
