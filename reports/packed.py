"""Run folders in one compressed file: FOLDER.zip is read where FOLDER is not there.

    pack(Path("docs/results/bert"))                        # writes docs/results/bert.zip
    read_bytes(Path("docs/results/bert/tiny/run.json"))    # out of it, once the folder is gone

Every report reads through here, so that what it says of the file is what it says of the folder.
Nothing is unpacked to disk. Any zip program unpacks one: the runs lie in a folder of its name.
"""

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import claims
from files import (
    cleared,
    disk_error,
    packed_at,
    remove,
    require_writable,
    sync,
    walk,
)

SUFFIXES = (".json", ".jsonl", ".yaml", ".csv", ".patch")  # what reports read, and inspect.json
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError)
SAME_DATE = (1980, 1, 1, 0, 0, 0)  # the same runs make the same file


def read_bytes(path: Path) -> bytes:
    """A file on the disk or in a packed folder. OSError where it is not there, or damaged."""
    if (place := _place(path)) is None:
        return path.read_bytes()
    members, name = place
    if name not in members:
        raise FileNotFoundError(f"{path}: no such file in {members.file}")
    try:
        return members.zip.read(members[name])
    except DAMAGE as error:
        raise OSError(f"{path}: damaged in {members.file} ({error})") from None


def is_file(path: Path) -> bool:
    place = _place(path)
    return path.is_file() if place is None else place[1] in place[0]


def is_dir(path: Path) -> bool:
    place = _place(path)
    return path.is_dir() if place is None else place[0].has_folder(place[1])


def files_below(path: Path) -> list[Path]:
    """All files in a folder and below it, also those of runs that are packed there; on the disk
    also behind links (files.walk)."""
    if (place := _place(path)) is None:
        files = list(walk(path))
        return files + [inside for file in files for inside in _runs_in(file)]
    members, name = place
    start = f"{name}/" if name else ""
    return sorted(path / member[len(start) :] for member in members if member.startswith(start))


def _runs_in(file: Path) -> list[Path]:
    """The files of a packed folder that lies on the disk; none of any other zip."""
    if file.suffix != ".zip" or not file.is_file() or file.with_suffix("").exists():
        return []
    try:
        members = _members_of(file)
    except (ValueError, OSError):
        return []
    runs = any(Path(name).name == "run.json" for name in members)
    return [file.with_suffix("") / name for name in members] if runs else []


def unread(path: Path) -> list[str]:
    """Why packed folders at a folder of the disk, or below it, are not read: damaged, or hidden by
    a folder of their name that has not all of their runs. A line each."""
    if not path.is_dir():
        return []
    own = path.resolve()
    beside = own.with_name(f"{own.name}.zip")
    lines = []
    for file in [*([beside] if beside.is_file() else []), *walk(path)]:
        if file.suffix != ".zip" or not file.is_file():
            continue
        try:
            runs = _runs_of(_members_of(file))
        except (ValueError, OSError) as error:
            with open(file, "rb") as begun:
                lines += [f"{error}: left out"] * (begun.read(2) == b"PK")  # else it is none
            continue
        folder = file.with_suffix("")
        hidden = [name for name in runs if not (folder / name / "run.json").is_file()]
        if hidden and folder.exists():
            lines.append(
                f"{file} is not read, as {folder.name} is there as well, which lacks "
                f"{_named(hidden)} of it"
            )
    return lines


def _runs_of(names: Iterable[str]) -> list[str]:
    """The folders of runs among these names."""
    return sorted(str(Path(name).parent) for name in names if Path(name).name == "run.json")


def _named(runs: Sequence[str]) -> str:
    first = "a run" if runs[0] == "." else runs[0]
    return first if len(runs) == 1 else f"{len(runs)} runs ({first}, …)"


def is_packed(path: Path) -> bool:
    return _place(path) is not None


def file_of(path: Path) -> Path | None:
    """The packed folder that a path lies in, absolute; None of what is on the disk."""
    place = _place(path)
    return None if place is None else place[0].file.absolute()


def refuse_inside(path: Path) -> None:
    """ValueError where a file would lie in a packed folder: a folder of that name hides it."""
    if is_packed(path.parent):
        raise ValueError(f"{path} would lie in a packed folder, and hide it: another place")


def folder_name(path: str) -> str:
    """The folder that was packed into a file: x/runs for x/runs.zip, and x/runs/a for x/runs.zip/a.
    A path without such a file, or with the folder beside it, stays as it is."""
    for part in (Path(path), *Path(path).parents):
        if part.suffix == ".zip" and part.is_file() and not part.with_suffix("").exists():
            return str(part.with_suffix("") / Path(path).relative_to(part))
    return path


def require_kind(path: Path, *suffixes: str) -> None:
    """ValueError where a file lies that is of another kind than what is to be written there: it
    would be lost. OSError where none can be written."""
    require_writable(path, folder=False)
    if path.is_file() and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} is there and no {suffixes[0]} file: name another --output")


def pack(folder: Path) -> Path:
    """Write FOLDER.zip: settings, records, logs, metrics and predictions of the runs at or below
    `folder`, without weights, pictures and pages. ValueError where no run is."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if folder.name in ("", ".."):
        folder = folder.resolve()
    files = {}
    for path in files_below(folder):  # also of what is packed there, as reports read it
        inside = path.relative_to(folder).as_posix()
        if not claims.is_counted(path):
            continue
        if path.suffix in SUFFIXES and is_file(path) and "/weights/" not in f"/{inside}":
            files[inside] = read_bytes(path)
    if not any(Path(name).name == "run.json" for name in files):
        raise ValueError(f"{folder}: no run folder in it (none has a run.json)")
    packed = folder.with_name(f"{folder.name}.zip")
    if packed.exists():  # made before, of other runs perhaps, which are nowhere else
        try:
            lost = sorted(set(_runs_of(_members_of(packed))) - set(_runs_of(files)))
            why = f"holds {_named(lost)}, which {folder} has not" if lost else ""
        except ValueError:
            why = "is there, and cannot be read"
        if why:
            raise ValueError(
                f"{packed} {why}: unpack it first (python -m zipfile -e {packed} "
                f"{folder.parent}), or move it away"
            )
    write_zip(packed, {f"{folder.name}/{name}": content for name, content in files.items()})
    return packed


def write_texts(texts: Mapping[Path, str]) -> None:
    """Put texts into files of packed folders, in place of what was there; each zip once."""
    changed: dict[Path, dict[str, bytes]] = {}
    for path, text in texts.items():
        members, name = _place(path)  # type: ignore[misc]
        changed.setdefault(members.file, {})[members[name]] = text.encode()
    for file, contents in changed.items():
        members = _members_of(file)
        others = {full: members.zip.read(full) for full in members.zip.namelist()}
        write_zip(file, others | contents)


class _Members(dict[str, str]):
    """name below the folder → name in the file."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self.zip = zipfile.ZipFile(file)
        except DAMAGE as error:
            raise ValueError(f"{file} cannot be read as a packed folder: {error}") from None
        names = [name for name in self.zip.namelist() if not name.endswith("/")]
        top = f"{file.stem}/"
        start = len(top) if all(name.startswith(top) for name in names) else 0
        super().__init__({name[start:]: name for name in names})

    def has_folder(self, name: str) -> bool:
        return not name or any(member.startswith(f"{name}/") for member in self)


def _place(path: Path) -> tuple[_Members, str] | None:
    """(the packed folder, the name in it) of what lies in one; None of what is on the disk."""
    if (found := packed_at(path)) is None:
        return None
    file, folder = found
    name = path.relative_to(folder).as_posix()
    return _members_of(file), "" if name == "." else name


def _members_of(file: Path) -> _Members:
    facts = file.stat()
    return _members(file, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=16)
def _members(file: Path, changed: int, size: int) -> _Members:
    return _Members(file)


def write_zip(file: Path, contents: Mapping[str, bytes]) -> None:
    """All of it or nothing."""
    beside = cleared(file, "tmp")
    try:
        with zipfile.ZipFile(beside, "w") as packed:
            for name in sorted(contents):
                info = zipfile.ZipInfo(name, SAME_DATE)
                info.external_attr = 0o644 << 16
                packed.writestr(info, contents[name], zipfile.ZIP_BZIP2, 9)
        with open(beside, "rb") as written:
            sync(written.fileno())
        os.replace(beside, file)
    except OSError as error:
        remove(beside)
        raise disk_error(error, file) from error
