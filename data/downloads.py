"""Download what the experiments of "No Train No Gain" published: https://zenodo.org/records/8279728

    download_c4_subset()                # the packed C4 subset with its tokenizer
    download_il_losses("c4")            # irreducible losses: ids.npy, losses.npy

A download continues where it broke off, is checked against the checksum of the record, and is
unpacked aside: a folder that is there is whole. Nothing in an archive is executed: links and paths
that leave the folder are refused, and the losses, which were published as pickled dictionaries,
are read by an unpickler that knows dict, int and float, and become two NumPy arrays.
"""

import contextlib
import hashlib
import http.client
import json
import os
import pickle
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

import console
from data.records import strip_control
from files import DiskFull, cache_folder, disk_error, write_folder

ZENODO = "https://zenodo.org"
RECORD = 8279728
C4_SUBSET = "c4-subset-random.tar.bz2"
IL_LOSSES = {"c4": "il_losses_c4.tar", "bcwk": "il_losses_bcwk.tar", "mp": "il_losses_mp.tar"}
# our names of the same corpora
IL_ALIASES = {"c4-subset": "c4", "minipile": "mp"} | dict.fromkeys(
    ("bookcorpus-wikipedia", "bookcorpus-wikitext"), "bcwk"
)

ATTEMPTS = 8  # in a row without a new byte; the waits between them add up to two minutes
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 20


def download_c4_subset(out: str | os.PathLike | None = None, site: str = ZENODO) -> Path:
    """The folder of the published C4 subset; `data=c4-subset` then reads it.

    out: where to; None: downloads/c4-subset in the cache. site: the address in front of /api.
    """
    folder = Path(out) if out else cache_folder() / "downloads" / "c4-subset"

    def fill(archive: Path, beside: Path) -> None:
        with _open_archive(archive) as members:
            for member, tar in members:
                tar.extract(member, beside, filter="data")

    return _download(C4_SUBSET, folder, fill, site)


def download_il_losses(
    dataset: str, out: str | os.PathLike | None = None, site: str = ZENODO
) -> Path:
    """The folder with ids.npy (n,) int64, ascending, and losses.npy (n,) float32, nats per token.

    dataset: c4, bcwk, mp, or our name of that corpus. The ids count the sequences of the published
    train part in its order: on the published C4 subset, id k is the sequence split.train[k].
    """
    name = IL_ALIASES.get(dataset, dataset)
    if name not in IL_LOSSES:
        names = ", ".join([*IL_LOSSES, *IL_ALIASES])
        raise ValueError(f"il_losses of '{dataset}': expected one of {names}")
    folder = Path(out) if out else cache_folder() / "downloads" / f"il_losses_{name}"

    def fill(archive: Path, beside: Path) -> None:
        ids, losses = [], []
        with _open_archive(archive) as members:
            for member, tar in members:
                if member.isfile() and member.name.endswith(".pkl"):
                    place = f"{archive.name}, {strip_control(member.name)}"
                    part = read_losses(tar.extractfile(member), place)
                    ids.append(part[0])
                    losses.append(part[1])
        if not ids:
            raise ValueError(f"{archive}: no .pkl file with losses in it")
        all_ids = np.concatenate(ids)
        order = np.argsort(all_ids, kind="stable")
        all_ids = all_ids[order]
        if (all_ids[1:] == all_ids[:-1]).any():
            raise ValueError(f"{archive}: some sequences have two losses")
        all_losses = np.concatenate(losses)[order]
        finite = np.isfinite(all_losses)
        if not finite.all():
            console.say(
                f"{archive.name}: {(~finite).sum():,} losses that are not finite are left out"
            )
        np.save(beside / "ids.npy", all_ids[finite])
        np.save(beside / "losses.npy", all_losses[finite])

    return _download(IL_LOSSES[name], folder, fill, site)


def _download(name: str, folder: Path, fill: Callable[[Path, Path], None], site: str) -> Path:
    if (folder / "manifest.json").is_file():
        console.say(f"{folder} is there already")
        return folder
    archive = fetch(name, folder.parent, site)
    console.say(f"unpacking {archive} into {folder}")
    origin = f"{site}/records/{RECORD}/files/{name}"
    write_folder(folder, lambda beside: fill(archive, beside), origin=origin)
    archive.unlink()
    return folder


# ------------------------------------------------------------------------------- fetching


def fetch(name: str, folder: Path, site: str = ZENODO) -> Path:
    """One file of the record, checked by its checksum, as folder/name.

    Broken connections and errors of the server are tried again, from the byte where it stopped.
    Raises ConnectionError when no more bytes come, ValueError for content with another checksum
    (after a second download from the start), DiskFull before there is no room for it.
    """
    site = site.rstrip("/")
    if urllib.parse.urlsplit(site).scheme not in ("http", "https"):
        raise ValueError(f"{site}: expected an address that begins with https:// or http://")
    size, md5 = _file_facts(name, site)
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / name, folder / f"{name}.part"
    if path.is_file() and path.stat().st_size == size and _md5(path) == md5:
        return path
    missing = size - (part.stat().st_size if part.is_file() else 0)
    if missing > shutil.disk_usage(folder).free:
        raise DiskFull(f"{name} needs {missing / 1e9:.1f} GB more in {folder}")
    url = f"{site}/api/records/{RECORD}/files/{name}/content"
    for attempt in ("first", "second"):
        _receive(url, part, size)
        if _md5(part) == md5:
            part.rename(path)
            return path
        part.unlink()
        if attempt == "first":
            console.say(f"{name}: another checksum than the record's: once more from the start")
    raise ValueError(f"{name}: its MD5 is not {md5}, which the record {RECORD} at {site} states")


def _file_facts(name: str, site: str) -> tuple[int, str]:
    """(bytes, MD5 as hex) of a file, as the record states them."""
    url = f"{site}/api/records/{RECORD}"
    for wait in _waits():
        try:
            with _open(url) as response:
                content = response.read(10 << 20)
            break
        except (OSError, http.client.HTTPException) as error:
            _wait_or_raise(error, wait, url)
    try:
        for file in json.loads(content)["files"]:
            if file["key"] == name:
                kind, _, md5 = file["checksum"].rpartition(":")
                if kind not in ("md5", ""):
                    raise ValueError(f"a checksum of the kind {strip_control(kind)}")
                return int(file["size"]), md5
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url}: not the description of a record ({error!r})") from None
    raise ValueError(f"{url}: the record has no file {name}")


def _receive(url: str, part: Path, size: int) -> None:
    """Fill `part` up to `size` bytes."""
    from tqdm import tqdm

    part.touch()
    waits, furthest = _waits(), part.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=part.stem) as bar:
        while (have := part.stat().st_size) < size:
            error: Exception = ConnectionError("the connection closed early")
            try:
                _receive_rest(url, part, have, bar)
            except urllib.error.HTTPError as refusal:
                if refusal.code == 416:  # the server's file ends here: the checksum will tell
                    return
                error = refusal
            except (OSError, http.client.HTTPException) as broken:
                error = disk_error(broken, part)
                if isinstance(error, DiskFull):
                    raise error from broken
            now = part.stat().st_size
            if now > furthest:
                waits, furthest = _waits(), now
            if now < size:
                _wait_or_raise(error, next(waits), url)


def _receive_rest(url: str, part: Path, have: int, bar: Any) -> None:
    """Append what follows the first `have` bytes until the connection ends."""
    with _open(url, have) as response, open(part, "r+b") as file:
        start = _range_start(response)
        if start != have:  # the server sends the file from its start, whatever it was asked
            start = 0
        file.truncate(start)
        file.seek(start)
        bar.update(start - bar.n)
        while chunk := response.read(CHUNK_BYTES):
            bar.update(file.write(chunk))


def _open(url: str, start: int = 0) -> http.client.HTTPResponse:
    # identity: a server that compressed on the way would count other bytes
    headers = {"User-Agent": "ablate", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)


def _range_start(response: http.client.HTTPResponse) -> int:
    """The first byte that the server sends."""
    if response.status != 206:
        return 0
    return int(response.headers["Content-Range"].removeprefix("bytes ").partition("-")[0])


def _waits() -> Iterator[float]:
    """Seconds to wait after each failure: 1, 2, 4 … 60; inf when it was the last."""
    yield from (min(60.0, 2.0**n) for n in range(ATTEMPTS - 1))
    yield float("inf")


def _wait_or_raise(error: Exception, wait: float, url: str) -> None:
    """Sleep before the next attempt; raise ConnectionError when that would not help."""
    final = wait == float("inf")
    if isinstance(error, urllib.error.HTTPError):
        # the client's fault, unless the server only asks to come back
        final |= 400 <= error.code < 500 and error.code not in (408, 425, 429)
        with contextlib.suppress(TypeError, ValueError):
            wait = max(wait, min(120.0, float(error.headers["Retry-After"])))
    if final:
        raise ConnectionError(
            f"{url}: {error}. What has come is kept: run the same command again to continue."
        ) from error
    console.say(f"{url}: {error}; again in {wait:.0f} s")
    time.sleep(wait)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# ------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]]:
    """The members of a tar, each checked before it is given; ValueError for a suspicious one."""

    def members() -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        for member in tar:
            name = PurePosixPath(member.name)
            kind = "a link or device" if not (member.isfile() or member.isdir()) else None
            if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                kind = "a path that leaves its folder"
            if kind:
                raise ValueError(
                    f"{path}: '{strip_control(member.name)}' is {kind}: refused, nothing of the "
                    "archive is kept"
                )
            if member.size > shutil.disk_usage(path.parent).free:
                raise DiskFull(f"{path}: no room to unpack it: make some and run again")
            yield member, tar

    try:
        with tarfile.open(path, "r|*") as tar:  # as a stream: bz2 cannot be read back and forth
            yield members()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: not a readable tar archive ({error})") from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads dict, int and float, which pickle builds without looking up any name."""

    def find_class(self, module: str, name: str) -> type:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_losses(file: IO[bytes], place: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled {sequence: loss} → ids (n,) int64, losses (n,) float32.

    Raises ValueError, with `place`, for any other content; executes none of it.
    """
    try:
        table = _PlainUnpickler(file).load()
    except Exception as error:  # a broken pickle raises whatever it stumbles over
        text = strip_control(f"{type(error).__name__}: {error}")[:200]
        raise ValueError(f"{place}: not a pickle of dict, int and float ({text})") from None
    kinds = (set(map(type, table)), set(map(type, table.values()))) if type(table) is dict else ()
    if not kinds or not kinds[0] <= {int} or not kinds[1] <= {float}:
        raise ValueError(f"{place}: expected a dictionary from whole numbers to losses")
    try:
        ids = np.fromiter(table.keys(), np.int64, len(table))
    except OverflowError:
        raise ValueError(f"{place}: a sequence number of more than 63 bits") from None
    losses = np.fromiter(table.values(), np.float32, len(table))
    if (ids < 0).any():
        raise ValueError(f"{place}: a negative sequence number")
    return ids, losses
