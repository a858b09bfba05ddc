"""Where a model starts: each parameter drawn from the seed and its own name (`init: by_name`).

The numbers that a seed gives in order move when anything before them is added, dropped or given
another shape, so that two architectures of one seed start as two strangers do. Drawn by name, all
that they share starts the same, their seeds correlate, and a comparison that is paired by seed
needs fewer of them (docs/statistics.md).
"""

import zlib
from typing import Any

import torch
from torch import nn

from core import mix_seed


@torch.no_grad()
def draw_by_name(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew by the model's own rules; those of a module from (seed, name).

    model: of transformers. Tied parameters count once, under their first name. Inner modules come
    first, as in transformers: some rules of an outer one draw what is inside it once more.
    """
    modules = dict(model.named_modules())
    first_owner: dict[int, str] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            first_owner.setdefault(id(parameter), name)
            parameter._is_hf_initialized = False  # else transformers leaves it as it is
    for name, module in reversed(modules.items()):
        owners = {first_owner[id(parameter)] for parameter in module.parameters(recurse=False)}
        if not owners or name in owners:
            torch.manual_seed(mix_seed(seed, zlib.crc32(name.encode())))
            _nearest_model(modules, name)._init_weights(module)


def _nearest_model(modules: dict[str, nn.Module], name: str) -> Any:
    """The innermost model of transformers around a module, whose rules apply."""
    from transformers import PreTrainedModel

    while not isinstance(modules[name], PreTrainedModel):
        name = name.rpartition(".")[0]
    return modules[name]
