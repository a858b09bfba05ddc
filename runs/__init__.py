"""The run folder: what a run writes while it trains, and how it comes back after a kill.

with core.distributed(config) as world, runs.Run(config, world) as run:
    run.resume(state, experiment)
    while not run.done(state):
        run.after_step(state, core.train_step(state, experiment.loss_sum))
    run.finish(state, experiment)
"""

from runs.launch import launch
from runs.run import Run

__all__ = ["Run", "launch"]
