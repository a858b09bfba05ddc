"""BERT from nothing on a budget: data order × batch selection × depth × optimizer.

    python pretrain_bert.py                             # without a hub: bert-tiny on reviews
    torchrun --nproc_per_node=4 pretrain_bert.py name=baseline budget=24 data=c4-subset
    python pretrain_bert.py --config configs/bert/c4/stacking.yaml name=stacking budget=12 seed=1
    python pretrain_bert.py name=il_model budget=6 validation.il_model=True validation.fraction=0.2
    python pretrain_bert.py extract_il_losses --run results/bert/il_model
    python pretrain_bert.py --config configs/bert/c4/rho.yaml \\
        selection.il_losses=results/bert/il_model/il_losses
    python pretrain_bert.py calibrate --model bert-small --output laptop.json
    python pretrain_bert.py download c4-subset
    python eval_bert.py name=baseline eval=GLUE_sane

name=X is the run folder results/bert/X. Learning rate, stacking and layer drop are functions of
the share of the budget that is spent, in whatever unit it is measured.
"""

from dataclasses import dataclass

import core
import runs
from tasks import pretraining
from tasks.pretraining_commands import COMMANDS


@dataclass
class Config(pretraining.Config):
    """Settings of pretrain_bert.py; those of the methods are sections, as stacking.enabled."""


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = pretraining.or_embedded(config, given, world)
        with runs.Run(config, world) as run:
            task = pretraining.Pretraining(config, world, run)
            state = task.build_state()
            if config.dry_run:
                return run.dry_run(state, task.loss_sum, task.start_timing)
            run.resume(state, task.evaluate)
            while not run.done(state):
                # grows the model and estimates the curvature where that is due
                stats = core.train_step(state, task.loss_sum) if task.before_step() else None
                run.after_step(state, stats)
            run.finish(state, task.test)


if __name__ == "__main__":
    runs.launch(main, Config, COMMANDS, pretraining.ALIASES)
