"""Which share of what the machine could do does a training step reach?

    with counted_flops() as counted:
        …                                   # our loop; its warm-up steps are counted
    share = counted.per_token * tokens_per_second / peak_flops("fp32")

Counted are the matrix products that really ran, forward and backward, padding and what is computed
twice included, by torch.utils.flop_counter. The peak is that of a large torch.matmul in the same
process, with as many threads.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import WARM_UP


@dataclass
class Counted:
    """Floating-point operations and tokens of the steps that were counted."""

    flops: int = 0
    tokens: int = 0
    steps: int = 0

    @property
    def per_token(self) -> float:
        return self.flops / self.tokens


def flop_counter() -> Any:
    """torch's counter, which (2.13) does not know its own attention on a CPU."""
    import torch
    from torch.utils import flop_counter

    def forward(query, key, value, *_, out_shape=None, **__) -> int:
        return flop_counter.sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
        return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)

    attention = "_scaled_dot_product_flash_attention_for_cpu"
    more = {
        getattr(torch.ops.aten, attention): forward,
        getattr(torch.ops.aten, f"{attention}_backward"): backward,
    }
    return flop_counter.FlopCounterMode(display=False, custom_mapping=more)


@contextlib.contextmanager
def counted_flops() -> Iterator[Counted]:
    """Counts in the warm-up steps of whatever trains by core.train_step."""
    import core

    plain, counted = core.train_step, Counted()

    def train_step(*arguments: Any, **more: Any) -> Any:
        if counted.steps == WARM_UP:
            return plain(*arguments, **more)
        with flop_counter() as counter:
            stats = plain(*arguments, **more)
        counted.flops += counter.get_total_flops()
        counted.tokens += stats["work"].tokens if stats else 0
        counted.steps += 1
        return stats

    core.train_step = train_step
    try:
        yield counted
    finally:
        core.train_step = plain


def peak_flops(precision: str, size: int = 2048, repeats: int = 10) -> float:
    """Floating-point operations a second of the fastest of `repeats` square matrix products."""
    import torch

    a, b = torch.randn(2, size, size, dtype={"bf16": torch.bfloat16}.get(precision, torch.float32))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.matmul(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
