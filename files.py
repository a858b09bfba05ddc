"""Files that are whole or not there, and where files are kept.

write_text(path, text)                       # readers see the old file or the new one
write_folder(folder, fill, step=120)         # a folder with a manifest of sizes and hashes
if problem := damage(folder): ...            # None: each file is as the manifest says
"""

import bisect
import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent


def cache_folder() -> Path:
    """Where all that can be made again is kept: ABLATE_CACHE, else cache/ in the project."""
    return Path(os.environ.get("ABLATE_CACHE") or PROJECT / "cache")


def cache_advice(error: BaseException) -> str:
    """What to do about an error that is one of writing to the cache; "" for any other."""
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    if number not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR) or not name:
        return ""
    if not Path(os.fsdecode(name)).is_relative_to(cache_folder()):
        return ""
    return ". The cache is kept there: ABLATE_CACHE=FOLDER names one that can be written"


def find_file(path: str) -> Path:
    """As seen from here, else from the project's folder (configs/…); FileNotFoundError."""
    for place in (Path(path), PROJECT / path):
        if place.exists() and not place.is_dir():  # a pipe, too
            return place
    raise FileNotFoundError(f"{path}: no such file, neither here nor in {PROJECT}")


def require_writable(path: str | Path, folder: bool | None = None) -> None:
    """OSError where a file (or folder) cannot be written there, before the work that it is for.

    folder: whether it is to be one; None: whatever is there already.
    """
    path = Path(os.path.abspath(path))
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if there == path and folder is not None and there.is_dir() != folder:
        is_, name = ("a file", "a folder") if folder else ("a folder", "a file")
        raise OSError(f"{path} is {is_}: name {name}")
    if there != path and not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no permission to write in {there}")


class DiskFull(RuntimeError):
    """There was no room for a file of the run; what was written before is whole."""


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write beside, flush to disk, rename: readers see the old file or the new one.

    shared: several processes may write it at once, as in a cache, so that each has a name of its
    own beside. Else it is one name, and what a kill left there the next writer replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid() if shared else ''}tmp")
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise disk_error(error, path) from error


# What a volume answers that cannot flush: some network ones, and many where it is a folder.
CANNOT_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP)


def sync(descriptor: int) -> None:
    """Flush to disk; nothing where the volume knows no such thing, which costs no run."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise


def sync_folder(folder: Path) -> None:
    """Flush the names in it, as far as the volume lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: Exception, path: Path) -> Exception:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and torch.save hide the number of the error in a text of their own
    signs = ("no space left", "quota exceeded", "inline_container", "failed writing file")
    if not full and not any(sign in str(error).lower() for sign in signs):
        return error
    free = shutil.disk_usage(path.parent).free / 1e6
    return DiskFull(
        f"disk full while writing {path} ({free:.0f} MB free). Earlier checkpoints are whole: "
        "make room and run the same command again"
    )


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SAMPLES, SAMPLE_BYTES = 256, 1 << 16  # 16 MiB of what is larger


def content_digest(path: Path) -> str | None:
    """16 hex digits of what a file or folder holds, not of its name; None: nothing to read there.

    Equal content has equal digests. Of more than 16 MiB the sizes count and 256 parts spread over
    all, so that gigabytes take milliseconds: enough to tell one model from another, while the rows
    that a run reads have a fingerprint of their own. Of a run folder the saved weights count, by
    their manifests, of any other folder all files but hidden ones and Markdown.
    """
    if not path.is_file() and not path.is_dir():  # a pipe can be read once
        return None
    try:
        files = _files_that_count(path) if path.is_dir() else [path]
        sizes = [file.stat().st_size for file in files]
        names = [str(file.relative_to(path)) for file in files]
        facts = list(zip(names, sizes, strict=True))
        digest = hashlib.sha256(json.dumps(facts).encode())
        for number, start, length in _parts_of(sizes):
            with open(files[number], "rb") as file:
                file.seek(start)
                digest.update(file.read(length))
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _files_that_count(folder: Path) -> list[Path]:
    if (folder / "train/weights").is_dir():
        return sorted((folder / "train/weights").glob("[bf]*/manifest.json"))  # best, final
    inside = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
    shown = (path for path, parts in inside if not any(part.startswith(".") for part in parts))
    return sorted(path for path in shown if path.suffix != ".md" and path.is_file())


def _parts_of(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(which file, from which byte, how many): all, or SAMPLES parts of the files in a row."""
    total, ends = sum(sizes), list(itertools.accumulate(sizes))
    if total <= SAMPLES * SAMPLE_BYTES:
        yield from ((number, 0, size) for number, size in enumerate(sizes))
        return
    for part in range(SAMPLES):
        place = (total - SAMPLE_BYTES) * part // (SAMPLES - 1)
        number = bisect.bisect_right(ends, place)
        yield number, place - (ends[number] - sizes[number]), SAMPLE_BYTES


PART = 1 << 22  # bytes that are written at a time


class HashedFile:
    """A new file that is written from front to end, and whose size and hash are known then."""

    def __init__(self, path: Path, proceed: Callable[[], object] = lambda: None):
        """proceed: called ahead of every few megabytes; it may raise."""
        self._file, self._hash, self.proceed = open(path, "wb"), hashlib.sha256(), proceed

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        for start in range(0, len(data), PART):
            self.proceed()
            part = data[start : start + PART]
            self._hash.update(part)
            self._file.write(part)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *error: object) -> None:
        size = self._file.tell()
        self._file.close()
        self.facts = {"bytes": size, "sha256": self._hash.hexdigest()}


def write_folder(
    folder: Path,
    fill: Callable[[Path], Any],
    twins: Path | None = None,
    **facts: Any,
) -> None:
    """Let `fill` write files into a folder beside, hash them in manifest.json, rename.

    fill: may return the facts of those that are HashedFiles, by name. twins: another folder that
    was written like this; a file that is the same there shares its place on the disk where that is
    possible.
    """
    beside, old = cleared(folder, "tmp"), cleared(folder, "old")
    try:
        beside.mkdir(parents=True)
        told = fill(beside)
        known, files = told if isinstance(told, dict) else {}, {}
        for path in sorted(p for p in beside.rglob("*") if p.is_file()):
            name = str(path.relative_to(beside))
            seen = known.get(name)
            files[name] = seen or {"bytes": path.stat().st_size, "sha256": sha256(path)}
            if not (twins and _linked(path, twins, files[name])):
                with open(path, "rb") as file:
                    sync(file.fileno())
        write_text(beside / "manifest.json", json.dumps({**facts, "files": files}, indent=1))
        if folder.exists():  # renamed away first: a rename cannot replace a full folder
            folder.rename(old)
        beside.rename(folder)
        sync_folder(folder.parent)
    except Exception as error:
        if old.exists() and not folder.exists():  # the second of the two renames failed
            with contextlib.suppress(OSError):
                old.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)
        raise disk_error(error, folder) from error
    shutil.rmtree(old, ignore_errors=True)


def _linked(path: Path, folder: Path, fact: dict) -> bool:
    """Whether the file is now another name of one of the same content in the folder. Not all
    volumes have such names."""
    for name, other in (read_json(folder / "manifest.json").get("files") or {}).items():
        if other == fact:
            with contextlib.suppress(OSError):
                link = path.with_name(f"{path.name}.link")
                os.link(folder / name, link)
                os.replace(link, path)
                return True
    return False


def cleared(folder: Path, suffix: str) -> Path:
    """A name beside a folder at which nothing is: what a kill left there goes, or where it cannot
    be removed (NFS keeps what is open) the name gets a number."""
    for number in itertools.count():
        beside = folder.with_name(f"{folder.name}.{number or ''}{suffix}")
        shutil.rmtree(beside, ignore_errors=True)
        if not beside.exists():
            return beside
    raise AssertionError


def remove(path: Path) -> OSError | None:
    """Delete a file or a folder; what is in the way of it, if something is."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


def add_to_folder(folder: Path, name: str, text: str) -> None:
    """One more file of a folder that write_folder wrote. Until the manifest names it, it counts
    for nothing."""
    write_text(folder / name, text)
    manifest = json.loads((folder / "manifest.json").read_text())
    fact = {"bytes": len(text.encode()), "sha256": sha256(folder / name)}
    manifest["files"][name] = fact
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1))


def damage(folder: Path) -> str | None:
    """None when every file is as the manifest says, else the first thing that is not."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, fact in files.items():
            if (folder / name).stat().st_size != fact["bytes"]:
                return f"{name} has another size"
            if sha256(folder / name) != fact["sha256"]:
                return f"{name} has another hash"
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_json(path: Path) -> dict:
    """{} where there is no file, or no JSON object in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def appending(path: Path) -> Iterator[tuple[list[dict], Callable[[dict], None]]]:
    """(the objects in a file of JSON lines, a function that adds one): nobody else adds before the
    block ends, so that what is added may depend on what is there.

    Every line is flushed to disk. One that a kill has torn is left as it is and counts for nothing.
    ValueError for a file of another kind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        # where there are no locks, on some network volumes, one writer at a time has to do
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)  # the end of the block closes the file, and unlocks it
        file.seek(0)
        content = file.read()
        torn = bool(content) and not content.endswith(b"\n")
        found = json_lines(content)
        if content.strip() and not found and not content.startswith(b"{"):
            raise ValueError(f"{path} is no file of JSON lines: nothing is added to it")

        def add(line: dict) -> None:
            nonlocal torn
            text = json.dumps(line, ensure_ascii=False, allow_nan=False)
            file.write((b"\n" if torn else b"") + text.encode() + b"\n")
            file.flush()
            sync(file.fileno())
            torn = False

        yield found, add


def json_lines(content: bytes) -> list[dict]:
    """The objects of a file of JSON lines, without what is none."""
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


# What YAML 1.1 takes for a number to the base 8 or 60.
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|\d[\d_]*(:[0-5]?\d)+(\.\d*)?)")


def read_yaml(path: Path) -> dict[str, Any]:
    """Names and values; ValueError, in a line, for any other file, and for a name that stands twice
    in one place, of which YAML would take the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
            node, first = super().compose_mapping_node(anchor), {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (before := first.setdefault(key.value, key)) is not key:
                    a, b = (each.start_mark.line + 1 for each in (before, key))
                    raise ValueError(f"'{key.value}' stands there twice, in lines {a} and {b}")
            return node

        def compose_scalar_node(self, anchor: dict) -> yaml.ScalarNode:
            node = super().compose_scalar_node(anchor)
            if node.style is None and OTHER_BASE.fullmatch(node.value):
                raise ValueError(f"{node.value} is another number in YAML: write it plainly")
            return node

    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:500]}") from None
    if not isinstance(content, dict | None):
        raise ValueError(f"{path}: expected 'name: value' lines, found {type(content).__name__}")
    return content or {}


def packed_at(path: Path) -> tuple[Path, Path] | None:
    """(FOLDER.zip, FOLDER) of a path that leads into it, where no such folder is; else None."""
    for folder in (path, *path.parents):
        if folder.is_dir():  # what is not in it is nowhere
            return None
        for file in (folder, folder.with_name(f"{folder.name}.zip")):
            if file.suffix == ".zip" and file.is_file():
                return file, folder
        if folder.exists():
            return None
    return None


def walk(folder: Path) -> Iterator[Path]:
    """Files in a folder and below it, also behind symbolic links, each place once, under its own
    name rather than a link's; links that lead to nothing as well."""
    folders, links, seen = [folder], [], set()
    above = {(facts.st_dev, facts.st_ino) for facts in map(os.stat, folder.resolve().parents)}
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        facts = os.stat(here)
        place = facts.st_dev, facts.st_ino
        if place in seen or place in above:
            continue
        seen.add(place)
        for path in sorted(here.iterdir()):
            if not path.is_dir():
                yield path
            elif path.is_symlink():
                links.append(path)
            else:
                folders.append(path)


def csv_text(header: Sequence[str], lines: Iterable[Sequence]) -> str:
    """The text of a CSV file; its lines end with \\n."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def hub_answers() -> bool:
    """Whether the hub can be reached within 3 seconds."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False
    try:
        address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        urllib.request.urlopen(address, timeout=3).close()
    except urllib.error.HTTPError:  # 401, 404 or 429 is an answer, too
        return True
    except OSError:
        return False
    return True
