"""Heads that join two answers, beside core's ConcatHead: symmetric ones, style into any, and one
that reads both answers at once.

In that joint form a is the embedding of (A, B) and b that of (B, A): exchanging the answers
exchanges the two, so that what is symmetric stays so.

head = DavidsonHead(hidden)
head = StyleHead(head, mean, scale, dropout=0.1)     # head(a, b, style_features of the rows)
"""

import numpy as np
import torch
from torch import Tensor, nn

import core
from data.style import exchanged

STYLE_SIZE = 64  # numbers that the head reads beside an embedding


class JointHead(nn.Module):
    """a → Linear → tanh → dropout → Linear: a (batch, hidden) of both answers → logits (batch,
    classes). b, of the other order, is not read."""

    def __init__(self, hidden: int, classes: int = 3, dropout: float = 0.1):
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.dropout(torch.tanh(self.dense(a))))


class SymmetricHead(nn.Module):
    """Logits (batch, classes) of A, B and, of three, tie; exchanging a and b exchanges the first
    two exactly.

    A network f outputs (win, tie) for an ordered pair: A = win(a, b), B = win(b, a),
    tie = tie(a, b) + tie(b, a). Both orders go through f in calls of the same shape, so
    that not even rounding depends on which answer stood first. f reads
    [a; b; a − b; a · b], as sentence-pair classifiers do (Conneau et al. 2017, section 3).
    """

    def __init__(self, hidden: int, classes: int = 3, dropout: float = 0.1):
        super().__init__()
        self.dense = nn.Linear(4 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes - 1)

    def _ordered(self, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.tanh(self.dense(torch.cat([a, b, a - b, a * b], dim=-1)))
        return self.out(self.dropout(joined))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        ab, ba = self._ordered(a, b), self._ordered(b, a)
        ties = ab[:, 1:] + ba[:, 1:]  # none of two classes
        return torch.cat([ab[:, :1], ba[:, :1], ties], dim=-1)


class DavidsonHead(nn.Module):
    """Logits (batch, classes) of A, B and, of three, tie; exchanging the answers exchanges the
    first two exactly.

    Each answer has a worth π of its own, and with a threshold ν that all rows share

        p(A) = π_a / (π_a + π_b + ν √(π_a π_b)),   p(tie) = ν √(π_a π_b) / (…)

    Davidson 1970 (JASA 65(329), equations 2.4 and 2.5), whose ν = 0 is Bradley & Terry's model.
    The logits are ln π_a, ln π_b and ln ν + (ln π_a + ln π_b) / 2.
    """

    def __init__(self, hidden: int, classes: int = 3, dropout: float = 0.1):
        """classes: 2 where there are no ties, which is Bradley & Terry's model."""
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 1)
        self.threshold = nn.Parameter(torch.zeros(classes - 2))  # ln ν

    def worth(self, answer: Tensor) -> Tensor:
        """ln π: (batch, hidden) → (batch,)."""
        return self.out(self.dropout(torch.tanh(self.dense(answer)))).squeeze(-1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.worth(a), self.worth(b)
        ties = self.threshold + ((a + b) / 2)[:, None]
        return torch.cat([a[:, None], b[:, None], ties], dim=-1)


class StyleHead(nn.Module):
    """A head that also reads what counting says (data/style.py), normalised and dropped out.

    z(A, B) = tanh(W (features − mean) / scale + c) stands beside a, z(B, A) beside b: what the head
    inside keeps when the answers are exchanged, it keeps with features.
    """

    def __init__(self, head: nn.Module, mean: Tensor, scale: Tensor, dropout: float = 0.1):
        """head: made for STYLE_SIZE more than the embedding has; mean, scale (features,): those of
        the training rows in both orders."""
        super().__init__()
        self.head = head
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(len(mean), STYLE_SIZE)

    def _read(self, features: Tensor) -> Tensor:
        normal = ((features - self.mean) / self.scale).clamp(-3, 3)
        return torch.tanh(self.project(self.dropout(normal)))

    def forward(self, a: Tensor, b: Tensor, features: Tensor) -> Tensor:
        """a, b (rows, hidden), features (rows, features) of A and B in this order."""
        first, second = self._read(features), self._read(exchanged(features))
        a, b = torch.cat([a, first.to(a.dtype)], dim=-1), torch.cat([b, second.to(b.dtype)], dim=-1)
        return self.head(a, b)


def style_scale(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """(mean, scale) of features (rows, features) in both orders, so that neither has a side."""
    both = np.concatenate([features, exchanged(features)]).astype(np.float64)
    scale = np.maximum(both.std(axis=0), 1e-3)
    return torch.tensor(both.mean(axis=0)).float(), torch.tensor(scale).float()


class MeanPairs(core.PairClassifier):
    """The pair classifier on the mean of all of a sequence's states in place of the first one's."""

    def first_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None, **more: Tensor
    ) -> Tensor:
        """As of the classifier above."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **more}
        states = self.encoder(**inputs).last_hidden_state
        if attention_mask is None:
            return states.mean(dim=1)
        weights = attention_mask[:, : states.shape[1], None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
