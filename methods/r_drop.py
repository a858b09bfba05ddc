"""R-Drop: two passes with different dropout masks are trained to predict the same.

    loss_sum, _ = gpt.head_losses(hidden, weight, labels, lambda *x: r_drop(*x, alpha=1.0))

Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks (arXiv 2106.14448), equation 4,
halved: with alpha 0 it is the mean of the two cross-entropies, so that learning rates keep their
meaning. The logged training loss is larger by α/4 of the divergences.
"""

import torch
from torch import Tensor


def r_drop(logits: Tensor, labels: Tensor, alpha: float = 1.0) -> Tensor:
    """logits (2, rows, vocab) of the two passes, labels (rows,) → nats (rows,).

    −(log p₁(y) + log p₂(y)) / 2 + α/4 · (KL(p₁‖p₂) + KL(p₂‖p₁)). ValueError for another number of
    passes.
    """
    if len(logits) != 2:
        raise ValueError(f"R-Drop compares 2 passes, not {len(logits)}")
    first, second = torch.log_softmax(logits, dim=-1)
    # Σ p₁·(log p₁ − log p₂) + p₂·(log p₂ − log p₁), with one product instead of two
    divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1)
    picked = (first + second).gather(1, labels[:, None]).squeeze(1)
    return -picked / 2 + alpha / 4 * divergence
