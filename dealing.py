"""Which rows are computed together, and by whom: functions of numbers alone.

parts = cut_micro_batches(rows, lengths, 8)        # of a global batch
hands = deal(costs, world_size)                    # numbers of parts, for each rank
mine = join_neighbours(mine, lengths, 16_384)      # where nothing is drawn for each part
"""

from collections.abc import Sequence

import numpy as np


def mix_seed(*parts: int) -> int:
    """A 63-bit seed from whole numbers, by SplitMix64 (Steele, Lea, Flood 2014).

    Fixed arithmetic: the same in every process and every version of Python.
    """
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def cut_micro_batches(rows: np.ndarray, lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows sorted by length (longest first, ties by row number), cut into parts of `size`."""
    order = np.lexsort((rows, -lengths[rows]))
    return [rows[order[start : start + size]] for start in range(0, len(rows), size)]


def deal(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Item numbers for each worker: largest first, each to the least loaded one."""
    hands: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = load.index(min(load))
        hands[least].append(item)
        load[least] += costs[item]
    return [sorted(hand) for hand in hands]


def join_neighbours(
    mine: list[tuple[int, np.ndarray]], lengths: np.ndarray, tokens: int
) -> list[tuple[int, np.ndarray]]:
    """Micro-batches as one under the index of the first, while that is at most so many tokens."""
    joined: list[tuple[int, np.ndarray]] = []
    for index, rows in mine:
        if joined:
            first, before = joined[-1]
            both = np.concatenate([before, rows])
            if len(both) * int(lengths[both].max()) <= tokens:
                joined[-1] = (first, both)
                continue
        joined.append((index, rows))
    return joined
