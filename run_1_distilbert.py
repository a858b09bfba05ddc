"""Run 1: which answer would a person prefer, judged from the two answers alone?

    torchrun --nproc_per_node=4 run_1_distilbert.py                     # the arena, DistilBERT
    torchrun --nproc_per_node=4 run_1_distilbert.py --config configs/preference/run_1_128.yaml
    python run_1_distilbert.py --model minilm --data reviews            # no hub needed
    python run_1_distilbert.py predict --run results/distilbert/… --data test.csv

Answers A and B are encoded apart, the two first-token embeddings are concatenated, and a
small head gives three logits: A, B, tie. The prompt is not read.
"""

from dataclasses import dataclass

import core
import runs
from tasks import preference


@dataclass
class Config(preference.Config):
    """Settings of run_1_distilbert.py."""

    model: str = "distilbert"
    """distilbert, or any encoder: a short name, a local folder, a hub id"""


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = preference.or_embedded(config, given, world)
        with runs.Run(config, world) as run:
            task = preference.Preference(config, world, run, with_prompt=False)
            state = task.build_state(task.load_encoder())
            if config.dry_run:
                return run.dry_run(state, task.loss_sum)
            run.resume(state, task.evaluate)
            while not run.done(state):
                stats = core.train_step(state, task.loss_sum)
                run.after_step(state, stats)
            run.finish(state, task.test)


if __name__ == "__main__":
    runs.launch(main, Config, {"predict": (preference.predict, preference.PredictConfig)})
