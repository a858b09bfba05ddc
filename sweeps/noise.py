"""The runs of a sweep that asks where the noise comes from: seeds of their own for each source.

    sweep.py run_5_models.py --config … --noise                        # 4 starts × 2 orders × 2
    sweep.py … --noise seed_init=4 seed_order=3 seed_masks=2
    sweep.py … --noise validation.seed=3 seed_init=3 seed_order=2      # any setting that is a seed

Nested: each start has orders of its own, each order masks of its own, so that what they do together
counts for the inner one and the shares add up to 1 (evaluation/components.py).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

DEFAULT = {"seed_init": 4, "seed_order": 2, "seed_masks": 2}


def parse_design(words: Sequence[str]) -> dict[str, int]:
    """Draws by source, outermost first. ValueError says what is wrong with them."""
    if not words:
        return dict(DEFAULT)
    design: dict[str, int] = {}
    for word in words:
        name, _, count = word.removeprefix("--").partition("=")
        if not count.isdigit() or int(count) < 2:
            raise ValueError(f"--noise {word}: expected SEED=DRAWS with two draws or more")
        design[name.replace("-", "_")] = int(count)
    return design


def check_design(design: Any) -> dict[str, int]:
    """Of a sweep file."""
    if not isinstance(design, Mapping):
        raise ValueError(f"noise: expected names of seeds with draws, found {design!r}")
    return parse_design([f"{name}={draws}" for name, draws in design.items()])


def arms_of(design: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Settings by label: every path through the nest, no seed twice in a source."""
    names, sizes = list(design), list(design.values())
    arms = {}
    for path in itertools.product(*map(range, sizes)):
        place, settings = 0, {}
        for name, size, step in zip(names, sizes, path, strict=True):
            place = place * size + step  # counted through all units above it
            settings[name] = place
        arms["-".join(map(str, path))] = settings
    return arms
