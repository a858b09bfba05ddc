"""Training losses of logits at targets: cross-entropy with label smoothing, R-Drop, squared error.

loss = loss_sum([logits], labels, label_smoothing=0.1)
loss = loss_sum([first, second], labels, alpha=1.0)       # R-Drop: two passes of dropout
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_sum(
    passes: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0, alpha: float = 0.0
) -> Tensor:
    """Summed over the targets, in nats (or squared units, for scores).

    passes: logits (targets, classes) of one pass, or of two that differ in their dropout; then the
    mean of their cross-entropies + α/4 · (KL(p₁‖p₂) + KL(p₂‖p₁)) (Liang et al. 2021, R-Drop, arXiv
    2106.14448, equation 4, halved, so that learning rates keep their meaning). label_smoothing: the
    share of each target that is spread evenly over all classes (Szegedy et al. 2016, section 7).
    labels: classes (targets,), their probabilities (targets, classes), or scores (targets,) that
    logits (targets, 1) should equal.
    """
    each = [_sum(logits.float(), labels, label_smoothing) for logits in passes]
    if len(each) == 1:
        return each[0]
    return (each[0] + each[1]) / 2 + alpha / 4 * divergence_sum(*passes)


def are_scores(labels: Tensor) -> bool:
    """Whether labels are numbers to equal; else they are classes, or probabilities of classes."""
    return labels.is_floating_point() and labels.ndim == 1


def _sum(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if are_scores(labels):
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)


def divergence_sum(first: Tensor, second: Tensor) -> Tensor:
    """Σ KL(p₁‖p₂) + KL(p₂‖p₁) in nats over the targets; logits (targets, classes)."""
    first, second = (torch.log_softmax(logits.float(), dim=-1) for logits in (first, second))
    # Σ p₁·(log p₁ − log p₂) + p₂·(log p₂ − log p₁), with one product instead of two
    return ((first.exp() - second.exp()) * (first - second)).sum()


def target_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(targets,) the cross-entropy in nats, or the squared error, of each."""
    if are_scores(labels):
        return (logits[:, 0].float() - labels).square()
    return F.cross_entropy(logits.float(), labels, reduction="none")
