"""Averages of the weights, to evaluate and to keep in place of the last ones.

    average = WeightAverage(model, steps=300)
    average.update(clock.fraction)  # after each optimizer step
    with average.applied():         # the model holds the average, then its own weights again
        evaluate()

Polyak & Juditsky 1992, Acceleration of stochastic approximation by averaging; as a moving average
over the last part of training: Izmailov et al. 2018 (arXiv 1803.05407), Kaddour 2022 (2209.14981).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class _Average:
    """Weights beside a model's own, with which it can compute; a subclass says which.

    Of the parameters that are trained. It has a state dict, so that a run continues bit for bit.
    """

    def __init__(self, model: nn.Module):
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.updates = 0

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the average inside, if there has been an update."""
        if self.updates:
            self._exchange()
        try:
            yield
        finally:
            if self.updates:
                self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self.parameters.values(), self._tensors(), strict=True):
            weights = parameter.clone()
            parameter.copy_(average)
            average.copy_(weights)

    def _tensors(self) -> list[Tensor]:
        return list(self.averages.values())

    def state_dict(self) -> dict:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, saved: dict) -> None:
        self.updates = saved["updates"]
        for name, average in self.averages.items():
            average.copy_(saved["averages"][name])


class WindowAverage(_Average):
    """The plain mean of the weights over the end of the run; before that the weights themselves.

    begin: the share of the run after which it begins (Izmailov et al. 2018, algorithm 1, with the
    weights of every step; Jain et al. 2018, tail averaging).
    """

    def __init__(self, model: nn.Module, begin: float):
        super().__init__(model)
        self.begin = begin

    @torch.no_grad()
    def update(self, fraction: float) -> None:
        """Add the present weights; fraction: of the run that is over."""
        if fraction >= self.begin:
            self.updates += 1
            parameters = list(self.parameters.values())
            torch._foreach_lerp_(self._tensors(), parameters, 1 / self.updates)


class WeightAverage(_Average):
    """Σ βᵗ⁻ⁱ·wᵢ / Σ βᵗ⁻ⁱ over the updates i = 1 … t, with β = 1 − 1/steps.

    steps: how far it looks back; ValueError below 1. Buffers are not averaged.
    """

    def __init__(self, model: nn.Module, steps: float):
        if steps < 1:
            raise ValueError(f"an average over {steps:g} steps: expected 1 or more")
        super().__init__(model)
        self.decay = 1 - 1 / steps

    @torch.no_grad()
    def update(self, fraction: float = 0.0) -> None:
        """Add the present weights."""
        self.updates += 1
        # after the first update the average is the weights themselves
        share = (1 - self.decay) / (1 - self.decay**self.updates)
        torch._foreach_lerp_(self._tensors(), list(self.parameters.values()), share)
