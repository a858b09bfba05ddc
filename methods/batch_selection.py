"""Which of the sequences that were scored are trained on: selective backprop and RHO-loss.

    selector = SelectiveBackprop(batch=1536, seed=config.seed)
    while not batches:
        candidates = next selector.wanted rows of the data        # (n, 2): sequence id, epoch
        losses = mean loss of each over its masked tokens         # (n,), without gradient
        batches = selector.offer(candidates, losses)              # 0 or more (batch, 2)

A selector sees ids and losses only, in the order of the data. When every rank gives it the
losses of all ranks in that order, every rank decides the same, and its whole state is a few
arrays. Masks are drawn from (seed, id, epoch): the pair brings back the very masks that a
sequence was scored with, so it is trained on what it was chosen for.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import core
from collating import Batches
from core import mix_seed
from files import write_folder
from settings import Settings


class SelectiveBackprop:
    """Keep a sequence with probability rank^beta, its loss ranked among the recent ones.

    Jiang et al. 2019, Accelerating Deep Learning by Focusing on the Biggest Losers:
    P(keep) = CDF(loss)^β, the distribution being that of the last `history` losses. On average
    1/(β + 1) are kept. What is kept waits in a queue until it fills a batch.

    chunk: so many losses enter the history before they are ranked in it (128, the micro-batch
    of No Train No Gain). It is not the micro-batch of this run, which may shrink or be shared
    out without changing what is kept.
    """

    def __init__(
        self, batch: int, seed: int, beta: float = 1.0, history: int = 5000, chunk: int = 128
    ):
        if beta < 0 or not 1 <= chunk <= history or batch < 1:
            raise ValueError(
                f"selective backprop: beta {beta:g} must be 0 or more, batch {batch} 1 or more, "
                f"and chunk {chunk} between 1 and history {history}"
            )
        self.batch, self.seed, self.beta = batch, seed, beta
        self.history, self.chunk = history, chunk
        self.chunks = 0  # ranked so far: each has random numbers of its own
        self.recent = np.zeros(0)
        self.queue = np.zeros((0, 2), np.int64)

    @property
    def wanted(self) -> int:
        """Candidates to score next: as many as are missing, in whole chunks.

        Even if all were kept, the batch would be full only with the last chunk: scoring in
        such rounds, between which no weight changes, keeps what scoring chunk by chunk would.
        """
        return -(-(self.batch - len(self.queue)) // self.chunk) * self.chunk

    def offer(self, candidates: np.ndarray, losses: np.ndarray) -> list[np.ndarray]:
        """candidates (n, 2) int64 and their losses (n,) → batches (batch, 2) to train on.

        Leave out sequences without a masked token: they have no loss. RuntimeError where a
        loss is not finite.
        """
        losses = _check(candidates, losses)
        for start in range(0, len(losses), self.chunk):
            part = losses[start : start + self.chunk]
            self.recent = np.concatenate([self.recent, part])[-self.history :]
            seed = mix_seed(self.seed, self.chunks, 7)
            uniform = np.random.Generator(np.random.PCG64(seed)).random(len(part))
            keep = uniform < percentile_ranks(part, self.recent) ** self.beta
            self.chunks += 1
            self.queue = np.concatenate([self.queue, candidates[start : start + self.chunk][keep]])
        batches = []
        while len(self.queue) >= self.batch:
            batches.append(self.queue[: self.batch])
            self.queue = self.queue[self.batch :]
        return batches

    def state_dict(self) -> dict:
        return {
            "chunks": self.chunks,
            "recent": torch.from_numpy(self.recent.copy()),
            "queue": torch.from_numpy(self.queue.copy()),
        }

    def load_state_dict(self, saved: dict) -> None:
        self.chunks = saved["chunks"]
        self.recent = saved["recent"].numpy().copy()
        self.queue = saved["queue"].numpy().copy()


def percentile_ranks(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The share of `among` (m,) at or below each of `values` (n,), which are some of it.

    With ties the mean of the shares that the tied would have in either order; the largest of
    different values has 1, the smallest 1/m.
    """
    ordered = np.sort(among)
    below = np.searchsorted(ordered, values, side="left")
    up_to = np.searchsorted(ordered, values, side="right")
    return (below + up_to + 1) / (2 * len(ordered))


class IrreducibleLosses:
    """Each sequence's loss under a model that was trained on other data, by sequence id.

    It belongs to one split of one data set, whose fingerprint it carries: ids mean nothing
    elsewhere, and a sequence that the model was trained on would have too low a loss.

    On disk it is a folder of parts, each of them whole or not there: an extraction that is
    interrupted goes on with the ids that `missing` names.
    """

    def __init__(self, ids: np.ndarray, losses: np.ndarray, split_fingerprint: str):
        """ids (n,) int64, losses (n,) float. ValueError for an id given twice, or no number."""
        if np.shape(ids) != np.shape(losses) or np.ndim(ids) != 1:
            raise ValueError(f"{np.shape(ids)} ids do not fit {np.shape(losses)} losses")
        order = np.argsort(ids, kind="stable")
        self.ids = np.asarray(ids, np.int64)[order]
        self.losses = np.asarray(losses, np.float32)[order]
        self.split_fingerprint = split_fingerprint
        if (twice := self.ids[1:][np.diff(self.ids) == 0]).size:
            raise ValueError(f"sequence {twice[0]} has two irreducible losses")
        if (bad := self.ids[~np.isfinite(self.losses)]).size:
            raise ValueError(f"the irreducible loss of sequence {bad[0]} is not a finite number")

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Losses (n,) of ids (n,). KeyError names one that the table does not have."""
        if (unknown := self.missing(ids)).size:
            raise KeyError(f"no irreducible loss of sequence {unknown[0]}")
        return self.losses[np.searchsorted(self.ids, ids)]

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Those of ids (n,) that have no loss here, in their order."""
        if len(self) == 0:
            return ids
        places = np.searchsorted(self.ids, ids).clip(max=len(self) - 1)
        return ids[self.ids[places] != ids]

    def require(self, ids: np.ndarray) -> None:
        """ValueError unless every one of the ids (n,) that will be trained on has a loss."""
        if (unknown := self.missing(ids)).size:
            raise ValueError(
                f"{len(unknown):,} of {len(ids):,} training sequences have no irreducible loss "
                f"(the first is {unknown[0]}): let the extraction finish"
            )

    def save_part(self, folder: Path, number: int, weights: str = "") -> None:
        """Write these losses as part `number` of a table, whole or not at all; weights: digest of
        the model's, where it is known."""
        contents = io.BytesIO()
        np.savez(
            contents, ids=self.ids, losses=self.losses, split_fingerprint=self.split_fingerprint
        )
        write_folder(
            Path(folder) / f"part_{number:06d}",
            lambda beside: (beside / "losses.npz").write_bytes(contents.getvalue()),
            rows=len(self),
            split_fingerprint=self.split_fingerprint,
            **({"weights": weights} if weights else {}),
        )

    @classmethod
    def load(cls, folder: Path, split_fingerprint: str) -> "IrreducibleLosses":
        """All parts of a table. ValueError if it is not of this split, or a part is damaged."""
        paths = sorted(Path(folder).glob("part_??????/losses.npz"))
        if not paths:
            raise ValueError(f"{folder} holds no irreducible losses: extract them first")
        ids, losses = [], []
        for path in paths:
            try:
                with np.load(path, allow_pickle=False) as part:
                    part_fingerprint = str(part["split_fingerprint"])
                    ids.append(part["ids"])
                    losses.append(part["losses"])
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} cannot be read ({error}): extract it again") from error
            if part_fingerprint != split_fingerprint:
                raise ValueError(
                    f"{path} has the irreducible losses of another split ({part_fingerprint}; "
                    f"this run's is {split_fingerprint}): its ids mean other sequences. Extract "
                    "with the same data, validation share and seed as the run that uses them"
                )
        return cls(np.concatenate(ids), np.concatenate(losses), split_fingerprint)


class RhoLoss:
    """Of every mega-batch train on the `batch` sequences of largest reducible loss.

    Mindermann et al. 2022, Prioritized Training on Points that are Learnable, Worth Learning,
    and Not Yet Learnt, equation 3: argmax of loss − irreducible loss. The rest is discarded.

    mega_batch: candidates that a batch is chosen from (No Train No Gain: 3,072 or 15,360).
    """

    def __init__(self, batch: int, mega_batch: int, irreducible: IrreducibleLosses):
        if not 1 <= batch <= mega_batch:
            raise ValueError(f"a mega-batch of {mega_batch} is less than a batch of {batch}")
        self.batch, self.mega_batch, self.irreducible = batch, mega_batch, irreducible
        self.collected = np.zeros((0, 2), np.int64)
        self.scores = np.zeros(0)

    @property
    def wanted(self) -> int:
        """Candidates to score next."""
        return self.mega_batch - len(self.collected)

    def offer(self, candidates: np.ndarray, losses: np.ndarray) -> list[np.ndarray]:
        """As SelectiveBackprop.offer; KeyError for a sequence without an irreducible loss."""
        losses = _check(candidates, losses)
        scores = losses - self.irreducible.of(candidates[:, 0])
        self.collected = np.concatenate([self.collected, candidates])
        self.scores = np.concatenate([self.scores, scores])
        batches = []
        while len(self.collected) >= self.mega_batch:
            best = np.argsort(-self.scores[: self.mega_batch], kind="stable")[: self.batch]
            batches.append(self.collected[best])
            self.collected = self.collected[self.mega_batch :]
            self.scores = self.scores[self.mega_batch :]
        return batches

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "collected": torch.from_numpy(self.collected.copy()),
            "scores": torch.from_numpy(self.scores.copy()),
        }

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.collected = saved["collected"].numpy().copy()
        self.scores = saved["scores"].numpy().copy()


class SelectingLoader(core.TrainLoader):
    """Global batches that a selector makes of the rows that were scored.

    score(candidates) returns a loss for each of (n, 2) rows and epochs, on every rank the losses
    of all ranks, or None after a signal. A batch is kept until the next is asked for, so that a
    step that was cut off, or ran out of memory, is taken again with the same rows.
    """

    def __init__(self, data: Any, config: Settings, world: core.World, selector: Any, score: Any):
        super().__init__(data, config, world)
        self.selector, self.score = selector, score
        self.made = Batches(data, config.workers, world.device)
        self.sampler = core.StepSampler(data, config, world, self.micro_batch)
        self.cursor = 0  # candidates taken so far, through all epochs
        self.scored = 0  # of these, for the present batch
        self.waiting: list[np.ndarray] = []  # batches that are chosen and not yet trained on
        self.batch, self.batch_position = np.zeros((0, 2), np.int64), -1

    def seek(self, position: int) -> None:
        super().seek(position)
        self.made = Batches(self.data, self.config.workers, self.world.device)

    def candidates(self, count: int) -> np.ndarray:
        """The next `count` rows in the order of the data, with their epochs: (count, 2)."""
        size, parts = len(self.data.lengths), []
        for epoch in range(self.cursor // size, (self.cursor + count - 1) // size + 1):
            first = max(0, self.cursor - epoch * size)
            rows = self.sampler.order(epoch)[first : self.cursor + count - epoch * size]
            parts.append(np.stack([rows, np.full(len(rows), epoch)], axis=1))
        return np.concatenate(parts)

    def next(self) -> core.Work:
        if self.batch_position != self.position:
            if self.batch_position >= 0:
                self.scored, self.batch_position = 0, -1
            while not self.waiting:
                candidates = self.candidates(self.selector.wanted)
                losses = self.score(candidates)
                if losses is None:  # train_step sees the signal, too, and takes no step
                    self.position += 1
                    return core.Work(self.position - 1, 0, [], 0, 0)
                self.cursor += len(candidates)
                self.scored += len(candidates)
                self.waiting += self.selector.offer(candidates, losses)
            self.batch, self.batch_position = self.waiting.pop(0), self.position
        # rows of similar length together; those of equal length in the order of their choice
        order = np.argsort(-np.asarray(self.data.lengths)[self.batch[:, 0]], kind="stable")
        batch = self.batch[order]
        starts = range(0, len(self.batch), self.micro_batch)
        parts = [batch[start : start + self.micro_batch] for start in starts]
        mine = core.deal([len(part) for part in parts], self.world.size)[self.world.rank]
        rows = self.batch[:, 0]
        self.position += 1
        batches = self.made.of([tuple(parts[index].T) for index in mine])
        return core.Work(
            self.position - 1,
            int(self.batch[-1, 1]),
            list(zip(mine, batches, strict=True)),
            len(rows),
            int(self.data.tokens[rows].sum()),
            [len(part) for part in parts],
        )

    def state_dict(self) -> dict:
        waiting = np.stack(self.waiting) if self.waiting else np.zeros((0, 0, 2), np.int64)
        return {
            "cursor": self.cursor,
            "scored": self.scored,
            "batch": torch.from_numpy(self.batch.copy()),
            "position": self.batch_position,
            "waiting": torch.from_numpy(waiting),
            "selector": self.selector.state_dict(),
        }

    def load_state_dict(self, saved: dict) -> None:
        self.cursor, self.scored = saved["cursor"], saved["scored"]
        self.batch, self.batch_position = saved["batch"].numpy().copy(), saved["position"]
        self.waiting = list(saved["waiting"].numpy().copy())
        self.selector.load_state_dict(saved["selector"])


def _check(candidates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The losses in float64, all finite and one for each candidate."""
    losses = np.asarray(losses, np.float64)
    if candidates.shape != (len(losses), 2):
        raise ValueError(f"candidates {candidates.shape} do not fit {losses.shape} losses")
    if (bad := candidates[~np.isfinite(losses)]).size:
        raise RuntimeError(
            f"the loss of sequence {bad[0, 0]} is not finite: training diverged, or the sequence "
            "has no masked token and should not have been offered"
        )
    return losses
