"""What frozen blocks give never changes: compute it once, keep it on disk for the next run, too.

    key = {"weights": fingerprint(model.base_model), "rows": "…", "max_length": 512}
    values = cached_features(key, lambda: core.evaluate_rows(state, data, features), world)

One folder a key in features/ of the cache, hashed in its manifest; the least recently used are
deleted when all together hold more than MOST_BYTES.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import core

MOST_BYTES = 8 << 30  # 768 numbers in fp32 for 2.8 million rows


def fingerprint(module: nn.Module) -> str:
    """16 hex digits of SHA-256 over the names and values of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
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
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = core.cache_folder() / "features" / digest
    found = _load(folder)
    if not world.any(found is None):
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder)
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


def _load(folder: Path) -> np.ndarray | None:
    if core.damage(folder) is not None:
        return None
    return np.load(folder / "values.npy", mmap_mode="r")


def forget_oldest(folder: Path, most_bytes: int, kept: Path) -> None:
    """Delete the least recently used parts of the cache until the rest fits."""
    parts = sorted(
        (part for part in folder.iterdir() if part.is_dir() and part != kept),
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
