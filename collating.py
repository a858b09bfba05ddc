"""Batches from worker processes, which make some ahead: the same ones, in the same order.

    batches = Batches(data, config.workers, device)
    for batch in batches.of([(rows, epoch), …]):       # data.collate(rows, epoch) of each
        …

For who knows what is wanted only when it is wanted, as evaluations and batch selection do;
core.TrainLoader knows it for a whole run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from device import of_workers, pins

Asked = tuple[Any, Any]  # row numbers, and the epoch (of all or of each) or None


class Batches:
    """The processes start when first asked, with the data as it is then, and stay for later calls
    as long as this object does. workers: 0: batches are made here."""

    def __init__(self, data: Any, workers: int, device: torch.device):
        self.data, self.workers, self.device = data, workers, device
        self._asked: list[Asked] = []
        self._loader: DataLoader | None = None

    def of(self, asked: Sequence[Asked]) -> Iterator[dict[str, torch.Tensor]]:
        """data.collate of each, in order."""
        if not self.workers or not asked:
            yield from (self.data.collate(rows, epoch) for rows, epoch in asked)
            return
        self._asked[:] = asked
        if self._loader is None:
            self._loader = DataLoader(
                _Collated(self.data),
                sampler=self._asked,
                batch_size=None,
                collate_fn=_identity,
                pin_memory=pins(self.device),
                persistent_workers=True,
                **of_workers(self.workers),
                generator=torch.Generator().manual_seed(0),  # torch's own draws nothing for it
            )
        yield from self._loader


class _Collated:
    def __init__(self, data: Any):
        self.data = data

    def __getitem__(self, asked: Asked) -> dict[str, torch.Tensor]:
        return self.data.collate(*asked)


def _identity(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch
