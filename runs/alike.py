"""Whether all processes of a run do the same.

On several machines each process has a command line, files and a device of its own. Where they
differ the gradients of two runs would be summed, and nothing would say so.

    require_alike(world, settings_of(config, contents))     # before anything is read
    require_alike(world, work_of(state, facts))             # before the first step
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from core import State, World
from runs.folder import FINGERPRINTS
from settings import FREE_SETTINGS, Settings, as_dict, flatten

# What a process may have of its own: it is rank 0's affair, or of its machine.
OWN_SETTINGS = FREE_SETTINGS - {"save_every", "dry_run", "stop_after"}


class Fact(NamedTuple):
    """What one process has. Of files and folders the content counts, for they may lie elsewhere."""

    value: Any
    content: str | None = None

    def differs(self, other: "Fact") -> bool:
        if self.content and other.content:
            return self.content != other.content
        return self.value != other.value


def settings_of(config: Settings, contents: dict[str, str]) -> dict[str, Fact]:
    """Those that must be the same everywhere; contents: digests of what they name, by setting."""
    settings = flatten(as_dict(config))  # which does not count as reading them
    return {
        f"--{name}": Fact(value, contents.get(name))
        for name, value in settings.items()
        if name not in OWN_SETTINGS
    }


def work_of(state: State, facts: dict[str, Any]) -> dict[str, Fact]:
    """The rows, the model and the precision of a process; facts: the experiment's."""
    data = state.loader.data
    parameters = [[n, list(p.shape), p.requires_grad] for n, p in state.model.named_parameters()]
    values = {
        **{name: facts.get(name) for name in FINGERPRINTS},
        "training rows": len(data.lengths),
        "tokens": [int(np.sum(data.lengths)), int(np.sum(data.tokens))],
        "parameters": hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:16],
        "precision (--precision names one for all)": state.precision,
    }
    return {name: Fact(value) for name, value in values.items()}


def require_alike(world: World, facts: dict[str, Fact]) -> None:
    """ValueError, on all ranks, that names what one of them has otherwise than rank 0."""
    first, *others = world.gather_rows([facts])
    for rank, theirs in enumerate(others, start=1):
        lines = []
        for name in first | theirs:
            own, other = first.get(name, Fact(None)), theirs.get(name, Fact(None))
            if own.differs(other):
                holds = " (it holds something else)" if own.content and other.content else ""
                lines.append(f"  {name}: {other.value!r} there{holds}, {own.value!r} in process 0")
        if lines:
            raise ValueError(
                f"process {rank} of this run would do something else than process 0:\n"
                + "\n".join(lines)
                + "\ngive all machines the same command, code and files"
            )
