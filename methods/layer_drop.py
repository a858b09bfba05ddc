"""Progressive layer dropping (Zhang & He 2020, Accelerating Training of Transformer-Based Language
Models with Progressive Layer Dropping), as No Train No Gain (Kaddour et al. 2023) runs it.

    p = drop_probability(clock.fraction)
    layers = sample_active_layers(p, 16, gate_generator(seed, step, micro_batch))
    model(batch, active_layers=layers)

A layer is dropped whole, and what is kept is not scaled up; the paper gates attention and
feed-forward apart, and scales. Evaluate with all layers.
"""

import math

import torch

from core import mix_seed


def drop_probability(fraction: float, theta: float = 0.5, gamma: float = 100.0) -> float:
    """p(t) = 1 − [θ̄ + (1 − θ̄)·exp(−γ·t)]: from 0 up to 1 − θ̄, t the fraction of the budget.

    theta: the keep probability that is approached; gamma: how soon, 99 % of the way at
    t = 4.6 / gamma.
    """
    return (1 - theta) * (1 - math.exp(-gamma * fraction))


def layer_probabilities(p: float, num_layers: int) -> torch.Tensor:
    """p·(i + 1)/L for layer i = 0 … L − 1: (num_layers,). Upper layers are dropped more often."""
    return p * torch.arange(1, num_layers + 1, dtype=torch.float64) / num_layers


def expected_layers(p: float, num_layers: int) -> float:
    """E[active layers] = L − p·(L + 1)/2; at p = 0.5 it is (3·L − 1)/4."""
    return num_layers - p * (num_layers + 1) / 2


def gate_generator(seed: int, step: int, micro_batch: int) -> torch.Generator:
    """The generator of one micro-batch's gates: any rank can draw those of any micro-batch.

    step: the position of the global batch; micro_batch: its index in it.
    """
    return torch.Generator().manual_seed(mix_seed(seed, step, micro_batch, 6))


def sample_active_layers(p: float, num_layers: int, generator: torch.Generator) -> list[int]:
    """The layers that run, in order. An empty list means that none does."""
    draws = torch.rand(num_layers, generator=generator, dtype=torch.float64)
    return (draws >= layer_probabilities(p, num_layers)).nonzero().flatten().tolist()
