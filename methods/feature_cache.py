"""What frozen blocks give never changes: compute it once, keep it on disk for the next run, too.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import core

MOST_BYTES = 8 << 30  # 768 numbers in fp32 for 2.8 million rows


def fingerprint(module: nn.Module, frozen: bool = False) -> str:
    """16 hex digits of SHA-256 over names and values of all tensors; frozen: of untrained ones."""
    digest = hashlib.sha256()
    trained = {name for name, p in module.named_parameters() if frozen and p.requires_grad}
    for name, tensor in module.state_dict().items():
        if name in trained:
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(memoryview(values.flatten().view(core.torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def cached_features(
    key: dict[str, Any], build: Callable[[], np.ndarray], world: core.World
) -> tuple[np.ndarray, bool]:
    """(features (rows, …), memory-mapped where they lie on disk; whether they were there).

    key: what they depend on, of JSON's types; build: gives them on all ranks alike, and is called
    by all or by none. A damaged folder is made again. A full disk costs the cache, not the run.
    """
    folder = _folder_of(key)
    found = _load(folder, world)
    if found is not None:
        return found, True
    values = build()
    if world.rank == 0:

        def fill(beside: Path) -> None:
            np.save(beside / "values.npy", values)

        try:
            core.write_folder(folder, fill, key=key)
            forget_oldest(folder.parent, MOST_BYTES, folder)
        except (OSError, core.DiskFull) as error:
            world.say(f"note: features are not kept for other runs ({error})")
    world.barrier()
    return values, False


def kept_rows(
    key: dict[str, Any],
    shape: tuple[int, int],
    dtype: type[np.number],
    build: Callable[[], Iterator[tuple[int, np.ndarray]]],
    world: core.World,
) -> tuple[np.ndarray | None, bool]:
    """(features of `shape`, memory-mapped; whether they were there), never whole in memory.

    build() yields this rank's (first row, values (rows, width)); together all ranks give each row
    once and write it into one file, so they need one cache folder. None, on all ranks alike and
    said, where the features cannot be kept.
    """
    folder = _folder_of(key)
    found = _load(folder, world)
    if found is not None:
        return found, True
    needed, free = shape[0] * shape[1] * np.dtype(dtype).itemsize, room()
    if world.any(needed > free):
        world.say(
            f"note: the frozen part runs in each step: what it gives would take "
            f"{needed / 1e9:,.1f} GB of the cache on disk, which has room for {free / 1e9:,.1f}"
        )
        return None, False
    beside = world.from_rank_0(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp"))
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
            whole = beside.with_suffix(".whole")
            core.write_folder(whole, lambda part: os.replace(file, part / file.name), key=key)
            _publish(whole, folder)
            forget_oldest(folder.parent, MOST_BYTES, folder)

    try:
        for action in (create, write, finish):
            if problem := _problem(action, world):
                world.say(f"note: the frozen part runs in each step, nothing is kept ({problem})")
                return None, False
    finally:
        if world.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
    return np.load(folder / "values.npy", mmap_mode="r"), False


def _publish(whole: Path, folder: Path) -> None:
    """Give a folder its name, unless another run has just written the same one."""
    if folder.exists() and core.damage(folder) is not None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        whole.rename(folder)
    except OSError:
        shutil.rmtree(whole, ignore_errors=True)
        if core.damage(folder) is not None:
            raise


def _problem(action: Callable[[], None], world: core.World) -> str:
    """What the disk or the memory of any rank said to it, "" if nothing. All ranks learn it."""
    said = []
    try:
        action()
    except (OSError, core.DiskFull) as error:
        said = [str(error)]
    except Exception as error:
        if not core.is_out_of_memory(error):
            raise
        said = ["out of memory"]
    return "".join(world.gather_rows(said)[:1])


def room() -> int:
    """Bytes that one more part of the cache may take: half of what is free, MOST_BYTES at most."""
    folder = core.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return min(MOST_BYTES, shutil.disk_usage(folder).free // 2)


def _folder_of(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return core.cache_folder() / "features" / digest


def _load(folder: Path, world: core.World) -> np.ndarray | None:
    """Memory-mapped; None on all ranks where one of them does not have it whole."""
    if world.any(core.damage(folder) is not None):
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(folder)
    return np.load(folder / "values.npy", mmap_mode="r")


def forget_oldest(folder: Path, most_bytes: int, kept: Path) -> None:
    """Delete the least recently used parts of the cache until the rest fits."""
    parts = sorted(
        # a dot: what a run is writing just now
        (p for p in folder.iterdir() if p.is_dir() and p != kept and "." not in p.name),
        key=lambda part: part.stat().st_mtime,
    )
    sizes = {
        part: sum(f.stat().st_size for f in part.rglob("*") if f.is_file())
        for part in (*parts, kept)
    }
    for part in parts:
        if sum(sizes.values()) <= most_bytes:
            return
        # a run that reads it keeps its pages: the file is gone only by name
        shutil.rmtree(part, ignore_errors=True)
        del sizes[part]
