"""Progressive stacking (Gong et al. 2019, Efficient Training of BERT by Progressively Stacking).

A shallow model is trained first; then its layers are copied on top of themselves:
A B → A B A B. All layers exist from the start, the upper ones do not run before their time.

    stacking = Stacking(model.encoder.layers, initial=4, fractions=(0.125, 0.3))
    stacking.update(clock.fraction, optimizer)      # before each step
    model(batch, active_layers=stacking.active_layers)
"""

from collections.abc import Sequence

import torch
from torch import nn


def depth_at(
    fraction: float,
    total: int = 16,
    initial: int = 4,
    fractions: Sequence[float] = (0.125, 0.3),
) -> int:
    """Layers that run when this fraction of the budget is spent.

    initial, doubled at each of `fractions`, up to total: 4 → 8 → 16 at 12.5 % and 30 % as in
    No Train No Gain (Kaddour et al. 2023).
    """
    return min(total, initial << sum(fraction >= mark for mark in fractions))


@torch.no_grad()
def copy_layers(
    layers: nn.ModuleList, active: int, depth: int, optimizer: torch.optim.Optimizer
) -> None:
    """Make layers active … depth − 1 copies of layers 0 … depth − active − 1.

    Layer j becomes layer j + active; storage stays apart. The optimizer forgets what it held
    for the new layers, so that their moments and bias correction start afresh; the old
    layers keep theirs.
    """
    for source, target in zip(layers[: depth - active], layers[active:depth], strict=True):
        target.load_state_dict(source.state_dict())
        for parameter in target.parameters():
            optimizer.state.pop(parameter, None)


class Stacking:
    """The depth of a run, which only grows. Its state belongs into the checkpoint.

    ValueError unless `fractions` rise within (0, 1) and are just as many as it takes to get
    from `initial` to all layers by doubling; the last time may copy fewer.
    """

    def __init__(
        self, layers: nn.ModuleList, initial: int = 4, fractions: Sequence[float] = (0.125, 0.3)
    ):
        total, marks = len(layers), [0.0, *fractions, 1.0]
        if not 1 <= initial <= total:
            raise ValueError(f"stacking begins with {initial} of {total} layers: expected 1 to all")
        if any(a >= b for a, b in zip(marks, marks[1:], strict=False)):
            raise ValueError(
                f"stacking fractions {list(fractions)}: expected to rise within (0, 1)"
            )
        needed = (-(-total // initial) - 1).bit_length()  # doublings from initial to total
        if len(fractions) != needed:
            raise ValueError(
                f"stacking from {initial} to {total} layers takes {needed} doublings, but there "
                f"are {len(fractions)} fractions"
            )
        self.layers, self.initial, self.fractions = layers, initial, tuple(fractions)
        self.depth = initial

    @property
    def active_layers(self) -> list[int]:
        return list(range(self.depth))

    def update(self, fraction: float, optimizer: torch.optim.Optimizer) -> bool:
        """Grow to the depth of that fraction; whether it grew. Every rank copies alike."""
        due = depth_at(fraction, len(self.layers), self.initial, self.fractions)
        grew = self.depth < due
        while self.depth < due:
            depth = min(2 * self.depth, len(self.layers))
            copy_layers(self.layers, self.depth, depth, optimizer)
            self.depth = depth
        return grew

    def state_dict(self) -> dict:
        return {"depth": self.depth}

    def load_state_dict(self, saved: dict) -> None:
        self.depth = saved["depth"]
