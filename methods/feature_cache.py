"""Outputs of frozen blocks never change: compute them once, keep them on disk for later runs.

    key = {"weights": fingerprint(model.base_model), "rows": "…", "max_length": 512}
    values = cached_features(key, lambda: core.evaluate_rows(state, data, features), world)

    values = kept_rows(key, (num_tokens, 768), np.float16, batches, world)  # more than memory holds

One folder a key in features/ of the cache, hashed in its manifest; the least recently used are
deleted when all together hold more than MOST_BYTES.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import core
from device import is_out_of_memory
from files import DiskFull, cache_folder, damage, remove, sync, write_folder

MOST_BYTES = 8 << 30  # 768 numbers in fp32 for 2.8 million rows
ABANDONED_SECONDS = 24 * 3600  # nobody has written to an unfinished part for so long


def fingerprint(module: nn.Module, frozen: bool = False) -> str:
    """16 hex digits of SHA-256 over names and values of all tensors; frozen: of untrained ones."""
    digest = hashlib.sha256()
    trained = {name for name, p in module.named_parameters() if frozen and p.requires_grad}
    for name, tensor in module.state_dict().items():
        if name in trained:
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(memoryview(values.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def cached_features(
    key: dict[str, Any], build: Callable[[], np.ndarray], world: core.World
) -> tuple[np.ndarray, bool]:
    """(features (rows, …), memory-mapped where they lie on disk; whether they were there).

    key: what they depend on, of JSON's types; build: returns them on all ranks alike, and is called
    by all or by none. A damaged folder is made again. A full disk costs the cache, not the run.
    """
    folder = _folder_of(world.from_rank_0(key))  # a device has another name on other machines
    values = _load(folder, world)
    if values is not None:
        return values, True
    values = build()
    if world.rank == 0:

        def fill(beside: Path) -> None:
            np.save(beside / "values.npy", values)

        try:
            _keep(folder, fill, key)
        except (OSError, DiskFull) as error:
            world.say(f"note: features are not kept for other runs ({error})")
    world.barrier()
    return values, False


def on_several_machines(world: core.World) -> bool:
    """By what torchrun says of the processes of this one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) < world.size


def kept_rows(
    key: dict[str, Any],
    shape: tuple[int, int],
    dtype: type[np.number],
    build: Callable[[], Iterator[tuple[int, np.ndarray]]],
    world: core.World,
) -> tuple[np.ndarray | None, bool]:
    """(features of `shape`, memory-mapped; whether they were there), never whole in memory.

    build() yields this rank's (first row, values (rows, width)); together all ranks give each row
    once and write it into one file, so they must be of one machine. None, on all ranks alike and
    said, where the features cannot be kept.
    """
    folder = _folder_of(world.from_rank_0(key))
    features = _load(folder, world)
    if features is not None:
        return features, True
    if on_several_machines(world):
        world.say(
            "note: the frozen part runs in each step: machines that write rows of one file on a "
            "network volume may damage each other's (one machine alone keeps them, for all)"
        )
        return None, False
    needed, free = shape[0] * shape[1] * np.dtype(dtype).itemsize, room()
    if world.any(needed > free):
        world.say(
            f"note: the frozen part runs in each step: its outputs would take "
            f"{needed / 1e9:,.1f} GB of the cache on disk, which has room for {free / 1e9:,.1f}"
        )
        return None, False
    beside = world.from_rank_0(_beside(folder))
    file = beside / "values.npy"

    def create() -> None:
        if world.rank == 0:
            beside.mkdir(parents=True)
            np.lib.format.open_memmap(file, "w+", dtype, shape)  # sparse: nothing is written yet

    def write() -> None:  # not through a memory map, which a full disk ends with a signal
        start, row_bytes = np.load(file, mmap_mode="r").offset, shape[1] * np.dtype(dtype).itemsize
        with open(file, "r+b") as out:
            for first, values in build():
                out.seek(start + first * row_bytes)
                out.write(values.astype(dtype, copy=False).tobytes())

    def finish() -> None:
        if world.rank == 0:
            _keep(folder, lambda part: os.replace(file, part / file.name), key)

    found: list[np.ndarray] = []

    def open_it() -> None:
        found.append(np.load(folder / "values.npy", mmap_mode="r"))

    try:
        for action in (create, write, finish, open_it):
            if problem := _problem(action, world):
                world.say(f"note: the frozen part runs in each step, nothing is kept ({problem})")
                return None, False
    finally:
        if world.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
    return found[0], False


@contextlib.contextmanager
def scratch(
    shape: tuple[int, int], dtype: type[np.number], parts: Iterable[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """A memory-mapped file as kept_rows' of that shape, with something in the rows [first, end) of
    parts alone, which are on disk; gone afterwards. OSError where the disk is full."""
    folder = cache_folder() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    file, row_bytes = folder / f"timed.{secrets.token_hex(4)}", shape[1] * np.dtype(dtype).itemsize
    try:
        start = np.lib.format.open_memmap(file, "w+", dtype, shape).offset
        with open(file, "r+b") as out:
            for first, end in parts:
                out.seek(start + int(first) * row_bytes)
                out.write(bytes(int(end - first) * row_bytes))
            out.flush()
            sync(out.fileno())
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if shape[0] * row_bytes > memory // 2 and hasattr(os, "posix_fadvise"):
                # too much to stay in memory: what is read comes from the disk
                os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield np.load(file, mmap_mode="r")
    finally:
        file.unlink(missing_ok=True)


def _beside(folder: Path) -> Path:
    """Where to write what becomes `folder`: two runs may make the same features at once."""
    return folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")


def _keep(folder: Path, fill: Callable[[Path], None], key: dict[str, Any]) -> None:
    """Write a part of the cache, unless another run has just written the same one."""
    whole = _beside(folder)
    write_folder(whole, fill, key=key)
    if damage(folder) is not None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        whole.rename(folder)
    except OSError:
        shutil.rmtree(whole, ignore_errors=True)
        if damage(folder) is not None:
            raise
    forget_oldest(folder.parent, MOST_BYTES, folder)


def _problem(action: Callable[[], None], world: core.World) -> str:
    """What the disk or the memory of any rank said to it, "" if nothing. All ranks learn it."""
    said = []
    try:
        action()
    except (OSError, DiskFull) as error:
        said = [str(error)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = ["out of memory"]
    return "".join(world.gather_rows(said)[:1])


def room() -> int:
    """Bytes that one more part of the cache may take: half of what is free, MOST_BYTES at most."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return min(MOST_BYTES, shutil.disk_usage(folder).free // 2)


def _folder_of(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / "features" / digest


def _load(folder: Path, world: core.World) -> np.ndarray | None:
    """Memory-mapped; None on all ranks where one of them does not have it whole."""
    values = None
    with contextlib.suppress(OSError, ValueError):  # another run may be deleting it
        if damage(folder) is None:
            values = np.load(folder / "values.npy", mmap_mode="r")
    if world.any(values is None):
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(folder)
    return values


def forget_oldest(folder: Path, most_bytes: int, kept: Path) -> None:
    """Delete what killed runs left, then the least recently used parts until the rest fits."""
    used, sizes = {}, {}
    for part in folder.iterdir():
        facts = []
        for path in (part, *part.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # another run deletes, too
                facts.append(path.stat())
        if "." not in part.name:
            sizes[part] = sum(fact.st_size for fact in facts if stat.S_ISREG(fact.st_mode))
            used[part] = min((fact.st_mtime for fact in facts[:1]), default=0.0)
        elif time.time() - max((fact.st_mtime for fact in facts), default=0.0) > ABANDONED_SECONDS:
            remove(part)  # a folder, or a file of scratch
    for part in sorted(sizes, key=lambda part: used[part]):
        if sum(sizes.values()) <= most_bytes:
            return
        if part != kept:  # a run that reads it keeps its pages: the file is gone only by name
            shutil.rmtree(part, ignore_errors=True)
            del sizes[part]
