"""When Sophia's curvature is estimated, and from which rows, which are drawn apart.

curvature = Curvature(SeekingLoader(data, own_config, world), every=10)
if curvature.due(state.step, depth):
    targets = curvature.estimate(state, depth, sampled_loss_sum)     # None after a signal
"""

import dataclasses
import math
from typing import Any

import torch
from torch import nn

import core
from collating import Batches
from settings import Settings


class SeekingLoader(core.TrainLoader):
    """A TrainLoader that is sought before each batch: it keeps an epoch's order meanwhile.

    Another sampler for each batch would permute all rows anew, .1 to .4 s for 5 million, and with
    --workers start processes anew.
    """

    def __init__(self, data: Any, config: Settings, world: core.World):
        super().__init__(data, config, world)
        self.made = Batches(data, config.workers, world.device)
        self.sampler = core.StepSampler(data, config, world, self.micro_batch)

    def next(self) -> core.Work:
        self.sampler.start, self.sampler.micro_batch = self.position, self.micro_batch
        work = next(iter(self.sampler))
        self.position = work.position + 1
        batches = self.made.of([(rows, work.epoch) for _, rows in work.micro_batches])
        parts = [(i, batch) for (i, _), batch in zip(work.micro_batches, batches, strict=True)]
        return dataclasses.replace(work, micro_batches=parts)


class Curvature:
    """When Sophia's curvature was estimated, and the rows for it, which are drawn apart."""

    def __init__(self, loader: SeekingLoader, every: int):
        self.loader, self.every = loader, every
        self.step, self.depth = -every, 0  # of the last estimate

    def due(self, step: int, depth: int) -> bool:
        return step - self.step >= self.every or depth != self.depth

    def estimate(self, state: core.State, depth: int, loss_sum: core.LossSum) -> float | None:
        """Let the optimizer take a new estimate; the targets that it comes from, None after a
        signal. loss_sum: against labels drawn from the model (methods.optimizers)."""
        self.loader.seek(state.step)
        summed = core.sum_gradients(state, self.loader, loss_sum)
        if summed is None:
            return None
        _, _, targets, active = summed
        gradients = [parameter.grad for parameter in active]
        # backward ran on losses / batch; the mean over the targets is wanted
        torch._foreach_mul_(gradients, state.config.batch / targets)
        if math.isfinite(nn.utils.get_total_norm(gradients)):
            state.optimizer.update_hessian(int(targets))
        state.optimizer.zero_grad()
        self.step, self.depth = state.step, depth
        return targets

    def state_dict(self) -> dict:
        return {"step": self.step, "depth": self.depth, "micro_batch": self.loader.micro_batch}

    def load_state_dict(self, saved: dict) -> None:
        self.step, self.depth = saved["step"], saved["depth"]
        self.loader.micro_batch = saved["micro_batch"]
