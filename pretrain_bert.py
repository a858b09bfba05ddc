"""BERT from nothing on a budget: data order × batch selection × depth × optimizer.

    python pretrain_bert.py                             # without a hub: bert-tiny on reviews
    torchrun --nproc_per_node=4 pretrain_bert.py name=baseline budget=24 data=c4-subset
    python pretrain_bert.py --config configs/bert/c4/stacking.yaml name=stacking budget=12 seed=1
    python pretrain_bert.py name=il_model budget=6 validation.il_model=True validation.fraction=0.2
    python pretrain_bert.py extract_il_losses --run_folder results/bert/il_model
    python pretrain_bert.py --config configs/bert/c4/rho.yaml \\
        selection.il_losses=results/bert/il_model/il_losses
    python pretrain_bert.py calibrate --model bert-small --output laptop.json
    python pretrain_bert.py download c4-subset
    python pretrain_bert.py evaluate RUN --data other_texts.txt
    python eval_bert.py name=baseline eval=GLUE_sane

name=X is the run folder results/bert/X. Learning rate, stacking and layer drop are functions of
the share of the budget that is spent, in whatever unit it is measured.
"""

from dataclasses import dataclass
from typing import Any

import core
import runs
from experiments import pretraining
from experiments.experiment import as_published, or_embedded


@dataclass
class Config(pretraining.Config):
    """Settings of pretrain_bert.py; those of the methods are sections, as stacking.enabled."""


def main(config: Config, given: bool) -> None:
    with core.distributed(config) as world:
        config = or_embedded(config, given, world, **pretraining.EMBEDDED)
        config = as_published(config, world)
        with runs.Run(config, world) as run:
            experiment = pretraining.Pretraining(config, world)
            state = experiment.build_state(experiment.load_model())
            if config.dry_run:
                return run.dry_run(state, lambda: update(state, experiment))
            run.resume(state, experiment)
            while not run.done(state):
                run.after_step(state, update(state, experiment))
            run.finish(state, experiment)


def update(state: core.State, experiment: pretraining.Pretraining) -> dict[str, Any] | None:
    """One step; None when a signal cut it off. Ahead of it the model grows and the curvature is
    estimated where that is due, after it its work is charged to the budget."""
    return core.train_step(state, experiment.loss_sum, experiment.choose_layers)


if __name__ == "__main__":
    from commands import calibrate, download, evaluate, extract, reproduce

    commands = {
        "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig),
        "extract_il_losses": (extract.extract_il_losses, extract.ExtractConfig, extract.ALIASES),
        "calibrate": (calibrate.calibrate, calibrate.CalibrateConfig),
        "download": (download.download, download.DownloadConfig),
        "reproduce": reproduce.command_of(main, Config),
    }
    runs.launch(main, Config, commands, pretraining.ALIASES)
