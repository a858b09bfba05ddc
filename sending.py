"""A state of nested dicts and lists from one process to all, tensor by tensor.

    large = []
    form = outline(saved, large)            # small: pickled and sent to all
    send_each(large, device)                # rank 0
    saved = filled(form, device)            # all others

As one pickled object a checkpoint would lie in memory several times, on the host and on each GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LARGE = 1000  # elements, from which on a tensor is sent by itself


@dataclass
class Large:
    """In the place of such a tensor."""

    shape: torch.Size
    dtype: torch.dtype


def outline(tree: Any, large: list[Tensor]) -> Any:
    """The tree with Large in the place of the tensors that are added to `large`."""
    if isinstance(tree, Tensor) and tree.numel() >= LARGE:
        large.append(tree)
        return Large(tree.shape, tree.dtype)
    if isinstance(tree, dict):
        return {key: outline(value, large) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([outline(value, large) for value in tree])
    return tree


def send_each(large: Sequence[Tensor], device: torch.device) -> None:
    for tensor in large:
        dist.broadcast(tensor.to(device).contiguous(), src=0)


def filled(form: Any, device: torch.device, on_device: bool = False) -> Any:
    """The tree again, with what rank 0 sends: on the host, but what is below a key `optimizer`,
    whose place is the device."""
    if isinstance(form, Large):
        tensor = torch.empty(form.shape, dtype=form.dtype, device=device)
        dist.broadcast(tensor, src=0)
        return tensor if on_device else tensor.cpu()
    if isinstance(form, dict):
        inner = {key: on_device or key == "optimizer" for key in form}
        return {key: filled(value, device, inner[key]) for key, value in form.items()}
    if isinstance(form, (list, tuple)):
        return type(form)([filled(value, device, on_device) for value in form])
    return form
