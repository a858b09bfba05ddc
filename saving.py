"""What a checkpoint holds, copied to the host, and its two files, hashed while they are written.

    memory = HostCopy()
    weights, rest = memory.take((distinct(model.state_dict()), state.state_dict()))
    facts = write_files(weights, rest, folder)      # while the next step changes the state

The files are model.safetensors, which every tool opens, and state.pt.
"""

import copy
import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from device import available_memory
from files import HashedFile

# safetensors' names, in the order in which it lays tensors out: none begins at an odd address
DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class HostCopy:
    """A copy of a tree of dicts, lists and tensors, in the same host memory each time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple, list[Tensor]] = {}  # by shape and dtype

    @torch.no_grad()
    def take(self, tree: Any, besides: Iterable[Tensor] = ()) -> Any:
        """The tree with tensors of its own, contiguous and on the host, until the next call.
        Tensors of one place in memory (tied weights) stay one.

        besides: those that nobody changes until then, which are taken as they are.
        """
        free, used = self._buffers, defaultdict(list)
        done = {_place(tensor): tensor for tensor in besides}

        def taken(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: taken(each) for key, each in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)([taken(each) for each in value])
            if not isinstance(value, Tensor):
                return copy.deepcopy(value)
            place = _place(value)
            if place not in done or not value.numel():
                kind = value.shape, value.dtype
                known = free.get(kind)
                buffer = known.pop() if known else torch.empty(value.shape, dtype=value.dtype)
                used[kind].append(buffer)
                done[place] = buffer.copy_(value)
            return done[place]

        result = taken(tree)
        self._buffers = used  # what was not used again goes
        return result

    def has_room(self, tree: Any, besides: Iterable[Tensor] = ()) -> bool:
        """Whether the host has memory for the copy that take() would make."""
        there = {_place(tensor) for tensor in besides}
        needed = sum(t.nbytes for t in tensors_of(tree) if _place(t) not in there)
        held = sum(t.nbytes for each in self._buffers.values() for t in each)
        return needed - held < 0.8 * available_memory()


def _place(tensor: Tensor) -> tuple:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def tensors_of(tree: Any) -> Iterable[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_of(value)


def distinct(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state_dict with each tied weight once, by its first name, as transformers writes
    it; safetensors' load_model finds the others."""
    from safetensors.torch import _remove_duplicate_names

    first: dict[int, str] = {}
    for name, tensor in weights.items():
        first.setdefault(tensor.untyped_storage().data_ptr(), name)
    others = _remove_duplicate_names(weights, preferred_names=list(first.values()))
    left_out = {name for names in others.values() for name in names}
    return {name: tensor for name, tensor in weights.items() if name not in left_out}


def write_files(
    weights: dict[str, Tensor],
    rest: dict,
    folder: Path,
    proceed: Callable[[], object] = lambda: None,
) -> dict[str, dict]:
    """Both files; returns their sizes and hashes for the manifest. proceed: see HashedFile."""
    with HashedFile(folder / "model.safetensors", proceed) as model:
        write_weights(weights, model)
    with HashedFile(folder / "state.pt", proceed) as state:
        torch.save(rest, state)
    return {"model.safetensors": model.facts, "state.pt": state.facts}


def write_weights(weights: dict[str, Tensor], file: HashedFile) -> None:
    """What safetensors.torch.save_file writes, byte for byte; that writes to a path alone, which
    would have to be read again for its hash.

    The format: 8 bytes with the length of a JSON header (names, types, shapes, places), the header,
    and the tensors one after the other.
    """
    order = list(DTYPES)
    names = sorted(weights, key=lambda name: (order.index(weights[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor, start = weights[name], end
        end += tensor.nbytes
        kind, shape = DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        flat = weights[name].detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
